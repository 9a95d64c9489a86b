"""A virtual environment of its own for each peer engine, made once and kept in a cache folder."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path


class EnvironmentProblem(Exception):
    """Why an engine's environment cannot be had, in one line."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make an environment: pip's arguments, one list a call, and what must then import."""

    name: str
    pythons: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]
    check: str


GROUPS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["dependency-groups"]

SPU = Recipe(
    "spu",
    ("3.11", "3.10"),
    (tuple(GROUPS["spu"]),),
    "import jax, spu.libspu, spu.utils.frontend",
)

CRYPTEN = Recipe(
    "crypten",
    ("3.11",),
    (tuple(GROUPS["crypten"]), ("--no-deps", "crypten==0.4.1")),
    "import importlib.util, omegaconf, torch; assert importlib.util.find_spec('crypten')",
)


def interpreter(recipe: Recipe, cache: Path) -> Path:
    """The environment's python. An environment that was not finished, or was made by another recipe, is made anew."""
    folder = cache / recipe.name
    python, stamp = folder / "bin" / "python", folder / "recipe.txt"
    if stamp.is_file() and stamp.read_text() == repr(recipe) and _works([str(python)], recipe.check):
        return python
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise EnvironmentProblem(f"{folder} is there and is no virtual environment: remove it or give another --cache")
    base = _base(recipe)
    print(f"making {folder} with {base} (once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    _call([base, "-m", "venv", str(folder)], f"cannot make {folder}")
    for arguments in recipe.installs:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        _call(command, f"cannot install {' '.join(arguments)}")
    _call([str(python), "-c", recipe.check], f"{recipe.name} is installed but does not load on {platform.platform()}")
    stamp.write_text(repr(recipe))
    return python


def clean() -> dict[str, str]:
    """This process's environment variables less those that would mix other packages in."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _base(recipe: Recipe) -> str:
    """The first python of a fitting version that runs."""
    for version in recipe.pythons:
        found = shutil.which(f"python{version}")
        if found and _works([found], "import venv, ensurepip"):
            return found
    wanted = " or ".join(f"python{version}" for version in recipe.pythons)
    raise EnvironmentProblem(f"{recipe.name} needs {wanted} with venv on PATH: none was found")


def _works(python: list[str], code: str) -> bool:
    try:
        return subprocess.run([*python, "-c", code], env=clean(), capture_output=True).returncode == 0
    except OSError:
        return False


def _call(command: list[str], problem: str) -> None:
    """Run a command; its last line of errors goes into the one-line problem."""
    done = subprocess.run(command, env=clean(), capture_output=True, text=True)
    if done.returncode:
        raise EnvironmentProblem(f"{problem}: {last_line(done.stderr or done.stdout, 'error')}")


def last_line(text: str, word: str = "") -> str:
    """The last line that has `word` in it, or else the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if word and word in line.lower()]
    return (telling or lines or ["no message"])[-1]
