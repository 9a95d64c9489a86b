"""The command line: one clear line and exit code 2 for bad input, and a run folder that stays usable."""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from commands import refused, run
from conftest import Silent
from safetensors.torch import save_file

from parelu import api
from parelu.cli import main as cli
from parelu.cli import training
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.spec import spec_of
from parelu.report import latency
from parelu.runs import experiment, recipes
from parelu.runs.executor import InProcess
from parelu.runs.folder import Run
from parelu.training.schedule import SHORT

TINY = ["--model", "resnet10 m=2", "--data", "digits", "--training", "short", "--epochs", "1"]


def test_epochs_and_learning_rate_stand_in_for_the_trainings_own():
    command = training.Train("resnet10", training="short", epochs=3, lr=0.05)
    assert command.experiment().training == dataclasses.replace(SHORT, epochs=3, lr=0.05)
    assert training.Train("resnet10", training="short").experiment().training == SHORT


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "parelu", "inspect", "resnet19"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("parelu: unknown network 'resnet19'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "resnet19"), "unknown network 'resnet19'; known are"),
        (("design",), 'give --order "S3>S2>S4>S1", or --run with a run of deepreduce'),
        (("design", "--order", "S3>S2"), "does not have each stage once; write all of S1, S2, S3, S4"),
        (("design", "--base", "vgg16", "--order", "S1"), "--base 'vgg16' is not the plain name of a ResNet"),
        (("design", "--order", "S1>S2>S3>S4", "--base", "resnet18 m=8"), "is not the plain name of a ResNet"),
        (("inspect", "resnet18", "--steps", "cull S9"), "unknown stage 'S9'; the network has S1, S2, S3, S4"),
        (("inspect", "resnet18", "--steps", "prune S1"), "unknown step 'prune S1'; known are none, cull S1"),
        (("inspect", "resnet18", "--input", "32x32"), "input '32x32' is not channels x height x width"),
        (("inspect", "resnet18", "--classes", "1"), "1 classes"),
        (("inspect", "no.such:thing"), "No module named 'no'"),
        (("inspect", "torchvision_style:nothing"), "no attribute 'nothing'"),
        (("train", "--model", "resnet10", "--data", "nope"), "there is no data set 'nope': choose one of digits"),
        (("train", "--model", "resnet10", "--epochs", "0"), "epochs is 0; it should be a whole number, 1 or more"),
        (("train", "--model", "resnet10", "--lr", "-1"), "lr is -1.0; it should be a number above 0"),
        (("train", "--model", "resnet10", "--images", "99999"), "training images asked"),
        (("recipe", "nope"), "no recipe 'nope'; parelu recipe lists all; or give a YAML file"),
        (("recipe", "."), "no recipe '.'; parelu recipe lists all"),
        (("frontier",), "no run folder given; name one or more, for example parelu frontier runs/"),
        (("frontier", "--json"), "no run folder given"),
        (("report",), "no run folder given; name one or more, for example parelu report runs/"),
        (("report", "--out", "page.html"), "no run folder given"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("title: 2024-01-01", "title is datetime.date(2024, 1, 1); it should be text, in quotes"),
        ("title: 2024-13-01", "is not valid YAML: month must be in 1..12"),
        ("model: [resnet10]", "model is ['resnet10']; it should be text, in quotes"),
        ("images: abc", "images is 'abc'; it should be a whole number"),
        ("images: true", "images is True; it should be a whole number"),
        ("input: abc", "input 'abc' is not channels x height x width; write 3x32x32"),
        ("input: 3x32x³", "input '3x32x³' is not channels x height x width; write 3x32x32"),
        ("input: [3, 32, 32]", "input is [3, 32, 32]; it should be channels x height x width, such as 3x32x32"),
        ("seeds: 3", "seeds is 3; it should be a list of whole numbers such as [0, 1, 2]"),
        ("seeds: [0, a]", "seeds is [0, 'a']; it should be a list of whole numbers such as [0, 1, 2]"),
        ("seeds: []", "seeds is empty; it should have at least one, such as [0]"),
        ("training: short", "training is 'short'; it should be a mapping such as {preset: short, epochs: 5}"),
        ("training: {preset: long}", "training.preset is 'long'; it should be one of paper, short"),
        ("training: {epochs: x}", "training.epochs is 'x'; it should be a whole number"),
        ("training: {epochs: 0}", "epochs is 0; it should be a whole number, 1 or more"),
        ("training: {lr: 1e-1}", "training.lr is '1e-1'; it should be a number such as 0.1"),
        ("training: {lr: .nan}", "training.lr is nan; it should be a number such as 0.1"),
        ("training: {epoch: 5}", "unknown key 'training.epoch'; nearest is 'epochs'; known are preset, epochs, batch"),
        ("3: x", "unknown key '3'; known are title, data, methods"),
        ("training: {milestones: [a]}", "training.milestones is ['a']; it should be a list such as [30, 60, 90]"),
        ("paper: DeepReduce Table 99", "Table 99 of DeepReDuce has no published rows here; there are Table 1"),
        ("paper: SENet", "no paper 'SENet'; known are DeepReDuce, AutoReP"),
        ("methods: [{name: steps, steps: none}]", "methods.steps.steps is 'none'; it should be a list such as"),
        ("methods: [{name: random, budgets: [5], networks: []}]", "methods.random.networks is empty; leave it out"),
        ("methods: random", "methods is 'random'; it should be a list such as [{name: random, budgets: [50k]}]"),
        ("methods: [random]", "methods is ['random']; it should be a list such as [{name: random, budgets: [50k]}]"),
        ("methods: [{budgets: [5]}]", "unknown method None; known are autorep, bcd"),
        ("methods: [{name: [random]}]", "unknown method ['random']; known are autorep, bcd"),
        ("methods: [{name: random, budgets: 50k}]", "methods.random.budgets is '50k'; it should be a list such as"),
        ("methods: [{name: random, budgets: [{a: 1}]}]", "methods.random.budgets is [{'a': 1}]; it should be a list"),
        ("methods: [{name: random, match: -1}]", "match is -1; it should be a whole number, 0 or more"),
        ("methods: [{name: random, kd_weight: x}]", "methods.random.kd_weight is 'x'; it should be a number such as"),
        ("methods: [{name: random, from_teacher: 1}]", "methods.random.from_teacher is 1; it should be true or false"),
    ],
)
def test_bad_recipes(capsys, tmp_path, line, message):
    lines = ["title: x", "model: resnet10", "data: digits", "methods: []"]
    key = line.split(":")[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join([*(good for good in lines if not good.startswith(key)), line]))
    said = refused(capsys, "recipe", str(recipe), "--dry-run")
    assert said.startswith(str(recipe))
    assert message in said


