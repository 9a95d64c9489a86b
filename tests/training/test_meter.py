"""Losses that are looked at late: their means, and that none which is not finite is passed over."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parelu.training.meter import Meter


def unseen(meter: Meter, losses: list[float]) -> None:
    """Steps on a device at which nothing looks yet."""
    for loss in losses:
        with pytest.MonkeyPatch.context() as blind:
            blind.setattr(Meter, "check", lambda self: None)
            meter.add({"loss": torch.tensor(loss), "ce": torch.tensor(loss / 2)})


def begun() -> Meter:
    meter = Meter()
    meter.begin(lambda loss: OverflowError(str(loss)))
    return meter


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_means_are_those_of_the_steps(losses):
    meter = begun()
    unseen(meter, losses)
    assert meter.means() == {
        "loss": pytest.approx(sum(losses) / len(losses), abs=1e-6),
        "ce": pytest.approx(sum(losses) / len(losses) / 2, abs=1e-6),
    }
    assert meter.shown == losses[-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_not_finite_is_found_at_the_next_look(bad, at):
    losses = [1.0, 2.0, 3.0, 4.0]
    losses[at] = bad
    for look in (Meter.check, Meter.means):
        meter = begun()
        unseen(meter, losses)
        with pytest.raises(OverflowError):
            look(meter)
    meter.begin(OverflowError)
    unseen(meter, [1.0])
    meter.check()  # the next epoch is another


def test_a_cpus_losses_are_looked_at_each_step():
    meter = begun()
    meter.add({"loss": torch.tensor(1.0)})
    assert meter.shown == 1.0
    with pytest.raises(OverflowError, match="nan"):
        meter.add({"loss": torch.tensor(math.nan)})
