"""What the tests of private inference start from, and what those of hints share."""

import pytest

from parelu.fusion.hint_plan import OFTEN, ONCE, plan
from parelu.private.offline import hint_exchange, hint_sets


@pytest.fixture(scope="session", autouse=True)
def _compiled(compiled: None) -> None: ...


@pytest.fixture
def two_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers offer both plans, and who asks more than once takes the second, also where so small a network gains
    nothing by it."""
    monkeypatch.setattr(hint_sets, "plans", lambda layers: (plan(layers, ONCE), plan(layers, OFTEN)))
    monkeypatch.setattr(hint_exchange, "best", lambda plans, queries: len(plans) - 1 if queries > 1 else 0)
