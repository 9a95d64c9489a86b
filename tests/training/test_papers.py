"""The named trainings against the papers' sentences, typed apart from the code, and milestones."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.training import papers
from parelu.training.papers import PAPERS
from parelu.training.schedule import SHORT, Training

# As the papers' sentences have them: epochs, batch, rate, decay, schedule, and the epochs after which rates fall.
FULL = {
    "deepreduce": (120, 128, 0.1, 4e-4, "step", (30, 60, 90)),  # section 4
    "deepreduce-cifar10": (150, 128, 0.1, 4e-4, "cosine", ()),  # section 4
    "snl": (160, 256, 0.1, 5e-4, "step", (80, 120)),  # public code
    "autorep": (400, 256, 0.1, 5e-4, "cosine", ()),  # section 4.1; batch and decay: public code
    "autorep-public": (400, 256, 0.1, 5e-4, "cosine", ()),
    "senet": (240, 128, 0.05, 5e-4, "step", (150, 180, 210)),
    "shallow": (240, 128, 0.05, 5e-4, "step", (150, 180, 210)),
    "deepreshape": (200, 128, 0.1, 5e-4, "cosine", ()),  # Appendix J
}


def rates(training: Training) -> list[float]:
    """At each epoch's first step."""
    return [training.lr * training.shape(epoch / training.epochs) for epoch in range(training.epochs)]


@pytest.mark.parametrize("name", PAPERS)
def test_the_full_networks_training_is_the_papers(name):
    epochs, batch, lr, decay, schedule, falls = FULL[name]
    full = papers.named(name).full
    assert (full.epochs, full.batch, full.weight_decay, full.momentum) == (epochs, batch, decay, 0.9)
    assert (full.optimizer, full.schedule, full.label_smoothing) == ("sgd", schedule, 0)
    assert full.clip == (5 if name == "autorep-public" else 0)
    found = rates(full)
    assert found[0] == lr
    if schedule == "step":
        expected = [lr / 10 ** sum(epoch >= fall for fall in falls) for epoch in range(epochs)]
        assert found == pytest.approx(expected)
    else:
        assert found[epochs // 2] == pytest.approx(lr / 2) and found[-1] < lr / 1000


def test_the_rates_of_shallow_again_at_each_epoch():
    """Section 5.1: 180 epochs from 0.01, a tenth of it from 90, 140 and 160 on; γ moves in the first 90."""
    training = papers.named("shallow")
    finetuning = training.full.changed(**training.options["gated"]["finetune"])
    expected = [0.01] * 90 + [1e-3] * 50 + [1e-4] * 20 + [1e-5] * 20
    assert rates(finetuning) == pytest.approx(expected)
    gating = dataclasses.replace(finetuning, epochs=90, end=0.5)
    rest = dataclasses.replace(finetuning, epochs=90, begin=0.5)
    assert rates(gating) + rates(rest) == pytest.approx(expected)
    assert papers.options_of("paper", "gated")["gate_epochs"] == 90


def test_every_training_can_be_had_by_name_and_no_other():
    assert {name: papers.named(name) for name in PAPERS} == PAPERS
    assert papers.named("short").full == SHORT and not papers.options_of("short", "snl")
    with pytest.raises(UserError, match=r"^no training 'snll'; known are paper, short, deepreduce, .*deepreshape$"):
        papers.named("snll")


def test_every_method_has_a_training_of_its_own_or_deepreduces():
    own = {name: papers.of_method(name) for name in methods()}
    assert {name: paper for name, paper in own.items() if paper != "deepreduce"} == {
        "snl": "snl",
        "autorep": "autorep",
        "senet": "senet",
        "gated": "shallow",
        "deepreshape": "deepreshape",
    }
    assert all(name in papers.named(paper).options for name, paper in own.items() if paper != "deepreduce")
    assert papers.options_of("paper", "snl") == papers.options_of("snl", "snl") != {}
    assert papers.options_of("snl", "autorep") == {}, "SNL's paper says nothing of it"


@given(st.lists(st.integers(1, 299), min_size=1, max_size=4, unique=True).map(sorted), st.integers(1, 299))
def test_the_rate_falls_at_the_milestones_whatever_part_of_the_training_they_are_in(milestones, border):
    whole = Training(epochs=300, lr=1.0, milestones=tuple(milestones))
    expected = [10.0 ** -sum(epoch >= m for m in milestones) for epoch in range(300)]
    assert rates(whole) == pytest.approx(expected)
    first = dataclasses.replace(whole, epochs=border, end=border / 300)
    second = dataclasses.replace(whole, epochs=300 - border, begin=border / 300)
    assert rates(first) + rates(second) == pytest.approx(expected)
    last_steps = [whole.shape((epoch + 390 / 391) / 300) for epoch in range(300)]
    assert last_steps == pytest.approx(expected), "a rate holds for whole epochs"


def test_quarters_are_milestones_too():
    assert rates(Training()) == pytest.approx(rates(Training(milestones=(30, 60, 90))))


def test_milestones_that_cannot_be_are_refused_in_a_line():
    for bad in ((0, 3), (3, 3), (5, 3), (1.5,), (True,), [30], "30"):
        with pytest.raises(UserError, match=r"^milestones is .* whole numbers in rising order"):
            Training(milestones=bad)
    with pytest.raises(UserError, match=r"^milestones end at 120, and there are 120 epochs; give smaller ones"):
        Training(milestones=(30, 120))
    with pytest.raises(UserError, match=r"^milestones are of the schedule step, and this one is cosine; leave them"):
        Training(schedule="cosine", milestones=(30,))
    with pytest.raises(UserError, match=r"^milestones end at 90, and there are 60 epochs"):
        Training().changed(epochs=60, milestones=[30, 90])


@given(st.integers(1, 400))
def test_milestones_follow_the_number_of_epochs(epochs):
    full = Training(epochs=200, milestones=(100, 150)).changed(epochs=epochs)
    expected = sorted({round(epochs / 2), round(epochs * 3 / 4)})
    assert full.milestones == tuple(m for m in expected if 1 <= m < epochs)


def test_milestones_go_with_the_schedule_and_stay_with_other_changes():
    training = Training(milestones=(60,))
    assert training.changed(schedule="cosine") == Training(schedule="cosine")
    assert training.changed(lr=0.5) == Training(lr=0.5, milestones=(60,))
    assert training.changed(milestones=[30, 90]).milestones == (30, 90)


FIELDS = st.dictionaries(st.sampled_from(["epochs", "lr", "batch", "clip"]), st.integers(2, 9), max_size=3)
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "search": FIELDS,
        "finetune": FIELDS,
        "search_epochs": st.integers(1, 9),
        "finetune_lr": st.floats(0.1, 1),
        "kd_weight": st.floats(0, 1),
        "lam": st.floats(0, 1),
    },
)