def test_a_batch_that_is_not_filled_leaves_no_run_behind(capsys, tmp_path):
    folder = tmp_path / "run"
    said = refused(capsys, "train", *TINY, "--images", "100", "--batch", "128", "--run", str(folder))
    assert "100 training images do not fill one batch of 128; give a smaller batch, or more images" in said
    assert not folder.exists()


def test_a_recipes_second_network_is_refused_before_the_first_trains(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{title: x, networks: [resnet10 m=2, resnet99], data: digits, methods: []}")
    assert "unknown network 'resnet99'" in refused(capsys, "recipe", str(recipe), "--run", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("609", "is more than the network's 608 ReLUs"),
        ("0", "the smallest is 1"),
        ("-5", "the smallest is 1"),
        ("abc", "is not a number of ReLUs"),
        ("200parsec", "'parsec' is no unit of online; known are"),
    ],
)
def test_bad_budgets(capsys, tmp_path, budget, message):
    folder = tmp_path / "run"
    assert message in refused(capsys, "reduce", "random", *TINY, f"--budget={budget}", "--run", str(folder))
    assert not folder.exists()


def test_a_method_that_needs_a_budget(capsys, tmp_path):
    message = refused(capsys, "reduce", "uniform", *TINY, "--run", str(tmp_path / "run"))
    assert message == "uniform needs a budget; give --budget, for example --budget 0.1"


def test_an_empty_data_folder(capsys, tmp_path):
    for name in ("fashion-mnist", "cifar10", "folder"):
        message = refused(capsys, "train", "--model", "resnet10", "--data", name, "--data-folder", str(tmp_path))
        assert str(tmp_path) in message


