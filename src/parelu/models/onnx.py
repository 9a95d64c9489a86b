"""A network in an ONNX file as a module of torch, with its weights.

What does not depend on the image is computed when it is read, so that only layers, activations and moves of numbers are
left; the result is compared with onnxruntime on random images where that is installed.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError, shown
from parelu.models import onnx_moves, onnx_ops, onnx_patterns
from parelu.models.onnx_graph import Call, Value, Writer, valid_path
from parelu.network.weights import check_finite

CHANNELS = (1, 3, 4)  # of images
FLOATS = (1, 10, 11, 16)  # TensorProto.DataType: float, half, double, bfloat16
TOLERANCE = 1e-3  # of the largest output
LAST = ("Softmax", "LogSoftmax")  # which change no label


@dataclass(frozen=True)
class Read:
    """What a file holds.

    Attributes:
        module: (batch, C, H, W) → (batch, classes), in evaluation mode.
        input: (C, H, W).
        notes: what is not as in the file.
    """

    module: nn.Module
    input: tuple[int, int, int]
    classes: int
    notes: tuple[str, ...]


class SizeIsOpen(UserError):
    """Nothing says how large the images of a file's network are."""


def read_onnx(path: Path, input: tuple[int, int, int] | None = None, output: int | str | None = None) -> Read:
    """The network of an ONNX file.

    Args:
        input: (C, H, W), for a file that leaves them open.
        output: of a file with several, the index or name of the logits.

    Raises:
        UserError: no whole ONNX file, or one with ops, inputs or outputs that no classifier of images has; or its
            outputs are not onnxruntime's.
    """
    onnx = _library(path)
    model = _checked(onnx, path)
    try:
        return _read(onnx, model, input, output)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def _library(path: Path) -> Any:
    if find_spec("onnx") is None:
        raise UserError(f"{path} needs onnx; pip install 'parelu[onnx]'")
    return importlib.import_module("onnx")


