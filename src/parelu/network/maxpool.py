"""Max-pools as comparisons: a tree of max(a, b) = b + relu(a − b) along the rows, then along the columns, or reversed.

Pure arithmetic on places: what counts max-pools and what runs them privately read the same levels, so that each
comparison that is counted is one that is made. A window's largest value is found without padding: only what lies
inside of the map is compared. Overlapping windows share what they have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Pair = tuple[int, int]  # (rows, columns)
Window = tuple[int, ...]  # places along one dimension, ascending


@dataclass(frozen=True)
class Level:
    """Comparisons along one dimension that do not wait for each other: one round.

    Its output j is the larger of its inputs left[j] and right[j]; where both are one, that input as it is.

    Attributes:
        axis: from 0, without the batch.
        left, right: places along the axis, one for each output.
        shape: of its output, without the batch.
    """

    axis: int
    left: Window
    right: Window
    shape: tuple[int, ...]

    @property
    def compared(self) -> tuple[bool, ...]:
        """For each place of the output along the axis, whether a comparison makes it."""
        return tuple(a != b for a, b in zip(self.left, self.right, strict=True))

    @property
    def comparisons(self) -> int:
        """One image's."""
        return sum(self.compared) * math.prod(self.shape) // len(self.left)


def levels(
    before: tuple[int, ...],
    after: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
) -> tuple[Level, ...]:
    """A max-pool as levels, to be run one after another, in the order of dimensions that compares less.

    before, after: (C, H, W) of its input and its output, which says what ceil_mode adds. A level without a comparison
    only selects: of a pool that skips places.
    """
    of_axis = {
        d + 1: windows(before[d + 1], after[d + 1], kernel[d], stride[d], padding[d], dilation[d]) for d in (0, 1)
    }
    return cheapest(before, of_axis)


def cheapest(before: tuple[int, ...], of_axis: Mapping[int, Sequence[Window]]) -> tuple[Level, ...]:
    """The levels of the largest values over windows along two dimensions (axis → its windows)."""
    trees = {axis: tree(found, before[axis]) for axis, found in of_axis.items()}
    first, second = trees
    orders = [_placed(before, [(axis, trees[axis]) for axis in order]) for order in ((first, second), (second, first))]
    return min(orders, key=comparisons)


def comparisons(found: Iterable[Level]) -> int:
    """Of one image, in all levels."""
    return sum(level.comparisons for level in found)


def windows(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> tuple[Window, ...]:
    """For each output along one dimension of `size` places, those that its window has inside of the map."""
    starts = (output * stride - padding for output in range(outputs))
    return tuple(
        tuple(place for place in range(start, start + kernel * dilation, dilation) if 0 <= place < size)
        for start in starts
    )


def tree(found: Sequence[Window], size: int) -> tuple[tuple[Window, Window], ...]:
    """The left and right inputs of each level that brings `size` places to the largest of each window.

    Windows are halved, either into two that meet or into two of a power of two that overlap: the way that makes fewer
    comparisons, since parts are shared between windows. There are ⌈log2⌉ of the largest window levels, and one that
    only selects where that leaves places in another order, or too many.

    Raises:
        ValueError: a window has no place inside of the map.
    """
    if not all(found):
        raise ValueError("a window of the max-pool lies in the padding alone")
    return min((_tree(found, size, overlapping) for overlapping in (False, True)), key=_compared)


def _compared(steps: Iterable[tuple[Window, Window]]) -> int:
    return sum(a != b for left, right in steps for a, b in zip(left, right, strict=True))


def _tree(found: Sequence[Window], size: int, overlapping: bool) -> tuple[tuple[Window, Window], ...]:
    wanted = list(dict.fromkeys(found))
    steps: list[tuple[Window, Window]] = []
    if wanted != list(found):  # some windows are the same: compared once
        order = tuple(wanted.index(window) for window in found)
        steps.append((order, order))
    depth = max(_depth(window) for window in wanted)
    for level in range(depth, 0, -1):
        halves = [_halves(window, overlapping) if _depth(window) == level else (window, window) for window in wanted]
        before = sorted({part for pair in halves for part in pair}) if level > 1 else [(i,) for i in range(size)]
        place = {part: i for i, part in enumerate(before)}
        left, right = (tuple(place[pair[side]] for pair in halves) for side in (0, 1))
        steps.append((left, right))
        wanted = before
    if not depth and wanted != [(i,) for i in range(size)]:
        places = tuple(window[0] for window in wanted)
        steps.append((places, places))
    return tuple(reversed(steps))


def _depth(window: Window) -> int:
    """Comparisons one after another."""
    return (len(window) - 1).bit_length()


def _halves(window: Window, overlapping: bool) -> tuple[Window, Window]:
    half = 1 << (_depth(window) - 1)
    return window[:half], window[-half:] if overlapping else window[half:]


def _placed(before: tuple[int, ...], trees: Sequence[tuple[int, Sequence[tuple[Window, Window]]]]) -> tuple[Level, ...]:
    """Levels with the shapes that they have where one dimension comes after the other."""
    placed, shape = [], list(before)
    for axis, steps in trees:
        for left, right in steps:
            shape[axis] = len(left)
            placed.append(Level(axis, left, right, tuple(shape)))
    return tuple(placed)
