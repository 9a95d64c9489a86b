"""Both sets of kernels for tests of primitives, and the hash by its definition."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from parelu.private.crypto import carries, garbling, kernels, ot_extension
from parelu.private.crypto import hash as hash_module
from parelu.private.crypto.prg import Stream, fresh_seed


def kernels_named(name: str) -> ModuleType:
    if name == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    return kernels.load(name)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Both parties' code with these kernels."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (carries, garbling, hash_module, ot_extension):
            patch.setattr(module, "kernels", kernels_named(name))
        yield


def random_bits(count: int) -> Any:
    return Stream(fresh_seed(), "test").bits(count)


def slow_hash(key: bytes, block: bytes, instance: int, use: int) -> bytes:
    def permute(x: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(x)

    inner = permute(block)
    tweak = instance.to_bytes(8, "little") + use.to_bytes(8, "little")
    outer = permute(bytes(x ^ y for x, y in zip(inner, tweak, strict=True)))
    return bytes(x ^ y for x, y in zip(outer, inner, strict=True))
