"""That no loop of the lattice branches on what it computes with, nor indexes by it: in its source, and as compiled."""

import platform
import re
import types
from typing import Any

import numpy as np
import pytest

from parelu.private.crypto import kernels


class Secret:
    """A number whose value cannot be asked for: what is computed of it is secret too."""

    def _computed(self, *_: object) -> "Secret":
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _computed
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rshift__ = __lshift__ = _computed
    __lt__ = __gt__ = __le__ = __ge__ = _computed  # as a mask it may be used, not as a condition

    def _refused(self, *_: object) -> Any:
        raise AssertionError("a branch, an index or a size depends on a secret")

    __bool__ = __index__ = __int__ = __float__ = __len__ = _refused


class SecretNumpy:
    """As much of numpy as the loops use."""

    def empty(self, shape: Any) -> Any:
        return np.full(shape, Secret(), object)

    zeros = empty

    def __getattr__(self, name: str) -> Any:
        return lambda x: x if isinstance(x, Secret) else getattr(np, name)(x)


def loops() -> dict[str, Any]:
    """All of the lattice, by name."""
    pytest.importorskip("numba")
    return {
        name: value
        for part in ("transforms_", "residues_")
        for name, value in vars(kernels.load("numba", part)).items()
    }


def interpreted() -> dict[str, Any]:
    """The loops' sources as Python functions that call one another, of secrets."""
    space: dict[str, Any] = {"np": SecretNumpy()}
    for name, value in loops().items():
        if hasattr(value, "py_func"):
            value = types.FunctionType(value.py_func.__code__, space)
        space.setdefault(name, value)
    return space


def floats(*shape: int) -> Any:
    return np.zeros(shape)


def words(*shape: int) -> Any:
    return np.zeros(shape, np.uint64)


ONE, COUNT = np.uint64(1), 515  # of outputs: more than a chunk
TABLES = (floats(6, 3), floats(6), floats(6), floats(3), floats(3, 4))
# Kernel → what it gets, and which of that is secret: keys, messages, errors, floodings and all made of them.
SECRET: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "reduce": ((floats(5), 5.0, floats(5)), (0,)),
    "forward": ((floats(128, 2), floats(128), floats(128), 5.0), (0,)),
    "inverse": ((floats(128, 2), floats(128), floats(128), 1.0, 5.0), (0,)),
    "dot": ((np.zeros((2, 11, 3), np.int32), floats(2, 11, 8), 5.0, floats(2, 8, 3)), (0, 1)),
    "add_message": ((floats(6, COUNT), words(COUNT), ONE, floats(6, 3), floats(6) + 5, floats(6, COUNT)), (0, 1)),
    "flood": ((words(COUNT, 4), floats(6, 4), floats(6), floats(6) + 5, floats(6, COUNT)), (0,)),
    "drop": ((floats(6, COUNT), floats(6) + 5, floats(3), floats(3, 4), floats(3, COUNT)), (0,)),
    "answer": (
        (
            *(floats(6, COUNT), floats(6, COUNT), words(COUNT), words(COUNT, 4), ONE, floats(6, 7), floats(6)),
            *(floats(6) + 5, floats(3), floats(3, 4), floats(3, COUNT)),
        ),
        (0, 1, 2, 3),
    ),
    "decode": ((floats(3, 9), floats(6) + 5, floats(3), words(3), words(9)), (0,)),
    "pack": ((floats(40), 5, 3, np.zeros(4, np.uint32)), (0,)),
}
PUBLIC = {"unpack", "accept", "columns"}  # residues and indices that both parties know


def test_all_loops_are_listed():
    compiled = {name for name, value in loops().items() if hasattr(value, "py_func") and not name.startswith("_")}
    assert compiled - {"reduced"} == SECRET.keys() | PUBLIC


@pytest.mark.parametrize("few_outputs", [True, False])
@pytest.mark.parametrize("name", SECRET)
def test_no_source_branches_on_a_secret_or_indexes_by_one(name, few_outputs):
    arguments, secret = SECRET[name]
    if name == "dot" and not few_outputs:
        arguments = (np.zeros((2, 11, 20), np.int32), floats(2, 11, 3), 5.0, floats(2, 3, 20))
    hidden = [
        np.full(x.shape, Secret(), object)
        if i in secret or (i == len(arguments) - 1 and isinstance(x, np.ndarray))
        else x
        for i, x in enumerate(arguments)
    ]
    interpreted()[name](*hidden)


def test_a_branch_would_be_found():
    for refused in (lambda x: 1 if x else 0, lambda x: [0][x], float):
        with pytest.raises(AssertionError, match="depends on a secret"):
            refused(Secret() < Secret())


@pytest.mark.parametrize("name", ["forward", "answer", "decode"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are those of x86-64")
def test_compiled_loops_do_not_compare_floats(name):
    """Which a branch or a mask that the compiler made of them would need; what jumps is on indices and lengths."""
    numba = pytest.importorskip("numba")
    fresh = numba.njit(nogil=True, error_model="numpy")(loops()[name].py_func)  # cached code cannot be read
    fresh(*SECRET[name][0])
    (assembly,) = fresh.inspect_asm().values()
    assert re.search(r"\bv?mulpd\b", assembly), "it is vectorised"
    comparisons = r"^\s+(?:v?u?comis[sd]|v?cmp\w*[sp][sd]|v?movmskp[sd]|k(?:or)?test\w*)\b.*"
    assert not re.findall(comparisons, assembly, re.MULTILINE)
