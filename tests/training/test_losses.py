"""Losses and objectives against what their papers say, written out."""

import dataclasses
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from parelu.training.losses import PramForm, dkd, kd, pram, tails
from parelu.training.objectives import Batch, CrossEntropy, DecoupledDistillation, Distillation

logits = st.integers(0, 10_000).map(lambda seed: torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)))


@given(logits, logits, st.sampled_from([1.0, 2.0, 4.0]))
def test_kd_is_the_divergence_written_out(student, teacher, temperature):
    p, q = (torch.softmax(x / temperature, 1) for x in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(kd(student, teacher, temperature), expected)
    assert kd(teacher, teacher, temperature).abs() < 1e-5


labels = st.integers(0, 10_000).map(lambda seed: torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed)))


@given(logits, logits, labels, st.sampled_from([1.0, 4.0]), st.floats(0, 2), st.floats(0, 8))
def test_decoupled_kd_is_the_divergences_written_out(student, teacher, labels, temperature, alpha, beta):
    expected = 0.0
    for mine, its, label in zip(student.double(), teacher.double(), labels.tolist(), strict=True):
        q, p = (torch.softmax(x / temperature, 0) for x in (mine, its))
        other = [c for c in range(7) if c != label]
        target = p[label] * (p[label] / q[label]).log() + (1 - p[label]) * ((1 - p[label]) / (1 - q[label])).log()
        p_rest, q_rest = p[other] / p[other].sum(), q[other] / q[other].sum()
        expected += temperature**2 * (alpha * target + beta * (p_rest * (p_rest / q_rest).log()).sum()) / 5
    found = dkd(student.double(), teacher.double(), labels, temperature, alpha, beta)
    torch.testing.assert_close(found, torch.as_tensor(expected))


