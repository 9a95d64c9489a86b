"""Replacements: what a user lets stand where an op has no exact form in a private network, or one that costs too much.

`REPLACEMENTS` has the rules of each; they are applied to a traced network before its canonical form. A network with
replacements gives other outputs than before: it is to be finetuned, from the weights that it has.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import functions
from parelu.network.canonical import smooth
from parelu.network.canonical.builder import Builder, Rule

_INPUT = ("input", None)
_SIGMOIDS = (torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_", F.hardsigmoid)
_SPREADS = ("expand", "expand_as")
_SOFTMAXES = (torch.softmax, F.softmax, "softmax")
FITTED = (-4.0, 4.0)  # where a gate's quadratic is fitted


def parsed(text: str) -> dict[str, str]:
    """ "silu=relu,maxpool=avgpool" → kind → what stands in its place; "all" for `ALL`.

    Raises:
        UserError: a kind or what is to stand in its place is unknown; the line names those there are.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip().lower() for part in text.split(","))):
        kind, _, other = part.partition("=")
        if part == "all":
            found = {**ALL, **found}
        elif (kind, other) in REPLACEMENTS:
            found[kind] = other
        else:
            known = ", ".join(f"{a}={b}" for a, b in REPLACEMENTS)
            raise UserError(f"--replace {part}: no such replacement; there are all, {known}")
    return found


def need_training(replace: Mapping[str, str]) -> bool:
    """Whether a network with these may be another function than before, beyond a small error."""
    return any(other != "relus" for other in replace.values())


def written(replace: Mapping[str, str]) -> str:
    """What `parsed` reads as these replacements."""
    return ",".join(f"{kind}={other}" for kind, other in REPLACEMENTS if replace.get(kind) == other)


def rules(replace: Mapping[str, str]) -> dict[Any, Rule]:
    """What is called → the rule that replaces it; the rules of one thing are asked in turn."""
    found: dict[Any, list[Rule]] = {}
    for pair in replace.items():
        for target, rule in REPLACEMENTS[pair].items():
            found.setdefault(target, []).append(_noted(rule, pair[0]))
    return {target: _first(several) for target, several in found.items()}


def _noted(rule: Rule, kind: str) -> Rule:
    def noted(node: fx.Node, builder: Builder) -> fx.Node | None:
        result = rule(node, builder)
        if result is not None:
            builder.kinds.add(kind)
        return result

    return noted


def note_if_idle(replace: Mapping[str, str], builder: Builder) -> None:
    """Say it where a user's replacements found none of the ops that they are for."""
    if replace and builder.kinds.isdisjoint(replace):
        kinds = ", ".join(replace) if len(replace) < len(ALL) else "all"
        builder.notes.append(f"network: there is nothing to replace ({kinds})")


def _first(several: list[Rule]) -> Rule:
    def rule(node: fx.Node, builder: Builder) -> fx.Node | None:
        return next((result for each in several if (result := each(node, builder)) is not None), None)

    return rule


def _changed(builder: Builder, what: str, result: fx.Node) -> fx.Node:
    builder.note(f"{what}; finetune the network with it")
    builder.replaced = True
    return result


def _rectified(name: str) -> Rule:
    def rule(node: fx.Node, builder: Builder) -> fx.Node | None:
        return _changed(builder, f"{name} became a ReLU", builder.site(node.all_input_nodes[0]))

    return rule


def _swish(node: fx.Node, builder: Builder) -> fx.Node | None:
    """x·sigmoid(βx)."""
    found = _of_swish(node, builder)
    return None if found is None else _changed(builder, "SiLU became a ReLU", builder.site(found[0]))


def _piecewise_swish(node: fx.Node, builder: Builder) -> fx.Node | None:
    """x·sigmoid(βx)."""
    found = _of_swish(node, builder, hard=False)
    if found is None:
        return None
    x, beta = found
    return smooth.line(builder, smooth.approximated(builder, smooth.line(builder, x, beta), "silu"), 1 / beta)


def _of_swish(node: fx.Node, builder: Builder, *, hard: bool = True) -> tuple[fx.Node, float] | None:
    """The x and the β of x·sigmoid(βx). hard: whether a hard sigmoid is one."""
    factors = _factors(node)
    for x, gate in (factors, factors[::-1]) if factors else ():
        if not _is_sigmoid(gate, builder) or (_is_hard(gate, builder) and not hard):
            continue
        beta = smooth.swish_factor(gate, x)
        if beta is not None:
            return x, beta
    return None


