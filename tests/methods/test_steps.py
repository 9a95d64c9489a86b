"""Networks by hand: what `steps` asks its run for."""

import pytest
from methods_bench import SPEC, DryBench

from parelu.errors import UserError
from parelu.methods.deepreduce import DeepReDuce, candidate_steps
from parelu.methods.jobs import FRESH, FROM_TEACHER
from parelu.methods.steps import Steps
from parelu.network.steps import KNOWN, apply_steps
from parelu.training.objectives import CrossEntropy, DecoupledDistillation, Distillation
from parelu.training.schedule import SHORT

EVERY = tuple(KNOWN.split(", "))


def test_the_language_is_there_with_its_ends():
    """Every step that --help knows; the network itself, and the one without ReLUs."""
    bench = DryBench()
    candidates = Steps(steps=(*EVERY, "cull all")).reduce(bench, ())
    for text, candidate in zip((*EVERY, "cull all"), candidates, strict=True):
        reduced = apply_steps(SPEC, text)
        assert (candidate.spec, candidate.plan) == (reduced.spec, reduced.plan)
    assert candidates[0].plan == bench.teacher.plan and candidates[-1].plan.relus == 0
    assert len({job.name for job in bench.jobs}) == len(candidates)


def test_one_network_is_one_job_however_it_is_written():
    bench = DryBench()
    Steps(steps=("cull S1;thin all", " cull  S1 ; thin all (network 2 / of 3)", "")).reduce(bench, ())
    assert [job.name for job in bench.jobs] == ["steps-cull-S1_thin-all", "steps-none"]
    assert [job.tags.steps for job in bench.jobs] == ["cull S1; thin all", "none"]


@pytest.mark.parametrize(
    ("options", "objective", "start", "note"),
    [
        ({}, Distillation(), FRESH, ""),
        ({"distillation": "none"}, CrossEntropy(0.1), FRESH, "no distillation"),
        ({"from_teacher": True}, Distillation(), FROM_TEACHER, "from the full network's weights"),
        ({"distillation": "dkd", "beta": 2.0}, DecoupledDistillation(beta=2.0), FRESH, "dkd, beta 2"),
        ({"kd_weight": 1.0, "ce_weight": 1.0}, Distillation(weight=1.0, ce_weight=1.0), FRESH, ""),
    ],
)
def test_how_it_trains(options, objective, start, note):
    bench = DryBench()
    Steps(steps=("thin all",), **options).reduce(bench, ())
    (job,) = bench.jobs
    assert (job.objective, job.start, job.training) == (objective, start, SHORT)
    assert job.tags.note == note


def test_the_warmup_of_dkd_can_be_epochs_on_top():
    bench = DryBench()
    Steps(steps=("thin all",), distillation="dkd", warmup_epochs=5).reduce(bench, ())
    (job,) = bench.jobs
    assert job.training and job.training.epochs == SHORT.epochs + 5
    assert isinstance(job.objective, DecoupledDistillation) and job.objective.warmup == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ("cull S9",)}, r"steps 'cull S9': unknown stage 'S9'"),
        ({"steps": ("channels 0.5",), "from_teacher": True}, "full network's weights do not fit"),
        ({"steps": ("reuse 4",), "from_teacher": True}, "full network's weights do not fit"),
        ({"steps": ()}, "steps names no network"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(options, message):
    with pytest.raises(UserError, match=message):
        Steps(**options).check(SPEC, SHORT)
    Steps(steps=("fmap 0.5; thin all",), from_teacher=True).check(SPEC, SHORT)


def test_an_order_by_hand_takes_the_place_of_criticality():
    bench = DryBench()
    method = DeepReDuce(order="S3>S2>S1>S4")
    method.check(SPEC, SHORT)
    method.reduce(bench, ())
    order, stages = ["S4", "S1", "S2", "S3"], ["S1", "S2", "S3", "S4"]
    assert [job.tags.steps for job in bench.jobs] == candidate_steps(order, stages) and not bench.records
    with pytest.raises(UserError, match=r"order 'S1>S2' does not have each stage once; write all of S1, S2, S3, S4"):
        DeepReDuce(order="S1>S2").check(SPEC, SHORT)
