"""Imports point one way, between the rooms and inside them, and no module imports one that imports it."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import parelu

ROOT = Path(parelu.__file__).parent
# A room may import the rooms below it in this list, itself, and nothing above.
ORDER = (
    "errors",
    "registry",
    "network",
    "data",
    "models",
    "published",
    "fusion",
    "training",
    "masks",
    "methods",
    "private",
    "runs",
    "report",
    "client",
    "api",
    "demo",
    "cli",
    "__main__",
)
# Of private inference likewise, which knows the network and fusion alone.
PRIVATE = (
    "crypto",
    "transport",
    "lowering",
    "fresh",
    "protocol",
    "offline",
    "serving",
    "rows",
    "engines",
    "cost",
    "bench",
)
GROUND = {"errors", "registry", "network", "fusion"}


def module_of(path: Path) -> str:
    """Its dotted name below parelu; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


def imported(path: Path) -> set[str]:
    """The modules below parelu that a file imports anywhere in it, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    below = {name.removeprefix("parelu.") for name in found if name.startswith("parelu.")}
    return {name for name in below if name in FILES}


def test_imports_point_one_way():
    assert {name.split(".")[0] for name in FILES} == set(ORDER)
    for name, path in FILES.items():
        for other in imported(path):
            assert ORDER.index(other.split(".")[0]) <= ORDER.index(name.split(".")[0]), f"{name} imports {other}"


def test_networks_are_traced_then_rewritten():
    """What both stand on knows neither; `instrument` calls one after the other."""
    rooms = {name: imported(path) for name, path in FILES.items() if re.match(r"network\.(tracing|canonical)\.", name)}
    for name, others in rooms.items():
        for other in (o for o in others if o.startswith("network.") and o not in rooms):
            assert not imported(FILES[other]) & set(rooms), f"{name} imports {other}"
        if name.startswith("network.tracing."):
            assert not any(other.startswith("network.canonical.") for other in others), name


def test_private_inference_knows_the_network_and_fusion_alone():
    inside = {name: path for name, path in FILES.items() if name.startswith("private.")}
    assert {name.split(".")[1] for name in inside} == set(PRIVATE)
    for name, path in inside.items():
        for other in imported(path):
            room, *below = other.split(".")
            if room == "private" and below:
                assert PRIVATE.index(below[0]) <= PRIVATE.index(name.split(".")[1]), f"{name} imports {other}"
            else:
                assert room in GROUND, f"{name} imports {other}"


def test_the_command_line_calls_the_api():
    """And writes what comes out by `report`; at its top it imports nothing heavy."""
    for name, path in FILES.items():
        if name.split(".")[0] == "cli":
            rooms = {other.split(".")[0] for other in imported(path)}
            assert rooms <= {"cli", "client", "api", "demo", "report", "errors"}, f"{name} imports {rooms}"
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            assert {str(node.module).split(".")[0] for node in top} <= {
                "__future__",
                "collections",
                "concurrent",
                "parelu",
                "pathlib",
                "types",
                "typing",
            }


def test_no_module_imports_one_that_imports_it():
    """Read as text, so also where an import is for types alone or inside a function."""
    TopologicalSorter({name: imported(path) - {name} for name, path in FILES.items()}).prepare()


def test_no_pickle_and_no_randomness_of_numpy():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        for call in re.findall(
            r"torch\.load\(.*", text
        ):  # which reads tensors and plain values of a pickle, if told to
            assert path.name == "weights.py" and call.endswith("weights_only=True)"), f"{path.name}: {call}"
        for banned in (r"import pickle\b", r"torch\.save\(", r"np\.random\.", r"(?<![\w.])eval\("):
            assert not re.search(banned, text), f"{path.name}: {banned}"