def _checked(onnx: Any, path: Path) -> Any:
    """The file's model, whole, with its external data, and valid by ONNX's own checker."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give an .onnx file")
    for module in ("onnx.checker", "onnx.helper", "onnx.inliner", "onnx.numpy_helper", "onnx.defs"):
        importlib.import_module(module)
    try:
        model = onnx.load(str(path))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check_nodes(onnx, model, path)
        onnx.checker.check_model(model)
    except UserError:
        raise
    except Exception as error:  # protobuf's, onnx's and the operating system's
        reason = shown(str(error), 160) or type(error).__name__
        raise UserError(f"{path} is no whole, valid ONNX file ({reason}); export it again") from error
    return model


def _check_nodes(onnx: Any, model: Any, path: Path) -> None:
    if not model.graph.node:
        raise UserError(f"{path} holds no network of ONNX; export it again")
    tensors = (*model.graph.initializer, *model.graph.input, *model.graph.output)
    names = itertools.chain(
        (t.name for t in tensors), *([n.name, n.op_type, *n.input, *n.output] for n in model.graph.node)
    )
    if not all(isinstance(name, str) for name in names):  # what is no UTF-8 stays bytes
        raise UserError(f"{path} is no whole, valid ONNX file (its names are no text); export it again")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UserError(
                f"{path}: {_where(node)} is of the domain {shown(node.domain)!r}, whose ops are not ONNX's own; "
                "export it without them"
            )
    version, known = _opset(model), onnx.defs.onnx_opset_version()
    if not 7 <= version <= known:
        raise UserError(f"{path} is of opset {version}; 7 to {known} can be read: export it again with another")


def _opset(model: Any) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _read(onnx: Any, model: Any, input: tuple[int, int, int] | None, output: int | str | None) -> Read:
    graph = model.graph
    writer, notes = Writer(), []
    values: dict[str, Any] = {"": None}
    for tensor in graph.initializer:
        values[tensor.name] = _tensor(onnx, tensor)
        writer.names[id(values[tensor.name])] = tensor.name
    check_finite({name: t for name, t in values.items() if isinstance(t, Tensor)})
    given = _only([i for i in graph.input if i.name not in values], "input")
    batch, shape, is_last = _input_shape(given, input)
    order = (0, 2, 3, 1) if is_last else (0, 1, 2, 3)
    channels_first = (batch, *shape)
    values[given.name] = writer.input([channels_first[d] for d in order], order)
    if is_last:
        notes.append("its input has the channels last; the network read takes them first")
    made = _chosen(graph.output, output)
    needed = _needed(graph, made)
    for index, node in enumerate(graph.node):
        if index in needed:
            _run(onnx, node, index, writer, values, _opset(model))
    last, squash = _without_softmax(graph, values, made, notes)
    logits = _logits(writer, last, notes)
    module = writer.finish(logits, "ONNX")
    onnx_patterns.join(module)
    _check_batch(module, shape)
    _compare(model, module, given.name, made, (batch, *shape), order, squash)
    return Read(module, shape, logits.shape[1], tuple(notes))


def _only(found: Sequence[Any], what: str) -> Any:
    if len(found) != 1:
        names = ", ".join(repr(shown(entry.name, 40)) for entry in found[:6])
        raise UserError(f"it has {len(found)} {what}s ({names}); keep one, with onnx.utils.extract_model")
    return found[0]


def _chosen(outputs: Sequence[Any], output: int | str | None) -> str:
    """The name of the one that is the logits."""
    names = [entry.name for entry in outputs]
    choices = ", ".join(shown(name, 40) for name in names[:6])
    if output is None:
        if len(names) != 1:
            raise UserError(f"it has {len(names)} outputs; choose one with --output: {choices}")
        return names[0]
    found = str(output)
    if found not in names and found.isdecimal() and int(found) < len(names):
        return names[int(found)]
    if found not in names:
        raise UserError(f"it has no output {shown(found, 40)}; --output can be one of {choices}")
    return found


def _needed(graph: Any, output: str) -> set[int]:
    """Indices of the nodes that an output is made by."""
    wanted, found = {output}, set[int]()
    for index, node in reversed([*enumerate(graph.node)]):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.add(index)
    return found


def _input_shape(given: Any, input: tuple[int, int, int] | None) -> tuple[int, tuple[int, int, int], bool]:
    """Images in a batch as the file fixes it, else 1; (C, H, W); and whether the file has the channels last."""
    kind = given.type.tensor_type
    if kind.elem_type not in FLOATS:
        raise UserError(
            f"its input {shown(given.name)!r} is not of floating point; export the network without its decoding"
        )
    sizes = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    if len(sizes) != 4:
        raise UserError(f"its input {shown(given.name)!r} has {len(sizes)} dimensions, not 4: it does not read images")
    is_last = sizes[1] not in CHANNELS and sizes[3] in CHANNELS
    order = (3, 1, 2) if is_last else (1, 2, 3)
    stated = [sizes[d] for d in order]
    wanted = stated if input is None else [s or i for s, i in zip(stated, input, strict=True)]
    text = "x".join(str(s) if s else letter for s, letter in zip(stated, "CHW", strict=True))
    if input is not None and tuple(wanted) != tuple(input):
        raise UserError(f"it reads images of {text}, not of {'x'.join(map(str, input))}; give --input {text}")
    if None in wanted:
        raise SizeIsOpen(f"it leaves the size of its images open ({text}); give it, such as --input 3x224x224")
    channels, height, width = (int(size) for size in wanted if size is not None)
    return sizes[0] or 1, (channels, height, width), is_last


def _tensor(onnx: Any, tensor: Any) -> Tensor:
    """In single precision where it is of floating point."""
    try:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind not in "fiub":
            array = array.astype("float32")  # bfloat16 and the small floats of ml_dtypes
        found = torch.from_numpy(array.copy())
    except Exception as error:  # of a type or a size that there is not, onnx raises whatever it comes upon
        raise UserError(f"its tensor {shown(tensor.name)!r} cannot be read ({shown(str(error), 160)})") from error
    return found.float() if found.is_floating_point() else found


def _where(node: Any) -> str:
    name = node.name or next(iter(node.output), "")
    return f"node {shown(name)!r} ({shown(node.op_type, 40)})"


def _run(onnx: Any, node: Any, index: int, writer: Writer, values: dict[str, Any], opset: int) -> None:
    """Compute or write one node."""
    missing = [name for name in node.input if name not in values]
    if missing:
        raise UserError(f"{_where(node)} reads {shown(missing[0])!r}, which nothing gives here")
    rule = onnx_ops.RULES.get(node.op_type)
    if rule is None:
        raise UserError(
            f"{_where(node)}: {shown(node.op_type, 40)} is not an op that can be read; {_remedy(node.op_type)}"
        )
    inputs = tuple(values[name] for name in node.input)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            options = _attributes(onnx, node)
            path, where = _path(node, index), _where(node)
            call = Call(node.op_type, inputs, options, tuple(node.output), path, where, opset)
            found = rule(writer, call)
    except UserError:
        raise
    except Exception as error:  # whatever torch finds in shapes, and Python in what a file states
        reason = shown(str(error), 200) or type(error).__name__
        raise UserError(f"{_where(node)} cannot be computed ({reason})") from error
    results = found if isinstance(found, list) else [found]
    for name, result in zip(node.output, results, strict=False):
        values[name] = result
        if isinstance(result, Tensor) and id(result) not in writer.names:
            writer.names[id(result)] = name


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    """A node's options, with tensors as torch's."""
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = _tensor(onnx, value) if isinstance(value, onnx.TensorProto) else value
    return found


def _remedy(op: str) -> str:
    if op in ("If", "Loop", "Scan"):
        return "it decides by data what to compute: export the network without it"
    if "Quantize" in op or "Integer" in op or op.startswith("QLinear"):
        return "the file is quantised: export the float network"
    return "replace it before the export"


def _path(node: Any, index: int) -> str:
    """Of a layer's module: its weight's, or the node's name without the op at its end."""
    weights = [name.removesuffix(".weight") for name in node.input[1:2] if name.endswith(".weight")]
    if weights:
        return valid_path(weights[0])
    path = valid_path(node.name) if node.name else f"{node.op_type.lower()}_{index}"
    head, _, last = path.rpartition(".")
    return head if head and last.split("_")[0] == node.op_type else path


