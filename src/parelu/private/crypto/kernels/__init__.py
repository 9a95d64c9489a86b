"""The inner loops, twice: compiled by numba, and vectorised in numpy where numba is missing.

`kernels` are those of symmetric cryptography and plain linear maps, the others those of the lattice. Both sets give the
same bytes. `PARELU_KERNELS=numpy` chooses the second.
"""

import importlib
import os
from types import ModuleType

from parelu.errors import UserError

NAMES = ("numba", "numpy")


def load(name: str, loops: str = "") -> ModuleType:
    """The kernels of this name; loops: "transforms_" or "residues_" of the lattice. ImportError where numba is not."""
    return importlib.import_module(f"parelu.private.crypto.kernels.{loops}with_{name}")


def _chosen(loops: str = "") -> ModuleType:
    name = os.environ.get("PARELU_KERNELS", "")
    if name not in ("", *NAMES):
        raise UserError(f"PARELU_KERNELS={name}: it is one of {', '.join(NAMES)}")
    if name:
        return load(name, loops)
    try:
        return load("numba", loops)
    except ImportError:
        return load("numpy", loops)


kernels = _chosen()
transform_kernels, residue_kernels = _chosen("transforms_"), _chosen("residues_")
