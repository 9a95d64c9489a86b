"""Convolutions with zero padding as an algebra: two in a row are one, and so are two side by side.

Two in a row compose exactly inside of the map. At its border the second reads zeros where the composed one reads what
the first would make of the image's edge: `Convolution.is_exact_before` says where there is no such difference.
Shapes stand here, weights in `weights.py`.
"""

from __future__ import annotations

import dataclasses
import math

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The shape of a convolution on a map of one size.

    Attributes:
        inputs, outputs: channels.
        size: (rows, columns) of the map that it reads.
        kernel, stride, padding: (rows, columns); zeros are added on both sides.
        groups: of channels, as in torch; its weight is (outputs, inputs / groups, *kernel).
        dilation: distance of the kernel's taps. One that is not 1 is counted alone: `expanded` is what is run.
    """

    inputs: int
    outputs: int
    size: Pair
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    dilation: Pair = (1, 1)

    @property
    def expanded(self) -> Convolution:
        """The same with the zeros between the taps in the kernel, less what only ever meets padding."""
        if self.dilation == (1, 1):
            return self
        kernel = pair(reach for _, reach, _, _ in self.axes())
        return dataclasses.replace(self, kernel=kernel, dilation=(1, 1)).trimmed()

    @property
    def output_size(self) -> Pair:
        rows, columns = ((n + 2 * p - k) // s + 1 for n, k, s, p in self.axes())
        return rows, columns

    @property
    def macs(self) -> int:
        """Multiply-adds an image."""
        return self.outputs * math.prod(self.output_size) * math.prod(self.kernel) * self.inputs // self.groups

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.outputs, self.inputs // self.groups, *self.kernel

    def before(self, second: Convolution) -> Convolution:
        """The one convolution that this one and then `second` are, inside of the map.

        Raises:
            ValueError: `second` does not read what this one makes.
        """
        if (second.inputs, second.size) != (self.outputs, self.output_size):
            raise ValueError(
                f"a convolution of {second.inputs} channels of {second.size} cannot follow one that makes "
                f"{self.outputs} of {self.output_size}"
            )
        axes = list(zip(self.axes(), second.axes(), strict=True))
        return Convolution(
            self.inputs,
            second.outputs,
            self.size,
            kernel=pair((k2 - 1) * s1 + k1 for (_, k1, s1, _), (_, k2, _, _) in axes),
            stride=pair(s1 * s2 for (_, _, s1, _), (_, _, s2, _) in axes),
            padding=pair(p1 + s1 * p2 for (_, _, s1, p1), (_, _, _, p2) in axes),
            groups=math.gcd(self.groups, second.groups),
        )

    def is_exact_before(self, second: Convolution) -> bool:
        """Whether `before` is exact at the border too, but for the first one's bias.

        It is where the second pads nothing, or where the windows that the first would put outside of its map see
        nothing of the image: a 1×1 convolution, a pool without overlap, stride 2 on a map of odd size.
        """
        for (n1, k1, s1, p1), (n2, k2, s2, p2), ends in zip(
            self.axes(), second.axes(), second.output_size, strict=True
        ):
            reads_before, reads_behind = p2 > 0, s2 * (ends - 1) + k2 - p2 > n2
            if (reads_before and k1 > s1 + p1) or (reads_behind and s1 * n2 - p1 < n1):
                return False
        return True

    def beside(self, other: Convolution) -> Convolution | None:
        """The one convolution that makes the sum of both outputs, of one and the same input; None where none does."""
        same = ("inputs", "outputs", "size", "stride", "output_size")
        if any(getattr(self, name) != getattr(other, name) for name in same):
            return None
        return self._window(
            pair(map(max, self.padding, other.padding)),
            pair(
                max(k1 - p1, k2 - p2) for (_, k1, _, p1), (_, k2, _, p2) in zip(self.axes(), other.axes(), strict=True)
            ),
            math.gcd(self.groups, other.groups),
        )

    def trimmed(self) -> Convolution:
        """The same without the outer rows and columns of the kernel that only ever meet padding."""
        ends = list(zip(self.axes(), self.output_size, strict=True))
        before = pair(max(0, min(p, s * (end - 1))) for (_, _, s, p), end in ends)
        behind = pair(min(k - p, n) for (n, k, _, p), _ in ends)
        return self._window(before, behind, self.groups) or self

    def _window(self, before: Pair, behind: Pair, groups: int) -> Convolution | None:
        """With a kernel from `before` rows and columns ahead of its first window's start to `behind` past it.

        The kernel grows by some zeros at its end where the size of the output asks for it; None where it would have to
        shrink.
        """
        kernel = []
        for (n, _, s, _), ahead, past, end in zip(self.axes(), before, behind, self.output_size, strict=True):
            least, most = n + 2 * ahead - s * end + 1, n + 2 * ahead - s * (end - 1)
            if not 1 <= ahead + past <= most:
                return None
            kernel.append(max(ahead + past, least))
        return dataclasses.replace(self, kernel=pair(kernel), padding=before, groups=groups)

    def axes(self) -> list[tuple[int, int, int, int]]:
        """(size, reach of the kernel, stride, padding) of the rows, and of the columns."""
        reach = [(taps - 1) * step + 1 for taps, step in zip(self.kernel, self.dilation, strict=True)]
        return list(zip(self.size, reach, self.stride, self.padding, strict=True))


def pair(values: object) -> Pair:
    rows, columns = values  # pyright: ignore[reportGeneralTypeIssues]
    return rows, columns
