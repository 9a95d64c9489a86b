"""The lines that a network is written in: a line is an op, checked as it is read.

A line has a kind; where the op has weights, the path of its module; the values that it reads, 0 for the image and n for
what line n makes; its numbers; and options, `name=numbers`, of which those with their default are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from parelu.models import calls
from parelu.network import functions, ops

LARGEST = 1 << 20  # of channels, sides and lengths
LARGEST_WINDOW, LARGEST_POOL = 256, 1 << 12  # sides: of a convolution's kernel, and of what a pool sees
MOST_WORDS = 1 << 20  # of a line
LARGEST_MATRIX = 1 << 24
MOST_NUMBERS = 1 << 28  # of a tensor

Number = int | float
PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
LABEL = re.compile(r"[\w.-]+")
_WHOLE = re.compile(r"-?\d{1,9}")


@dataclass(frozen=True)
class Range:
    """What a number may be."""

    least: float
    most: float
    is_whole: bool = True

    def __contains__(self, number: object) -> bool:
        is_fit = isinstance(number, int) or (isinstance(number, float) and not self.is_whole)
        return is_fit and self.least <= number <= self.most  # pyright: ignore[reportOperatorIssue]


SIZE, SIDE, PAD = Range(1, LARGEST), Range(1, LARGEST_WINDOW), Range(0, LARGEST_WINDOW)
PLACE, AXIS, FLAG = Range(0, LARGEST), Range(0, 4), Range(0, 1)
REAL, FRACTION = Range(-1e30, 1e30, is_whole=False), Range(0, 1, is_whole=False)
WINDOW = (SIDE,) * 4 + (PAD,) * 2  # kernel, stride, padding; rows before columns
POOLED = (Range(1, LARGEST_POOL),) * 4 + (PAD,) * 2


@dataclass(frozen=True)
class Kind:
    """A kind of line.

    Attributes:
        module: makes the module that has the line's path; None where the line has none.
        call: writes the call into a graph, given the nodes that the line reads; None: a call of the module.
        reads: how many values; None for all words before the options.
        numbers: of the line, one by one; more: of any that follow.
        options: name → its numbers, and what they are where the option is left out.
        has_label: whether a word follows the values.
    """

    module: Callable[[Line], nn.Module] | None = None
    call: Callable[[Line, fx.Graph, tuple[fx.Node, ...]], fx.Node] | None = None
    reads: int | None = 1
    numbers: tuple[Range, ...] = ()
    more: Range | None = None
    options: Mapping[str, tuple[tuple[Range, ...], tuple[Number, ...]]] = field(default_factory=dict)
    has_label: bool = False


@dataclass(frozen=True)
class Line:
    """An op of a network: see `Kind`. words: of a call, its function and arguments; of a tie, its two names."""

    kind: str
    path: str = ""
    reads: tuple[int, ...] = ()
    numbers: tuple[Number, ...] = ()
    label: str = ""
    options: tuple[tuple[str, tuple[Number, ...]], ...] = ()
    words: tuple[str, ...] = ()

    def option(self, name: str) -> tuple[Any, ...]:
        return dict(self.options).get(name, KINDS[self.kind].options[name][1])

    def __str__(self) -> str:
        options = (f"{name}={','.join(map(_text, numbers))}" for name, numbers in self.options)
        path = f"@{self.path}" if self.kind == "call" and self.path else self.path
        words = (self.kind, path, *self.reads, self.label, *map(_text, self.numbers), *options, *self.words)
        return " ".join(str(word) for word in words if word != "")

    def module(self) -> nn.Module | None:
        make = KINDS[self.kind].module
        return make(self) if make else None

    def node(self, graph: fx.Graph, values: Sequence[fx.Node | None]) -> fx.Node | None:
        """Write its call into a graph; values: what the image and each line before makes."""
        if self.kind == "tie":
            return None
        if self.kind == "parameter":
            return graph.get_attr(self.path)
        if self.kind == "call":
            return calls.node(graph, self.path, self.words, values)
        read = tuple(map(values.__getitem__, self.reads))
        call = KINDS[self.kind].call
        return call(self, graph, read) if call else graph.call_module(self.path, read)  # pyright: ignore


def line(kind: str, reads: Sequence[int], numbers: Sequence[Number] = (), *, path: str = "", **more: Any) -> Line:
    """A line that is made, not read; more: its label, and its options, of which the usual ones are left out."""
    label, known = more.pop("label", ""), KINDS[kind].options
    given = {name: tuple(value) if isinstance(value, tuple | list) else (value,) for name, value in more.items()}
    options = tuple((name, given[name]) for name in known if name in given and given[name] != known[name][1])
    return Line(kind, path, tuple(reads), tuple(numbers), label, options)


def parsed(text: str, number: int) -> Line:
    """The line that makes value `number` + 1; raises `ValueError` for what is none, or is written in another way."""
    kind, *words = text.split(" ")
    if kind not in KINDS or len(words) > MOST_WORDS:
        raise ValueError(f"no kind {kind[:20]!r}")
    if kind == "tie":
        _check_tie(words)
        found = Line(kind, words=tuple(words))
    elif kind == "call":
        path = words.pop(0)[1:] if words[0].startswith("@") else ""
        if path and not PATH.fullmatch(path):
            raise ValueError("a name is none")
        calls.check(words, number)
        found = Line(kind, path, words=tuple(words))
    else:
        found = _parsed(kind, words, number)
    if str(found) != text:
        raise ValueError("it is written in another way")
    return found


def _parsed(kind: str, words: list[str], number: int) -> Line:
    rule = KINDS[kind]
    pairs = [word.split("=") for word in words if "=" in word]
    words = [word for word in words if "=" not in word]
    options = tuple((name, tuple(map(_number, value.split(",")))) for name, value in pairs)
    path = words.pop(0) if rule.module else ""
    count = len(words) if rule.reads is None else rule.reads
    reads, words = tuple(map(int, words[:count])), words[count:]
    label = words.pop(0) if rule.has_label else ""
    numbers = tuple(map(_number, words))
    if (rule.module and not PATH.fullmatch(path)) or (rule.has_label and not LABEL.fullmatch(label)):
        raise ValueError("a name is none")
    if (not reads and rule.reads != 0) or len(reads) < (rule.reads or 0) or not all(0 <= v <= number for v in reads):
        raise ValueError("it reads what is not there")
    fixed, rest = numbers[: len(rule.numbers)], numbers[len(rule.numbers) :]
    if not _fit(fixed, rule.numbers) or not (all(n in rule.more for n in rest) if rule.more else not rest):
        raise ValueError("a number is out of its range")
    names = [name for name, _ in options]
    if names != [name for name in rule.options if name in names]:
        raise ValueError("an option is unknown")
    for name, given in options:
        limits, usual = rule.options[name]
        if not _fit(given, limits) or given == usual:
            raise ValueError(f"option {name} is out of its range")
    found = Line(kind, path, reads, numbers, label, options)
    if kind == "conv" and (numbers[0] % numbers[8] or numbers[1] % numbers[8]):
        raise ValueError("the groups do not divide the channels")
    if kind in ("affine", "parameter") and math.prod(numbers) > MOST_NUMBERS:
        raise ValueError("it has too many numbers")
    if kind == "resample":
        _check_matrix(found)
    return found


def _fit(numbers: Sequence[Number], limits: Sequence[Range]) -> bool:
    return len(numbers) == len(limits) and all(n in limit for n, limit in zip(numbers, limits, strict=True))


def _number(word: str) -> Number:
    if _WHOLE.fullmatch(word):
        return int(word)
    value = float(word)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value


def _text(number: Number) -> str:
    return repr(number)


def _check_tie(words: Sequence[str]) -> None:
    if len(words) != 2 or not all(map(PATH.fullmatch, words)) or words[0] == words[1]:
        raise ValueError("a tie has two names")


def _check_matrix(line: Line) -> None:
    """Its entries are (row, column, number), by rows and columns."""
    _, inputs, outputs, *entries = line.numbers
    if inputs * outputs > LARGEST_MATRIX:
        raise ValueError("its matrix is too large")
    places = list(zip(entries[::3], entries[1::3], strict=True))
    if len(entries) % 3 or not all(isinstance(p, int) for place in places for p in place):
        raise ValueError("its entries are not rows, columns and numbers")
    if places != sorted(set(places)) or not all(0 <= r < outputs and 0 <= c < inputs for r, c in places):
        raise ValueError("an entry is out of the matrix")


# Modules of lines.


def _conv(line: Line) -> nn.Module:
    inputs, outputs, *window, groups = map(int, line.numbers)
    kernel, stride, padding = (ops.two(window[i : i + 2]) for i in (0, 2, 4))
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation=line.option("dilation"),
        groups=groups,
        bias=bool(*line.option("bias")),
    )


def _linear(line: Line) -> nn.Module:
    inputs, outputs = map(int, line.numbers)
    return nn.Linear(inputs, outputs, bias=bool(*line.option("bias")))


def _norm(line: Line) -> nn.Module:
    kind = nn.BatchNorm1d if line.option("dims") == (1,) else nn.BatchNorm2d
    (eps,), (momentum,), (affine,) = map(line.option, ("eps", "momentum", "affine"))
    return kind(int(line.numbers[0]), eps=float(eps), momentum=float(momentum), affine=bool(affine))


def _dropout(line: Line) -> nn.Module:
    return (nn.Dropout2d if line.option("dims") == (2,) else nn.Dropout)(float(line.numbers[0]))


def _affine(line: Line) -> nn.Module:
    trained = [name for name, flag in zip(("weight", "bias"), line.option("trained"), strict=True) if flag]
    return functions.Affine(tuple(map(int, line.numbers)), trained)


def _resample(line: Line) -> nn.Module:
    axis, inputs, outputs, *entries = line.numbers
    matrix = torch.zeros(int(outputs), int(inputs), device="cpu")
    rows, columns = (torch.tensor(entries[i::3], dtype=torch.long, device="cpu") for i in (0, 1))
    matrix[rows, columns] = torch.tensor(entries[2::3], dtype=torch.float32, device="cpu")
    return functions.Resample(int(axis), matrix)


# Calls of lines.


def _function(
    function: Callable[..., Any], *arguments: Callable[[Line], Any]
) -> Callable[[Line, fx.Graph, tuple[fx.Node, ...]], fx.Node]:
    """A call of a function on what the line reads, with arguments that are read off the line."""
    return lambda line, graph, read: graph.call_function(function, (*read, *(get(line) for get in arguments)))


def _pair(place: int) -> Callable[[Line], Any]:
    return lambda line: tuple(map(int, line.numbers[place : place + 2]))


def _concat(line: Line, graph: fx.Graph, read: tuple[fx.Node, ...]) -> fx.Node:
    return graph.call_function(torch.cat, (list(read), 1 + int(*line.option("axis"))))


def _max_pool(line: Line, graph: fx.Graph, read: tuple[fx.Node, ...]) -> fx.Node:
    kernel, stride, padding = (_pair(place)(line) for place in (0, 2, 4))
    return graph.call_function(F.max_pool2d, (*read, kernel, stride, padding, 1, bool(*line.option("ceil"))))


def _slice(line: Line, graph: fx.Graph, read: tuple[fx.Node, ...]) -> fx.Node:
    first, last = map(int, line.numbers)
    return graph.call_function(functions.select, (*read, 0, tuple(range(first, last))))


def _permute(line: Line) -> tuple[int, ...]:
    return (0, *(1 + int(axis) for axis in line.numbers))


_BIAS = {"bias": ((FLAG,), (1,))}
# Kind → its rule.
KINDS: dict[str, Kind] = {
    "conv": Kind(_conv, numbers=(SIZE, SIZE, *WINDOW, SIZE), options={"dilation": ((SIDE, SIDE), (1, 1)), **_BIAS}),
    "linear": Kind(_linear, numbers=(SIZE, SIZE), options=_BIAS),
    "norm": Kind(
        _norm,
        numbers=(SIZE,),
        options={
            "dims": ((Range(1, 2),), (2,)),
            "eps": ((FRACTION,), (1e-5,)),
            "momentum": ((FRACTION,), (0.1,)),
            "affine": ((FLAG,), (1,)),
        },
    ),
    "relu": Kind(lambda line: nn.ReLU(), has_label=True, options={"block": ((PLACE,), (-1,))}),
    "affine": Kind(_affine, more=SIZE, options={"trained": ((FLAG, FLAG), (1, 1))}),
    "resample": Kind(_resample, numbers=(AXIS, SIZE, SIZE), more=REAL),
    "dropout": Kind(_dropout, numbers=(FRACTION,), options={"dims": ((Range(1, 2),), (1,))}),
    "parameter": Kind(lambda line: nn.Identity(), reads=0, more=SIZE),
    "call": Kind(lambda line: calls.Calls(), reads=0),
    "tie": Kind(reads=0),
    "scale": Kind(call=_function(torch.mul, lambda line: float(line.numbers[0])), numbers=(REAL,)),
    "add": Kind(call=_function(torch.add), reads=2),
    "mul": Kind(call=_function(torch.mul), reads=2),
    "pool": Kind(call=_function(F.avg_pool2d, _pair(0), _pair(2), _pair(4)), numbers=POOLED),
    "maxpool": Kind(call=_max_pool, numbers=POOLED, options={"ceil": ((FLAG,), (0,))}),
    "concat": Kind(call=_concat, reads=None, options={"axis": ((AXIS,), (0,))}),
    "slice": Kind(call=_slice, numbers=(PLACE, SIZE)),
    "select": Kind(
        call=_function(functions.select, lambda line: line.numbers[0], lambda line: line.numbers[1:]),
        numbers=(AXIS,),
        more=Range(-1, LARGEST),
    ),
    "flatten": Kind(call=_function(torch.flatten, lambda line: 1)),
    "reshape": Kind(call=_function(torch.reshape, lambda line: (-1, *line.numbers)), more=SIZE),
    "permute": Kind(call=_function(torch.permute, _permute), more=AXIS),
}
