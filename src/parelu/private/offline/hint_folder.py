"""Folders of hints: what stays in them. A server's has the sets of the program beside it, a client's the last used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from parelu.network.storage import drop_abandoned

SUFFIX = ".hints"
MOST_KEPT = 4 << 30  # bytes of a client's folder; its last set stays there even where it is larger


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
        drop_abandoned(folder, f".*{SUFFIX}.*")


def make_room(spared: Path) -> None:
    """In the folder of a set drop others, the longest unused first, until all take no more than MOST_KEPT."""
    folder = spared.parent
    with contextlib.suppress(OSError):
        drop_abandoned(folder, f".*{SUFFIX}.*")
        others = {file: file.stat() for file in folder.glob(f"*{SUFFIX}") if file != spared}
        taken = spared.stat().st_size + sum(stat.st_size for stat in others.values())
        for file in sorted(others, key=lambda file: others[file].st_mtime_ns):
            if taken <= MOST_KEPT:
                break
            file.unlink(missing_ok=True)
            taken -= others[file].st_size
