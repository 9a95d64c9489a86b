"""Networks that code outside of parelu builds: read once, and written as graphs. No file names code that runs later."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from parelu.errors import UserError
from parelu.models import libraries, weights
from parelu.models.graph import Graph
from parelu.models.writing import graph_of, weights_of
from parelu.network import nodes
from parelu.network.instrument import instrument
from parelu.network.weights import fit_weights

Shape = tuple[int, int, int]
Source = Path | Mapping[str, Tensor]

_NAME = re.compile(r"([\w.]+|.+\.py):([\w.-]+)")
_FILE = re.compile(r".+\.onnx")


class External(Graph):
    """Names of networks that are built by code, or read from a file of another format: each is a `Graph`.

        package.module:callable     a builder that Python finds
        folder/net.py:callable      one in a file, which may import what lies beside it
        torchvision:NAME, timm:NAME
        net.onnx

    A builder is called with `num_classes` and `in_channels` where it takes these, else with nothing.
    """

    family: ClassVar[str] = "external"
    examples: ClassVar[tuple[str, ...]] = (
        "package.module:callable (your own)",
        "net.py:callable",
        "torchvision:NAME",
        "timm:NAME",
        "net.onnx",
    )

    @classmethod
    def from_name(cls, name: str, input: Shape, classes: int) -> Graph | None:
        return read_name(name, input, classes).spec if is_external(name) else None


@dataclasses.dataclass(frozen=True)
class Reading:
    """A network as it was read.

    Attributes:
        weights: of the module that `spec` builds: those that the builder, the module or the file has.
        is_replaced: whether replacements made another function of it, beyond small errors.
    """

    spec: Graph
    weights: Mapping[str, Tensor]
    is_replaced: bool = False


def is_external(name: str) -> bool:
    return bool(_NAME.fullmatch(name.strip()) or _FILE.fullmatch(name.strip()))


def read_name(
    name: str,
    input: Shape,
    classes: int,
    trained: Source | None = None,
    output: int | str | None = None,
    replace: Mapping[str, str] | None = None,
    *,
    keeps_smooth: bool = False,
) -> Reading:
    """The network of a name that `is_external`; fresh weights are always drawn the same.

    Args:
        trained: weights to load before it is read.
        output: which of several outputs is the logits.
        replace: kind of op → what is to stand in its place (`replacements.parsed`).
        keeps_smooth: whether smooth functions stay as they are (`instrument`).

    Raises:
        UserError: the name has no network, its code raises, it cannot be read, or the weights do not fit.
    """
    name = name.strip()
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.manual_seed(0)
        if is_trained(name):
            module, notes = _from_onnx(Path(name), input, classes, output)
            output = None  # it has that alone
        else:
            module, notes = _module(name, input, classes), ()
    found = read(module, input, classes, name, trained, output, replace, keeps_smooth=keeps_smooth)
    return dataclasses.replace(found, spec=_noted(found.spec, notes))


def read(
    module: nn.Module,
    input: Shape,
    classes: int,
    source: str,
    trained: Source | None = None,
    output: int | str | None = None,
    replace: Mapping[str, str] | None = None,
    *,
    keeps_smooth: bool = False,
) -> Reading:
    """A module as a graph, with the weights that it has, or `trained` ones. source: what it is called.

    replace: kind of op → what is to stand in its place (`replacements.parsed`). keeps_smooth: whether smooth functions
    stay as they are (`instrument`).
    """
    notes: tuple[str, ...] = ()
    found = None if trained is None else weights.read_weights(trained)
    later: UserError | None = None
    if found is not None:
        try:
            fitting, notes = fit_weights(module, found)
            module.load_state_dict(fitting)
        except UserError as error:  # they may be of the network that was read of it before
            later = error
    network = instrument(module, input, replace, output, keeps_smooth=keeps_smooth)
    if nodes.output_shape(network) != (classes,):
        shape = "x".join(map(str, nodes.output_shape(network)))
        raise UserError(f"{source} gives {shape} outputs for an image, not {classes}: build it for {classes} classes")
    spec = graph_of(network, classes, source)
    own = {name: _single(tensor) for name, tensor in weights_of(spec, network).items()}
    if later is not None and found is not None:
        if set(found) != set(own):
            raise later
        own = {name: _single(found[name]) for name in own}
    return Reading(_noted(spec, notes), own, network.is_replaced)


def _noted(spec: Graph, notes: tuple[str, ...]) -> Graph:
    return dataclasses.replace(spec, notes="\n".join(filter(None, (spec.notes, *notes))))


def copied(module: nn.Module) -> nn.Module:
    """A copy; raises `UserError` for a module that has none."""
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise UserError(f"{type(module).__name__} cannot be copied ({str(error).splitlines()[0]})") from error


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy whose parts that have `reset_parameters`, as torch's layers do, are drawn anew, always the same."""
    module = copied(module)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return module


def _single(tensor: Tensor) -> Tensor:
    """On the CPU, and in single precision."""
    return tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()