def _without_softmax(graph: Any, values: dict[str, Any], output: str, notes: list[str]) -> tuple[Any, str]:
    """The value before a last softmax, and its op; the output as it is where there is none."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = makers.get(node.input[0])
    if node is None or node.op_type not in LAST:
        return values[output], ""
    notes.append(f"its last op, {node.op_type}, was left out: it changes no label")
    return values[node.input[0]], node.op_type


def _logits(writer: Writer, last: Any, notes: list[str]) -> Value:
    if not isinstance(last, Value):
        raise UserError("its output does not depend on the image")
    if last.like.dim() == 4 and last.shape[2:] == (1, 1):
        notes.append("its output of 1×1 maps was flattened")
        last = writer.call(torch.flatten, last, 1)
        assert isinstance(last, Value)
    if last.like.dim() != 2:
        raise UserError(f"its output has the shape {last.shape}, not (batch, classes): it is no classifier")
    return last


def _check_batch(module: fx.GraphModule, shape: tuple[int, int, int]) -> None:
    """Whether each image of a batch is computed by itself."""
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            alone, together = torch.cat([module(images[:1]), module(images[1:])]), module(images)
        except (RuntimeError, IndexError, ValueError) as error:
            raise UserError(f"it does not take a batch of images ({shown(str(error), 160)})") from error
    if alone.shape != together.shape or not _close(alone, together):
        raise UserError("the images of a batch are not computed each by itself; export it for one image")


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * max(1e-6, float(b.abs().max())))


def _compare(
    model: Any, module: nn.Module, name: str, output: str, shape: Sequence[int], order: Sequence[int], last: str
) -> None:
    """With onnxruntime's outputs, where it is installed."""
    if find_spec("onnxruntime") is None:
        return
    runtime = importlib.import_module("onnxruntime")
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    kinds = {1: torch.float32, 10: torch.float16, 11: torch.float64}
    kind = kinds.get(next(i.type.tensor_type.elem_type for i in model.graph.input if i.name == name))
    if kind is None:
        return
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, torch.get_num_threads()
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (expected,) = session.run([output], {name: images.permute(*order).contiguous().to(kind).numpy()})
    except Exception as error:  # onnxruntime's own, none of which has a common base
        raise UserError(f"onnxruntime does not run it ({shown(str(error), 160)})") from error
    with torch.no_grad():
        found = module(images)
    found = {"Softmax": found.softmax(-1), "LogSoftmax": found.log_softmax(-1)}.get(last, found)
    expected = torch.from_numpy(expected).float().reshape(found.shape)
    if not _close(found, expected):
        worst = float((found - expected).abs().max())
        raise UserError(f"the network read is not the file's: {worst:.2g} from onnxruntime's outputs; report the file")


assert onnx_moves.TYPES  # whose rules stand in the table by their import
