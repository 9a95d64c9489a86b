"""What methods are made of: criticality, budgets, masks, and their papers' defaults."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_bench import DryBench

from parelu.errors import UserError
from parelu.methods.autorep import Indicators
from parelu.methods.bcd import BCD
from parelu.methods.budget import parse_budget
from parelu.methods.deepreduce import candidate_steps, criticality
from parelu.methods.jobs import FROM_TEACHER
from parelu.methods.random import Random
from parelu.methods.snip import Snip
from parelu.methods.snl import Slopes
from parelu.methods.uniform import Uniform
from parelu.training.objectives import DecoupledDistillation, Distillation
from parelu.training.schedule import Training

DEFAULTS = [
    (
        "DeepReDuce, section 4",
        Training(),
        {"epochs": 120, "batch": 128, "lr": 0.1, "schedule": "step", "momentum": 0.9, "weight_decay": 4e-4}
        | {"label_smoothing": 0.0, "optimizer": "sgd", "clip": 0.0, "begin": 0.0, "end": 1.0},
    ),
    (
        "DeepReDuce, section 4",
        Distillation(),
        {"temperature": 4.0, "weight": 0.9, "mismatch": 0.0, "tails": 0.0, "auxiliary": 0.0},
    ),
    (
        "DeepReShape, Appendix J: a warm-up of 20 in 220 epochs",
        DecoupledDistillation(),
        {"temperature": 4.0, "alpha": 1.0, "beta": 1.0, "warmup": 0.09},
    ),
    ("SNL, section 4", Slopes(1), {"lam": 1e-5, "lr": 1e-3, "granularity": "pixel", "degree": 0}),
    (
        "AutoReP, section 4: μ from 40 to 200",
        Indicators(1),
        {"mu": 80.0, "threshold": 0.003, "lr": 1e-3, "spread": 1.0, "wide": 1.0},
    ),
]


@pytest.mark.parametrize(("source", "made", "values"), DEFAULTS, ids=lambda value: type(value).__name__)
def test_defaults_are_those_of_their_papers(source, made, values):
    assert {name: getattr(made, name) for name in values} == values, source


def test_criticality_of_the_least_stage_is_zero_and_order_follows_accuracy_at_equal_counts():
    values = criticality({"S1": 10.0, "S2": 30.0, "S3": 20.0}, {"S1": 5, "S2": 5, "S3": 5})
    assert values["S1"] == 0
    assert sorted(values, key=lambda stage: values[stage]) == ["S1", "S3", "S2"]


def test_five_candidates_a_culling():
    steps = candidate_steps(["S1", "S4", "S2", "S3"], ["S1", "S2", "S3", "S4"])
    assert len(steps) == len(set(steps)) == 5 * 3
    assert steps[0] == "cull S1"
    assert steps[6] == "cull S1+S4; thin S2+S3"
    assert steps[-1] == "cull S1+S2+S4; thin S3; channels 0.5; fmap 0.5"
    assert not any("cull S1+S2+S3+S4" in step or "cull S3" in step for step in steps), "never the most critical"


@pytest.mark.parametrize(
    ("text", "budget"),
    [("50k", 50_000), ("12.9K", 12_900), ("0.1", 300_000), ("1.2m", 1_200_000), ("7", 7), ("1", 1), ("1e3", 1000)],
)
def test_budgets(text, budget):
    assert parse_budget(text, 3_000_000) == budget


@pytest.mark.parametrize("text", ["abc", "", "0", "-5", "-0.1", "0.000001", "200k", "nan", "inf", "200ms", "5 k k"])
def test_bad_budgets(text):
    with pytest.raises(UserError, match="budget"):
        parse_budget(text, 100_000)


@pytest.mark.parametrize(("text", "of_masks"), [("0.5", 20), ("61", 1), ("160", 100), ("0.1k", 40)])
def test_comparisons_are_part_of_a_budget(text, of_masks):
    assert parse_budget(text, 100, 60) == of_masks


def test_a_budget_below_the_comparisons_names_the_least_and_the_way_out():
    with pytest.raises(UserError, match=r"alone compare 60 times; give 61 or more, or --replace maxpool=avgpool"):
        parse_budget("0.1", 100, 60)
    with pytest.raises(UserError, match="more than the network's 160 ReLUs, 60 of them in max-pools"):
        parse_budget("161", 100, 60)


shapes = st.dictionaries(
    st.text("abc", min_size=1),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    min_size=1,
    max_size=4,
)


@given(shapes=shapes, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_fixed_masks_have_exactly_the_budget(shapes, share, seed):
    total = sum(a * b * c for a, b, c in shapes.values())
    budget = max(1, round(share * total))
    for method in (Uniform(), Random()):
        masks = method.masks(shapes, budget, seed)
        assert sum(int(mask.sum()) for mask in masks.values()) == budget
        assert {name: tuple(mask.shape) for name, mask in masks.items()} == shapes
        again = method.masks(shapes, budget, seed)
        assert all(torch.equal(masks[name], again[name]) for name in masks)


@given(shapes=shapes, share=st.floats(0.01, 1))
def test_uniform_keeps_the_same_share_of_each_site(shapes, share):
    total = sum(a * b * c for a, b, c in shapes.values())
    budget = max(1, round(share * total))
    for mask in Uniform().masks(shapes, budget, 0).values():
        assert abs(int(mask.sum()) - budget / total * mask.numel()) <= 1


def test_random_masks_of_smaller_budgets_lie_inside():
    sizes = {"a": (4, 5, 5), "b": (8, 3, 3)}
    small, large = Random().masks(sizes, 20, 3), Random().masks(sizes, 90, 3)
    assert all(bool((large[name] | ~small[name]).all()) for name in sizes)
    assert not torch.equal(Random().masks(sizes, 20, 4)["a"], small["a"])


@pytest.mark.parametrize(("method", "images"), [(BCD(), 1024), (Snip(), 1024), (Snip(saliency_images=77), 77)])
def test_what_the_loss_feels_is_the_mean_over_so_many_images(method, images):
    bench = DryBench()
    method.reduce(bench, (97, 40))
    assert set(bench.images_asked) == {images}


def test_snip_keeps_the_largest_gradients_whatever_their_sign():
    bench = DryBench()
    gradients = bench.slope_gradients(1024)
    (candidate,) = Snip().reduce(bench, (97,))
    kept = torch.cat([gradients[name].abs()[site.mask] for name, site in candidate.plan.sites.items()])
    gone = torch.cat([gradients[name].abs()[~site.mask] for name, site in candidate.plan.sites.items()])
    assert len(kept) == 97 and kept.min() >= gone.max()
    (job,) = bench.jobs
    assert (job.start, job.objective) == (FROM_TEACHER, Distillation(4.0, 0.9))
