"""What the documentation says is what the code does."""

import dataclasses
import importlib
import importlib.util
import math
import os
import re
import threading
import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml

import parelu
from parelu import data
from parelu.masks import optimizer
from parelu.methods import snl
from parelu.methods.fixed import FixedMasks
from parelu.network.instrument import instrument
from parelu.network.spec import spec_of
from parelu.network.steps import KNOWN
from parelu.private.fresh import noise, untrained
from parelu.private.lowering import reference
from parelu.private.lowering.lower import lower
from parelu.private.lowering.ops import Activation
from parelu.private.offline.mode import DEFAULT, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Label
from parelu.private.serving.served import Served
from parelu.private.serving.server import Server
from parelu.private.transport.tls import make_certificates
from parelu.runs.recipes import recipes
from parelu.training import callback

ROOT = Path(__file__).parent.parent


def _script(path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _script(ROOT / "docs/generate.py")
PAGES = [*generate.pages(), *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]


@pytest.mark.slow
def test_the_example_of_a_users_own_network_runs(capsys, parties_as_threads, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(import parelu.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    full, best, seconds = capsys.readouterr().out.splitlines()
    relus, accuracy = best.split()
    assert (full, relus) == ("1600", "100")
    assert float(accuracy) > 60 and float(seconds) > 0
    assert names["result"].report() == Path("runs/mine/report.html")
    again = parelu.load("runs/mine/candidates/snl-100")
    assert again.plan == names["best"].plan


@pytest.mark.slow
def test_the_guide_to_the_api_runs(capsys, parties_as_threads, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
        for shown in re.findall(r"print\(.*\)  # (.*)", block):
            assert shown in capsys.readouterr().out
    assert [record.metrics.relus for record in names["result"].records] == [512, 102, 40]
    assert names["best"].trained.validation_accuracy > 60
    assert names["again"].plan.relus == 40
    assert names["row"].agreement == 1
    again = parelu.reduce(names["network"](), (names["images"], names["labels"]), pretrained=False, **names["options"])
    assert again.records == names["result"].records


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(import torch.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("57344\n{'layer3.0.relu2': (")


def test_the_example_of_a_method_meets_its_budget():
    (example,) = re.findall(r"```python\n(@dataclasses.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {"dataclasses": dataclasses, "math": math, "torch": torch, "ClassVar": ClassVar, "FixedMasks": FixedMasks}
    exec(compile(example, "README.md", "exec"), names)
    masks = names["First"]().masks({"a": (2, 2, 2), "b": (1, 3, 3), "c": (4,)}, 11, 0)
    assert [int(mask.sum()) for mask in masks.values()] == [8, 3, 0]


def test_the_example_of_a_prediction_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/cost.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, "cost.md", "exec"), names)
    seconds, low, high, rounds, sent, memory = map(float, capsys.readouterr().out.split())
    assert 0 < low <= seconds <= high
    assert rounds == sum(isinstance(op, Activation) for op in names["program"].ops) + 1  # of image and logits
    assert 0 < sent < memory


def test_the_example_of_a_client_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(from pathlib.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    candidate = untrained(spec, 0.2, seed=0)
    images = noise(3, spec.input, seed=0)
    lowered = lower(candidate.network(), images, candidate.preprocessing, ring=ring_for(DEFAULT))
    make_certificates(tmp_path / "certs")
    monkeypatch.chdir(tmp_path)
    model = Model(lowered, relus()["sign"], Label())
    server = Server(Served(model, modes()[DEFAULT]), ("127.0.0.1", 0), tmp_path / "certs")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for said, real in (("7000", str(server.port)), ("1f3a…", server.offer.pin)):
            assert example.count(said) == 1
            example = example.replace(said, real)
        names = {"images": images}
        exec(compile(example, "README.md", "exec"), names)
    finally:
        server.close()
        thread.join()
    assert names["labels"].tolist() == reference.run(lowered, images).labels.tolist()


def test_the_threat_model_names_tests_that_exist():
    named = set(re.findall(r"\btest_\w+(?!\.py)\b", (ROOT / "docs/threat-model.md").read_text()))
    files = list((ROOT / "tests").rglob("*.py"))
    defined = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > 20
    assert named <= defined | {path.stem for path in files}


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_generated_tables_are_current(page):
    assert generate.filled(page.read_text()) == page.read_text(), "run make docs"


def test_every_table_stands_on_one_page():
    assert sorted(name for page in generate.pages() for name in generate.names(page.read_text())) == sorted(
        generate.TABLES
    )


def test_a_table_that_is_out_of_date_is_written_anew():
    text = "before\n<!-- generated: protocols -->\nold\n<!-- /generated -->\nafter"
    filled = generate.filled(text)
    assert filled.splitlines()[0] == "before" and filled.splitlines()[-1] == "after"
    assert "old" not in filled and "| `sign` |" in filled
    assert generate.filled(filled) == filled
    with pytest.raises(KeyError):
        generate.filled(text.replace("protocols", "nothing"))


def test_every_data_set_is_named_in_the_help():
    help_text = (ROOT / "src/parelu/cli/training.py").read_text()
    assert all(name in help_text for name in data.names())


def test_every_step_is_documented():
    text = (ROOT / "docs/counts.md").read_text()
    for step in KNOWN.split(", "):
        assert step.split()[0] in text


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """`network/steps.py` is the end of a path in the repository."""
    folders = ("src", "tests", "benchmarks", "docs", "fuzz")
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for named in re.findall(r"`([\w./-]+\.py)`", page.read_text()):
        assert any(f"/{path}".endswith(f"/{named}") for path in files), named


def test_the_example_of_a_family_is_that_of_the_plugin():
    (example,) = re.findall(r"```python\n(@dataclasses.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    shown = example[: example.index("    def module")]
    assert shown in (ROOT / "tests/plugin/parelu_example/tinynet.py").read_text()


def test_the_example_of_a_mask_optimizer_is_one():
    (example,) = re.findall(r"```python\n(class Magnitudes.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    names = {**vars(optimizer), "Step": callback.Step}
    exec(compile(example, "extending.md", "exec"), names)
    network = instrument(spec_of("resnet10 m=2", (1, 8, 8), 10).module(), (1, 8, 8))
    magnitudes = names["Magnitudes"](network, snl.Slopes(20))
    assert set(magnitudes.state_dict()) == set(magnitudes.gates)
    assert sum(int(mask.sum()) for mask in magnitudes.project(20).values()) == 20


def test_groups_of_entry_points_are_those_that_are_looked_for():
    named = set(re.findall(r"^\| .* \| `(parelu[\w.]+)` \|", (ROOT / "docs/extending.md").read_text(), re.MULTILINE))
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    looked_for = re.findall(r"registry\.\w+\(\w+, \"([\w.]+)\"", "\n".join(sources))
    assert named == set(looked_for)


def test_the_site_has_every_page_and_every_module_of_the_reference():
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.relative_to(ROOT).as_posix()}\n" in nav for page in PAGES)
    modules = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(modules) > 10
    assert all(importlib.util.find_spec(module) for module in modules)


def test_the_version_is_the_same_everywhere():
    version = parelu.__version__
    packaging = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert packaging["project"]["dynamic"] == ["version"]
    assert packaging["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "parelu.__version__"}
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_is_run_here():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/paper-tables.md"])
def test_recipes_that_are_named_exist(page):
    named = set(re.findall(r"parelu recipe ([\w/-]*\w)", (ROOT / page).read_text()))
    assert named
    assert named <= set(recipes())


def test_a_network_that_cannot_run_names_what_is_in_the_way(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    zoo = importlib.import_module("zoo")
    curved = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Softsign())
    assert zoo.row("bad", lambda: instrument(curved, (1, 4, 4))) == "| `bad` | no | 0 | 12 | 0.0 M | Softsign |"


def test_the_tests_that_the_page_of_checks_names_are_there():
    named = re.findall(r"`(test_\w+)` \(([\w/]+\.py)\)", (ROOT / "docs/checks.md").read_text())
    assert len(named) > 30
    for name, file in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"
