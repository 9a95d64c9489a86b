"""The inner loops, twice: compiled by numba, and vectorised in numpy where numba is missing.

`kernels` are those of symmetric cryptography and plain linear maps, the others those of the lattice. Both sets give the
same bytes. `PARELU_KERNELS=numpy` chooses the second.
"""

import importlib
import os
from types import ModuleType
from typing import Any

from parelu.errors import UserError

NAMES = ("numba", "numpy")


def load(name: str, loops: str = "") -> ModuleType:
    """The kernels of this name; loops: "transforms_" or "residues_" of the lattice. ImportError where numba is not."""
    return importlib.import_module(f"parelu.private.crypto.kernels.{loops}with_{name}")


class Kernels:
    """The functions of one set, which is loaded when the first is asked for: numba takes a second to import."""

    def __init__(self, loops: str = "") -> None:
        self._loops = loops

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(_chosen(self._loops), name)
        setattr(self, name, found)
        return found

    @property
    def name(self) -> str:
        """One of NAMES."""
        return _chosen(self._loops).__name__.rpartition("_")[2]

    def load(self) -> None:
        """Load them now, so that nothing waits for it that is timed."""
        _chosen(self._loops)


def _chosen(loops: str) -> ModuleType:
    if _NAME:
        return load(_NAME, loops)
    try:
        return load("numba", loops)
    except ImportError:
        return load("numpy", loops)


_NAME = os.environ.get("PARELU_KERNELS", "")
if _NAME not in ("", *NAMES):
    raise UserError(f"PARELU_KERNELS={_NAME}: it is one of {', '.join(NAMES)}")
kernels, transform_kernels, residue_kernels = Kernels(), Kernels("transforms_"), Kernels("residues_")
