"""Which small changes to the code the tests do not notice: mutation testing of a room with its own fast tests.

    make mutants
    python benchmarks/mutants.py training gate --lines 100 --seed 1

Draws lines of a room's files, makes one mutant of each, and runs the room's tests on it, up to the first failure, in a
fork of a process that has the libraries loaded. A mutant that passes survives; one that takes much longer than the code
as it is counts as killed. Equal seeds draw equal mutants of equal files.

The operators are mutmut's, a deleted call and a dropped `x.method()`. mutmut itself leaves out constants, options and
decorated functions, and torch.fx cannot trace its trampolines. Annotations, decorators, docstrings, assertions and what
is raised stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import libcst as cst
import pytest
import torch  # noqa: F401  (what takes long to load is loaded before the forks)
from hypothesis import Phase, settings
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parent.parent
PARTS = ("src", "tests", "docs", "benchmarks", "README.md", "pyproject.toml")
SOURCE = "src/parelu"

# Room → pairs of files and of pytest's arguments.
ROOMS = {
    "training": [
        (
            "training/schedule.py training/loop.py training/batches.py training/teacher.py training/evaluation.py "
            "training/checkpoint.py training/callback.py training/history.py",
            "tests/training tests/contracts/test_mask_optimizers.py",
        )
    ],
    "losses": [
        (
            "training/losses.py training/objectives.py",
            "tests/training/test_losses.py tests/training/test_steps.py tests/methods/test_registry.py "
            "tests/methods/test_gated.py::test_akd_is_what_the_final_classifier_learns_by",
        )
    ],
    "masks": [
        (
            "masks/optimizer.py masks/projection.py masks/polynomials.py",
            "tests/masks tests/contracts/test_mask_optimizers.py",
        )
    ],
    "gate": [("masks/gate.py masks/gate_loops.py", "tests/masks")],
    "methods": [
        (
            "methods/learned.py methods/autorep.py methods/bcd.py methods/delphi.py methods/fisher.py methods/gated.py "
            "methods/safenet.py methods/senet.py methods/snl.py",
            "tests/methods/test_learned.py tests/methods/test_registry.py tests/methods/test_gated.py tests/masks "
            "tests/contracts/test_mask_optimizers.py tests/contracts/test_methods.py tests/runs/test_mask_search.py",
        ),
        (
            "methods/base.py methods/budget.py methods/jobs.py methods/fixed.py methods/channels.py "
            "methods/deepreduce.py methods/deepreshape.py methods/random.py methods/snip.py methods/uniform.py",
            "tests/methods/test_registry.py tests/methods/test_deepreshape.py tests/methods/test_channels.py "
            "tests/contracts/test_methods.py",
        ),
    ],
    "transport": [
        (
            "private/transport/channel.py private/transport/traffic.py private/transport/link.py",
            "tests/private/transport -k 'not greetings'",
        )
    ],
    "lowering": [
        (
            "private/lowering/lower.py private/lowering/calibrate.py",
            "tests/private/lowering/test_lower.py tests/contracts/test_ops.py -k 'not mutated and not kernels "
            "and not sparse and not linear_maps and not encoding and not no_program'",
        ),
        (
            "private/lowering/verify.py fusion/equalise.py",
            "tests/private/lowering/test_verify.py tests/fusion/test_equalise.py",
        ),
    ],
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A file below SOURCE with one change; was, now: the line."""

    file: str
    line: int
    code: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.was}\n  + {self.now}"


def delete_call(node: cst.Expr) -> Iterator[cst.CSTNode]:
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def drop_method(node: cst.Call) -> Iterator[cst.CSTNode]:
    if isinstance(node.func, cst.Attribute) and not node.args:
        yield node.func.value


OPERATORS = [*mutation_operators, (cst.Expr, delete_call), (cst.Call, drop_method)]
AS_THEY_ARE = (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.Import, cst.ImportFrom)