def _hardsigmoid(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Sigmoids of maps; a gate has a form of its own."""
    if math.prod(node.meta["shape"]) == max(node.meta["shape"]):
        return None
    result = builder.call(F.hardsigmoid, node.all_input_nodes[0])
    return _changed(builder, "a sigmoid became a hard sigmoid", result)


def _averaged_alike(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Attention that pools positions, which then count alike.

    A product with a softmax over all that is summed, of one column.
    """
    if len(node.args) != 2 or not all(isinstance(term, fx.Node) and "shape" in term.meta for term in node.args):
        return None
    values, weights = node.args
    assert isinstance(values, fx.Node)
    assert isinstance(weights, fx.Node)
    while weights.target in (torch.unsqueeze, torch.reshape, "unsqueeze", "view", "reshape"):
        weights = weights.all_input_nodes[0]
    is_softmax = isinstance(builder.module(weights), nn.Softmax) or weights.target in _SOFTMAXES
    terms = values.meta["shape"][-1]
    if not is_softmax or node.meta["shape"][-1] != 1 or math.prod(weights.meta["shape"]) != terms:
        return None
    mean = builder.call(torch.mean, values, -1, True)
    return _changed(builder, "attention to positions became their mean", mean)


def _average_pool(node: fx.Node, builder: Builder) -> fx.Node | None:
    """The same windows, without what is padded."""
    module = builder.module(node)
    names = (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False))
    if module is not None:
        source, options = node.all_input_nodes[0], [getattr(module, name) for name, _ in names]
    else:
        source, *options = builder.arguments(node, _INPUT, *names)
    kernel, stride, padding, dilation, ceil_mode = options
    if dilation not in (1, (1, 1)):
        return None
    pooled = builder.call(F.avg_pool2d, source, kernel, stride or kernel, padding, ceil_mode, False)
    return _changed(builder, "a max-pool became an average pool", pooled)


