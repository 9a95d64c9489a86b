"""Folders of hints: what stays in them. A server's has the sets of the program beside it, a client's the last used."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

SUFFIX = ".hints"
MOST_KEPT = 4 << 30  # bytes of a client's folder; its last set stays there even where it is larger
ABANDONED = 3600.0  # seconds after which a file that is still being written has no writer any more


def file_of(folder: Path, name: bytes) -> Path:
    """Of a set, by its identity or digest."""
    return folder / f"{name.hex()}{SUFFIX}"


def temporary(file: Path) -> Path:
    """Where a process and thread of its own writes a file, until it is whole."""
    return file.with_name(f".{file.name}.{os.getpid()}.{os.urandom(4).hex()}")


def touch(file: Path) -> None:
    """Note that a set was used now."""
    with contextlib.suppress(OSError):
        os.utime(file)


def drop_others(folder: Path, files: Collection[Path]) -> None:
    """Leave these sets alone in a folder."""
    with contextlib.suppress(OSError):
        for file in folder.glob(f"*{SUFFIX}"):
            if file not in files:
                file.unlink(missing_ok=True)
        _drop_abandoned(folder)


def make_room(spared: Path) -> None:
    """In the folder of a set drop others, the longest unused first, until all take no more than MOST_KEPT."""
    folder = spared.parent
    with contextlib.suppress(OSError):
        _drop_abandoned(folder)
        others = {file: file.stat() for file in folder.glob(f"*{SUFFIX}") if file != spared}
        taken = spared.stat().st_size + sum(stat.st_size for stat in others.values())
        for file in sorted(others, key=lambda file: others[file].st_mtime_ns):
            if taken <= MOST_KEPT:
                break
            file.unlink(missing_ok=True)
            taken -= others[file].st_size


def _drop_abandoned(folder: Path) -> None:
    for file in folder.glob(f".*{SUFFIX}.*"):
        if time.time() - file.stat().st_mtime > ABANDONED:
            file.unlink(missing_ok=True)
