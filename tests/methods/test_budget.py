"""Budgets of networks with max-pools: their comparisons are paid first, in plans, metrics and reports alike."""

import dataclasses

import pytest
from conftest import Silent
from method_networks import networks
from methods_bench import DryBench

from parelu.errors import UserError
from parelu.methods.base import fitting, methods
from parelu.methods.budget import charged
from parelu.methods.unit import Relus
from parelu.network.count import count, rounds, skeleton
from parelu.network.plan import Plan
from parelu.report.tables import frontier_rows, frontier_text
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.training.schedule import Training

SPEC = networks()["a max-pool"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    half = Reduction(methods()["uniform"](), ("0.5",))
    one = Experiment(SPEC, "digits", (half,), Training(epochs=1, batch=64, lr=0.05), images=64)
    return run_experiment(one, tmp_path_factory.mktemp("runs") / "run", Silent(), InProcess())


def test_a_budget_is_the_sum_of_relus_and_comparisons(run):
    (record,) = [r for r in run.candidates() if r.metrics.role == "candidate"]
    full = count(skeleton(SPEC))
    assert record.metrics.comparisons == full.comparisons == 4 * (7 * 8 + 7 * 4)
    assert record.metrics.relus + full.comparisons == round((full.relus + full.comparisons) / 2)


def test_reports_have_the_sum_and_say_what_is_compared(run):
    rows = frontier_rows(run.candidates())
    full = count(skeleton(SPEC))
    assert max(row.relus for row in rows) == full.relus + full.comparisons
    assert {row.comparisons for row in rows} == {full.comparisons}
    assert "of max-pools" in frontier_text(run.candidates())


def test_a_budget_that_max_pools_eat_up_is_refused_before_training(tmp_path):
    least = count(skeleton(SPEC)).comparisons + 1
    one = Experiment(
        SPEC, "digits", (Reduction(methods()["uniform"](), ("100",)),), Training(epochs=1, batch=32), images=64
    )
    with pytest.raises(UserError, match=rf"give {least:,} or more, or --replace maxpool=avgpool"):
        run_experiment(one, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_network_that_compares_less_has_more_of_a_budget():
    bench, smaller = DryBench(spec=SPEC), networks()["a gate"]  # without a max-pool
    methods()["uniform"]().reduce(bench, (300,))
    (job,) = bench.jobs
    assert charged(job.spec, job.plan, SPEC) == 300
    other = dataclasses.replace(job, spec=smaller, plan=Plan.of(skeleton(smaller)))
    saved = count(skeleton(SPEC)).comparisons
    cost = charged(other.spec, other.plan, SPEC)
    assert cost == other.plan.relus - saved > 300
    assert fitting("uniform", [job, other], (cost,), Relus(SPEC)) == [job, other]
    assert fitting("uniform", [job, other], (cost - 1,), Relus(SPEC)) == [job]
    with pytest.raises(UserError, match=f"reaches {saved + 300:,} ReLUs at the least"):
        fitting("uniform", [job], (200,), Relus(SPEC))


def test_each_level_of_a_max_pool_and_each_product_is_a_round():
    pooled, gated = (skeleton(networks()[name]) for name in ("a max-pool", "a gate"))
    assert rounds(pooled) == len(pooled.sites) + 4
    assert rounds(gated) == len(gated.sites) + 1
