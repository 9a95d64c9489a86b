"""The verbs: a user's own module and data, in memory, and one clear line for what cannot be."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import data as torch_data

import parelu
from parelu import api, data
from parelu.errors import UserError
from parelu.methods import SNL, Random
from parelu.models.external import read
from parelu.network.candidate import Candidate
from parelu.network.sites import Network
from parelu.network.spec import spec_of
from parelu.private.fresh import untrained
from parelu.training.schedule import Training

ONCE = Training(epochs=1, batch=32, lr=0.05, schedule="one-cycle")


class Own(nn.Module):
    """A network as a user writes it; its classes are told apart by where the light is."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 6 * 6, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


class Choosy(Own):
    """One that cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.fc(x.flatten(1))


class Tied(nn.Module):
    """One whose weights a plain state dict does not describe: tied, called under two names, and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.again = nn.Conv2d(4, 4, 3, padding=1), self.second
        self.third.weight = self.second.weight
        self.unused, self.fc = nn.Linear(2, 2), nn.Linear(4 * 6 * 6, 3)
        self.register_buffer("shift", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        for layer in (self.first, self.second, self.third, self.again):
            x = torch.relu(layer(x) - self.shift)
        return self.fc(x.flatten(1))


class Lazy(nn.Module):
    """One whose layers have no shape before the first image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(4, 3, padding=1), nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class Pair(Own):
    def forward(self, x):
        logits = super().forward(x)
        return logits, 2 * logits


class Less(Own):
    """As Own in every layer, not in what it computes."""

    def forward(self, x):
        return self.fc(torch.relu(-self.bn(self.conv(x))).flatten(1))


def lights(count: int = 240) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(40, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    for number, label in enumerate(labels.tolist()):
        images[number, :, 2 * label : 2 * label + 2] += 150
    return images, labels


def reduced(model: nn.Module, folder: Path) -> api.Result:
    training = Training(epochs=3, batch=32, lr=0.1, schedule="one-cycle")
    return parelu.reduce(
        model,
        lights(),
        method=SNL(search_epochs=2, finetune_epochs=1),
        budget=[0.5, 20],
        run=folder,
        training=training,
        pretrained=False,
        progress=False,
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Own, api.Result]:
    torch.manual_seed(0)
    model = Own()
    return model, reduced(model, tmp_path_factory.mktemp("runs") / "own")


def test_the_facade_is_light_and_knows_its_version():
    code = "import sys, parelu; assert not {'torch', 'numpy'} & set(sys.modules); print(parelu.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == parelu.__version__
    assert set(parelu.__all__) <= set(dir(parelu))
    with pytest.raises(AttributeError, match="module 'parelu' has no attribute 'nothing'"):
        parelu.nothing  # noqa: B018
    for name in parelu.__all__:
        assert getattr(parelu, name) is not None


def test_help_and_version_import_nothing_heavy():
    for option in ("--help", "--version"):
        code = f"import sys\nfrom parelu.cli.main import main\ntry: main(['{option}'])\nexcept SystemExit: pass\n"
        code += "assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_a_users_own_module_is_reduced_to_exact_budgets(own):
    _, result = own
    assert [record.metrics.relus for record in result.records] == [144, 72, 20]
    assert result.best(relus=20).plan.relus == 20
    assert result.best().trained.validation_accuracy == max(r.metrics.validation_accuracy for r in result.records)
    assert result.best().trained.test_accuracy > 60
    with pytest.raises(UserError, match=r"no network of .* has 19 ReLUs or fewer; the smallest has 20"):
        result.best(relus=19)


def test_a_call_made_again_trains_nothing(own):
    _, result = own
    files = {path: path.stat().st_mtime_ns for path in result.run.path.rglob("candidate.*")}
    again = reduced(Own(), result.run.path)
    assert {path: path.stat().st_mtime_ns for path in again.run.path.rglob("candidate.*")} == files


def test_a_trained_module_keeps_its_weights(own, tmp_path):
    trained = Own()
    trained.load_state_dict(dict(own[1].full.weights))
    result = parelu.reduce(
        trained, lights(), method="random", budget="0.5", run=tmp_path / "run", training=ONCE, progress=False
    )
    for name, tensor in result.full.weights.items():
        assert torch.equal(tensor, own[1].full.weights[name])
    assert result.full.trained.test_accuracy == own[1].full.trained.test_accuracy


@pytest.mark.parametrize(
    "model",
    [Tied(), Own().double(), Own().half(), Own().eval().requires_grad_(False), Lazy()],
    ids=["tied", "double", "half", "frozen", "lazy"],
)
def test_a_module_of_any_make_keeps_what_it_computes(tmp_path, model):
    images = lights(30)[0].float() / 255
    used_to = data.from_memory(lights(), mean=[0.0], std=[1.0])
    result = parelu.reduce(
        model, used_to, method="random", budget=0.5, run=tmp_path / "run", training=ONCE, progress=False
    )
    found = result.full.network()(images)
    assert torch.allclose(found, model.eval().float()(images), atol=1e-5)
    reduced = result.best(relus=result.full.plan.relus // 2)
    assert any(not torch.equal(tensor, reduced.weights[name]) for name, tensor in result.full.weights.items())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Own(), Less()),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
            nn.Sequential(nn.Conv2d(1, 1, 3, padding=2, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
        ),
    ],
    ids=["a call", "an option"],
)
def test_modules_of_the_same_shapes_are_not_one_network(first, second):
    specs = [read(model, (1, 6, 6), 3, "own").spec.layers for model in (first, second, copy.deepcopy(first))]
    assert specs[0] == specs[2] != specs[1]


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport parelu\n"
        "from test_api import ONCE, Own, lights\n"
        f"parelu.reduce(Own(), lights(), method='random', budget=1, run={str(tmp_path / 'run')!r}, training=ONCE, "
        "pretrained=False, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'keep what it does under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert "another process works" not in done.stderr


@pytest.mark.slow
def test_worker_processes_give_the_same_networks(own, tmp_path):
    model, _ = own
    found = []
    for workers in (None, 2):
        torch.set_num_threads(1)
        result = parelu.reduce(
            model,
            torch_data.TensorDataset(*lights()),
            method=Random(),
            budget=[0.5, 20],
            run=tmp_path / str(workers),
            training=ONCE,
            progress=False,
            workers=workers,
        )
        found.append({record.name: result.candidate(record.name) for record in result.records})
    for name, candidate in found[0].items():
        for path, tensor in candidate.weights.items():
            assert torch.equal(tensor, found[1][name].weights[path])


def test_a_candidate_is_opened_where_its_module_is_not(own):
    _, result = own
    folder = result.run.path / "candidates" / "snl-20"
    code = (
        "import sys, parelu, torch\n"
        "network = parelu.load(sys.argv[1]).network()\n"
        "print(network.sites['relu'].relus, network(torch.ones(1, 1, 6, 6)).sum().item(), 'test_api' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    logits = result.candidate("snl-20").network()(torch.ones(1, 1, 6, 6))
    relus, total, knows = done.stdout.split()
    assert (relus, knows) == ("20", "False") and float(total) == pytest.approx(logits.sum().item(), rel=1e-5)


def test_count_takes_whatever_is_a_network(own):
    model, result = own
    assert parelu.count(model, (1, 6, 6)).relus == 144
    assert parelu.count(result.candidate("snl-20")).relus == 20
    assert parelu.count(spec_of("resnet10 m=2", (1, 8, 8), 10)).relus == 608
    assert parelu.count("resnet18", (3, 32, 32), classes=100).relus == parelu.count("resnet18", (3, 32, 32)).relus
    network = parelu.instrument(model, (1, 6, 6))
    assert isinstance(network, Network) and parelu.count(network).relus == 144


@pytest.mark.slow
def test_bench_measures_what_was_reduced(own, parties_as_threads):
    _, result = own
    row = parelu.bench(result.candidate("snl-20"), lights(), offline="dealer", images=2)
    assert row.relus == 20 and row.images == 2 and row.costs.online and row.costs.online.seconds > 0
    assert row.agreement == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": 7},
            "the data set is a int; give a name, (images, labels) as tensors, or a map-style",
        ),
        ({"dataset": "nope"}, "there is no data set 'nope': choose one of digits"),
        ({"model": 3}, "the model is a int; give a torch.nn.Module, or a network's name"),
        ({"model": "resnet19"}, "unknown network 'resnet19'; known are"),
        ({"model": Choosy()}, "cannot be traced"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, "the network does not take an input of shape 1x6x6"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 3))},
            "1: layer_norm is not supported; --replace",
        ),
        ({"model": Pair()}, "the network returns a tuple, not one tensor (batch, classes); choose one with --output"),
        ({"model": Own(2)}, "Own gives 2 outputs for an image, not 3: build it for 3 classes"),
        ({"seed": 1.5}, "seed is 1.5; it should be a whole number"),
        ({"workers": 0}, "workers is 0; it should be a whole number, 1 or more"),
        ({"workers": "two"}, "workers is 'two'; it should be a whole number"),
        ({"method": "deepreduce"}, "deepreduce drops whole stages, and this network has 1"),
        ({"budget": 1.0}, "budget '1.0' is one ReLU, or all of them? write 1, or a fraction below 1"),
        ({"budget": None}, "budget 'None' is not a number of ReLUs"),
        ({"weights": Own()}, "weights is a Own; give a state dict"),
        ({"method": "snll"}, "unknown method 'snll'; known are autorep, bcd"),
        ({"method": 5}, "unknown method 5; known are autorep, bcd"),
        ({"budget": ()}, "random needs a budget; give --budget, for example --budget 0.1"),
        ({"budget": "many"}, "budget 'many' is not a number of ReLUs"),
        ({"budget": 1000}, "budget '1000' is more than the network's 144 ReLUs"),
        ({"training": "long"}, "no training 'long'; known are paper, short, deepreduce,"),
        ({"input_shape": (6, 6)}, "input shape (6, 6) is not (channels, height, width)"),
        ({"weights": {"fc.weight": torch.zeros(3, 3)}}, "the weights lack"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, changes, message):
    given = {
        "model": Own(),
        "dataset": lights(30),
        "method": Random(),
        "budget": 0.5,
        "training": ONCE,
    }
    with pytest.raises(UserError) as error:
        parelu.reduce(run=tmp_path / "run", progress=False, **{**given, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_numbers_of_other_libraries_are_numbers(tmp_path):
    budgets: list[Any] = [np.int64(5), np.float32(0.5), torch.tensor(5), np.array([5, 0.5])]
    seed: Any = np.int64(3)
    for number, budget in enumerate(budgets):
        result = parelu.reduce(
            Own(),
            lights(60),
            method="random",
            budget=budget,
            run=str(tmp_path / str(number)),
            training=ONCE,
            seed=seed,
            progress=False,
        )
        assert parelu.Result.open(str(tmp_path / str(number))).best().trained.seed == result.best().trained.seed == 3


def test_other_verbs_refuse_in_one_line(own, tmp_path):
    with pytest.raises(UserError, match=r"input shape '1x6x6' is no tuple; give \(channels, height, width\)"):
        parelu.instrument(Own(), "1x6x6")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"the model is a str; give a torch\.nn\.Module"):
        parelu.instrument("resnet18", (1, 6, 6))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="on a data set in memory, which no file has; give --calibrate FOLDER"):
        parelu.bench(own[1].best())
    with pytest.raises(UserError, match="the candidate is a Own; give one of a run"):
        parelu.bench(own[0], lights())  # pyright: ignore[reportArgumentType]
    unknown = {"relu": "unknown ReLU protocol 'x'; known are", "offline": "unknown offline mode 'x'; known are"}
    for name, message in {**unknown, "link": "link 'x': it is no known one; give loopback, lan, wan, or"}.items():
        with pytest.raises(UserError, match=message):
            parelu.bench(own[1].best(), lights(), **dict[str, Any]({name: "x"}))
    with pytest.raises(UserError, match="a batch of 0 images; it should be 1 or more"):
        parelu.bench(own[1].best(), lights(), batch=0)
    with pytest.raises(UserError, match=r"count needs the shape of one image: parelu.count\(model, \(3, 32, 32\)\)"):
        parelu.count(Own())
    with pytest.raises(UserError, match="holds no candidate"):
        parelu.load(tmp_path)
    candidate: Candidate = untrained(spec_of("resnet10 m=2", (1, 8, 8), 10), 0.1, 0)
    with pytest.raises(UserError, match="does not say what data it was trained on"):
        parelu.bench(candidate)
    candidate = dataclasses.replace(candidate, preprocessing={"dataset": "in memory"})
    with pytest.raises(UserError, match="on a data set in memory, which no file has; give --calibrate FOLDER"):
        parelu.bench(candidate)
    with pytest.raises(UserError, match="unknown engine 'abacus'"):
        parelu.bench(candidate, lights(), engine="abacus")
    with pytest.raises(UserError, match="the images have 3 channels, the network takes 1"):
        parelu.bench(candidate, (torch.zeros(30, 3, 8, 8), torch.arange(30) % 3))
    with pytest.raises(UserError, match="is no run folder"):
        parelu.Result.open(tmp_path)
