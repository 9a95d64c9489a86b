"""Networks of torchvision and timm by name, where these libraries are installed; torchvision's trained weights.

torchvision's compiled operators are made for one build of torch each. Beside another (its wheel on the package index is
for CUDA, torch's for the CPU is not) torchvision does not even import; no classifier calls them, so they are declared
without code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType

import torch

from parelu.errors import UserError

_OPERATORS = (
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


def build(library: str, name: str, channels: int, classes: int) -> object:
    """The network that a library calls `name`, untrained; raises `UserError` where it has or builds none."""
    try:
        return LIBRARIES[library](name, channels, classes)
    except ImportError as error:
        raise UserError(
            f"{library}:{name} needs {library} ({error}); pip install 'parelu[zoo]', or beside a CPU's torch "
            "pip install --no-deps torchvision timm"
        ) from error
    except Exception as error:  # each library has its own for an unknown name or an argument it does not take
        reason = str(error) or type(error).__name__
        raise UserError(f"{library}:{name}: {reason.splitlines()[0]}") from error


def trained_weights(name: str) -> Path | None:
    """The file of the weights that torchvision publishes for "torchvision:NAME": from where torch keeps such files, or
    downloaded there. None for a name of the user's own code.

    Raises:
        UserError: torchvision has none, they cannot be downloaded, or the name is of a library that has its own ways.
    """
    library, _, called = name.strip().partition(":")
    if library == "timm":
        raise UserError(f"{name} comes with fresh weights; get trained ones from huggingface.co/timm: --weights FILE")
    if library != "torchvision":
        return None
    try:
        url = imported("torchvision.models").get_model_weights(called).DEFAULT.url
    except ImportError as error:
        raise UserError(f"{name} needs torchvision ({error}); pip install 'parelu[zoo]'") from error
    except (ValueError, AttributeError) as error:  # an unknown name, or one without weights
        raise UserError(f"{name}: torchvision has no trained weights of it; give --weights FILE") from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of resnet18-f37072fd.pth the eight digits begin the file's SHA-256.
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise UserError(f"{url} could not be downloaded ({error}); download it as {path}") from error
    return path


def imported(name: str) -> ModuleType:
    """torchvision, timm or a module of theirs; raises `ImportError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        return importlib.import_module(name)


@cache
def _declare_operators() -> torch.library.Library:
    """torch keeps them for as long as what is returned lives."""
    library = torch.library.Library("torchvision", "DEF")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


def _torchvision(name: str, channels: int, classes: int) -> object:
    if channels != 3:
        raise ValueError(f"its networks read 3 channels, not {channels}: give --input 3xHxW")
    return imported("torchvision.models").get_model(name, weights=None, num_classes=classes)


def _timm(name: str, channels: int, classes: int) -> object:
    return imported("timm").create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


LIBRARIES: dict[str, Callable[[str, int, int], object]] = {"torchvision": _torchvision, "timm": _timm}
