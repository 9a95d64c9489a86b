"""A virtual environment of its own for an engine whose packages do not go with ours, made once and kept in the cache.

Processes in it are given files and give files back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from parelu.errors import UserError
from parelu.network import cache


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make an environment: pip's arguments, one list a call, and what must then import."""

    name: str
    pythons: tuple[str, ...]
    installs: tuple[tuple[str, ...], ...]
    check: str


def made(recipe: Recipe) -> Path | None:
    """The environment's python, where it is there and loads."""
    folder = cache.folder() / recipe.name
    python, stamp = folder / "bin" / "python", folder / "recipe.txt"
    is_made = stamp.is_file() and stamp.read_text() == repr(recipe) and _works([str(python)], recipe.check)
    return python if is_made else None


@functools.cache
def interpreter(recipe: Recipe) -> Path:
    """The environment's python. One that is missing, unfinished or of another recipe is made; pip downloads it.

    Raises:
        UserError: it cannot be made; the line says what is needed.
    """
    if found := made(recipe):
        return found
    folder = cache.folder() / recipe.name
    python, stamp = folder / "bin" / "python", folder / "recipe.txt"
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise UserError(f"{folder} is there and is no virtual environment: remove it or set XDG_CACHE_HOME")
    base = _base(recipe)
    print(f"making {folder} with {base} (once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    _call([base, "-m", "venv", str(folder)], f"cannot make {folder}")
    for arguments in recipe.installs:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        _call(command, f"the environment {folder} cannot be made: no {' '.join(arguments)}")
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
    raise UserError(f"{recipe.name} needs an environment of its own, made with {wanted} and its venv: none is on PATH")


def _works(python: list[str], code: str) -> bool:
    try:
        return subprocess.run([*python, "-c", code], env=clean(), capture_output=True).returncode == 0
    except OSError:
        return False


def _call(command: list[str], problem: str) -> None:
    """Run a command; its last line of errors goes into the one-line problem."""
    done = subprocess.run(command, env=clean(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{problem}: {last_line(done.stderr or done.stdout, 'error')}")


def run(commands: Mapping[str, Sequence[str | Path]], variables: Mapping[str, str]) -> None:
    """Start processes by name, with these environment variables, and wait until all have ended well.

    Raises:
        UserError: as soon as one has not; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        outputs, processes = {name: Path(folder) / str(i) for i, name in enumerate(commands)}, {}
        for name, command in commands.items():
            stream = stack.enter_context(outputs[name].open("w"))
            processes[name] = process = subprocess.Popen(
                [*map(str, command)], env={**clean(), **variables}, stdout=stream, stderr=stream
            )
            stack.callback(_end, process)
        while any(process.poll() is None for process in processes.values()):
            if any(process.poll() for process in processes.values()):
                break
            time.sleep(0.05)
        for name, process in processes.items():
            if process.poll():
                message = last_line(outputs[name].read_text(errors="replace"), "error")
                raise UserError(f"{name} ended with status {process.returncode}: {message}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def last_line(text: str, word: str = "") -> str:
    """The last line that has `word` in it, or else the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if word and word in line.lower()]
    return (telling or lines or ["no message"])[-1]