class Changes(cst.CSTVisitor):
    """Line → pairs of a node and what takes its place."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, list[tuple[cst.CSTNode, cst.CSTNode]]] = {}

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, AS_THEY_ARE):
            return False
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                line = self.get_metadata(PositionProvider, node).start.line
                pairs = [(node, changed) for changed in operator(node) if not _only_case(node, changed)]
                self.found.setdefault(line, []).extend(pairs)
        return True


def _only_case(node: cst.CSTNode, changed: cst.CSTNode) -> bool:
    return isinstance(node, cst.SimpleString) and node.value.lower() == changed.value.lower()


def sample(files: list[str], lines: int, draw: random.Random) -> list[Mutant]:
    """A mutant of each of so many lines of these files; of all lines, where there are fewer."""
    found = {}
    for file in files:
        module = MetadataWrapper(cst.parse_module((ROOT / SOURCE / file).read_text()))
        changes = Changes()
        module.visit(changes)
        found |= {(file, line): (module.module, pairs) for line, pairs in changes.found.items() if pairs}
    mutants = []
    for file, line in sorted(draw.sample(sorted(found), min(lines, len(found)))):
        module, pairs = found[file, line]
        mutated = module.deep_replace(*draw.choice(pairs)).code
        before, after = module.code.splitlines(), mutated.splitlines()
        first = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), line - 1)
        mutants.append(Mutant(file, first + 1, mutated, before[first].strip(), after[first].strip()))
    return mutants


def outcome(copy: Path, arguments: str, limit: float, *, mutated: bool) -> str:
    """Of the tests, on the copy in a fork: "passed", "failed" or "took long"."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(copy, arguments, mutated))
    process.start()
    process.join(limit)
    late = process.exitcode is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and what the tests started
    process.join()
    return "took long" if late else "passed" if process.exitcode == 0 else "failed"


def _run(copy: Path, arguments: str, mutated: bool) -> None:
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    os.environ |= {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(copy / "cache")}
    if mutated:  # nothing compiled from it may stay
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    usual = "-n 0 -x -p no:cacheprovider --hypothesis-profile=mutants --hypothesis-seed=0 -m 'not slow'"
    imported = "-W 'ignore:Module already imported'"  # hypothesis, before the fork
    os._exit(pytest.main(shlex.split(f"{usual} {imported} {arguments}")))


def test(room: str, lines: int, seed: int, copy: Path) -> tuple[int, list[Mutant]]:
    """The mutants tried of a room, and those that survive."""
    draw, pairs, tried, survivors = random.Random(f"{seed} {room}"), ROOMS[room], 0, []
    for files, arguments in pairs:
        started = time.monotonic()
        if outcome(copy, arguments, 600, mutated=False) != "passed":
            sys.exit(f"{room}: the tests fail on the code as it is:\n{(copy / 'log').read_text()}")
        limit = 10 + 3 * (time.monotonic() - started)
        for mutant in sample(files.split(), lines // len(pairs), draw):
            target = copy / SOURCE / mutant.file
            target.write_text(mutant.code)
            found = outcome(copy, arguments, limit, mutated=True)
            shutil.copy2(ROOT / SOURCE / mutant.file, target)
            tried += 1
            survivors += [mutant] if found == "passed" else []
            print(f"{found}: {mutant}", flush=True)
    return tried, survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; all, if left out")
    parser.add_argument("--lines", type=int, default=50, help="of a room, a mutant each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings.register_profile("mutants", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
    rows = []
    with tempfile.TemporaryDirectory(prefix="parelu-mutants-") as folder:
        copy = Path(folder)
        for part in PARTS:
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy2)(ROOT / part, copy / part)
        for room in arguments.rooms or ROOMS:
            tried, survivors = test(room, arguments.lines, arguments.seed, copy)
            rows.append(f"{room:10} {tried:4} mutants, {tried - len(survivors):4} killed")
            print("\n".join([f"survives: {mutant}" for mutant in survivors]), flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
