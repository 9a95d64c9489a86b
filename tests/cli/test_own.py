"""A network of one's own, the whole way: read, trained or taken with its weights, reduced, measured, served, asked."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from commands import refused, run
from PIL import Image
from safetensors.torch import load_file, save_file

import parelu
from parelu import api, data
from parelu.private.lowering import refusals
from parelu.private.serving.client import Client
from parelu.runs.folder import Run

PART = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.b = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.b(self.a(x)) + x)
"""
NET = """
import torch
from torch import nn
from part import Block

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=1, activation=torch.relu):
        super().__init__()
        self.conv, self.block = nn.Conv2d(in_channels, 4, 3, padding=1), Block(4)
        self.fc, self.activation = nn.Linear(64, num_classes), activation

    def forward(self, x, features=False):
        x = self.activation(self.conv(x))
        maps = nn.functional.avg_pool2d(self.block(x), 2)
        logits = self.fc(maps.view(x.size(0), -1))
        return (logits, maps) if features else logits

def build(num_classes=10):
    return Net(num_classes)

def smooth(num_classes=10):
    return Net(num_classes, activation=torch.nn.functional.silu)

class Two(Net):
    def forward(self, x):
        x = super().forward(x)
        return {"main": x, "aux": 2 * x}

def two(num_classes=10):
    return Two(num_classes)
"""
BRIEF = ("--data", "digits", "--images", "300", "--training", "short", "--epochs", "1")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of code, and weights of its network beside it."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "part.py").write_text(PART)
    (folder / "net.py").write_text(NET)
    with monkeypatch.context() as path:
        path.syspath_prepend(folder)
        import net  # pyright: ignore[reportMissingImports]

        torch.manual_seed(0)
        save_file(net.build().state_dict(), folder / "net.safetensors")
    for name in ("net", "part"):
        del sys.modules[name]
    return folder / "net.py"


def gone(net: Path) -> None:
    shutil.rmtree(net.parent)
    net.parent.mkdir()


