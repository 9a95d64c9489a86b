"""One network of another's library, tried: is it counted exactly, does it run as it is, or after replacements?

    python benchmarks/zoo_try.py timm:resnet18            one line of JSON: the counts at 3×224×224, on the meta device
    python benchmarks/zoo_try.py timm:resnet18 --ring     ring against float, at the smallest of SIDES that it takes
    python benchmarks/zoo_try.py timm:efficientnet_b0 --ring --replace silu=relu

benchmarks/zoo.py runs it as a process for each network.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import time
import traceback
import warnings
from typing import Any

import aten
import torch
import zoo_list
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.network.canonical import replacements, smooth
from parelu.network.count import count
from parelu.network.instrument import instrument
from parelu.network.sites import Network
from parelu.private.lowering import reference
from parelu.private.lowering.lower import lower
from parelu.private.lowering.refusals import problems

SHAPE = (3, 224, 224)
SIDES = (32, 64, 96, 128, 224, 299)  # of the image on which ring and float are compared: the first that it takes
CALIBRATION, IMAGES = 16, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def skeleton(name: str) -> tuple[nn.Module, aten.Cost]:
    """A network without numbers in its weights, and what it costs.

    With numbers where a fixed filter, such as a blur, tells what a convolution is.
    """
    build = dict(zoo_list.builders())[name]
    try:
        with torch.device("meta"):
            module = build().eval()
    except NotImplementedError:  # some compute their widths with tensors
        module = build().to("meta").eval()
    cost = aten.count(module, SHAPE)
    return build().eval() if cost.filtered else module, cost


def counted(name: str) -> dict[str, Any]:
    """A row: what is counted, and what is in the way before and after `--replace all`.

    smooth: of what is piecewise linear, but for sigmoids, how many activations there are.
    """
    module, cost = skeleton(name)
    found = {"relus": _relus(cost), "comparisons": cost.comparisons, "macs": cost.macs, "smooth": ""}
    try:
        network = instrument(copy.deepcopy(module), SHAPE)
        found |= {"counted": _difference(network, cost, found["relus"]), "in_the_way": _in_the_way(network)}
        found["smooth"] = _smooth(network)
    except UserError as error:
        line = str(error).splitlines()[0]
        found |= {"counted": line, "in_the_way": line}
    except Exception as error:  # the row says so, and the others go on
        found |= {"counted": "traceback", "in_the_way": _place(error)}
    if found["in_the_way"]:
        found |= {"replaced": _after(copy.deepcopy(module), replacements.parsed("all"))}
    return found


def _relus(cost: aten.Cost) -> int:
    """With those that smooth functions are made of."""
    known = {"gelu tanh": ("gelu", "tanh")}
    elements = {"sigmoid": cost.sigmoids, **cost.smooth}
    pieces = {name: known.get(name, (name,)) for name in elements}
    return cost.relus + sum(
        len(smooth.knots_of(*pieces[name]).places) * number
        for name, number in elements.items()
        if pieces[name][0] in smooth.SMOOTH
    )


def _smooth(network: Network) -> str:
    """Such as "silu × 49"; "" where nothing but sigmoids is piecewise linear."""
    found = [note.partition(": ")[2].split(" ")[0] for note in network.notes if "piecewise linear" in note]
    return ", ".join(f"{name} × {n}" for name, n in collections.Counter(found).items() if name != "sigmoid")


def _difference(network: Network, cost: aten.Cost, relus: int) -> str:
    """How the network's counts differ from those dispatched; "" where they are the same."""
    try:
        counts = count(network, skips=True)
    except UserError as error:
        return str(error).splitlines()[0]
    pairs = {
        "ReLUs": (counts.relus, relus),
        "comparisons": (counts.comparisons, cost.comparisons),
        "MACs": (counts.macs, cost.macs),
    }
    return ", ".join(f"{ours:,} {name}, not {theirs:,}" for name, (ours, theirs) in pairs.items() if ours != theirs)


def _in_the_way(network: Network) -> str:
    """Each op without a secure lowering, how often, where first, and its remedy; "" where there is none."""
    found = problems(network)
    often = collections.Counter(problem.op for problem in found)
    first = {problem.op: problem for problem in reversed(found)}
    return "; ".join(f"{op} × {n} ({first[op].path}: {first[op].remedy})" for op, n in often.items())


def _after(module: nn.Module, kinds: dict[str, str]) -> str:
    """What is in the way after replacements."""
    try:
        return _in_the_way(instrument(copy.deepcopy(module), SHAPE, kinds))
    except UserError as error:
        return str(error).splitlines()[0]
    except Exception as error:
        return _place(error)


def ring(name: str, replace: str = "", least: int = 64) -> dict[str, Any]:
    """A row: logits in the ring against those of float, for fresh weights; images are smooth noise.

    least: side of the images.
    """
    began = time.perf_counter()
    found: dict[str, Any] = {"images": IMAGES}
    try:
        module, side = _fresh(name, least)
        found["side"] = side
        network = instrument(module, (3, side, side), replacements.parsed(replace))
        lowered = lower(network, pictures(CALIBRATION, side, seed=1), {"mean": MEAN, "std": STD})
        images = pictures(IMAGES, side, seed=2)
        with torch.no_grad():
            expected = module(_normal(images)).double()
        given = torch.from_numpy(reference.run(lowered, images).logits)
        scale = expected.amax() - expected.amin()
        found["agreement"] = int((given.argmax(1) == expected.argmax(1)).sum())
        found["error"] = float((given - expected).abs().max() / scale)
    except UserError as error:
        found["ring"] = str(error).splitlines()[0]
    except Exception as error:  # the row says so, and the others go on
        found["ring"] = _place(error)
    return found | {"seconds": round(time.perf_counter() - began)}


def _fresh(name: str, least: int) -> tuple[nn.Module, int]:
    """A network with new weights and the statistics of a few images, and the side that it takes."""
    torch.manual_seed(0)
    module = dict(zoo_list.builders())[name]()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # the mean of all that it sees
    for side in (side for side in SIDES if side >= least):
        try:
            with torch.no_grad():
                module.train()(_normal(pictures(CALIBRATION, side, seed=0)))
            return module.eval(), side
        except (RuntimeError, ValueError, AssertionError):
            continue
    raise UserError(f"{name} takes no image of {SIDES} pixels")


def pictures(count: int, side: int, seed: int) -> Tensor:
    """uint8 (count, 3, side, side): noise at two scales, so that neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(count, 3, n, n, generator=generator) for n in (side // 8, side))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return ((0.75 * smooth + 0.25 * fine) * 255).to(torch.uint8)


def _normal(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images / 255 - mean) / std


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = "".join(str(error).splitlines()[:1])
    return f"{type(error).__name__}: {reason} ({frame.filename}, line {frame.lineno})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--ring", action="store_true")
    parser.add_argument("--replace", default="", help="before ring against float")
    parser.add_argument("--side", type=int, default=64, help="least side of the images for it")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torchvision's and timm's own
    print(
        json.dumps(
            ring(arguments.name, arguments.replace, arguments.side) if arguments.ring else counted(arguments.name)
        )
    )


if __name__ == "__main__":
    main()
