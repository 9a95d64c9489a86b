"""Imports point one way: cli → report, study → search → methods → train → … → models → sites."""

import ast
import re
from pathlib import Path

import parelu

ROOT = Path(parelu.__file__).parent
# A room may import the rooms below it in this list, itself, and nothing above.
ORDER = (
    "errors", "graph", "sites", "dapa", "gate_loops", "gates", "models", "store", "plan", "count", "steps",
    "datasets", "data", "distill", "run", "learner", "masks", "train", "chains", "composition", "packing", "fuse",
    "private", "methods", "mask_search", "search", "study", "merging", "pareto", "report", "progress", "cli_private",
    "cli", "__main__",
)  # fmt: skip


def room(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"parelu.{alias.name}" for alias in node.names} if node.module == "parelu" else {node.module}
    return {name for name in found if name.startswith("parelu.")}


def test_imports_point_one_way():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files} == set(ORDER)
    for path in files:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imported(path):
            assert ORDER.index(room(name)) <= ORDER.index(own), f"{path.relative_to(ROOT)} imports {name}"


def test_methods_and_private_inference_know_nothing_of_each_other():
    for path in (ROOT / "methods").rglob("*.py"):
        assert not {name for name in imported(path) if room(name) == "private"}, path
    above = ORDER[ORDER.index("methods") : ORDER.index("pareto")]
    for path in (ROOT / "private").rglob("*.py"):
        assert not {name for name in imported(path) if room(name) in above}, path


def test_no_pickle_and_no_randomness_of_numpy():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for banned in (r"import pickle", r"torch\.load\(", r"torch\.save\(", r"np\.random\.", r"(?<![\w.])eval\("):
            assert not re.search(banned, text), f"{path.name}: {banned}"
