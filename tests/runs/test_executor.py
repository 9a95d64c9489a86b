"""Experiments end to end on the bundled digits: what is trained, what is read again, and what a kill leaves."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import run as parelu
from conftest import ALL, TINY, Silent, tiny_experiment

from parelu import data
from parelu.errors import UserError
from parelu.methods.deepreduce import criticality
from parelu.network.candidate import Candidate
from parelu.runs import experiment, jobs, progress
from parelu.runs.executor import InProcess
from parelu.runs.experiment import spread
from parelu.runs.folder import Run
from parelu.runs.recipes import read_recipe, recipes
from parelu.training.evaluation import accuracy

Finished = tuple[Run, Silent]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Candidate.load(folder).weights)


def same(a: Path, b: Path) -> bool:
    mine, theirs = weights(a), weights(b)
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_all_that_was_asked_for_is_there(finished: Finished):
    run, watcher = finished
    records = {record.name: record.metrics for record in run.candidates()}
    roles = [metrics.role for metrics in records.values()]
    assert (roles.count("teacher"), roles.count("criticality"), roles.count("candidate")) == (1, 4, 15 + 3 * 2)
    assert sorted(watcher.trained) == sorted(records)
    assert watcher.read == []
    for name in ("random", "snip", "uniform"):
        assert [records[f"{name}-{budget}"].relus for budget in (304, 37)] == [304, 37]
    for metrics in records.values():
        assert metrics.relus_full == 608
        assert metrics.relus == sum(metrics.sites.values())
        assert metrics.epochs == TINY.epochs
    assert not list(run.path.glob("candidates/*/checkpoint")), "a finished network needs no checkpoint"


def test_criticality_is_recorded_with_its_numbers(finished: Finished):
    run, _ = finished
    record = run.records()["criticality"]
    stages = record["stages"]
    measured = {stage: run.candidate(f"only-{stage}").metrics for stage in stages}
    accuracies = {stage: metrics.validation_accuracy for stage, metrics in measured.items()}
    assert {stage: row["accuracy"] for stage, row in stages.items()} == accuracies
    expected = criticality(accuracies, {stage: metrics.relus for stage, metrics in measured.items()}, record["w"])
    assert {stage: row["criticality"] for stage, row in stages.items()} == expected
    assert record["order"] == sorted(stages, key=lambda stage: expected[stage])
    culled = run.candidate(f"cull-{record['order'][0]}")
    assert culled.metrics.stages[record["order"][0]].relus == 0


def test_a_candidate_is_what_was_measured(finished: Finished):
    run, _ = finished
    digits = data.load("digits")
    for name in ("teacher", "random-37", "cull-S1"):
        candidate = run.candidate(name) if (run.folder(name)).exists() else run.candidate("teacher")
        assert accuracy(candidate.network(), digits.test, digits) == candidate.metrics.test_accuracy
        normalised = {"mean": list(digits.mean), "std": list(digits.std)}
        assert candidate.preprocessing == {"dataset": "digits", "image": [1, 8, 8], **normalised}


def test_running_again_trains_nothing(finished: Finished):
    run, _ = finished
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    watcher = Silent()
    experiment.run_experiment(tiny_experiment(*ALL), run.path, watcher)
    assert watcher.trained == []
    assert len(watcher.read) == len(run.candidates())
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_same_seed_same_networks_in_another_folder(finished: Finished, tmp_path):
    run, _ = finished
    again = experiment.run_experiment(tiny_experiment("random"), tmp_path / "again", Silent())
    for name in ("teacher", "random-304", "random-37"):
        assert same(run.folder(name), again.folder(name)), name


def test_a_search_serves_all_its_budgets_and_is_not_repeated(tmp_path):
    watcher, again = Silent(), Silent()
    run = experiment.run_experiment(tiny_experiment("fisher"), tmp_path / "run", watcher)
    assert watcher.trained[:2] == ["teacher", "fisher"]
    assert sorted(watcher.trained[2:]) == ["fisher-304", "fisher-37"]
    metrics = {record.name: record.metrics for record in run.candidates()}
    assert [metrics[f"fisher-{budget}"].relus for budget in (304, 37)] == [304, 37]
    early, late = (metrics[f"fisher-{budget}"].searched.epochs for budget in (304, 37))
    assert early < late == 10
    before = weights(run.folder("fisher-37"))
    shutil.rmtree(run.folder("fisher-37"))
    experiment.run_experiment(tiny_experiment("fisher"), tmp_path / "run", again)
    assert again.trained == ["fisher-37"]
    assert "fisher" in again.read
    assert all(torch.equal(before[name], value) for name, value in weights(run.folder("fisher-37")).items())


@pytest.fixture(scope="module")
def squared(tmp_path_factory) -> Path:
    """A finished run of a method that leaves squares."""
    torch.set_num_threads(1)
    return experiment.run_experiment(
        tiny_experiment("safenet"), tmp_path_factory.mktemp("squared") / "run", Silent(), InProcess()
    ).path


def test_squares_are_counted_and_their_ranges_kept(squared):
    for record in Run.open(squared).candidates():
        if record.metrics.role == "candidate":
            assert record.metrics.relus <= record.metrics.budget
            assert record.metrics.squares == 608 - record.metrics.relus
            assert all(low < high for low, high in record.metrics.ranges.values())


def test_a_network_whose_squares_overflow_on_unseen_images_stays_and_says_so(squared, tmp_path, monkeypatch):
    shutil.copytree(squared, tmp_path / "run")
    shutil.rmtree(next((tmp_path / "run/candidates").glob("safenet-*")))
    monkeypatch.setattr(jobs, "unbounded", lambda network, split, dataset: 12.0)
    watcher = Silent()
    run = experiment.run_experiment(tiny_experiment("safenet"), tmp_path / "run", watcher, InProcess())
    (name,) = watcher.trained
    assert run.candidate(name).trained.unbounded == 12.0
    assert "squares grow without bound on 12 % of the images" in progress.said(run.candidate(name))


def test_a_trained_network_can_be_given(finished: Finished, tmp_path):
    run, _ = finished
    given = tiny_experiment("uniform", weights=run.folder("teacher"))
    watcher = Silent()
    again = experiment.run_experiment(given, tmp_path / "given", watcher)
    assert sorted(watcher.trained) == ["uniform-304", "uniform-37"], "the teacher is not trained again"
    assert same(run.folder("teacher"), again.folder("teacher"))
    assert same(run.folder("uniform-37"), again.folder("uniform-37"))


def test_matching_budgets_are_spread_evenly_by_rank():
    counts = [900, 100, 700, 500, 300, 100]
    assert spread(counts, 3) == [900, 500, 100]
    assert spread(counts, 9) == [900, 700, 500, 300, 100]
    assert spread(counts, 1) == [900]
    assert spread(counts, 0) == spread([], 3) == []


def test_matching_takes_the_counts_of_the_methods_before(tmp_path):
    first, second = (tiny_experiment(name).reductions[0] for name in ("random", "uniform"))
    two = dataclasses.replace(
        tiny_experiment(training=dataclasses.replace(TINY, epochs=1)),
        reductions=(first, dataclasses.replace(second, budgets=("99",), match=2)),
    )
    run = experiment.run_experiment(two, tmp_path / "run", Silent())
    uniform = {r.metrics.relus for r in run.candidates() if r.metrics.method == "uniform"}
    assert uniform == {99, 304, 37}
    watcher = Silent()
    experiment.run_experiment(two, tmp_path / "run", watcher)
    assert watcher.trained == [], "the same budgets again, whatever the folder holds by now"


def test_a_budget_is_checked_before_anything_is_trained(tmp_path):
    watcher = Silent()
    bad = dataclasses.replace(
        tiny_experiment("random"),
        reductions=(dataclasses.replace(tiny_experiment("random").reductions[0], budgets=("609",)),),
    )
    with pytest.raises(UserError, match="more than the network's 608 ReLUs"):
        experiment.run_experiment(bad, tmp_path / "run", watcher)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", recipes())
def test_recipes_can_be_conducted(name):
    recipe = read_recipe(name)
    assert recipe.title
    assert len({recipe.folder(one) for one in recipe.experiments}) == len(recipe.experiments) >= 1
    for one in recipe.experiments:
        if data.available(one.data):
            found = experiment.prepare(dataclasses.replace(one, images=min(one.images or 100, 100)))
            assert found.spec.input == found.source.input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid YAML"),
        ("- a", "is not a recipe"),
        ("title: x", "data is missing; it should be text"),
        ("{title: x, data: d, methods: []}", "give one of model, a network's name, and networks"),
        (
            "{title: x, model: m, networks: [m], data: d, methods: []}",
            "give one of model, a network's name, and networks",
        ),
        ("{title: x, networks: [], data: d, methods: []}", "networks is empty"),
        ("{title: x, networks: [m, m], data: d, methods: []}", "networks has 'm' more than once"),
        (
            "{title: x, model: m, data: d, methods: [{name: random, label: a/b}]}",
            "label 'a/b' is no part of a folder's name",
        ),
        (
            "{title: x, model: m, data: d, methods: [{name: random}, {name: random, kd_weight: 0.5}]}",
            "two entries of random differ; give each a label",
        ),
        ("{title: x, model: resnet10, data: digits, methods: [{name: nope}]}", "unknown method 'nope'; known are"),
        ("{title: x, model: resnet10, data: digits, methods: [], epoch: 3}", "unknown key 'epoch'"),
        (
            "{title: x, model: m, data: d, methods: [{name: random, budget: 3}]}",
            "unknown key 'methods.random.budget'",
        ),
        ("{title: x, model: m, data: d, methods: [], training: {lr: -1}}", "lr is -1; it should be a number above 0"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(str(path))
    assert "\n" not in str(caught.value)


OPTIONS = ("--data", "digits", "--images", "900", "--training", "short", "--epochs", "10", "--budget", "200", "100")


def arguments(folder: Path) -> list[str]:
    return ["reduce", "random", "--model", "resnet10 m=2", *OPTIONS, "--run", str(folder)]


def finish(folder: Path) -> Path:
    """The run to its end, in this process."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Processes", InProcess)
        assert parelu(*arguments(folder)) == 0
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from parelu.cli.main import main; main()", *arguments(folder)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_on_one_core,
    )