@given(logits, logits, labels)
def test_kd_is_decoupled_kd_with_the_teachers_doubt_as_beta(student, teacher, labels):
    """Zhao et al. 2022, eq. 5; image by image, as each has a weight of its own."""
    doubt = 1 - torch.softmax(teacher / 4, 1).gather(1, labels[:, None]).squeeze(1)
    parts = [
        dkd(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 4.0, 1.0, float(doubt[i])) for i in range(5)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), kd(student, teacher, 4.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_decoupled_kd_has_no_logarithm_of_zero(classes, size):
    """A certain teacher, right or wrong, and a certain student; of two classes the rest is one."""
    labels = torch.arange(4) % classes
    student = size * F.one_hot((labels + 1) % classes, classes).float()
    student.requires_grad_()
    teacher = size * F.one_hot(labels, classes).float()
    loss = dkd(student, teacher, labels, 4.0, 1.0, 8.0)
    loss.backward()
    assert loss.isfinite() and loss > 0 and student.grad is not None and student.grad.isfinite().all()
    if classes == 2:
        torch.testing.assert_close(loss, kd(student, teacher, 4.0))


def test_decoupled_distillation_warms_up():
    x, y, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    objective = DecoupledDistillation(beta=2.0, warmup=0.2)
    full = dkd(x, y, labels, 4.0, 1.0, 2.0)
    for progress, weight in ((0.05, 0.25), (0.2, 1.0), (1.0, 1.0)):
        terms = objective(x, Batch(labels, teacher=lambda: y, progress=progress))
        torch.testing.assert_close(terms["dkd"], weight * full)
        torch.testing.assert_close(terms["ce"], F.cross_entropy(x, labels))
    with pytest.raises(ValueError, match="needs a teacher"):
        objective(x, Batch(labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_smoothed_labels_written_out(smoothing):
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    target = (1 - smoothing) * F.one_hot(labels, 3) + smoothing / 3
    terms = CrossEntropy(smoothing)(x, Batch(labels))
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], -(target * x.log_softmax(1)).sum(1).mean())
    assert CrossEntropy() == CrossEntropy(0.0)


@pytest.mark.parametrize(
    ("objective", "maps", "auxiliary"),
    [
        (CrossEntropy(), False, False),
        (DecoupledDistillation(), False, False),
        (Distillation(), False, False),
        (Distillation(mismatch=1.0), True, False),
        (Distillation(tails=1.0), True, False),
        (Distillation(auxiliary=1.0), False, True),
    ],
)
def test_objectives_ask_for_what_they_read_alone(objective, maps, auxiliary):
    assert (objective.reads_maps, objective.reads_auxiliary) == (maps, auxiliary)


def test_distillation_needs_a_teacher():
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for batch in (Batch(labels), Batch(labels, teacher=lambda: x), Batch(labels, teacher_maps=dict)):
        with pytest.raises(ValueError, match="needs a teacher"):
            Distillation()(x, batch)


def test_distillation_weighs_its_terms():
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    terms = Distillation(4.0, 0.9)(x, Batch(labels, {}, lambda: y, dict))
    torch.testing.assert_close(terms["ce"], 0.1 * F.cross_entropy(x, labels))
    torch.testing.assert_close(terms["kd"], 0.9 * kd(x, y, 4.0))
    for ce_weight in (0.0, 0.5, 1.0):
        terms = Distillation(4.0, 0.9, ce_weight=ce_weight)(x, Batch(labels, {}, lambda: y, dict))
        torch.testing.assert_close(terms["ce"], ce_weight * F.cross_entropy(x, labels))
        torch.testing.assert_close(terms["kd"], 0.9 * kd(x, y, 4.0))


def test_distillation_adds_what_it_reads_of_the_maps():
    x, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    mine, theirs = ({"a": torch.randn(4, 2, 3, 3), "b": torch.randn(4, 5)} for _ in range(2))
    batch = Batch(labels, mine, lambda: x, lambda: theirs)
    assert not Distillation().reads_maps
    objective = Distillation(mismatch=1000.0, tails=0.5)
    assert objective.reads_maps
    terms = objective(x, batch)
    torch.testing.assert_close(terms["pram"], 500 * pram(mine, theirs, "elements"))
    torch.testing.assert_close(terms["tails"], 0.5 * tails(mine))
    for form in get_args(PramForm):
        found = dataclasses.replace(objective, form=form)(x, batch)["pram"]
        torch.testing.assert_close(found, 500 * pram(mine, theirs, form))
        ends = dataclasses.replace(objective, form=form)(x, dataclasses.replace(batch, ends=("b",)))["pram"]
        kept = {"b": mine["b"]} if form == "attention" else mine
        torch.testing.assert_close(ends, 500 * pram(kept, theirs, form))


def test_pram_is_the_distance_of_normalised_maps():
    """Image by image, in the three readings of the formula."""
    mine, theirs = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    expected = dict.fromkeys(get_args(PramForm), 0.0)
    for a, b in zip(mine, theirs, strict=True):
        expected["elements"] += float(((a / a.norm() - b / b.norm()) ** 2).sum() / (2 * 12))
        expected["literal"] += float((a / a.norm() - b / b.norm()).norm() / 2)
        p, q = ((x**2).sum(0) / 3 for x in (a, b))
        expected["attention"] += float(((p / p.norm() - q / q.norm()) ** 2).sum() / (2 * 4))
    for form, value in expected.items():
        assert float(pram({"a": mine, "b": mine}, {"a": theirs, "b": theirs}, form)) == pytest.approx(2 * value)
        assert float(pram({"a": mine}, {"a": 3 * mine}, form)) == pytest.approx(0, abs=1e-6)


@given(st.permutations(range(4)))
def test_attention_does_not_see_which_channel_it_was(order):
    maps = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert float(pram({"a": maps}, {"a": -maps[:, order]}, "attention")) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("form", get_args(PramForm))
def test_pram_of_maps_without_channels_still_tells_them_apart(form):
    """Of a linear layer's outputs; a mean over them would leave one number, which is 1 when it is normalised."""
    mine = torch.rand(3, 8, requires_grad=True)
    pram({"a": mine}, {"a": torch.rand(3, 8)}, form).backward()
    assert mine.grad is not None and mine.grad.isfinite().all() and mine.grad.any()


def test_tails_are_images_that_stand_out():
    maps = torch.ones(4, 2, 3, 3)
    assert tails({"a": maps}) == 0
    maps[0] *= 3  # energies 9, 1, 1, 1 of mean 3: one is a whole mean above twice the mean
    assert tails({"a": maps, "b": maps}) == pytest.approx(2 * 1 / 4)
    assert tails({"a": 100 * maps}) == pytest.approx(1 / 4), "the scale does not matter"


def test_tails_push_on_the_images_that_stand_out_alone():
    """The batch's mean is a yardstick: the others are not pulled up to it."""
    maps = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[1] *= 5
    maps.requires_grad_()
    tails({"a": maps}).backward()
    energies = maps.detach().flatten(1).square().mean(1)
    expected = 2 * maps.detach() / (2 * 3 * 3) / energies.mean() / 6
    torch.testing.assert_close(maps.grad[1], expected[1])
    assert not maps.grad[[0, 2, 3, 4, 5]].any()