@pytest.mark.slow
def test_from_a_file_of_code_to_an_answer(capsys, parties_as_threads, net, tmp_path):
    folder = tmp_path / "run"
    assert run("inspect", f"{net}:build", "--input", "1x8x8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["relus"] == 512
    arguments = ("--model", f"{net}:build", *BRIEF, "--weights", str(net.with_suffix(".safetensors")))
    assert run("reduce", "random", *arguments, "--budget", "100", "--run", str(folder)) == 0
    full = Run.open(folder).candidate("teacher")
    assert (
        full.trained.epochs == 0 and full.weights.keys() == parelu.load(folder / "candidates/random-100").weights.keys()
    )
    gone(net)
    teacher = str(folder / "candidates" / "random-100")
    capsys.readouterr()
    assert run("bench", teacher, "--images", "1", "--offline", "dealer", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["agreement"] == 1.0
    assert run("report", str(folder)) == 0 and run("fuse", teacher, "--json") == 0
    code = "import sys, parelu; print(parelu.load(sys.argv[1]).network().sites['relu'].shape)"
    done = subprocess.run([sys.executable, "-c", code, teacher], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4, 8, 8)"


@pytest.mark.slow
def test_a_trained_network_is_measured_by_its_name(capsys, parties_as_threads, net, tmp_path):
    name, weights = f"{net}:build", str(net.with_suffix(".safetensors"))
    common = (name, "--weights", weights, "--input", "1x8x8", "--images", "1", "--offline", "dealer", "--json")
    assert "has weights: give --data" in refused(capsys, "bench", *common)
    given = ("--data", "digits", "--run", str(tmp_path / "taken"), "--mean", "0.25", "--std", "0.5")
    assert run("bench", *common, *given) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["relus"] == 512 and row["agreement"] == 1.0
    taken = Run.open(tmp_path / "taken").candidate("teacher")
    assert (taken.preprocessing["mean"], taken.preprocessing["std"]) == ([0.25], [0.5])


def test_training_goes_on_from_weights(capsys, net, tmp_path):
    arguments = ("--model", f"{net}:build", "--data", "digits", "--images", "300", "--training", "short")
    weights = ("--weights", str(net.with_suffix(".safetensors")))
    assert run("train", *arguments, *weights, "--run", str(tmp_path / "taken")) == 0
    assert run("train", *arguments, *weights, "--epochs", "3", "--run", str(tmp_path / "on")) == 0
    taken, on = (Run.open(tmp_path / name).candidate("teacher") for name in ("taken", "on"))
    assert (taken.trained.epochs, on.trained.epochs) == (0, 3)
    assert not torch.equal(taken.weights["conv.weight"], on.weights["conv.weight"])


def test_a_network_that_is_taken_says_what_it_is_and_what_was_done_to_its_weights(capsys, net, tmp_path):
    weights = load_file(net.with_suffix(".safetensors"))
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, tmp_path / "wrapped.safetensors")
    arguments = ("--model", f"{net}:build", *BRIEF[:-2], "--weights", str(tmp_path / "wrapped.safetensors"))
    assert run("train", *arguments, "--run", str(tmp_path / "taken")) == 0
    shown = "".join(capsys.readouterr())
    assert "teacher: 512 ReLUs, " in shown and "note: the prefix 'module.' of the weights' names was taken off" in shown


def test_what_is_replaced_learns_from_what_it_was(capsys, net, tmp_path):
    smooth, weights = f"{net}:smooth", ("--weights", str(net.with_suffix(".safetensors")))
    assert run("inspect", smooth, "--input", "1x8x8", "--replace", "silu=relu") == 0
    assert "note: " in capsys.readouterr().out
    assert run("inspect", smooth, "--input", "1x8x8") == 0
    told = capsys.readouterr().out
    command = f"parelu reduce snl --model {smooth} --input 1x8x8 --replace silu=relu --weights WEIGHTS --data DATA"
    assert f"  {command} --budget 0.1\n  which starts with 512 ReLUs, 0 squares" in told
    assert run("inspect", smooth, "--input", "1x8x8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["replace"], found["replaced"]["relus"], found["left"]) == ("silu=relu", 512, [])
    assert (
        run("train", "--model", smooth, *BRIEF, *weights, "--replace", "silu=relu", "--run", str(tmp_path / "run")) == 0
    )
    found = Run.open(tmp_path / "run")
    assert found.candidate("teacher").trained.epochs == 1
    original = parelu.load(found.path / "searches" / "original" / "kept")
    before, after = (one.spec.to_json()["layers"] for one in (original, found.candidate("teacher")))
    assert "silu" in before and "silu" not in after
    assert "changes what the network computes" in refused(
        capsys, "bench", smooth, *weights, "--data", "digits", "--replace", "silu=relu"
    )


def test_inspect_counts_a_network_that_is_too_large_for_a_query(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", 1000)
    assert run("inspect", "resnet10 m=2", "--input", "1x8x8") == 0
    shown = capsys.readouterr().out
    assert "608" in shown and "a query of" in shown and "use smaller images" in shown


def test_a_smooth_activation_runs_privately_without_training(capsys, parties_as_threads, net, tmp_path):
    smooth, weights = f"{net}:smooth", ("--weights", str(net.with_suffix(".safetensors")))
    assert run("inspect", smooth, "--input", "1x8x8") == 0
    told = capsys.readouterr().out
    line = "silu is piecewise linear within 0.001, 29 ReLUs each; --replace silu=relu, and finetune, costs 1 each"
    assert f"{29 * 256 + 256:,}" in told and line in told and "without a secure form" not in told
    arguments = ("--data", "digits", "--offline", "dealer", "--images", "2", "--json")
    assert run("bench", smooth, *weights, *arguments, "--run", str(tmp_path / "taken")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["relus"] == 29 * 256 + 256 and row["agreement"] == 1.0
    taken = Run.open(tmp_path / "taken").candidate("teacher")
    assert taken.trained.epochs == 0
    names: dict = {}
    exec(PART + NET.replace("from part import Block", ""), names)
    module, images = names["smooth"]().eval(), torch.randn(9, 1, 8, 8)
    module.load_state_dict(load_file(net.with_suffix(".safetensors")))
    with torch.no_grad():
        assert (taken.network()(images) - module(images)).abs().max() < 0.01


def test_one_of_several_outputs(capsys, net, tmp_path):
    arguments = ("--model", f"{net}:two", *BRIEF, "--run", str(tmp_path / "run"))
    assert "--output" in refused(capsys, "train", *arguments)
    assert run("train", *arguments, "--output", "aux") == 0
    assert run("inspect", f"{net}:two", "--input", "1x8x8", "--output", "main") == 0


@pytest.mark.slow
def test_data_in_memory_is_calibrated_on_a_folder_or_from_python(capsys, parties_as_threads, net, tmp_path):
    digits = data.load("digits")
    images, labels = digits.train.images[:200], digits.train.labels[:200]
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 10))
    result = parelu.reduce(
        model, (images, labels), method="random", budget=20, run=tmp_path / "run", progress=False, training=ONCE
    )
    folder = result.run.folder("random-20")
    assert "--calibrate FOLDER" in refused(capsys, "bench", str(folder), "--offline", "dealer")
    (tmp_path / "pictures").mkdir()
    assert "holds no images" in refused(capsys, "bench", str(folder), "--calibrate", str(tmp_path / "pictures"))
    for number in range(3):
        Image.fromarray(images[number, 0].numpy()).save(tmp_path / "pictures" / f"{number}.png")
    capsys.readouterr()
    given = ("--calibrate", str(tmp_path / "pictures"), "--offline", "dealer", "--images", "2", "--json")
    assert run("bench", str(folder), *given) == 0
    assert json.loads(capsys.readouterr().out)[0]["images"] == 2
    server = parelu.serve(
        result.candidate("random-20"), (images, labels), folder=tmp_path / "own", port=0, offline="dealer"
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with Client("127.0.0.1", server.port, offline="dealer") as client:
        assert 0 <= int(client.predict(images[:1])[0]) < 10
    server.close()


ONCE = api.Training(epochs=1, batch=32, lr=0.05, schedule="one-cycle")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def build(): raise RuntimeError('no')", "net.py:build failed: RuntimeError: no ("),
        ("x = = 1", "net.py failed: SyntaxError: invalid syntax ("),
        ("def build(width): ...", "net.py:build needs width; give those a default"),
        ("def build(): return 3", "net.py:build returned a int, not a torch.nn.Module"),
        ("build = 3", "net.py:build is a int; name a function or class"),
        ("", "has no attribute 'build'"),
    ],
)
def test_bad_builders_in_files(capsys, tmp_path, code, message):
    (tmp_path / "net.py").write_text(code)
    assert message in refused(capsys, "inspect", f"{tmp_path}/net.py:build", "--input", "1x8x8")


def test_bad_names(capsys, net, tmp_path):
    assert "there is no file nowhere.py" in refused(capsys, "inspect", "nowhere.py:build")
    assert "there is no file nowhere.onnx" in refused(capsys, "inspect", "nowhere.onnx")
    here = ("--run", str(tmp_path / "run"))
    weights = ("--weights", str(net.with_suffix(".safetensors")))
    line = refused(capsys, "train", "--model", "resnet10 m=2", *BRIEF, *weights, *here)
    assert line.startswith("the weights ")
    line = refused(capsys, "train", "--model", f"{net}:build", *BRIEF, "--mean", "2", *here)
    assert line.startswith("mean is (2.0,); it should be 1 numbers from 0 to 1")
    line = refused(capsys, "train", "--model", "resnet10 m=2", *BRIEF, "--pretrained", *here)
    assert "comes without weights" in line