def _module(name: str, input: Shape, classes: int) -> nn.Module:
    found = _NAME.fullmatch(name)
    assert found, "of a name that is external"
    path, called = found[1], found[2]
    if path in libraries.LIBRARIES:
        module: Any = libraries.build(path, called, input[0], classes)
    else:
        with _importable(path) as imported:
            module = _built(path, imported, called, input[0], classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def input_of(name: str, output: int | str | None = None, *, may_be_open: bool = False) -> Shape | None:
    """(C, H, W) of the images that a file's network reads; None where a name leaves that to the user.

    may_be_open: None for a file too that leaves it open, which is refused otherwise.
    """
    path = Path(name.strip())
    if not _FILE.fullmatch(str(path)):
        return None
    from parelu.models.onnx import SizeIsOpen  # slow to start with

    try:
        return _onnx(path, _changed(path), None, output)[1]
    except SizeIsOpen:
        if may_be_open:
            return None
        raise


def classes_of(name: str, input: Shape, output: int | str | None = None) -> int | None:
    """How many a file's network tells apart; None where a name leaves that to the user."""
    path = Path(name.strip())
    return _onnx(path, _changed(path), input, output)[2] if _FILE.fullmatch(str(path)) else None


def is_trained(name: str) -> bool:
    """Whether what a name stands for has the weights of a training."""
    return bool(_FILE.fullmatch(name.strip()))


def _changed(path: Path) -> float:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a network's name, or a file")
    return path.stat().st_mtime


@functools.lru_cache(1)
def _onnx(
    path: Path, changed: float, input: Shape | None, output: int | str | None
) -> tuple[nn.Module, Shape, int, tuple[str, ...]]:
    from parelu.models.onnx import read_onnx  # a library that is optional

    found = read_onnx(path, input, output)
    return found.module, found.input, found.classes, found.notes


def _from_onnx(path: Path, input: Shape, classes: int, output: int | str | None) -> tuple[nn.Module, tuple[str, ...]]:
    module, shape, outputs, notes = _onnx(path, _changed(path), input, output)
    if tuple(shape) != tuple(input):
        wanted, given = ("x".join(map(str, one)) for one in (shape, input))
        raise UserError(f"{path} reads images of {wanted}, not {given}: give --input {wanted}")
    if outputs != classes:
        raise UserError(
            f"{path} tells {outputs} classes apart, not {classes}: give --classes {outputs}, or data of as many"
        )
    return module, notes


@contextlib.contextmanager
def _importable(path: str) -> Iterator[str]:
    """The name that a module is imported by; of a file, while its folder is on Python's path."""
    if not path.endswith(".py"):
        yield path
        return
    file = Path(path).resolve()
    if not file.is_file():
        raise UserError(f"there is no file {path}; give FILE.py:CALLABLE")
    before, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(file.parent))
    name = f"parelu_read_{file.stem}" if file.stem.isidentifier() else "parelu_read_file"
    sys.modules.pop(name, None)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader, "a file that ends in .py"
    try:
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except Exception as error:  # whatever a user's code raises, a SyntaxError among it
            raise _failed(path, "", error) from error
        yield name
    finally:
        sys.path[:] = before
        for other in set(sys.modules) - modules:
            if str(getattr(sys.modules[other], "__file__", "")).startswith(str(file.parent)):
                del sys.modules[other]  # another file's neighbour may have the same name


def _built(path: str, imported: str, called: str, channels: int, classes: int) -> object:
    try:
        builder: Any = importlib.import_module(imported)
        for part in called.split("."):
            builder = getattr(builder, part)
    except (ImportError, AttributeError) as error:
        reason = str(error).replace(imported, path)
        raise UserError(
            f"{path}:{called}: {reason}" + ("" if path.endswith(".py") else "; is its folder on PYTHONPATH?")
        ) from error
    except Exception as error:  # whatever a user's code raises, a SyntaxError among it
        raise _failed(path, called, error) from error
    if isinstance(builder, nn.Module):
        return builder
    if not callable(builder):
        raise UserError(
            f"{path}:{called} is a {type(builder).__name__}; name a function or class that builds the network"
        )
    given = _arguments(builder, {"num_classes": classes, "in_channels": channels}, f"{path}:{called}")
    try:
        return builder(**given)
    except UserError:
        raise
    except Exception as error:
        raise _failed(path, called, error) from error


def _arguments(builder: Any, known: dict[str, int], name: str) -> dict[str, int]:
    """Those of the known arguments that a builder takes."""
    try:
        parameters = inspect.signature(builder).parameters
    except (TypeError, ValueError):  # of what is written in C
        return {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in kinds and n not in known]
    if needed:
        raise UserError(
            f"{name} needs {', '.join(needed)}; give those a default, or name a function that calls it "
            "(num_classes and in_channels are given)"
        )
    return {argument: value for argument, value in known.items() if argument in parameters}


def _failed(path: str, name: str, error: Exception) -> UserError:
    """With the place of the error, as far as it is in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    if not own and isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}, line {error.lineno})"
    reason = (str(error).splitlines() or [""])[0]
    shown = f"{path}:{name}" if name else path
    return UserError(f"{shown} failed: {type(error).__name__}: {reason}{place}; mend it and run again")