@given(st.sampled_from(["short", "paper", "snl", "autorep", "deepreshape"]), GIVEN)
def test_what_is_given_goes_before_what_a_training_says(training, given):
    """Field by field: a short form takes the place of the field that it is short for."""
    said, found = papers.options_of(training, "snl"), papers.merged(training, "snl", given)
    for name in sorted({*said, *given} - {"search", "finetune"}):
        assert found[name] == (given[name] if name in given else said[name])
    for name in ("search", "finetune"):
        expected = {**said.get(name, {})}
        if name == "search" and "search_epochs" in given:
            expected.pop("epochs", None)
        if name == "finetune" and "finetune_lr" in given:
            expected.pop("lr", None)
        assert found.get(name, {}) == {**expected, **given.get(name, {})}
    method = methods()["snl"](**found)
    full = papers.named("snl" if training == "paper" else training).full
    searching = method.searching(full)
    assert searching.epochs == {**found, **found.get("search", {})}.get("epochs", given.get("search_epochs", 10))


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("name", papers.NAMES)
def test_every_option_of_a_training_is_one_of_its_method(name, method):
    """And its search and finetuning can be in a run whose networks train so."""
    found = papers.merged(name, method, {})
    chosen = methods()[method](**found)
    paper = papers.named(papers.of_method(method) if name == "paper" else name)
    if hasattr(chosen, "finetuning"):
        after = chosen.finetuning(paper.full)
        if found:
            assert chosen.searching(paper.full).clip == 0
            assert after is None or after.clip == 0
