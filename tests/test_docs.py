"""What the documentation says is what the code does."""

import dataclasses
import math
import re
from pathlib import Path
from typing import ClassVar

import torch

from parelu import data
from parelu.methods import methods
from parelu.methods.base import FixedMasks
from parelu.steps import KNOWN
from parelu.study import recipes

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


def test_the_table_of_methods_is_the_registry():
    rows = ["| name | source | budget | options |", "|---|---|---|---|"]
    for name, cls in methods().items():
        options = ", ".join(f"`{field.name}={field.default}`" for field in dataclasses.fields(cls))
        rows.append(f"| `{name}` | {cls.source} | {'exactly' if cls.exact else 'at most'} | {options} |")
    assert "\n".join(rows) in (ROOT / "docs/methods.md").read_text()


def test_every_data_set_is_documented():
    help_text = (ROOT / "src/parelu/cli.py").read_text()
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