def _on_one_core() -> None:
    """One worker of one thread, as in this process: equal numbers of threads give equal bits."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    # Where the tests run in the background of a shell they ignore interrupts, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


def epochs_done(folder: Path, name: str) -> int:
    try:
        return len((folder / "candidates" / name / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def in_group(group: int) -> list[int]:
    """Processes of a session that have not ended."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            alive.append(int(stat.parent.name))
    return alive


@pytest.mark.slow
def test_a_run_that_was_interrupted_and_killed_twice_ends_in_the_same_weights(tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(lambda: epochs_done(folder, "teacher") >= 2, 120)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("parelu: interrupted; run the same command again")
    wait_for(lambda: not in_group(process.pid), 20)
    for name, kill in (("random-200", os.kill), ("random-100", os.killpg)):  # one process, and all
        process = start(folder)
        wait_for(lambda: epochs_done(folder, name) >= 3, 120)  # noqa: B023
        kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda: not in_group(process.pid), 20)  # noqa: B023
        assert 3 <= epochs_done(folder, name) < 10, "killed in the middle"
    finish(folder)
    uninterrupted = finish(tmp_path / "whole")
    for name in ("teacher", "random-200", "random-100"):
        assert same(folder / "candidates" / name, uninterrupted / "candidates" / name), name
