"""Identities outlive the fields that settings get later."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from parelu.network.settings import settings, younger
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import Training


@dataclasses.dataclass(frozen=True)
class Now:
    old: int = 1
    new: float | None = younger(None)
    newer: tuple[int, ...] = younger(())


@given(st.integers(), st.none() | st.floats(allow_nan=False), st.just(()) | st.tuples(st.integers()))
def test_a_younger_field_stands_there_where_it_is_not_its_default(old, new, newer):
    expected = {"old": old, **({} if new is None else {"new": new}), **({"newer": newer} if newer else {})}
    assert settings(Now(old, new, newer)) == expected


def test_the_identities_of_the_first_version_stay():
    """Fields at their defaults are those that run folders of before hold."""
    assert list(settings(Training())) == [
        *("epochs", "batch", "lr", "schedule", "momentum", "weight_decay", "label_smoothing", "optimizer"),
        *("clip", "begin", "end"),
    ]
    assert list(settings(CrossEntropy())) == ["label_smoothing"]
    assert list(settings(Distillation())) == ["temperature", "weight", "mismatch", "tails", "auxiliary"]
    assert list(settings(DecoupledDistillation())) == ["temperature", "alpha", "beta", "warmup"]
    assert settings(Distillation(ce_weight=0.5))["ce_weight"] == 0.5
