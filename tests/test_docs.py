"""What the documentation says is what the code does."""

import dataclasses
import importlib
import importlib.util
import math
import re
import threading
from pathlib import Path
from typing import ClassVar

import torch

from parelu import data
from parelu.methods.base import methods
from parelu.methods.fixed import FixedMasks
from parelu.network.count import skeleton
from parelu.network.instrument import instrument
from parelu.network.spec import families, spec_of
from parelu.network.steps import KNOWN
from parelu.private.fresh import noise, untrained
from parelu.private.lowering import reference
from parelu.private.lowering.lower import lower
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import REVEALS
from parelu.private.serving.server import Server
from parelu.private.transport.tls import make_certificates
from parelu.runs.recipes import recipes

ROOT = Path(__file__).parent.parent


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


def test_the_example_of_a_client_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(from pathlib.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    spec = spec_of("resnet10 m=2", (1, 8, 8), 10)
    candidate = untrained(spec, 0.2, seed=0)
    images = noise(3, spec.input, seed=0)
    lowered = lower(candidate.network(), images, candidate.preprocessing)
    make_certificates(tmp_path / "certs")
    monkeypatch.chdir(tmp_path)
    model = Model(lowered, relus()["sign"], REVEALS["logits"])
    server = Server(model, modes()["dealer"], ("127.0.0.1", 0), tmp_path / "certs")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for said, real in (("7000", str(server.port)), ("1f3a…", lowered.program.digest)):
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


def test_the_table_of_methods_is_the_registry():
    rows = ["| name | source | budget | options |", "|---|---|---|---|"]
    for name, cls in methods().items():
        options = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(cls))
        rows.append(f"| `{name}` | {cls.source} | {'exactly' if cls.exact else 'at most'} | {options} |")
    assert "\n".join(rows) in (ROOT / "docs/methods.md").read_text()


def test_every_data_set_is_documented():
    help_text = (ROOT / "src/parelu/cli/main.py").read_text()
    for name in data.names():
        assert f"`{name}`" in (ROOT / "docs/data.md").read_text()
        assert name in help_text


def test_every_step_is_documented():
    text = (ROOT / "docs/counts.md").read_text()
    for step in KNOWN.split(", "):
        assert step.split()[0] in text


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_results_name_recipes_that_exist():
    named = set(re.findall(r"parelu recipe ([\w-]+)", (ROOT / "docs/results.md").read_text()))
    assert named
    assert named <= set(recipes())


def test_the_table_of_networks_is_what_its_script_finds():
    """All rows of ours; what stands there for libraries needs them installed."""
    spec = importlib.util.spec_from_file_location("zoo", ROOT / "benchmarks/zoo.py")
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    page = (ROOT / "docs/zoo.md").read_text()
    names = [name for cls in families().values() if cls.family != "external" for name in cls.examples]
    for name in names:
        assert f"| `{name}` | " in page
    for name in ("hrn-5x5x3x", "wrn-10-2 m=4", "mobilenetv1 m=8", "vgg16 m=8 (16 classifier)"):
        assert zoo.row(name, lambda name=name: skeleton(spec_of(name, zoo.OURS, 100))) in page
    assert (
        zoo.row("bad", lambda: instrument(torch.nn.Sequential(torch.nn.MaxPool2d(2)), (1, 4, 4)))
        == "| `bad` | no | – | – | MaxPool2d |"
    )


def test_the_table_of_methods_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("methods")
    rows = [row for row in benchmark.figures(ROOT / "benchmarks/methods.csv") if row["setting"] == "colour"]
    assert rows
    assert benchmark.table(rows, list(benchmark.variants())) in (ROOT / "docs/results.md").read_text()
