"""The inner loops, twice: compiled by numba, and vectorised in numpy where numba is missing.

Both give the same bytes. `PARELU_KERNELS=numpy` chooses the second.
"""

import importlib
import os
from types import ModuleType

from parelu.errors import UserError

NAMES = ("numba", "numpy")


def load(name: str) -> ModuleType:
    """The kernels of this name; raises ImportError where numba is missing."""
    return importlib.import_module(f"parelu.private.crypto.kernels.with_{name}")


def _chosen() -> ModuleType:
    name = os.environ.get("PARELU_KERNELS", "")
    if name not in ("", *NAMES):
        raise UserError(f"PARELU_KERNELS={name}: it is one of {', '.join(NAMES)}")
    if name:
        return load(name)
    try:
        return load("numba")
    except ImportError:
        return load("numpy")


kernels = _chosen()
