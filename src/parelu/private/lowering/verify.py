"""Whether a program computes what its network does: ring against float on a few images, before anybody runs it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import nodes, ops
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network
from parelu.private.lowering import reference
from parelu.private.lowering.lowered import WEIGHT_BITS, Lowered
from parelu.private.lowering.ops import Shift, Truncate

IMAGES = 4
ELEMENTS = 1 << 23  # of all values of the images together; of networks of 224 × 224 pixels it is one image
LARGEST_STEP = 0.05  # a layer's own error, over what it makes
LARGEST_ERROR = 0.25  # of the logits, over their spread

Real = NDArray[np.float64]
Places = Mapping[fx.Node, tuple[int, float]]  # node of a fused network → number and unit of its value


def verify(lowered: Lowered, network: Network, fused: Network, places: Places, images: Tensor) -> None:
    """Run the ring reference and the float network on the first of these images; errors are root mean squares.

    Each layer by itself, on what the ring made before it: rounding makes it err by about a thousandth of its output; a
    layer whose bias is lost or whose channels drown by far more than a twentieth. Then the logits, over their spread
    (the root mean square of what they are off the mean of their image): layers with trained weights dampen rounding, to
    some thousandths; deep ones with fresh weights amplify it, of MobileNetV1 to a twentieth. Beyond a quarter a label
    means little.

    network: as it was given. fused: what was lowered. images: uint8 (N, *network.input_shape), of those that the
    ranges are calibrated on.

    Raises:
        UserError: an error is above 0.05 or 0.25, with the first layer that is off; or a logit is not finite.
    """
    elements = sum(map(math.prod, lowered.program.shapes))
    images = images[: max(1, min(IMAGES, ELEMENTS // elements))]
    mean, std = (tuple(lowered.program.preprocessing[name]) for name in ("mean", "std"))
    x = normalise(images, mean, std)
    with torch.no_grad():
        expected = network(x).double().numpy()
    if not np.isfinite(expected).all():
        raise UserError("the network's logits are not finite numbers; look for weights that are too large")
    made = _made(lowered, places, images[:1])
    for node, off in _steps(fused, made, places):
        if off > LARGEST_STEP:
            what = f"(off by {off:.2g} of its output, more than {LARGEST_STEP:g})"
            raise UserError(f"{ops.path(node)}: {_reason(lowered, fused, made, node, places[node][0], what)}")
    spread = expected - expected.mean(1, keepdims=True) if expected.shape[1] > 1 else expected
    (output,) = fused.graph.find_nodes(op="output")
    first = made[output.all_input_nodes[0]].double().numpy()
    found = np.concatenate([first, reference.run(lowered, images[1:]).logits]) if len(images) > 1 else first
    off = _over(found - expected, spread)
    if off > LARGEST_ERROR:
        node = _first_off(fused, made, x[:1])
        raise UserError(
            f"{ops.path(node)}: from here on rounding changes what the network computes (its logits are off by "
            f"{off:.2g} of their spread, more than {LARGEST_ERROR:g}); train with weight decay, so that no layer "
            "magnifies small differences"
        )


def _made(lowered: Lowered, places: Places, image: Tensor) -> dict[fx.Node, Tensor]:
    """What the ring makes of one image, as real numbers, by node."""
    try:
        values = reference.values(lowered, image)
    except OverflowError as error:
        raise UserError(f"{error}: the network's values are too large to be run privately") from error
    return {
        node: torch.from_numpy(values[number] * unit).float().view(1, *node.meta["shape"])
        for node, (number, unit) in places.items()
    }


def _steps(fused: Network, made: Mapping[fx.Node, Tensor], places: Places) -> list[tuple[fx.Node, float]]:
    """Each node's own error: what the ring made, and what the node makes of what the ring made before it."""
    interpreter = fx.Interpreter(fused, garbage_collect_values=False)
    interpreter.env = dict(made)
    found = []
    with torch.no_grad():
        for node in fused.graph.find_nodes(op="get_attr"):  # a number that scales a value
            interpreter.env[node] = interpreter.run_node(node)
        for node in made:
            if node.op != "placeholder":
                expected = interpreter.run_node(node)
                step = 2 * places[node][1]  # which rounding may be off by
                error = (made[node] - expected).abs().sub(step).clamp(min=0)
                found.append((node, _over(error.numpy(), expected.numpy())))
    return found


def _reason(
    lowered: Lowered, fused: Network, made: Mapping[fx.Node, Tensor], node: fx.Node, number: int, what: str
) -> str:
    """Why a node is off: its weights are rounded too coarsely, where that alone explains it; and what to do."""
    while isinstance(lowered.program.ops[number - 1], Truncate | Shift):
        number = lowered.program.ops[number - 1].source
    integers, layer = lowered.weights.get(number - 1, {}).get("weight"), nodes.called_module(node)
    weight = layer.weight.detach().double() if isinstance(layer, nn.Conv2d | nn.Linear) else torch.empty(0)
    if layer is not None and integers is not None and integers.shape == tuple(weight.shape):
        rounded = torch.from_numpy(integers).double()
        rounded *= weight.square().sum() / (weight * rounded).sum()  # without its unit
        with torch.no_grad():
            x = made[node.all_input_nodes[0]].double()
            alone = torch.func.functional_call(copy.deepcopy(layer).double(), {"weight": rounded}, (x,))
        if _over((alone - made[node]).numpy(), alone.numpy()) <= LARGEST_STEP:
            columns = weight.abs().transpose(0, 1).flatten(1).amax(1)
            times = float(columns.max() / columns.median().clamp(min=torch.finfo(weight.dtype).tiny))
            return (
                f"{WEIGHT_BITS} bits are too few for its weights {what}: those of input {int(columns.argmax())} are "
                f"{times:.0f} times as large as usual; where that channel is always 0, set its batch-norms' weights to "
                "0 (running_var near 0 makes them large), else train on with weight decay"
            )
    advice = "scale its weights so that its channels have like ranges"
    return f"its integers do not compute what the layer does {what}; {advice}"


def _first_off(fused: Network, made: Mapping[fx.Node, Tensor], x: Tensor) -> fx.Node:
    """The first node whose values, from the image on, are off by half of what the logits may be; the last one else."""
    interpreter = fx.Interpreter(fused, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(x)
    for node, found in made.items():
        expected = interpreter.env[node]
        if _over((found - expected).numpy(), expected.numpy()) > LARGEST_ERROR / 2:
            return node
    return list(made)[-1]


def _over(error: Real, value: Real) -> float:
    """The root mean square of an error over that of a value; 0 where both are nothing."""
    top, bottom = (float(np.sqrt(np.square(each, dtype=np.float64).mean())) for each in (error, value))
    return top / bottom if bottom else math.inf if top else 0.0
