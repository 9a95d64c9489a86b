"""Labels, and another architecture that teaches: what a run is asked for, by which names, and what it refuses."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import TINY, Silent, tiny_experiment

from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.deepreduce import DeepReDuce
from parelu.methods.gated import Gated
from parelu.methods.jobs import OUTSIDE, TEACHER
from parelu.methods.random import Random
from parelu.methods.senet import SENet
from parelu.methods.snl import SNL
from parelu.methods.steps import Steps
from parelu.network.spec import spec_of
from parelu.report.page import write_report
from parelu.runs.dry_run import outlook
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.runs.folder import Run
from parelu.runs.jobs import teacher_of

BRIEF = dataclasses.replace(TINY, epochs=1)


def experiment(*reductions: Reduction, **changes: object) -> Experiment:
    return dataclasses.replace(tiny_experiment(training=BRIEF, images=256), reductions=reductions, **changes)  # pyright: ignore


def conducted(one: Experiment, folder: Path) -> tuple[Run, Silent]:
    watcher = Silent()
    return run_experiment(one, folder / "run", watcher, InProcess()), watcher  # pyright: ignore[reportArgumentType]


def names(run: Run) -> set[str]:
    return {record.name for record in run.candidates()}


def test_labels_tell_entries_apart_and_share_their_searches(tmp_path: Path):
    """Of SNL three ways: another finetuning takes the search that is there, another distillation has its own."""
    first = SNL(search_epochs=1)
    one = experiment(
        Reduction(first, ("0.5",)),
        Reduction(dataclasses.replace(first, finetune_epochs=2), ("0.5",), label="long"),
        Reduction(dataclasses.replace(first, kd_weight=0.0), ("0.5",), label="kd-0"),
    )
    run, watcher = conducted(one, tmp_path)
    assert names(run) == {"teacher", "snl-304", "snl-304-long", "snl-304-kd-0"}
    assert sorted(path.name for path in (run.path / "searches").iterdir()) == ["snl", "snl-kd-0"]
    notes = {record.name: record.metrics.note for record in run.candidates()}
    assert notes["snl-304-kd-0"] == "kd weight 0.0, kd-0" and notes["snl-304"] == ""
    assert run.candidate("snl-304-long").trained.epochs == 2 and len(watcher.trained) == 6
    again = conducted(one, tmp_path)[1]
    assert not again.trained and len(again.read) == len(watcher.trained) + 1, "the shared search is read twice"


def test_a_label_leaves_the_networks_of_unlabelled_entries_as_they_were(tmp_path: Path):
    """And an entry of another name draws the same fresh weights: entries differ in their options alone."""
    entry = Reduction(Random(), ("37",))
    run, _ = conducted(experiment(entry, dataclasses.replace(entry, label="b")), tmp_path)
    alone, _ = conducted(experiment(entry), tmp_path / "alone")
    mine, its, other = (r.candidate(n) for r, n in ((run, "random-37"), (alone, "random-37"), (run, "random-37-b")))
    for same in (its, other):
        assert same.plan == mine.plan
        assert all(torch.equal(mine.weights[name], same.weights[name]) for name in mine.weights)
    assert other.trained.note == "b"


def test_another_architecture_teaches(tmp_path: Path):
    steps, snl = Reduction(Steps(steps=("cull all",))), Reduction(SNL(search_epochs=1), ("37",))
    one = experiment(steps, snl, teacher="resnet18 m=2")
    run, watcher = conducted(one, tmp_path)
    assert watcher.trained[:2] == [TEACHER, OUTSIDE]
    assert run.config["teacher"] == "resnet18 m=2" and run.candidate(OUTSIDE).spec == spec_of(
        "resnet18 m=2", (1, 8, 8), 10
    )
    notes = {record.name: record.metrics.note for record in run.candidates()}
    assert notes["snl-37"] == notes["steps-cull-all"] == "taught by resnet18 m=2" and notes[OUTSIDE] is None
    logits = {path.parent.name for path in (run.path / "teacher-logits").glob("*/*")}
    assert logits == {teacher_of(run, OUTSIDE).folder.name}, "of the other architecture alone"
    full = run.candidate(TEACHER).trained
    assert run.candidate("steps-cull-all").trained.relus_full == full.relus != run.candidate(OUTSIDE).trained.relus
    assert not conducted(one, tmp_path)[1].trained
    with pytest.raises(UserError, match=r"teacher is \"resnet18 m=2\" there and null now"):
        conducted(dataclasses.replace(one, teacher=None), tmp_path)


def test_an_entry_keeps_its_own_teacher(tmp_path: Path):
    """Where another architecture teaches the run's others; it trains what a run without that one does."""
    steps, snl = Reduction(Steps(steps=("cull all",))), Reduction(SNL(search_epochs=1), ("37",), own_teacher=True)
    run, _ = conducted(experiment(steps, snl, teacher="resnet18 m=2"), tmp_path)
    notes = {record.name: record.metrics.note for record in run.candidates()}
    assert not notes["snl-37"] and notes["steps-cull-all"] == "taught by resnet18 m=2"
    alone, _ = conducted(experiment(dataclasses.replace(snl, own_teacher=False)), tmp_path / "alone")
    mine, its = (r.candidate("snl-37").weights for r in (run, alone))
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert run.config["reductions"][1]["own_teacher"] and "own_teacher" not in alone.config["reductions"][0]


