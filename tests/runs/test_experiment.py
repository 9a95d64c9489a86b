"""Experiments with objects in place of names, and executors side by side: the same networks come out."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Silent, tiny_experiment
from PIL import Image
from safetensors.torch import save_file

from parelu import data
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.methods.jobs import FRESH, FROM_TEACHER, FromJob, FromKept, FromSearch
from parelu.network.metrics import Metrics, Searched, Tags, metrics_from_json
from parelu.network.spec import spec_of
from parelu.runs.data_source import IN_MEMORY, InMemory, digest, source_of
from parelu.runs.executor import InProcess, Work
from parelu.runs.experiment import Experiment, Reduction, run_experiment
from parelu.runs.folder import Run
from parelu.runs.jobs import full_job
from parelu.runs.processes import Processes

BRIEF = dataclasses.replace(TINY, epochs=1)
SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Run:
    """By names, in this process; test_executor.py has worker processes that load by name."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("named") / "run"
    return run_experiment(tiny_experiment("random", training=BRIEF), folder, Silent(), InProcess())


def same(a: Run, b: Run) -> bool:
    for record in a.candidates():
        mine, its = a.candidate(record.name), b.candidate(record.name)
        if mine.plan != its.plan or not all(torch.equal(mine.weights[n], its.weights[n]) for n in mine.weights):
            return False
    return len(a.candidates()) == len(b.candidates())


@pytest.mark.parametrize("executor", [InProcess(), Processes(2)], ids=["in process", "processes"])
def test_objects_give_the_networks_of_their_names(executor, named: Run, digits: data.Dataset, tmp_path: Path):
    one = tiny_experiment("random", training=BRIEF)
    one = dataclasses.replace(one, model=SPEC, data=digits, weights=named.candidate("teacher").weights)
    watcher, again = Silent(), Silent()
    run = run_experiment(one, tmp_path / "run", watcher, executor)
    assert same(named, run)
    assert sorted(watcher.trained) == ["random-304", "random-37"], "each with one thread, as the named ones"
    run_experiment(one, tmp_path / "run", again, executor)
    assert again.trained == []


def test_what_is_in_memory_is_part_of_the_configuration(digits: data.Dataset, tmp_path: Path):
    one = dataclasses.replace(tiny_experiment(training=BRIEF), model=SPEC, data=digits)
    assert one.config() | {"model": "resnet10 m=2", "data": "digits"} == {
        **tiny_experiment(training=BRIEF).config(),
        "data_sha256": digest(digits),
    }
    assert one.config()["data"] == IN_MEMORY and one.config()["model"] == SPEC.to_json()
    run = run_experiment(one, tmp_path / "run", Silent(), InProcess())
    labels = digits.train.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    other = dataclasses.replace(digits, train=data.Split(digits.train.images, labels))
    with pytest.raises(UserError, match="data_sha256"):
        run_experiment(dataclasses.replace(one, data=other), tmp_path / "run", Silent(), InProcess())
    weights = dict(run.candidate("teacher").weights)
    with pytest.raises(UserError, match="weights"):
        run_experiment(dataclasses.replace(one, weights=weights), tmp_path / "run", Silent(), InProcess())
    for missing in (None, other):
        with pytest.raises(UserError, match="was trained on a data set in memory"):
            source_of(run, digits.input_shape, missing)
    assert source_of(run, digits.input_shape, digits).load() is digits


