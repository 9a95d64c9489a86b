"""Which networks can be counted and run as private inference: torchvision's and timm's, and ours, as Markdown.

    pip install 'parelu[zoo]'
    python benchmarks/zoo.py --write docs/zoo.md     the libraries' table between the page's markers
    python benchmarks/zoo.py --only resnet           print their rows whose name has "resnet" in it

The rows of our networks are written by `make docs`.

Nothing is trained and nothing computed: shapes are propagated on the meta device. torchvision's compiled operators are
made for one build of torch each; where they do not load, they are declared without code, since no classifier calls
them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from parelu.errors import UserError
from parelu.network.count import count, skeleton
from parelu.network.instrument import instrument
from parelu.network.sites import Network
from parelu.network.spec import families, spec_of
from parelu.private.lowering.refusals import problems
from parelu.registry import is_own

OURS, THEIRS = (3, 32, 32), (3, 224, 224)
LEFT_OUT = r"swin|vit_|maxvit|regnet_[xy]_(3_2|8|16|32|128)gf"  # no convolutional networks, or long to build
OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)
# One of each family of convolutional networks in timm that torchvision does not have, and some that both have.
TIMM = (
    "resnet18",
    "resnet18d",
    "resnetv2_50",
    "resnetblur50",
    "res2net50_26w_4s",
    "resnest14d",
    "skresnet18",
    "seresnet50",
    "ecaresnet50t",
    "gernet_s",
    "repvgg_a0",
    "mobileone_s0",
    "vgg16_bn",
    "darknet53",
    "cspresnet50",
    "cspdarknet53",
    "dla34",
    "hrnet_w18_small",
    "densenet121",
    "dpn68",
    "vovnet39a",
    "ese_vovnet19b_dw",
    "selecsls42b",
    "xception",
    "inception_v4",
    "inception_resnet_v2",
    "nasnetalarge",
    "pnasnet5large",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mnasnet_100",
    "fbnetc_100",
    "spnasnet_100",
    "lcnet_050",
    "tinynet_a",
    "ghostnet_100",
    "rexnet_100",
    "efficientnet_b0",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "tresnet_m",
    "dm_nfnet_f0",
    "nf_resnet50",
    "convnext_tiny",
    "convmixer_768_32",
    "hgnet_tiny",
    "fasternet_t0",
    "repghostnet_100",
    "inception_next_tiny",
    "starnet_s1",
)


def declare_operators() -> None:
    """Let torchvision be imported where its compiled operators are not."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        declare_operators.library = library  # pyright: ignore[reportFunctionMemberAccess]


def libraries() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Name and builder of each network of the libraries that can be imported."""
    with contextlib.suppress(ImportError):
        declare_operators()
        models = importlib.import_module("torchvision.models")
        for name in models.list_models(module=models):
            if not re.match(LEFT_OUT, name):
                yield f"torchvision:{name}", lambda name=name: models.get_model(name, weights=None)
    with contextlib.suppress(ImportError):
        timm = importlib.import_module("timm")
        known = set(timm.list_models())
        for name in TIMM:
            if name in known:
                yield f"timm:{name}", lambda name=name: timm.create_model(name)


def row(name: str, network: Callable[[], Network]) -> str:
    """A row: name, whether it runs as private inference, ReLUs, MACs, what stands in the way."""
    try:
        found = network()
        obstacles = collections.Counter(problem.op for problem in problems(found))
    except UserError as error:
        return f"| `{name}` | no | – | – | {_cell(str(error))} |"
    way = ", ".join(f"{op} × {number}" if number > 1 else op for op, number in obstacles.items())
    try:
        counts = count(found)
        cells = f"{counts.relus:,} | {counts.macs / 1e6:,.1f} M"
    except UserError:
        cells = "– | –"
    return f"| `{name}` | {'no' if obstacles else 'yes'} | {cells} | {_cell(way)} |"


def _cell(text: str) -> str:
    return text.splitlines()[0].replace("|", "/")[:160] if text else ""


def head(shape: tuple[int, int, int]) -> list[str]:
    side = "×".join(map(str, shape))
    return [f"| network, {side} | private inference | ReLUs | MACs | in the way |", "|---|---|---|---|---|"]


def ours() -> list[str]:
    """The rows of our families' examples."""
    known = [cls for cls in families().values() if is_own(cls) and cls.family != "external"]
    names = [name for cls in known for name in cls.examples]
    return [row(name, lambda name=name: skeleton(spec_of(name, OURS, 100))) for name in names]


def theirs(only: str = "") -> list[str]:
    """The rows of the libraries' networks."""

    def drawn(build: Callable[[], nn.Module]) -> Network:
        try:
            with torch.device("meta"):
                module = build()
        except NotImplementedError:  # some compute their widths with tensors
            module = build().to("meta")
        return instrument(module.eval(), THEIRS)

    return [row(name, lambda build=build: drawn(build)) for name, build in libraries() if only in name]


def versions() -> str:
    found = []
    for name in ("torchvision", "timm"):
        with contextlib.suppress(ImportError):
            found.append(f"{name} {importlib.import_module(name).__version__.split('+')[0]}")
    return ", ".join(found) or "no library"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--write", type=Path, help="the page with the markers")
    arguments = parser.parse_args()
    table = "\n".join([*head(THEIRS), *theirs(arguments.only), "", f"With {versions()}."])
    if arguments.write is None:
        print(table)
        return
    text, changed = re.subn(
        r"(<!-- theirs -->\n).*?(\n<!-- /theirs -->)",
        lambda match: match[1] + table + match[2],
        arguments.write.read_text(),
        flags=re.DOTALL,
    )
    if not changed:
        raise SystemExit(f"{arguments.write} has no <!-- theirs --> … <!-- /theirs -->")
    arguments.write.write_text(text)


if __name__ == "__main__":
    main()
