"""Which node of a graph holds what a tensor is, while a forward runs that may change tensors in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class _Change:
    """A change of a piece of memory in place: from one version of it to another, where."""

    before: int
    after: int
    place: tuple[Sequence[int], Sequence[int], int]


class Memory:
    """Tensor → node. Torch counts the changes of each piece of memory, whatever name they are made by."""

    def __init__(self) -> None:
        self._nodes = WeakTensorKeyDictionary()  # tensor → (node, version)
        self._changes: dict[int, list[_Change]] = {}  # by the memory's address

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor in self._nodes

    def hold(self, tensor: Tensor, node: fx.Node | None, pending: int = 0) -> None:
        """node: None for what none gives. pending: changes that torch will count when the call returns."""
        self._nodes[tensor] = (node, version(tensor) + pending)

    def node(self, tensor: Tensor) -> fx.Node | None:
        return self._nodes[tensor][0]

    def changed(self, tensor: Tensor, before: int, pending: int = 0) -> None:
        """Note that a tensor was changed since a version."""
        change = _Change(before, version(tensor) + pending, _place(tensor))
        self._changes.setdefault(_address(tensor), []).append(change)

    def is_stale(self, tensor: Tensor) -> bool:
        """Whether a tensor was changed by another name than its own since its node was made."""
        known = self._nodes[tensor][1]
        if version(tensor) == known:
            return False
        later = [c for c in self._changes.get(_address(tensor), ()) if c.before >= known]
        are_all_known = sum(c.after - c.before for c in later) == version(tensor) - known
        return not are_all_known or any(_overlap(tensor, c.place) for c in later)


def version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(tensor: Tensor) -> tuple[Sequence[int], Sequence[int], int]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _overlap(tensor: Tensor, place: tuple[Sequence[int], Sequence[int], int]) -> bool:
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    is_changed = torch.zeros(size, dtype=torch.bool)
    is_changed.as_strided(*place).fill_(True)
    return bool(is_changed.as_strided(*_place(tensor)).any())