def test_what_does_not_fit_is_refused_before_the_folder_is_made(digits: data.Dataset, tmp_path: Path):
    one = dataclasses.replace(tiny_experiment("random", training=BRIEF), data=digits)
    with pytest.raises(UserError, match="reads 3 channels and tells 10 classes apart, digits has 1 and 10"):
        spec = spec_of("resnet10 m=2", (3, 8, 8), 10)
        run_experiment(dataclasses.replace(one, model=spec), tmp_path / "run", Silent(), InProcess())
    with pytest.raises(UserError, match="images and data folder are of a data set's name"):
        dataclasses.replace(one, images=100)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "options", "budget", "line"),
    [
        ("snl", {"thin": True}, "0.9", "more than the 240 ReLUs that 'thin all' leaves"),
        ("snip", {"thin": True}, "0.9", "more than the 240 ReLUs that 'thin all' leaves"),
        ("autorep", {"baseline": "cull S1"}, "0.9", "'cull S1' leaves; give a smaller one"),
        ("steps", {"steps": ("none", "cull S1")}, "5", "steps reaches 224 ReLUs at the least on this network"),
    ],
)
def test_budgets_that_no_network_is_for_are_refused_before_anything_is_trained(name, options, budget, line, tmp_path):
    one = Experiment("resnet10 m=2", "digits", (Reduction(methods()[name](**options), (budget,)),), TINY)
    with pytest.raises(UserError, match=line):
        run_experiment(one, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_tasks_in_process_leave_its_random_numbers_alone(digits: data.Dataset, tmp_path: Path):
    run, state = Run.start(tmp_path / "run", {}), torch.get_rng_state()
    with InProcess().at(Work(run, InMemory(digits), 0), Silent()) as do:
        do([full_job(SPEC, BRIEF)], 1)
    assert run.candidate("teacher").trained.epochs == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_starts_have_the_keys_and_folders_of_a_run():
    run = Path("run")
    assert (FRESH.key, FRESH.folder(run)) == ("", None)
    assert (FROM_TEACHER.key, FROM_TEACHER.folder(run)) == ("teacher", run / "candidates/teacher")
    assert FromJob("a-both").folder(run) == run / "candidates/a-both"
    for start, key in ((FromSearch("snl", 50), "snl/50"), (FromKept("x"), "x/kept"), (FromKept("x", "y"), "x/y")):
        assert (start.key, start.folder(run)) == (key, run / "searches" / key)


@pytest.mark.parametrize(
    ("tags", "json"),
    [
        (Tags("train"), {"method": "train"}),
        (Tags("deepreduce", "cull S1"), {"method": "deepreduce", "steps": "cull S1", "budget": None}),
        (
            Tags("snl", "", 50, "", Searched(3, 1.5, 80.0)),
            {
                "method": "snl",
                "steps": "",
                "budget": 50,
                "note": "",
                "searched": {"epochs": 3, "seconds": 1.5, "validation_accuracy": 80.0},
            },
        ),
    ],
)
def test_tags_leave_out_what_is_not_there(tags: Tags, json: dict):
    assert tags.to_json() == json and list(tags.to_json()) == list(json)


def test_metrics_survive_their_json(named: Run):
    for record in named.candidates():
        json = record.metrics.to_json()
        assert metrics_from_json(json) == record.metrics and list(metrics_from_json(json).to_json()) == list(json)
        del json["depth"]
        with pytest.raises(UserError, match="the metrics lack depth"):
            metrics_from_json(json)
    assert isinstance(record.metrics, Metrics)
    assert metrics_from_json({}) is None


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of noise, dark and bright: 8 images each to train on, 4 to test."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("test", 4)):
        for low, name in ((0, "dark"), (128, "bright")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(low, low + 128, (8, 8), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return tmp_path / "set"


def test_contents_decide_and_places_do_not(pictures: Path, tmp_path: Path):
    """A folder of pictures and a file of weights may move; neither may change under its path."""
    file, folder = tmp_path / "net.safetensors", tmp_path / "run"
    torch.manual_seed(0)
    save_file(spec_of("resnet10 m=2", (1, 8, 8), 2).module().state_dict(), file)
    training = dataclasses.replace(BRIEF, batch=4)
    one = dataclasses.replace(tiny_experiment(training=training), data="folder", data_folder=pictures, weights=file)

    def again(**changes: Any) -> Run:
        return run_experiment(dataclasses.replace(one, **changes), folder, Silent(), InProcess())

    first = again()
    moved = pictures.rename(tmp_path / "elsewhere")
    file = file.rename(tmp_path / "other.safetensors")
    then = again(data_folder=moved, weights=file)
    assert then.config["data_folder"] == str(moved) and first.config["data_sha256"] == then.config["data_sha256"]
    assert Run.open(folder).config == then.config, "later commands look in the new places"
    assert source_of(Run.open(folder), (1, 8, 8)).load().input_shape == (1, 8, 8)

    save_file(spec_of("resnet10 m=2", (1, 8, 8), 2).module().state_dict(), file)
    with pytest.raises(UserError, match=r"weights_sha256: its weights are others now: give those that it began with"):
        again(data_folder=moved, weights=file)
    with pytest.raises(UserError, match=r"weights_sha256 is .* there and null now"):
        again(data_folder=moved, weights=None)
    with pytest.raises(UserError, match=r"images is null there and 8 now"):
        again(data_folder=moved, weights=file, images=8)
    Image.new("L", (8, 8), 7).save(moved / "test" / "dark" / "0.png")
    with pytest.raises(UserError, match=r"data_sha256: the images or labels of its data set are others now"):
        again(data_folder=moved, weights=then.candidate("teacher").weights)
    with pytest.raises(UserError, match=r"elsewhere: its images or labels are others than when the run began"):
        source_of(Run.open(folder), (1, 8, 8)).load()