def _ungated(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Gates of one number a channel, which are left out."""
    factors = _factors(node)
    for x, gate in (factors, factors[::-1]) if factors else ():
        while gate.op == "call_method" and gate.target in _SPREADS:
            gate = gate.all_input_nodes[0]
        if _is_by_channel(gate, x, builder):
            return _changed(builder, "a gate on channels was left out", x)
    return None


def _quadratic(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Sigmoids of gates, by c₀ + c₁·x + c₂·x², three numbers a channel, which are trained.

    x·x is a square for each of the gate's numbers. Nothing is clipped: far from 0 a gate may leave 0 to 1.
    """
    source = node.all_input_nodes[0]
    is_swish = any(source in user.all_input_nodes for user in node.users if user.target in smooth.PRODUCTS)
    if is_swish or not smooth.is_gate(node) or _is_returned(node):
        return None
    *coefficients, error = fitted(F.hardsigmoid if _is_hard(node, builder) else torch.sigmoid)
    shape = source.meta["shape"]
    is_known = len(shape) in (1, 3)
    x = source if is_known else builder.call(torch.reshape, source, (-1, math.prod(shape), 1, 1))
    wide = (x.meta["shape"][0], *[1] * (len(x.meta["shape"]) - 1))
    c0, c1, c2 = (nn.Parameter(torch.full(wide, c, device=builder.device)) for c in coefficients)
    line, square = functions.Affine(wide), functions.Affine(wide, trained=("weight",))
    line.weight, line.bias, square.weight = c1, c0, c2
    squared = builder.layer(smooth.beside(builder, "square"), square, builder.call(torch.mul, x, x))
    result = builder.call(torch.add, squared, builder.layer(smooth.beside(builder, "line"), line, x))
    if not is_known:
        result = builder.call(torch.reshape, result, (-1, *shape))
    what = f"the sigmoid of a gate became a quadratic, off by at most {error:.2f} from {FITTED[0]:g} to {FITTED[1]:g}"
    return _changed(builder, what, result)


def _is_returned(node: fx.Node) -> bool:
    """Whether the network returns a tensor as it is, or in another shape."""
    size = math.prod(node.meta["shape"])
    return any(
        user.op == "output" or (math.prod(user.meta.get("shape", ())) == size and _is_view(user) and _is_returned(user))
        for user in node.users
    )


def _is_view(node: fx.Node) -> bool:
    return node.target in (torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "squeeze", "view")


@functools.cache
def fitted(function: Callable[[Tensor], Tensor]) -> tuple[float, float, float, float]:
    """c₀, c₁, c₂ of the quadratic that is closest to a function on `FITTED`, by least squares, and the largest error.

    A sigmoid is odd about (0, 1/2), so that c₂ is 0 at first, and what training makes of it.
    """
    x = np.linspace(*FITTED, 1001)
    y = function(torch.tensor(x, device="cpu")).numpy()
    c2, c1, c0 = (round(float(c), 9) for c in np.polyfit(x, y, 2))
    return c0, c1, c2, float(np.abs(c0 + c1 * x + c2 * x * x - y).max())


def _is_by_channel(gate: fx.Node, x: fx.Node, builder: Builder) -> bool:
    small, large = gate.meta["shape"], x.meta["shape"]
    if len(small) != len(large) or len(large) < 3:
        return False
    if math.prod(large[-2:]) == 1 or math.prod(large[:2]) == 1:  # a map of one position
        return _is_sigmoid(gate, builder) and gate.all_input_nodes != [x]
    by_first = small[-2:] == (1, 1) and small[:-2] == large[:-2]
    by_last = small[:2] == (1, 1) and small[2:] == large[2:] and len(large) == 3
    return by_first or by_last


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Both factors of a product, where both depend on the image."""
    factors = [term for term in node.args if isinstance(term, fx.Node) and term.op != "get_attr"]
    if len(factors) != 2 or not all("shape" in term.meta for term in factors):
        return None
    return factors[0], factors[1]


def _is_sigmoid(node: fx.Node, builder: Builder) -> bool:
    if node.op == "call_module":
        return isinstance(builder.module(node), nn.Sigmoid | nn.Hardsigmoid)
    return node.target in _SIGMOIDS


def _is_hard(node: fx.Node, builder: Builder) -> bool:
    return isinstance(builder.module(node), nn.Hardsigmoid) or node.target is F.hardsigmoid


def _layer_norm(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Norms over the last dimension, which is that of the channels, with the same factors and offsets."""
    module = builder.module(node)
    if module is not None:
        shape, weight, bias = (getattr(module, name, None) for name in ("normalized_shape", "weight", "bias"))
    else:
        has_bias = node.target in (F.layer_norm, torch.layer_norm)
        _, shape, weight, bias = builder.arguments(
            node, _INPUT, ("normalized_shape", None), ("weight", None), ("bias" if has_bias else "", None)
        )
        bias = bias if has_bias else None
    if not shape or len(shape) != 1:
        return None
    return _batch_norm(node, builder, len(node.meta["shape"]) - 1, weight, bias)


def _group_norm(node: fx.Node, builder: Builder) -> fx.Node | None:
    """Norms of groups or channels, the first dimension, with the same factors and offsets."""
    module = builder.module(node)
    if module is not None:
        weight, bias = module.weight, module.bias
    elif node.target in (F.group_norm, torch.group_norm):
        _, _, weight, bias = builder.arguments(node, _INPUT, ("num_groups", 1), ("weight", None), ("bias", None))
    else:
        names = ("running_mean", "running_var", "weight", "bias")
        *_, weight, bias = builder.arguments(node, _INPUT, *((name, None) for name in names))
    return _batch_norm(node, builder, 0, weight, bias)


def _batch_norm(node: fx.Node, builder: Builder, axis: int, weight: Any, bias: Any) -> fx.Node | None:
    """Write a batch-norm with these factors and offsets. axis: of the channels, from 0, without the batch."""
    source = node.all_input_nodes[0]
    shape = source.meta["shape"]
    values = [builder.constant(given) for given in (weight, bias)]
    path = builder.path if node.op == "call_module" else builder.layer_path(weight, "norm")
    others = [d for d in range(len(shape)) if d != axis]
    moved = source if axis == 0 else builder.call(torch.permute, source, (0, axis + 1, *(d + 1 for d in others)))
    channels, positions = shape[axis], math.prod(shape[d] for d in others)
    if len(shape) not in (1, 3):
        moved = builder.call(torch.reshape, moved, (-1, channels, positions, 1))
    result = builder.layer(path, _norm(channels, values, builder.device, is_vector=len(shape) == 1), moved)
    if len(shape) not in (1, 3):
        result = builder.call(torch.reshape, result, (-1, channels, *(shape[d] for d in others)))
    if axis:
        back = sorted(range(len(shape)), key=[axis, *others].__getitem__)
        result = builder.call(torch.permute, result, (0, *(d + 1 for d in back)))
    return _changed(builder, "a norm of each image became a batch-norm", result)


def _norm(
    channels: int, values: list[Tensor | None], device: torch.device | None, *, is_vector: bool
) -> nn.BatchNorm1d | nn.BatchNorm2d:
    kind = nn.BatchNorm1d if is_vector else nn.BatchNorm2d
    norm = kind(channels, device=device).eval()
    for name, given in zip(("weight", "bias"), values, strict=True):
        if given is not None:
            setattr(norm, name, given if isinstance(given, nn.Parameter) else nn.Parameter(given.detach()))
    return norm


def _of(rule: Rule, *targets: Any) -> dict[Any, Rule]:
    return dict.fromkeys(targets, rule)


def _relus(*names: str) -> dict[Any, Rule]:
    """What is called for functions of `smooth.SMOOTH` → their rules."""
    found: dict[Any, Rule] = {}
    for name in names:
        rule = smooth.piecewise(name)
        found |= {getattr(nn, kind): rule for kind in _MODULES if kind.lower() == name}
        for called in (name, f"{name}_"):
            found |= {getattr(owner, called): rule for owner in (torch, F) if hasattr(owner, called)}
            found |= {called: rule} if hasattr(Tensor, called) else {}
    return found


_MODULES = ("SiLU", "GELU", "Mish", "Softplus", "ELU", "CELU", "SELU", "LogSigmoid", "Tanh", "Sigmoid")
_SILU = _of(_rectified("SiLU"), nn.SiLU, F.silu) | _of(_swish, *smooth.PRODUCTS)
_MAX_POOLS = (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)

# (kind, what stands in its place) → what is called → the rule.
REPLACEMENTS: Mapping[tuple[str, str], Mapping[Any, Rule]] = {
    ("silu", "relus"): _relus("silu") | _of(_piecewise_swish, *smooth.PRODUCTS),
    ("gelu", "relus"): _relus("gelu"),
    ("mish", "relus"): _relus("mish"),
    ("elu", "relus"): _relus("elu", "selu", "celu"),
    ("softplus", "relus"): _relus("softplus"),
    ("logsigmoid", "relus"): _relus("logsigmoid"),
    ("tanh", "relus"): _relus("tanh"),
    ("erf", "relus"): _relus("erf"),
    ("sigmoid", "relus"): _relus("sigmoid"),
    ("silu", "relu"): _SILU,
    ("gelu", "relu"): _of(_rectified("GELU"), nn.GELU, F.gelu),
    ("hardswish", "relu"): _of(_rectified("Hardswish"), nn.Hardswish, F.hardswish),
    ("mish", "relu"): _of(_rectified("Mish"), nn.Mish, F.mish),
    ("elu", "relu"): _of(_rectified("ELU"), nn.ELU, F.elu, F.elu_, nn.SELU, F.selu, F.selu_, nn.CELU, F.celu),
    ("softplus", "relu"): _of(_rectified("Softplus"), nn.Softplus, F.softplus),
    ("tanh", "relu"): _of(_rectified("Tanh"), nn.Tanh, F.tanh, torch.tanh, "tanh", "tanh_"),
    ("relu6", "relu"): _of(_rectified("ReLU6"), nn.ReLU6, F.relu6),
    ("leaky", "relu"): _of(_rectified("LeakyReLU"), nn.LeakyReLU, F.leaky_relu, F.leaky_relu_, nn.PReLU, F.prelu),
    ("sigmoid", "hardsigmoid"): _of(_hardsigmoid, nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"),
    ("maxpool", "avgpool"): _of(_average_pool, *_MAX_POOLS),
    ("se", "quadratic"): _of(_quadratic, nn.Sigmoid, nn.Hardsigmoid, *_SIGMOIDS),
    ("se", "none"): _of(_ungated, *smooth.PRODUCTS),
    ("attention", "mean"): _of(_averaged_alike, operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"),
    ("layernorm", "batchnorm"): _of(_layer_norm, nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm),
    ("groupnorm", "batchnorm"): _of(_group_norm, nn.GroupNorm, F.group_norm, nn.InstanceNorm2d, F.instance_norm),
}

# What is done where a user asks for nothing else. A sigmoid is written so by a rule of its own (`smooth.sigmoid`).
PIECES: Mapping[str, str] = {kind: other for kind, other in REPLACEMENTS if other == "relus" and kind != "sigmoid"}
# What has no exact form, or one with products of maps; of several for one kind, the last.
ALL: Mapping[str, str] = {kind: other for kind, other in REPLACEMENTS if kind not in ("relu6", "leaky", "maxpool")}
