"""Gated branching: blocks with two branches and with one, exits, the schedule of γ, and what a candidate is."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from commands import refused
from conftest import TINY, Silent
from contracts.test_methods import DryBench
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu import data
from parelu.errors import UserError
from parelu.methods.gated import Blend, Gated
from parelu.methods.jobs import FromJob, FromSearch
from parelu.methods.senet import SENet
from parelu.models.resnet import ResNet
from parelu.network.candidate import load_shared_weights
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.plan import Plan
from parelu.network.spec import spec_from_json, spec_of
from parelu.private.crypto.ring import WIDE
from parelu.private.lowering import reference
from parelu.published import find
from parelu.report.tables import frontier_rows
from parelu.runs import experiment, measurement
from parelu.runs.experiment import Experiment, Reduction
from parelu.training.callback import Step
from parelu.training.history import read_history
from parelu.training.loop import train
from parelu.training.losses import akd, kd
from parelu.training.objectives import Batch, CrossEntropy, Distillation

SPEC = spec_of("resnet10 m=4", (1, 8, 8), 10)
WIDE_SPEC = spec_of("wrn-16-2 m=2", (1, 8, 8), 10)  # six blocks


def network_of(spec, seed=0):
    torch.manual_seed(seed)
    network = instrument(spec.module(), spec.input)
    with torch.no_grad():
        network(torch.randn(64, *spec.input))
    return network.eval()


def with_weights(spec, weights):
    network = instrument(spec.module(), spec.input)
    load_shared_weights(network, weights)
    return network.eval()


@settings(max_examples=15)
@given(st.sampled_from([SPEC, WIDE_SPEC]), st.sets(st.integers(0, 3), min_size=1, max_size=3), st.integers(0, 5))
def test_gamma_0_is_the_main_branch_and_1_the_shallow_one(spec, blocks, seed):
    blocks = tuple(sorted(blocks))
    gated = network_of(dataclasses.replace(spec, gated=blocks), seed)
    x = torch.randn(3, *spec.input)
    deep = with_weights(spec, gated.state_dict())
    assert torch.equal(gated(x), deep(x))
    shallow = with_weights(dataclasses.replace(spec, shallow=blocks), gated.state_dict())
    assert set(skeleton(spec).sites) - set(shallow.sites) == {n for n, block in spec.inner.items() if block in blocks}
    blender = Blend().build(gated)
    blender.after_step(Step(0, 0.5, x, x))
    between = gated(x)
    blender.after_step(Step(1, 1.0, x, x))
    assert torch.allclose(gated(x), shallow(x), atol=1e-4)
    assert not torch.allclose(between, gated(x), atol=1e-4) and not torch.allclose(between, deep(x), atol=1e-4)
    assert count(shallow).depth == count(deep).depth - len(blocks)


def test_an_exit_is_cut_out_with_its_weights():
    both = network_of(dataclasses.replace(SPEC, exits="both", shallow=(0,)))
    found = {exits: dataclasses.replace(SPEC, exits=exits, shallow=(0,)) for exits in ("last", "auxiliary")}
    x = torch.randn(3, *SPEC.input)
    seen = []
    both.get_submodule("auxiliary").register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = both(x)
    assert torch.equal(with_weights(found["last"], both.state_dict())(x), logits)
    assert torch.equal(with_weights(found["auxiliary"], both.state_dict())(x), seen[0])
    assert [site for site in skeleton(found["auxiliary"]).sites if "layer4" in site] == []
    for spec in found.values():
        assert spec_from_json(spec.to_json()) == spec


def test_a_spec_of_before_has_neither_branches_nor_exits():
    old = {key: value for key, value in SPEC.to_json().items() if key not in ("shallow", "gated", "exits")}
    assert spec_from_json(old) == SPEC
    with pytest.raises(UserError, match="fields"):
        spec_from_json({**old, "unknown": 1})
    del old["stem"]
    with pytest.raises(UserError, match="fields"):
        spec_from_json(old)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet10 m=4", {"shallow": (4,)}, "block 4: the network has blocks 0 to 3"),
        ("resnet10 m=4", {"shallow": (1,), "gated": (1,)}, "block 1 has one convolution already"),
        ("resnet9 m=4", {"gated": (0,)}, "block 0 has one convolution already: there is nothing to make shallow"),
        ("wrn-10-2 m=2", {"shallow": (3,)}, "block 3: the network has blocks 0 to 2"),
        ("resnet10 m=4", {"exits": "first"}, "exits is 'first'; it is last, auxiliary or both"),
    ],
)
def test_bad_blocks_and_exits(name, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(spec_of(name, (1, 8, 8), 10), **changes)
    with pytest.raises(UserError, match="one stage has no place"):
        ResNet((1, 8, 8), 10, 4, (2,), (), exits="both")


# SENet's densities of a network's layers, in order of execution, where they decide which blocks are gated whatever is
# rounded: of ResNet18 at 25,000 and WRN-22-8 at 240,000 ReLUs (the authors' later code, RLNet: sensitivity_list.yaml).
DENSITIES = {
    "resnet18": (
        0.004,
        0.01,
        0.01,
        0.01,
        0.011,
        0.027,
        0.038,
        0.04,
        0.042,
        0.102,
        0.124,
        0.126,
        0.13,
        0.28,
        *[0.3] * 3,
    ),
    "wrn-22-8": (
        *(0.04, 0.02, 0.046, 0.056, 0.062, 0.069, 0.075, 0.16, 0.20, 0.22, 0.24, 0.245, 0.254, 0.512, 0.552),
        *(0.567, 0.566, 0.57, 0.57),
    ),
}


@pytest.mark.parametrize(
    ("before", "after", "blocks", "saving"),
    [
        ("resnet18 cifar100 24.9K w/o GB", "resnet18 cifar100 21.1K w/ GB", (0, 1, 2, 3), 1.3733),
        ("wrn-22-8 cifar100 240K w/o GB", "wrn-22-8 cifar100 221K w/ GB", (0, 1, 2), 1.2264),
    ],
)
def test_the_published_allocation_makes_the_published_network(before, after, blocks, saving):
    """Shallow-Again, Table 1: blocks, depth (without the stem) and ReLUs come out; multiply-adds, fewer than there.

    The printed savings are those of dropping the first convolution of each block: where a block changes the shape, the
    paper's convolution has the size of the second one, which needs a projection ahead of it and so no shallower block.
    """
    rows = {row.row: row for row in find("Shallow-Again Table 1")}
    deep, shallow = rows[before], rows[after]
    spec = spec_of(deep.network, (3, 32, 32), 100)
    network = skeleton(spec)
    sizes = {name: site.mask.numel() for name, site in network.sites.items()}
    kept = {name: round(share * sizes[name]) for name, share in zip(sizes, DENSITIES[deep.network], strict=True)}
    assert sum(kept.values()) == pytest.approx(deep.relus, rel=0.02)
    assert Gated(d_th=float(shallow.stated["d_th"]))._shallow(spec, Plan.of(network), kept) == blocks
    inner = [name for name, block in spec.inner.items() if block in blocks]
    assert sum(kept[name] for name in inner) == pytest.approx(deep.relus - shallow.relus, rel=0.1)
    whole, cut = count(network), count(skeleton(dataclasses.replace(spec, shallow=blocks)))
    assert (whole.depth - 1, cut.depth - 1) == (deep.depth, shallow.depth)
    assert whole.macs / cut.macs == pytest.approx(saving, abs=5e-5)
    first = sum(
        network.get_submodule(name.replace(name[-5:], "conv1")).weight.numel()
        * math.prod(network.sites[name].shape[1:])
        for name in inner
    )
    printed = shallow.stated["mac_saving"]
    assert f"{whole.macs / (whole.macs - first):.{len(printed) - 2}f}" == printed


def test_two_blocks_of_the_first_stage_are_worth_what_the_paper_says():
    """Table 1 at 49.6K ReLUs and Table 2: 1.16 and 1.15, which is 1.157 rounded and cut; depth 16 → 14, and 10."""
    spec = spec_of("resnet18", (3, 32, 32), 100)
    before, two, exit = (
        count(skeleton(dataclasses.replace(spec, **changes)))
        for changes in ({}, {"shallow": (0, 1)}, {"shallow": (0, 1), "exits": "auxiliary"})
    )
    assert before.macs / two.macs == pytest.approx(1.1573, abs=5e-5)
    assert (before.depth - 1, two.depth - 1, exit.depth - 1) == (16, 14, 10)
    # Table 2 prints 1.46 for the earlier exit; its classifier there has 34.7 M multiply-adds more than ours.
    assert before.macs / exit.macs == pytest.approx(1.6067, abs=5e-5)
    assert before.macs / (exit.macs + 34.7e6) == pytest.approx(1.46, abs=0.005)


@given(st.sampled_from(["linear", "cosine"]), st.lists(st.floats(0, 1), min_size=2))
def test_gamma_rises_from_0_to_1(schedule, shares):
    blend = Blend(schedule)
    values = [blend.gamma(share) for share in sorted(shares)]
    assert values == sorted(values) and all(0 <= value <= 1 for value in values)
    assert (blend.gamma(0), blend.gamma(0.5), blend.gamma(1)) == pytest.approx((0, 0.5, 1))
    assert (blend.gamma(0.25) < 0.25) == (schedule == "cosine")


def test_akd_is_what_the_final_classifier_learns_by():
    x, y, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    terms = Distillation(4.0, 0.9)(x, Batch(labels, {}, lambda: y, dict))
    assert float(akd(x, y, labels, 4.0, 0.9, 0.1)) == pytest.approx(float(terms["ce"] + terms["kd"]))
    assert float(akd(x, y, labels, 4.0, 1.0, 0.0)) == pytest.approx(float(kd(x, y, 4.0)))
    objective = Distillation(auxiliary=0.5)
    assert objective.reads_auxiliary and not Distillation().reads_auxiliary
    found = objective(y, Batch(labels, {}, lambda: y, dict, auxiliary=x))
    assert float(found["akd"]) == pytest.approx(0.5 * float(akd(x, y, labels, 4.0, 0.9, 0.1)))


def test_gating_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    digits, spec = data.load("digits"), dataclasses.replace(SPEC, gated=(0, 2))
    training = dataclasses.replace(TINY, schedule="constant", lr=0.01)

    def gate(folder, epochs):
        network = network_of(spec)
        once = dataclasses.replace(training, epochs=training.epochs)
        calls = []

        def watch(progress):
            calls.append(progress)
            if progress.epoch > epochs:
                raise KeyboardInterrupt

        try:
            callback = Blend().build(network)
            train(network, digits, once, CrossEntropy(), seed=0, folder=folder, callback=callback, watch=watch)
        except KeyboardInterrupt:
            return None
        return network.state_dict()

    whole = gate(tmp_path / "whole", training.epochs)
    assert gate(tmp_path / "killed", 1) is None
    resumed = gate(tmp_path / "killed", training.epochs)
    assert whole is not None and resumed is not None
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["layer1.0.gamma"] == whole["layer3.0.gamma"] == 1
    assert [epoch.parts["gamma"] for epoch in read_history(tmp_path / "whole")] == [0.5, 1.0]


def jobs_of(method, *budgets):
    bench = DryBench()
    return bench, method.reduce(bench, budgets)


def test_what_is_trained_for_a_candidate():
    bench, (candidate,) = jobs_of(Gated(d_th=0.1, finetune_epochs=5, gate_epochs=2), 97)
    first, second = bench.jobs
    assert (first.name, second.name) == ("gated-97-branches", "gated-97")
    assert (first.role, second.role) == ("scaffold", "candidate")
    assert first.start == bench.searches[0].start_of(97) == FromSearch("senet-97", 97) and second.start == FromJob(
        first.name
    )
    parts = [(job.training.epochs, job.training.begin, job.training.end) for job in bench.jobs]
    assert parts == [(2, 0.0, 0.4), (3, 0.4, 1.0)], "one schedule of the learning rate"
    assert {job.training.lr for job in bench.jobs} == {bench.training.lr}
    blocks = bench.records["gated-97"]["shallow"]
    assert first.spec.gated == second.spec.shallow == tuple(blocks) and blocks
    gone = set(first.plan.sites) - set(second.plan.sites)
    assert gone == {name for name, block in first.spec.inner.items() if block in blocks}
    assert "relu" in second.plan.sites, "never the stem's"
    assert candidate.plan.relus == 97 - sum(first.plan.sites[name].relus for name in gone) < 97


def test_with_an_auxiliary_classifier_each_exit_is_a_candidate():
    bench, candidates = jobs_of(Gated(d_th=0.1, auxiliary=True), 97, 700)
    names = [job.name for job in bench.jobs]
    assert names == [
        "gated-97-branches",
        "gated-97-both",
        "gated-700-both",
        "gated-97",
        "gated-97-auxiliary",
        "gated-700",
        "gated-700-auxiliary",
    ]
    assert [candidate.spec.exits for candidate in candidates] == ["last", "auxiliary"] * 2
    for job in bench.jobs[:3]:
        assert job.role == "scaffold" and job.spec.exits == "both" and job.objective.reads_auxiliary
    for job in bench.jobs[3:]:
        assert job.role == "candidate" and job.training is None and job.start.name.endswith("-both")
    assert bench.jobs[4].plan.relus < bench.jobs[3].plan.relus <= 97


def test_without_a_block_below_the_threshold_it_is_senet():
    """The same search, too, so that both methods finetune the same masks."""
    (gated, _), (senet, _) = jobs_of(Gated(d_th=0.0), 97), jobs_of(SENet(), 97)
    assert gated.searches == senet.searches
    (one,), (other,) = gated.jobs, senet.jobs
    assert (one.spec, one.plan, one.training, one.start) == (other.spec, other.plan, other.training, other.start)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"d_th": 2.0}, r"none above 0\.\d+; give a smaller --d-th"), ({"thin": True}, "none above 0;")],
)
def test_a_threshold_that_removes_every_block_is_refused_before_the_search(options, reason):
    bench = DryBench()
    with pytest.raises(UserError, match=rf"d_th .* removes the main branch of every block: 97 ReLUs leave {reason}"):
        Gated(**options).reduce(bench, (97,))
    assert not bench.searches and not bench.jobs


def test_the_published_densities_can_be_given():
    """The split has exactly the budget's ReLUs, the blocks are those of the densities, and the record says so."""
    densities = (0.02, 0.02, 0.05, 0.03, 0.05, 0.3, 0.3, 0.6, 0.6)
    bench, _ = jobs_of(Gated(densities=" ".join(map(str, densities))), 97)
    split = bench.searches[0].optimizer.layers
    sizes = {name: site.relus for name, site in bench.teacher.plan.sites.items()}
    whole = sum(share * size for share, size in zip(densities, sizes.values(), strict=True))
    for (name, size), share in zip(sizes.items(), densities, strict=True):
        assert split[name] == pytest.approx(97 * share * size / whole, abs=2)
    assert sum(split.values()) == 97 and bench.records["senet-97"]["budgets"] == split
    inner = {block: split[name] / sizes[name] for name, block in bench.teacher.spec.inner.items()}
    assert bench.records["gated-97"]["shallow"] == [block for block, share in inner.items() if share < 0.05] != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--densities", "0.1 0.2"], "densities '0.1 0.2' are not 9 numbers from 0 to 1, a share for each layer with"),
        (["--densities", "0.1 " * 8 + "x"], "densities '0.1 0.1"),
        (["--densities", "0 " * 9], "densities '0 0 0"),
        (["--densities", "0.1 " * 8 + "nan"], "densities '0.1 0.1"),
        (
            ["--gate-epochs", "5"],
            "γ moves for 5 of 5 finetuning epochs; it takes at least 1 and leaves at least 1: "
            "give another --gate-epochs, or more --finetune-epochs",
        ),
        (["--gate-epochs", "9"], "γ moves for 9 of 5 finetuning epochs"),
        (["--gate-epochs", "0"], "gated: gate_epochs is 0; it should be a whole number, 1 or more"),
        (["--finetune-epochs", "1"], "γ moves for 0 of 1 finetuning epochs"),
        (["--training", "paper", "--finetune-epochs", "3"], "finetune: milestones end at 160, and there are 3 epochs"),
        (["--model", "wrn-10-2 m=2", "--auxiliary"], "an auxiliary classifier is for basic blocks (ResNets), not for"),
        (["--model", "torchvision_style:build"], "gated branching rebuilds the blocks of our ResNets, not"),
    ],
)
def test_what_cannot_be_gated_is_refused_before_anything_is_trained(capsys, tmp_path, options, message):
    command = ["reduce", "gated", "--model", "resnet10 m=2", "--data", "digits", "--training", "short", *options]
    assert refused(capsys, *command, "--budget", "0.1", "--run", str(tmp_path / "run")).startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_shallow_network_is_a_candidate_like_any_other(tmp_path):
    """Trained on digits: rebuilt, counted, lowered, run in the ring; the frontier has it and not its scaffolds."""
    options = {"search_epochs": 1, "finetune_epochs": 3}
    methods = SENet(**options), Gated(d_th=0.1, auxiliary=True, **options)
    reductions = tuple(Reduction(method, ("0.16",)) for method in methods)
    run = experiment.run_experiment(Experiment("resnet10 m=2", "digits", reductions, TINY), tmp_path / "run", Silent())
    records = {record.name: record for record in run.candidates()}
    assert set(records) == {
        "teacher",
        "senet-97",
        "gated-97",
        "gated-97-auxiliary",
        "gated-97-both",
        "gated-97-branches",
    }
    assert len(list((run.path / "searches").iterdir())) == 1, "both methods finetune one search's masks"
    depths = [records[name].metrics.depth for name in ("senet-97", "gated-97", "gated-97-auxiliary")]
    assert depths == sorted(depths, reverse=True) and len(set(depths)) == 3
    assert [row.name for row in frontier_rows(run.candidates())] == [
        "teacher",
        "senet-97",
        "gated-97",
        "gated-97-auxiliary",
    ]
    test = data.load("digits").test
    for name in ("gated-97", "gated-97-auxiliary"):
        candidate = run.candidate(name)
        assert candidate.metrics.epochs == 0, "cut out, not trained"
        program = measurement.lowered(run.folder(name), candidate, WIDE)
        assert program.program.relus == candidate.metrics.relus == count(candidate.network()).relus
        result = measurement.ring_accuracy(program, candidate, test)
        assert result.agreement >= 99 and result.float_accuracy == pytest.approx(candidate.metrics.test_accuracy)
        assert np.isfinite(reference.run(program, test.images[:4]).logits).all()
