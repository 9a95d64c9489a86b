"""Small ONNX models, made node by node."""

import importlib

import numpy as np
import pytest
import torch

from parelu.models.onnx import Read, read_onnx

onnx = pytest.importorskip("onnx")
for part in ("checker", "helper", "numpy_helper", "reference"):
    importlib.import_module(f"onnx.{part}")
make = onnx.helper.make_node
RANDOM = np.random.default_rng(0)


def numbers(*shape, low=-1.0):
    return RANDOM.uniform(low, 1, shape).astype(np.float32)


def whole(*values):
    return np.array(values, dtype=np.int64)


def model_of(nodes, shape=(1, 4, 6, 5), opset=17, output=("y", 2), **known):
    """An ONNX model of nodes from "x" to "y", with these initializers."""
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info(output[0], onnx.TensorProto.FLOAT, [None] * output[1])],
        [onnx.numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def read(model, folder, **options) -> Read:
    onnx.save(model, str(folder / "net.onnx"))
    return read_onnx(folder / "net.onnx", **options)


def flat(*nodes):
    """Nodes that end in "z", flattened for a classifier."""
    return [*nodes, make("Flatten", ["z"], ["y"])]


def check(model, folder, shape=(1, 4, 6, 5), last=False):
    """The network read gives what ONNX's reference gives, for each image of a batch."""
    found = read(model, folder)
    images = numbers(3, *shape[1:])
    reference = onnx.reference.ReferenceEvaluator(model)
    expected = np.concatenate([reference.run(None, {"x": image[None]})[0] for image in images])
    with torch.no_grad():
        y = found.module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy() if last else images))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)
    return found
