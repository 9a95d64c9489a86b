"""A network as an ONNX graph, for runtimes that know neither torch nor parelu: what `onnx` reads, the other way.

Every op of `network/ops.py` is a few of ONNX's, in a form that stays the same from opset 14 on. Masks and polynomials
are constants: a site is `Where(mask, Relu(x), c0 + c1·x + c2·x²)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from parelu.errors import UserError
from parelu.network import nodes, ops
from parelu.network.sites import IDENTITY, Network, Site

OPSET, LEAST_OPSET = 17, 14  # batch-norms have their form since 14
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
LARGEST = 2**31 - 2**20  # bytes of weights: a file of protobuf's is smaller than 2 GiB


def to_onnx(network: Network, *, opset: int = OPSET, about: Mapping[str, str] | None = None) -> Any:
    """The ONNX model of a network as it stands: (batch, C, H, W), normalised → (batch, classes), of any batch.

    about: what the file says of itself (`metadata_props`).

    Raises:
        UserError: onnx is missing, does not know the opset, or the network has ops without a place in a private one.
    """
    onnx = _library(opset)
    graph = _Graph(onnx)
    (output,) = network.graph.find_nodes(op="output")
    for node, op in ops.read_all(network).items():
        graph.write(node, op)
    graph.add("Identity", graph.values[output.all_input_nodes[0]], outputs=OUTPUT)
    size = sum(value.nbytes for value in graph.constants.values())
    if size > LARGEST:
        raise UserError(
            f"{size / 2**30:.1f} GiB of weights; an ONNX file holds less than 2: export with --torch instead"
        )
    shapes = (INPUT, network.input_shape), (OUTPUT, nodes.output_shape(network))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (BATCH, *shape)) for name, shape in shapes]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "parelu", ends[:1], ends[1:], constants),
        opset_imports=imports,
        ir_version=onnx.helper.find_min_ir_version_for(imports),
        producer_name="parelu",
    )
    onnx.helper.set_model_props(model, dict(about or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def _library(opset: int) -> Any:
    if find_spec("onnx") is None:
        raise UserError("an export to ONNX needs onnx; pip install 'parelu[onnx]'")
    for module in ("onnx.checker", "onnx.helper", "onnx.numpy_helper", "onnx.defs"):
        importlib.import_module(module)
    onnx = importlib.import_module("onnx")
    known = onnx.defs.onnx_opset_version()
    if not LEAST_OPSET <= opset <= known:
        raise UserError(f"opset {opset} cannot be written; --opset can be from {LEAST_OPSET} to {known}")
    return onnx


class _Graph:
    """An ONNX graph under construction.

    Attributes:
        values: node of the network → name of its value here.
        constants: name → what is in the file.
    """

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.values: dict[fx.Node, str] = {}
        self.constants: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: str, name: str = "", outputs: str = "", **attributes: Any) -> str:
        """Write a node; the name of its value. name: of the module that it stands for."""
        made = outputs or f"{name or kind.lower()}:{len(self.nodes)}"
        is_taken = not name or any(node.name == name for node in self.nodes)  # of a layer that is called twice
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), [made], made if is_taken else name, **attributes)
        )
        return made

    def constant(self, name: str, value: Tensor | Sequence[int] | float) -> str:
        """A tensor of the file, once for all that have its name and numbers; whole numbers are 64-bit."""
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
        else:
            array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        found = name
        while not np.array_equal(self.constants.setdefault(found, array), array):
            found += "'"
        return found

    def write(self, node: fx.Node, op: ops.Op) -> None:
        """What a node computes, where it computes anything."""
        if isinstance(op, ops.Input):
            self.values[node] = INPUT
        elif not isinstance(op, ops.Output | ops.Constant | ops.Number):
            read = [self.values[source] for source in node.all_input_nodes if source in self.values]
            self.values[node] = self._written(node, op, read[0])

    def _written(self, node: fx.Node, op: ops.Op, x: str) -> str:
        """x: name of the first value that it reads."""
        path = str(node.target) if node.op == "call_module" else node.name
        before, after = node.all_input_nodes[0].meta["shape"], node.meta["shape"]
        match op:
            case ops.Activation(site):
                return self._site(site, x)
            case ops.Convolution(layer):
                return self._convolution(path, op, layer, x)
            case ops.Linear(layer):
                return self._linear(path, layer, x, len(after))
            case ops.BatchNorm(layer):
                return self._norm(path, layer, x)
            case ops.Affine(layer):
                scaled = self.add("Mul", x, self.constant(f"{path}.weight", layer.weight), name=path)
                return self.add("Add", scaled, self.constant(f"{path}.bias", layer.bias), name=f"{path}.shift")
            case ops.Scaling(factor):
                return self.add("Mul", x, self.constant(f"{path}.factor", factor), name=path)
            case ops.Resample(layer):
                return self._resample(path, layer, x, len(after))
            case ops.Pool():
                return self._pool(path, op, x, before, after)
            case ops.MaxPool():
                return self._max_pool(path, op, x, before, after)
            case ops.Reshape(shape):
                return self._reshape(path, x, shape)
            case ops.Permute(order):
                return self._permute(path, x, order)
            case ops.Select(indices):
                return self._select(path, x, indices, before)
            case ops.Identity():
                return x
            case ops.Addition(left, right):
                return self.add("Add", self.values[left], self.values[right], name=path)
            case ops.Product(left, right):
                return self.add("Mul", self.values[left], self.values[right], name=path)
            case ops.Concat(parts, axis):
                return self.add("Concat", *(self.values[part] for part in parts), name=path, axis=axis + 1)
            case _:
                raise UserError(str(ops.Unsupported.at(node, "write it with ops that have a form in ONNX")))

    def _site(self, site: Site, x: str) -> str:
        name, total = site.name, site.mask.numel()
        relu = self.add("Relu", x, name=name) if site.relus else x
        if site.relus == total:
            return relu
        elsewhere = x if site.is_identity_elsewhere else self._polynomial(site, x)
        if not site.relus:
            return elsewhere
        return self.add("Where", self.constant(f"{name}_mask", site.mask), relu, elsewhere, name=f"{name}.masked")

    def _polynomial(self, site: Site, x: str) -> str:
        """c0 + c1·x + c2·x², without the terms that no channel has."""
        total = x
        c0, c1, c2 = (c.view(-1, *[1] * (len(site.shape) - 1)) for c in site.coefficients)
        if (c1 != IDENTITY[1]).any():
            total = self.add("Mul", x, self.constant(f"{site.name}_c1", c1), name=f"{site.name}.linear")
        if c2.any():
            square = self.add("Mul", x, x, name=f"{site.name}.square")
            scaled = self.add("Mul", square, self.constant(f"{site.name}_c2", c2), name=f"{site.name}.quadratic")
            total = self.add("Add", total, scaled, name=f"{site.name}.sum")
        if c0.any():
            total = self.add("Add", total, self.constant(f"{site.name}_c0", c0), name=f"{site.name}.polynomial")
        return total

    def _convolution(self, path: str, op: ops.Convolution, layer: nn.Conv2d, x: str) -> str:
        kernel, stride, padding = op.window
        bias = [] if layer.bias is None else [self.constant(f"{path}.bias", layer.bias)]
        made = self.add(
            "Conv",
            x,
            self.constant(f"{path}.weight", layer.weight),
            *(bias if op.has_even_bias else ()),
            name=path,
            kernel_shape=kernel,
            strides=stride,
            pads=padding * 2,
            dilations=ops.two(layer.dilation),
            group=layer.groups,
        )
        return made if op.has_even_bias else self.add("Add", made, *bias, name=f"{path}.shift")

    def _linear(self, path: str, layer: nn.Linear, x: str, rank: int) -> str:
        bias = [] if layer.bias is None else [self.constant(f"{path}.bias", layer.bias)]
        if rank == 1:
            return self.add("Gemm", x, self.constant(f"{path}.weight", layer.weight), *bias, name=path, transB=1)
        made = self.add("MatMul", x, self.constant(f"{path}.matrix", layer.weight.T), name=path)
        return self.add("Add", made, *bias, name=f"{path}.shift") if bias else made

    def _norm(self, path: str, layer: nn.BatchNorm1d | nn.BatchNorm2d, x: str) -> str:
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None and variance is not None, "of a network that was read"
        state = {
            "weight": torch.ones_like(mean) if layer.weight is None else layer.weight,
            "bias": torch.zeros_like(mean) if layer.bias is None else layer.bias,
            "running_mean": mean,
            "running_var": variance,
        }
        inputs = (self.constant(f"{path}.{name}", value) for name, value in state.items())
        return self.add("BatchNormalization", x, *inputs, name=path, epsilon=layer.eps)

    def _resample(self, path: str, layer: Any, x: str, rank: int) -> str:
        """With the axis last, and back."""
        order = [*(a for a in range(rank) if a != layer.axis), layer.axis]
        back = [order.index(a) for a in range(rank)]
        is_last = layer.axis == rank - 1
        x = x if is_last else self._permute(f"{path}.before", x, order)
        made = self.add("MatMul", x, self.constant(f"{path}.matrix", layer.matrix.T), name=path)
        return made if is_last else self._permute(f"{path}.after", made, back)

    def _pool(self, path: str, op: ops.Pool, x: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
        """Of a whole map, or of windows that count their padding; what has no sides left has no dimensions for them."""
        if op.kernel == before[1:] and op.padding == (0, 0):
            made = self.add("GlobalAveragePool", x, name=path)
        else:
            window = {"kernel_shape": op.kernel, "strides": op.stride, "pads": op.padding * 2}
            made = self.add("AveragePool", x, name=path, **window, count_include_pad=1)
        return made if len(after) == len(before) else self._reshape(f"{path}.flat", made, after)

    def _max_pool(self, path: str, op: ops.MaxPool, x: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
        """With the padding behind that the last window takes: runtimes do not agree on what ceil_mode is."""
        sides = zip(before[1:], after[1:], op.kernel, op.stride, op.padding, strict=True)
        ends = [max(0, (count - 1) * step + side - have - pad) for have, count, side, step, pad in sides]
        pads = (*op.padding, *ends)
        return self.add("MaxPool", x, name=path, kernel_shape=op.kernel, strides=op.stride, pads=pads)

    def _reshape(self, path: str, x: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", x, self.constant(f"{path}.shape", (-1, *shape)), name=path)

    def _permute(self, path: str, x: str, order: Sequence[int]) -> str:
        return self.add("Transpose", x, name=path, perm=(0, *(a + 1 for a in order)))

    def _select(self, path: str, x: str, indices: Sequence[tuple[int, ...] | None], before: tuple[int, ...]) -> str:
        """Along each dimension; where zeros are wanted, of one that stands behind the others."""
        for axis, chosen in enumerate(indices):
            if chosen is None:
                continue
            name = f"{path}.{axis}"
            if min(chosen) < 0:
                ends = [int(d == axis + 1) for d in range(len(before) + 1)]
                padding = self.constant(f"{name}.padding", (*[0] * len(ends), *ends))
                x = self.add("Pad", x, padding, name=f"{name}.zero")
            places = [i if i >= 0 else before[axis] for i in chosen]
            x = self.add("Gather", x, self.constant(f"{name}.indices", places), name=name, axis=axis + 1)
        return x