def test_a_network_is_its_own_teacher_by_name(tmp_path: Path):
    """So that one recipe has the teacher's architecture among its networks."""
    run, _ = conducted(experiment(Reduction(Random(), ("37",)), teacher="resnet10 m=2"), tmp_path)
    assert names(run) == {"teacher", "random-37"} and "teacher" not in run.config
    assert not conducted(experiment(Reduction(Random(), ("37",))), tmp_path)[1].trained


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("resnet9000", "teacher: unknown network 'resnet9000'; known are"),
        (spec_of("resnet10 m=2", (3, 8, 8), 10), "the teacher reads 3 channels and tells 10 classes apart"),
        (
            spec_of("resnet10 m=2", (1, 8, 8), 100),
            "the teacher reads 1 channels and tells 100 classes apart",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_refused_before_anything_is_trained(teacher, message, tmp_path: Path):
    with pytest.raises(UserError, match=message) as caught:
        conducted(experiment(Reduction(Random(), ("37",)), teacher=teacher), tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name, method in methods().items() if method.compares_maps])
def test_methods_that_compare_maps_take_no_other_architecture(name: str, tmp_path: Path):
    one = experiment(Reduction(methods()[name](), ("37",)), teacher="resnet10 m=4")
    with pytest.raises(UserError, match=f"{name} compares the maps of a network with its own full-ReLU version's"):
        conducted(dataclasses.replace(one, training=dataclasses.replace(BRIEF, epochs=4)), tmp_path)
    assert not (tmp_path / "run").exists() and SENet.compares_maps


def reductions(*labels: str) -> Sequence[Reduction]:
    return [Reduction(DeepReDuce(w=number / 10), label=label) for number, label in enumerate(labels)]


def test_entries_whose_names_are_the_same_are_refused():
    for labels, message in (
        (("", ""), "two entries of deepreduce differ; give each"),
        (("a", "a"), "label 'a' and differ"),
    ):
        with pytest.raises(UserError, match=message):
            experiment(*reductions(*labels))
    experiment(*reductions("", "a", "b"))
    experiment(*[reductions("a")[0]] * 2)
    for label in ("a/b", "..", "-a", " ", "a b"):
        with pytest.raises(UserError, match="is no part of a folder's name"):
            Reduction(DeepReDuce(), label=label)


def test_a_network_that_another_run_trained_alike_is_taken(tmp_path: Path):
    """The teacher of one network is another run's full-ReLU network, and the other way round; else it is trained."""
    entry = Reduction(Random(), ("37",))
    one = experiment(entry, teacher="resnet10 m=4")
    other = experiment(entry, model="resnet10 m=4")
    first, _ = conducted(one, tmp_path / "a")
    for name, changes, read in (("b", {}, ["teacher"]), ("c", {"seed": 1}, []), ("d", {"images": 200}, [])):
        watcher = Silent()
        folders = [tmp_path / "none", first.path]
        run = run_experiment(dataclasses.replace(other, **changes), tmp_path / name, watcher, InProcess(), folders)  # pyright: ignore
        assert watcher.read == read
        assert run.candidate(TEACHER).trained.role == "teacher"
    watcher = Silent()
    run = run_experiment(one, tmp_path / "e", watcher, InProcess(), [tmp_path / "b"])  # pyright: ignore
    assert watcher.read == [OUTSIDE] and run.candidate(OUTSIDE).trained == first.candidate(OUTSIDE).trained
    alone, _ = conducted(other, tmp_path / "f")
    mine, its = (r.candidate(name).weights for r, name in ((first, OUTSIDE), (alone, TEACHER)))
    assert all(torch.equal(mine[name], its[name]) for name in its), "what it would have trained by itself"


def test_the_report_has_the_records_of_every_label(tmp_path: Path):
    entry = Reduction(Random(), ("37",))
    run, _ = conducted(experiment(entry), tmp_path)
    for name, order in (("criticality", ["S1", "S2"]), ("criticality-w0", ["S2", "S1"])):
        row = {"relus": 1, "accuracy": 50.0, "criticality": 1.0}
        run.record(name, {"w": 0.07, "stages": dict.fromkeys(order, row), "order": order})
    run.record("skipped-b", {"channels 0.5": "it is a graph"})
    page = write_report([run], tmp_path / "report.html").read_text()
    assert '<th class="text">run</th>' in page and '<th class="text">run w0</th>' in page and "it is a graph" in page


def test_a_name_that_two_entries_have_is_refused_before_anything_is_trained(tmp_path: Path):
    """The first entry's budget ends as the second one's label."""
    one = experiment(
        Reduction(Steps(("none",)), label="a"), Reduction(Steps(("none",), distillation="none"), label="b")
    )
    assert {planned.task.name for planned in outlook(one).planned} == {"teacher", "steps-none-a", "steps-none-b"}
    gated = {"d_th": 1.0, "finetune_epochs": 4}
    clash = (
        Reduction(Gated(auxiliary=True, **gated), ("0.5",)),
        Reduction(Gated(**gated), ("0.5",), label="auxiliary"),
    )
    with pytest.raises(UserError, match="two entries make networks called 'gated-304-auxiliary'; give them other"):
        outlook(experiment(*clash))
    for entry in (
        Reduction(Random(), ("37",), label="a" * 200),
        Reduction(Steps(("; ".join(["channels 2", "channels 0.5"] * 9),))),
    ):
        with pytest.raises(UserError, match=r"is a name of \d+ letters, the longest is 200"):
            outlook(experiment(entry))
