"""DeepReShape: its solver against the paper's solutions and a brute force, criticality, and what Algorithm 2 makes."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from methods_bench import DryBench

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.deepreduce import criticality
from parelu.methods.deepreshape import designs, equalise_depth, equalise_width, parse_order
from parelu.network.count import count, skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.published import Published, find
from parelu.report.tables import label_of
from parelu.runs.folder import Record
from parelu.training.objectives import DecoupledDistillation, Distillation

USUAL = (3, 2, 4, 1)


def test_the_papers_solutions():
    """Section 4.1: (β, γ) and the least α; Appendix C: another order; Table 14: ResNet34."""
    assert equalise_width(USUAL, (2, 2, 2, 2)) == [(5, 5, 3), (5, 7, 2), (6, 6, 2), (7, 5, 2)]
    assert equalise_width((3, 4, 2, 1), (2, 2, 2, 2)) == [(5, 6, 3), (5, 9, 2)]
    assert {(4, 6, 3), (4, 9, 2)} <= set(equalise_width(USUAL, (3, 4, 6, 3)))


def test_names_and_their_narrow_variants():
    names = designs("resnet18", "S3>S2>S4>S1", 16, "width")
    assert names[:4] == [f"hrn-{name} m=16" for name in ("5x5x3x", "5x7x2x", "6x6x2x", "7x5x2x")]
    assert set(names[4:]) == {f"hrn-2x{name} m=16" for name in ("5x2x", "5x3x", "6x2x", "7x2x")}, "Table 17"
    assert designs("resnet20", "S3,S2,S1", 8, "width") == ["resnet20 5x5x m=8", "resnet20 2x5x m=8"]


@pytest.mark.parametrize("by", ["width", "depth"])
@pytest.mark.parametrize(("base", "order"), [("resnet34", "S3>S2>S4>S1"), ("resnet20", "S3>S1>S2")])
def test_designed_networks_have_their_relus_in_the_order(base, order, by):
    for name in designs(base, order, 4, by)[:1]:
        stages = count(skeleton(spec_of(name, (3, 32, 32), 10))).stages
        relus = [stages[stage].relus for stage in order.split(">")]
        assert relus == sorted(relus, reverse=True) and len(set(relus)) == len(relus)


def relus_of(depths, multipliers):
    """Of each stage, times 4^(D − 1)."""
    widths = itertools.accumulate((1, *multipliers), lambda a, b: a * b)
    stages = len(depths)
    return [d * w * 4 ** (stages - k) for k, (d, w) in enumerate(zip(depths, widths, strict=True), start=1)]


def in_order(order, depths, multipliers):
    relus = relus_of(depths, multipliers)
    return all(relus[a - 1] > relus[b - 1] for a, b in itertools.pairwise(order))


@given(st.permutations([1, 2, 3]), st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_widths_are_all_minimal_solutions(order, depths):
    every = [pair for pair in itertools.product(range(2, 30), repeat=2) if in_order(order, depths, pair)]
    minimal = [a for a in every if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in every)]
    if not minimal:
        written = ">".join(f"S{stage}" for stage in order)
        with pytest.raises(UserError, match=rf"no multipliers of at least 2 .* the order {written};"):
            equalise_width(order, depths)
    else:
        assert equalise_width(order, depths) == sorted(minimal)


@given(st.permutations([1, 2, 3, 4, 5]), st.lists(st.integers(1, 6), min_size=5, max_size=5))
def test_more_stages(order, depths):
    try:
        solutions = equalise_width(order, depths)
    except UserError:
        assume(False)
    for solution in solutions:
        assert in_order(order, depths, solution)
        for place in range(4):
            smaller = [n - (i == place) for i, n in enumerate(solution)]
            assert min(smaller) < 2 or not in_order(order, depths, smaller)


@given(st.permutations([1, 2, 3]), st.lists(st.integers(1, 4), min_size=2, max_size=2))
def test_depths_are_the_least(order, multipliers):
    depths = equalise_depth(order, multipliers)
    every = [d for d in itertools.product(range(1, 18), repeat=3) if in_order(order, d, multipliers)]
    assert all(a <= b for other in every for a, b in zip(depths, other, strict=True))
    assert in_order(order, depths, multipliers)


@pytest.mark.parametrize("order", ["", "S1", "S1>S2>S3", "S3>S2>S4>S5", "S3>S2>S4>S4", "3>2>4>1"])
def test_bad_orders(order):
    with pytest.raises(UserError, match=r"does not have each stage once; write all of S1, S2, S3, S4"):
        parse_order(order, 4)


def published() -> dict[str, list[Published]]:
    """Table and network → the rows of its stages, of DeepReShape's Tables 10 and 11, with distillation."""
    found: dict[str, list[Published]] = {}
    for row in find("DeepReShape Table 10") + find("DeepReShape Table 11"):
        if "ck" in row.stated:
            found.setdefault(f"{row.table}, {row.network}", []).append(row)
    return found


@pytest.mark.parametrize("rows", published().values(), ids=published())
def test_published_criticality(rows: list[Published]):
    """From their accuracies and our counts."""
    assert [row.steps for row in rows] == ["only stem+S1", "only S2", "only S3", "only S4"]
    spec = spec_of(rows[0].network, (3, 32, 32), 100)
    stages = zip(spec.depths, spec.widths, strict=True)
    counts = {f"S{k + 1}": 2 * depth * width * (32 >> k) ** 2 for k, (depth, width) in enumerate(stages)}
    accuracies = dict(zip(counts, (row.accuracy for row in rows), strict=True))
    for row, found in zip(rows, criticality(accuracies, counts).values(), strict=True):
        assert found == pytest.approx(float(row.stated["ck"]), abs=0.0101)


