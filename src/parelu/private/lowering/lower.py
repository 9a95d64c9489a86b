"""From a network to a program and the server's integers: layers fused, fixed point, ranges by calibration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from parelu.errors import UserError
from parelu.fusion.equalise import equalise
from parelu.fusion.fuse import Cost, fuse
from parelu.fusion.packing import seconds
from parelu.network import nodes, ops
from parelu.network.preprocessing import normalise
from parelu.network.sites import Network
from parelu.network.weights import check_finite
from parelu.private.crypto.ring import WIDE, Ring
from parelu.private.lowering.calibrate import calibrate
from parelu.private.lowering.lowered import WEIGHT_BITS, Lowered
from parelu.private.lowering.refusals import refusals, too_large
from parelu.private.lowering.translate import Translation
from parelu.private.lowering.verify import Places, verify

LEAST_SQUARE_BITS = 6  # c2 takes fewer than WEIGHT_BITS, down to this, where many squares would make a wrap too likely
EQUALISED = 8  # images that tell how large each channel is
LARGEST_WRAP = 1e-4  # bound on the probability that a truncation wraps, an inference


def lower(
    network: Network,
    images: Tensor,
    preprocessing: Mapping[str, Any],
    *,
    cost: Cost = seconds,
    ring: Ring = WIDE,
) -> Lowered:
    """Fuse and lower a network that follows its plan and has its weights.

    images: uint8 (N, *network.input_shape), training images that the ranges are calibrated on; a few hundred do.
    preprocessing: of a candidate: mean, std, and image, (C, H, W) of the data set's images, else the network's input;
        middle where an image is the centre of its file's.
    cost: what fusion weighs; `fuse.nothing` for the layers as they are.
    ring: of the offline mode that is to run it (`Mode.ring_bits`).

    Raises:
        UserError: an op has no secure lowering (one line each), a weight is not finite, the wrap bound is above 1e-4,
            or the program does not compute what the network does (`verify`).
    """
    found = translated(network, images, preprocessing, cost=cost, ring=ring)
    verify(found.lowered, network, found.fused, found.places, images)
    return found.lowered


class Translated(NamedTuple):
    """places: node of the fused network → number and unit of its value."""

    lowered: Lowered
    fused: Network
    places: Places


def translated(
    network: Network,
    images: Tensor,
    preprocessing: Mapping[str, Any],
    *,
    cost: Cost = seconds,
    ring: Ring = WIDE,
) -> Translated:
    """As `lower`, not verified."""
    check_finite(network.state_dict())
    fused = network if ops.unsupported(network) else fuse(network, cost=cost)
    found = refusals(fused)
    if found:
        raise UserError("\n".join(map(str, found)))
    if large := too_large(fused):
        raise UserError(str(large))
    outputs = nodes.output_shape(fused)
    if len(outputs) != 1:
        raise UserError(f"the network gives {outputs} for an image, not a number a class; pool and flatten its map")
    mean, std = (tuple(map(float, preprocessing[name])) for name in ("mean", "std"))
    native = preprocessing.get("image", network.input_shape)
    fused = equalise(fused, normalise(images[:EQUALISED], mean, std))
    seen = calibrate(fused, images, mean, std)
    described = {"mean": list(mean), "std": list(std), "image": list(native)}
    described |= {"middle": float(preprocessing["middle"])} if "middle" in preprocessing else {}
    tried: list[float] = []
    has_squares = any(size.count for size in seen.squares.values())
    least = LEAST_SQUARE_BITS if has_squares else WEIGHT_BITS
    for square_bits, is_late in itertools.product(range(WEIGHT_BITS, least - 1, -1), (True, False)):
        translation = Translation(fused, seen, ring, square_bits, is_late)
        try:
            program = translation.program(described)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"the network is too large to be run privately: {error}; use smaller images") from error
        lowered = Lowered(program, translation.weights, tuple(translation.ranges))
        if lowered.wrap_bound <= LARGEST_WRAP:
            return Translated(lowered, fused, translation.places)
        tried.append(lowered.wrap_bound)
    raise UserError(
        f"a truncation may wrap with probability {min(tried):.1e} an inference, more than "
        f"{LARGEST_WRAP:g}; " + _remedy(ring)
    )


def _remedy(ring: Ring) -> str:
    """Where a truncation may wrap."""
    smaller = "keep activations and the number of squares smaller"
    return f"{smaller}, or give an offline mode with a ring of 64 bits" if ring != WIDE else smaller