def test_weights_that_do_not_fit(capsys, tmp_path):
    state = spec_of("resnet10 m=2", (1, 8, 8), 7).module().state_dict()
    save_file(state, tmp_path / "seven.safetensors")
    (tmp_path / "model.pth").write_bytes(b"\x80\x02}q\x00.")
    command = ["reduce", "random", *TINY, "--budget", "0.1", "--run", str(tmp_path / "run"), "--weights"]
    assert "their classifier tells 7 classes apart" in refused(capsys, *command, str(tmp_path / "seven.safetensors"))
    assert "is no whole checkpoint of torch" in refused(capsys, *command, str(tmp_path / "model.pth"))
    assert "does not exist" in refused(capsys, *command, str(tmp_path / "none"))


def test_a_run_of_another_configuration(capsys, finished: tuple[Run, Silent]):
    folder = finished[0].path
    before = sorted(path.name for path in folder.rglob("*"))
    message = refused(capsys, "reduce", "random", *TINY, "--budget", "5", "--run", str(folder))
    assert "is a run of another configuration" in message
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_folders_that_are_no_run(capsys, tmp_path):
    for command in ("frontier", "report"):
        assert "is no run folder" in refused(capsys, command, str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(capsys, "train", *TINY, "--run", str(tmp_path / "file" / "run"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_cannot_be_written(capsys, tmp_path, monkeypatch, code):
    def failing(path, data):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomic", failing)
        message = refused(capsys, "train", *TINY, "--run", str(tmp_path / "run"))
    assert os.strerror(code) in message
    assert ("free some space" in message) == (code == errno.ENOSPC)
    assert ("give another place" in message) == (code != errno.ENOSPC)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training(capsys, worker_processes, tmp_path, monkeypatch):
    """A file system of 200 KB: the run stops with one line, and goes on when there is space."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k none {folder} 2>/dev/null") != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    try:
        command = ["train", *TINY, "--run", str(folder / "run")]
        command[command.index("resnet10 m=2")] = "resnet10 m=4"
        message = refused(capsys, *command)
        assert "No space left on device; free some space" in message
        assert not list((folder / "run").rglob(".*.[0-9]*")), "no temporary file stays"
        assert os.system(f"mount -o remount,size=50m {folder}") == 0
        monkeypatch.setattr(experiment, "Processes", InProcess)
        assert run(*command) == 0
    finally:
        os.system(f"umount {folder}")


def test_inspect_json(capsys):
    steps = "cull S1; thin S2+S3+S4; channels 0.5; fmap 0.5"
    assert run("inspect", "resnet18", "--input", "3x32x32", "--classes", "100", "--steps", steps, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["relus"] == counts["relus_without_stem"] == 14336
    assert {"squares", "macs", "flops", "params", "depth"} <= set(counts)
    assert counts["stages"]["S2"]["relus"] == 8192
    assert set(counts["stages"]["S2"]) == {"relus", "macs"}


def test_design(capsys, finished: tuple[Run, Silent], tmp_path):
    assert run("design", "--base", "resnet18", "--order", "S3,S2,S4,S1", "--json") == 0
    rows = {row["network"]: row["relus"] for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 8 and rows["hrn-5x5x3x m=16"] == 343040 and rows["hrn-2x5x3x m=16"] == 186368
    order = finished[0].records()["criticality"]["order"]
    assert run("design", "--base", "resnet10", "--m", "4", "--by", "depth", "--run", str(finished[0].path)) == 0
    from_run = capsys.readouterr().out
    assert run("design", "--base", "resnet10", "--m", "4", "--by", "depth", "--order", ",".join(reversed(order))) == 0
    assert capsys.readouterr().out == from_run
    Run.start(tmp_path / "empty", {})
    assert "has no criticality" in refused(capsys, "design", "--run", str(tmp_path / "empty"))


def test_frontier_and_report(capsys, finished: tuple[Run, Silent], tmp_path):
    folder = str(finished[0].path)
    assert run("frontier", folder) == 0
    assert "* on the frontier, chosen by validation accuracy" in capsys.readouterr().out
    assert run("frontier", folder, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"relus", "test", "on_frontier"} <= set(rows[0])
    assert run("frontier", folder, "--x", "macs") == 0
    assert "* on the frontier over multiply-adds, chosen by" in capsys.readouterr().out
    assert "has a measured latency; run parelu bench RUN first" in refused(capsys, "frontier", folder, "--x", "latency")
    assert run("report", folder, "--out", str(tmp_path / "page.html")) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_recipes_folder_stands_for_the_runs_in_it(capsys, finished: tuple[Run, Silent], tmp_path):
    run, _ = finished
    shutil.copytree(run.path, tmp_path / "recipe" / "resnet10-m=2" / "seed0")
    cli.main(["frontier", str(run.path)])
    alone = capsys.readouterr().out
    for given in (["recipe"], ["recipe/resnet10-m=2", "recipe", "recipe/resnet10-m=2/seed0"]):
        cli.main(["frontier", *(str(tmp_path / folder) for folder in given)])
        assert capsys.readouterr().out == alone, "each run once"
    cli.main(["report", str(tmp_path / "recipe")])
    assert (tmp_path / "recipe" / "report.html").exists()


def test_a_users_network_goes_through_inspect(capsys):
    assert run("inspect", "torchvision_style:build", "--input", "1x8x8", "--steps", "cull S1", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["relus"] == 2 * 8 * 4 * 4
    assert counts["depth"] == 7


@pytest.mark.slow
def test_a_users_network_goes_through_reduce(capsys, tmp_path):
    folder = tmp_path / "run"
    command = ["reduce", "deepreduce", *TINY, "--run", str(folder)]
    command[command.index("resnet10 m=2")] = "torchvision_style:build"
    assert run(*command) == 0
    records = Run.open(folder).records()
    assert sorted(records["criticality"]["stages"]) == ["S1", "S2"]
    assert all("channels" in steps or "fmap" in steps for steps in records["skipped"])
    names = [record.name for record in Run.open(folder).candidates()]
    assert len([name for name in names if name.startswith("cull-")]) == 2  # neither channels nor the input are scaled


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example(capsys, command):
    assert run(command, "--help") == 0
    assert f"parelu {command}" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_quickstart_falls_back_to_digits(capsys, tmp_path, monkeypatch):
    seen, measured = [], SimpleNamespace(test=SimpleNamespace(labels=[7]))
    monkeypatch.setattr(api.data, "available", lambda name, download: False)
    monkeypatch.setattr(api, "run_experiment", lambda one, folder, *_, **__: seen.append(one) or Run(folder, {}))
    monkeypatch.setattr(training, "print_frontier", lambda runs: None)
    monkeypatch.setattr(training, "save_report", lambda runs, path: None)
    monkeypatch.setattr(training, "measure_run", lambda run, asked: seen.append("measured") or measured)
    monkeypatch.setattr(latency, "gained_text", lambda records, truth: f"side by side, class {truth}")
    assert run("quickstart", "--run", str(tmp_path)) == 0
    assert seen[0].data == "colour-digits"
    assert seen[0] == recipes.read_recipe("quickstart-digits").experiments[0]
    assert seen[1] == "measured"
    shown = capsys.readouterr()
    assert "the bundled digits, in colour, stand in" in shown.err and "side by side, class 7" in shown.out


def test_a_reader_that_has_seen_enough_is_no_error():
    """Of a command that counts and plans, for which torch's compiler, seconds to import, is not needed."""
    code = "import sys\nfrom parelu.cli.main import main\n"
    code += "try: main()\nfinally: assert 'torch._dynamo' not in sys.modules\n"
    command = [sys.executable, "-c", code, "inspect", "resnet10 m=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert "pipe" not in said.lower() and "Traceback" not in said


TORCHVISION = """
import torch
def get_model(name, weights, num_classes):
    if name != "plain":
        raise ValueError(f"Unknown model {name}")
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                               torch.nn.Linear(4 * 6 * 6, num_classes))
def get_model_weights(name):
    if name != "plain":
        raise ValueError(f"Unknown model {name}")
    from weights_of_plain import Weights
    return Weights
"""
TIMM = """
import torch
class Staged(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stages = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        self.fc = torch.nn.Linear(4 * 6 * 6, classes)
    def forward(self, x):
        return self.fc(self.stages(x))
def create_model(name, pretrained, num_classes, in_chans):
    if name != "plain.v1":
        raise RuntimeError(f"Unknown model ({name})")
    return Staged(in_chans, num_classes)
"""


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """Stand-ins that have the functions of torchvision and timm."""
    for name, path, code in (("torchvision", "models.py", TORCHVISION), ("timm", "__init__.py", TIMM)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / path).write_text(code)
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for loaded in [module for module in sys.modules if module.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[loaded]


@pytest.mark.parametrize(("name", "channels"), [("torchvision:plain", 3), ("timm:plain.v1", 1)])
def test_networks_of_libraries(capsys, libraries, name, channels):
    assert run("inspect", name, "--input", f"{channels}x8x8", "--classes", "7", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["relus"] == 4 * 6 * 6
    assert counts["params"] == 4 * (9 * channels + 1) + 7 * (4 * 6 * 6 + 1)


def test_torchvision_beside_another_build_of_torch(capsys, libraries, tmp_path):
    """Its package registers what its operators are on meta tensors, and those it does not find stop it."""
    code = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(x):
    return x
"""
    (tmp_path / "torchvision" / "__init__.py").write_text(code)
    assert run("inspect", "torchvision:plain", "--input", "3x8x8", "--classes", "7") == 0


def test_trained_weights_of_torchvision(capsys, libraries, tmp_path, monkeypatch):
    """Fetched once, checked against the digest in their name, and taken as they are."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "tqdm", functools.partial(torch.hub.tqdm, disable=True))
    published = {"0.weight": torch.randn(4, 3, 3, 3), "0.bias": torch.randn(4)}
    published |= {"3.weight": torch.randn(10, 144), "3.bias": torch.randn(10)}
    torch.save(published, tmp_path / "plain.pth")
    digest = hashlib.sha256((tmp_path / "plain.pth").read_bytes()).hexdigest()[:8]
    (tmp_path / "plain.pth").rename(tmp_path / f"plain-{digest}.pth")
    url = (tmp_path / f"plain-{digest}.pth").as_uri()
    code = f"class Weights:\n class DEFAULT:\n  url = {url!r}\n"
    (tmp_path / "weights_of_plain.py").write_text(code)
    command = ["train", "--model", "torchvision:plain", "--pretrained", "--data", "digits", "--input", "3x8x8", "--run"]
    assert run(*command, str(tmp_path / "run")) == 0
    weights = Candidate.load(tmp_path / "run" / "candidates" / "teacher").weights
    assert {tuple(tensor.shape): tensor.sum() for tensor in weights.values()} == {
        tuple(tensor.shape): tensor.sum() for tensor in published.values()
    }
    (tmp_path / "hub" / "checkpoints" / f"plain-{digest}.pth").unlink()
    (tmp_path / f"plain-{digest}.pth").write_bytes(b"another file")
    assert f"{url} could not be downloaded" in refused(capsys, *command, str(tmp_path / "other"))
    (tmp_path / f"plain-{digest}.pth").unlink()
    assert "download it as" in refused(capsys, *command, str(tmp_path / "other"))
    command[2] = "torchvision:odd"
    assert "torchvision has no trained weights of it" in refused(capsys, *command, str(tmp_path / "other"))
    command[2] = "timm:plain.v1"
    assert "huggingface.co/timm: --weights FILE" in refused(capsys, *command, str(tmp_path / "other"))


def test_networks_that_a_library_does_not_have(capsys, libraries, monkeypatch):
    assert "torchvision:odd: Unknown model odd" in refused(capsys, "inspect", "torchvision:odd")
    assert "timm:odd: Unknown model (odd)" in refused(capsys, "inspect", "timm:odd")
    assert "read 3 channels, not 1: give --input 3xHxW" in refused(
        capsys, "inspect", "torchvision:plain", "--input", "1x8x8"
    )
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "timm", None)
        message = refused(capsys, "inspect", "timm:plain.v1")
        assert "pip install 'parelu[zoo]'" in message and "pip install --no-deps torchvision timm" in message