def test_the_criticality_tables_are_whole():
    assert len(published()) == 36


def dry(name: str) -> DryBench:
    return DryBench(spec=spec_of(name, (3, 16, 16), 10))


def test_algorithm_2_culls_a_stage_that_dominates_and_thins_the_rest():
    bench = dry("hrn-2x5x3x m=8")
    methods()["deepreshape"](order="S3>S2>S4>S1").reduce(bench, ())
    steps = [job.tags.steps for job in bench.jobs]
    thin = "cull S1; thin S2+S3+S4"
    assert steps == ["cull S1", thin, f"{thin}; channels 0.5", *(f"{thin}; reuse {n}" for n in (4, 8, 16))]
    relus = {job.tags.steps: job.plan.relus for job in bench.jobs}
    assert [relus[f"{thin}; reuse {n}"] * n for n in (4, 8, 16)] == [relus[thin]] * 3
    assert all(isinstance(job.objective, DecoupledDistillation) for job in bench.jobs)
    assert all(job.name.startswith("deepreshape-") and job.role == "candidate" for job in bench.jobs)


def test_an_equalised_network_is_thinned_whole_and_what_cannot_be_halved_is_left_out():
    bench = dry("hrn-5x5x3x m=4")
    method = methods()["deepreshape"](order="S3>S2>S4>S1", distillation="kd")
    method.reduce(bench, ())
    assert [job.tags.steps for job in bench.jobs] == ["none", "thin all", "thin all; channels 0.5", "thin all; reuse 4"]
    assert set(bench.records["deepreshape-skipped"]) == {"thin all; reuse 8", "thin all; reuse 16"}
    assert all(isinstance(job.objective, Distillation) and "-kd-" in job.name for job in bench.jobs)


def test_the_least_critical_stage_goes_only_where_it_has_more_relus_than_every_other():
    bench = dry("hrn-4x4x4x m=4")
    stages = count(skeleton(bench.teacher.spec)).stages
    assert len({stages[f"S{number}"].relus for number in (1, 2, 3, 4)}) == 1
    methods()["deepreshape"](order="S3>S2>S4>S1").reduce(bench, ())
    assert {job.tags.steps.split(";")[0] for job in bench.jobs} == {"none", "thin all"}
    whole = bench.jobs[0]
    assert (whole.name, whole.plan.relus) == ("deepreshape-none", Plan.of(skeleton(bench.teacher.spec)).relus)


def test_decoupled_distillation_warms_up_in_epochs_of_its_own():
    """Appendix J: 200 epochs, "with an additional 20 warmup epochs for Decoupled KD"."""
    bench = dry("hrn-2x2x2x m=4")
    bench.training = dataclasses.replace(bench.training, epochs=200)
    for options, epochs, warmup in (
        ({"warmup_epochs": 20}, 220, 20 / 220),
        ({"warmup_epochs": 20, "distillation": "kd"}, 200, None),
        ({}, 200, 0.09),
        ({"warmup_epochs": 0}, 200, 0.0),
    ):
        job = methods()["deepreshape"](**options)._job(bench, "cull S1")
        assert (job.training.epochs, getattr(job.objective, "warmup", None)) == (epochs, warmup)


def test_trainings_of_one_network_can_stand_in_one_run():
    bench = dry("hrn-2x2x2x m=4")
    reshape = methods()["deepreshape"]
    variants = [reshape(order="S3>S2>S4>S1", **o) for o in ({}, {"beta": 6.0}, {"distillation": "kd"})]
    for variant in variants:
        variant.reduce(bench, ())
    names = [job.name for job in bench.jobs]
    assert len(set(names)) == len(names) and "deepreshape-beta-6-cull-S1" in names
    labels = {label_of(Record("run", job.name, job.tags, ())) for job in bench.jobs}
    assert len(labels) == len(names), "a report does not take them for seeds of one network"


def test_criticality_is_deepreduces_where_no_order_is_given():
    first, second = dry("resnet10 m=4"), dry("resnet10 m=4")
    methods()["deepreshape"]().reduce(first, (10**6,))
    methods()["deepreduce"]().least_critical_first(second)
    asked = [[job for job in bench.jobs if job.role == "criticality"] for bench in (first, second)]
    assert [job.name for job in asked[0]] == [job.name for job in asked[1]] and len(asked[0]) == 4
    assert [job.tags for job in asked[0]] == [job.tags for job in asked[1]], "one run folder trains them once"
    assert first.records["criticality"] == second.records["criticality"]


def test_what_the_paper_states_of_wasted_flops():
    """Section 3.1: 5x5x3x has half the FLOPs of 5x5x5x; Table 4: 3x7x2x saves 30 % of 4x4x4x."""

    def flops(name: str) -> int:
        return count(skeleton(spec_of(name, (3, 32, 32), 100))).flops

    assert flops("stagech-5x") / flops("hrn-5x5x3x") == pytest.approx(2, rel=0.05)
    assert 1 - flops("hrn-3x7x2x") / flops("stagech-4x") == pytest.approx(0.3, abs=0.01)
    assert math.isclose(flops("basech"), flops("resnet18 m=16"))
