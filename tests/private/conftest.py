"""What the tests of private inference start from."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compiled(compiled: None) -> None: ...
