"""ONNX files: whole networks against torch, layouts and patterns of exporters, and files that are damaged or others."""

import math
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import check, flat, make, model_of, numbers, onnx, read, whole
from torch import nn

from parelu.data.memory import from_memory
from parelu.errors import UserError
from parelu.models import onnx as reader
from parelu.models.onnx import read_onnx
from parelu.models.onnx_graph import valid_path
from parelu.network.instrument import instrument
from parelu.network.spec import spec_of
from parelu.runs.experiment import Experiment, prepare
from parelu.runs.inspection import named
from parelu.training.schedule import Training


def test_a_squeeze_of_all_keeps_the_batch(tmp_path):
    """Also of one image, where ONNX would take its dimension away."""
    nodes = [make("GlobalAveragePool", ["x"], ["a"]), make("Squeeze", ["a"], ["y"])]
    assert read(model_of(nodes), tmp_path).classes == 4


def test_arithmetic_of_shapes_is_computed(tmp_path):
    """A view as torch's exporter writes it, and the zero padding of a padding whose list is put together."""
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "zero"], ["batch"], axis=0),
        make("Gather", ["shape", "one"], ["channels"], axis=0),
        make("Div", ["channels", "two"], ["half"]),
        make("Unsqueeze", ["batch", "axes"], ["b"]),
        make("Unsqueeze", ["half", "axes"], ["h"]),
        make("Concat", ["b", "two_", "h", "rest"], ["sizes"], axis=0),
        make("Reshape", ["x", "sizes"], ["pairs"]),
        make("Transpose", ["pairs"], ["turned"], perm=[0, 2, 1, 3]),
        make("Reshape", ["turned", "shape"], ["shuffled"]),
        make("ConstantOfShape", ["four"], ["none"], value=onnx.numpy_helper.from_array(whole(0))),
        make("Concat", ["none", "rim"], ["pads"], axis=0),
        make("Cast", ["pads"], ["padding"], to=7),
        make("Pad", ["shuffled", "padding"], ["z"]),
    ]
    known = {"zero": np.array(0), "one": np.array(1), "two": np.array(2), "two_": whole(2), "axes": whole(0)}
    known |= {"rest": whole(-1), "four": whole(4), "rim": whole(0, 0, 1, 2)}
    found = check(model_of(flat(*nodes), **known), tmp_path)
    kinds = [node.op for node in found.module.graph.nodes]
    assert "get_attr" not in kinds and len(kinds) == 7


def test_channels_last_become_channels_first_without_a_move(tmp_path):
    """As exporters of TensorFlow write it: a padding in front, transposes around each layer, sums over the last."""
    turn, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes = [
        make("Pad", ["x", "p"], ["a"]),
        make("Transpose", ["a"], ["b"], **turn),
        make("Conv", ["b", "w"], ["c"]),
        make("Transpose", ["c"], ["d"], **back),
        make("Sub", ["d", "mean"], ["e"]),
        make("Mul", ["e", "scale"], ["f"]),
        make("Relu", ["f"], ["g"]),
        make("PRelu", ["g", "slope"], ["g2"]),
        make("Concat", ["g2", "f"], ["h"], axis=3),
        make("ReduceMean", ["h"], ["i"], axes=[1, 2], keepdims=0),
        make("MatMul", ["i", "m"], ["j"]),
        make("Add", ["j", "n"], ["k"]),
        make("Softmax", ["k"], ["y"]),
    ]
    known = {"p": whole(0, 1, 1, 0, 0, 1, 1, 0), "w": numbers(5, 3, 3, 3), "mean": numbers(5), "scale": numbers(5)}
    known |= {"slope": numbers(1), "m": numbers(10, 7), "n": numbers(7)}
    model = model_of(nodes, ("batch", 6, 8, 3), **known)
    found = read(model, tmp_path)
    images = numbers(2, 6, 8, 3)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": images})[0]
    with torch.no_grad():
        y = found.module(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5)
    targets = [node.target for node in found.module.graph.nodes if node.op == "call_function"]
    assert torch.permute not in targets and torch.sub not in targets and torch.add not in targets
    assert found.notes == (
        "its input has the channels last; the network read takes them first",
        "its last op, Softmax, was left out: it changes no label",
    )
    assert (found.input, found.classes) == ((3, 6, 8), 7)


def gate(op, *names):
    return [make(op, ["x"], ["s"]), make("Mul", list(names), ["z"])]


ROOT = np.float32(np.sqrt(2))


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        (gate("Sigmoid", "x", "s"), nn.SiLU),
        (gate("Sigmoid", "s", "x"), nn.SiLU),
        ([make("HardSigmoid", ["x"], ["s"], alpha=1 / 6, beta=0.5), make("Mul", ["x", "s"], ["z"])], nn.Hardswish),
        ([make("Add", ["x", "three"], ["a"]), make("Clip", ["a", "none", "six"], ["b"]), make("Mul", ["x", "b"], ["c"]),
          make("Div", ["c", "six"], ["z"])], nn.Hardswish),
        ([make("Div", ["x", "root"], ["a"]), make("Erf", ["a"], ["b"]), make("Add", ["b", "one"], ["c"]),
          make("Mul", ["x", "c"], ["d"]), make("Mul", ["d", "half"], ["z"])], nn.GELU),
        ([make("Div", ["x", "root"], ["a"]), make("Erf", ["a"], ["b"]), make("Add", ["b", "one"], ["c"]),
          make("Mul", ["x", "half"], ["d"]), make("Mul", ["d", "c"], ["z"])], nn.GELU),
    ],
)  # fmt: skip
def test_activations_written_in_pieces_are_put_together(tmp_path, nodes, kind):
    known = {"three": np.float32(3), "six": np.float32(6), "none": np.float32(0)}
    known |= {"root": ROOT, "one": np.float32(1), "half": np.float32(0.5)}
    found = check(model_of(flat(*nodes), **known), tmp_path)
    called = [node for node in found.module.graph.nodes if node.op == "call_module"]
    assert [type(found.module.get_submodule(node.target)) for node in called] == [kind]


def test_a_gate_of_another_value_stays_a_gate(tmp_path):
    nodes = [make("Sigmoid", ["x"], ["s"]), make("Neg", ["x"], ["n"]), make("Mul", ["n", "s"], ["z"])]
    found = check(model_of(flat(*nodes)), tmp_path)
    called = [node.target for node in found.module.graph.nodes if node.op == "call_module"]
    assert [type(found.module.get_submodule(target)) for target in called] == [nn.Sigmoid]


def exported(module, shape, path, **options):
    """By torch's older exporter, which needs nothing but torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.rand(1, *shape),), str(path), dynamo=False, input_names=["x"], **options
        )
    return path


@pytest.mark.parametrize(
    "name", ["resnet10 m=2", "vgg16 m=8 (16 classifier)", "mobilenetv1 m=8", "efficientnet-b0 (relu, no se) m=8"]
)
def test_a_network_comes_back_with_its_outputs_and_names(tmp_path, name):
    module = spec_of(name, (3, 32, 32), 5).module()
    training = torch.onnx.TrainingMode.PRESERVE  # else batch-norms vanish in the convolutions
    path = exported(module, (3, 32, 32), tmp_path / "net.onnx", training=training, do_constant_folding=False)
    found = read_onnx(path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.module(images), module(images), atol=1e-5)
    own = {n: t for n, t in module.state_dict().items() if "num_batches" not in n}
    read = {n: t for n, t in found.module.state_dict().items() if "num_batches" not in n}
    assert own.keys() == read.keys() and all(torch.equal(own[n], read[n]) for n in own)
    assert instrument(found.module, found.input).sites.keys() == instrument(module, (3, 32, 32)).sites.keys()


def test_batch_norms_may_be_folded_and_the_batch_open(tmp_path):
    module = spec_of("resnet10 m=2", (1, 16, 16), 5).module()
    path = exported(module, (1, 16, 16), tmp_path / "net.onnx", dynamic_axes={"x": {0: "batch"}})
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(read_onnx(path).module(images), module(images), atol=1e-5)


CONV = [make("Conv", ["x", "w"], ["z"], name="/features/conv/Conv")]
WEIGHT = {"w": numbers(2, 4, 3, 3)}


def external(path):
    model = model_of(flat(*CONV), **WEIGHT)
    onnx.save(model, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    (path.parent / "net.data").unlink()


NAN = numbers(2, 4, 3, 3)
NAN[0, 0, 0, 0] = np.nan


def net(*nodes, **known):
    return {"nodes": flat(*nodes), "known": known}


def one(op, *inputs, known=None, **options):
    return net(make(op, inputs, ["z"], **options), **(known or {}))


FILES = {
    "is no whole, valid ONNX file": lambda path: path.write_bytes(b"PK\x03\x04 no model"),
    "holds no network": lambda path: path.write_bytes(b""),
    "does not exist; give an .onnx file": lambda path: None,
    "net.data": external,
}
GRAPHS = {
    "domain 'com.microsoft'": one("Conv", "x", "w", domain="com.microsoft"),
    "LRN is not an op that can be read": one("LRN", "x", size=3),
    "quantised: export the float network": one("QLinearConv", *["x"] * 8),
    "shape (1, 4, 6, 5), not (batch, classes)": {"nodes": [make("Relu", ["x"], ["y"])], "output": ("y", 4)},
    "leaves the size of its images open (4xHxW); give it": {"shape": ("n", 4, "h", "w")},
    "it reads images of 4x6x5, not of 3x6x5; give --input 4x6x5": {"input": (3, 6, 5)},
    "has 2 dimensions, not 4": {"shape": (1, 20), "nodes": [make("Relu", ["x"], ["y"])]},
    "the weights' w has 1 of 72 numbers not finite": {"known": {"w": NAN}},
    "node '/features/conv/Conv' (Conv) cannot be computed": {"known": {"w": numbers(2, 3, 3, 3)}},
    "its weight depends on the image": one("Conv", "x", "x"),
    "makes whole numbers of activations": one("Cast", "x", to=7),
    "takes images out of the batch": one("Gather", "x", "i", known={"i": whole(0)}),
    "it does not take a batch of images": {
        "nodes": [make("Reshape", ["x", "s"], ["y"])],
        "known": {"s": whole(24, 5)},
    },
    "its output does not depend on the image": {"nodes": [make("Identity", ["w"], ["y"])]},
    "(ConstantOfShape): it makes a tensor of shape": net(
        make("ConstantOfShape", ["s"], ["q"]), make("Add", ["x", "q"], ["z"]), s=whole(1, 4, 10**6, 10**6)
    ),
    "(Expand): it makes a tensor of shape": one("Expand", "x", "s", known={"s": whole(1, 4, 6, 5 * 10**10)}),
    "is no whole, valid ONNX file (": net(*CONV, make("Conv", ["missing", "w"], ["q"]), **WEIGHT),
    "is of opset 99; 7 to": {"opset": 99},
    "is of opset 5; 7 to": {"opset": 5},
}


@pytest.mark.parametrize("line", [*FILES, *GRAPHS])
def test_what_cannot_be_read_is_one_line(tmp_path, line):
    path = tmp_path / "net.onnx"
    case = {"nodes": flat(*CONV), "known": WEIGHT} | GRAPHS.get(line, {})
    if line in FILES:
        FILES[line](path)
    else:
        options = {name: case[name] for name in ("shape", "opset", "output") if name in case}
        onnx.save(model_of(case["nodes"], **options, **case["known"]), str(path))
    with pytest.raises(UserError) as error:
        read_onnx(path, case.get("input"))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_leaves_sizes_open_is_a_network_by_its_name_and_input(tmp_path):
    onnx.save(model_of([*CONV, make("GlobalAveragePool", ["z"], ["p"]), make("Flatten", ["p"], ["y"])],
                       ("n", 4, "h", "w"), **WEIGHT), str(tmp_path / "net.onnx"))  # fmt: skip
    spec = named(str(tmp_path / "net.onnx"), (4, 9, 8), None)
    assert (spec.input, spec.classes) == ((4, 9, 8), 2)
    with pytest.raises(UserError, match="leaves the size of its images open"):
        named(str(tmp_path / "net.onnx"), None, None)
    data = from_memory((torch.rand(20, 4, 9, 8), torch.arange(20) % 2))
    prepared = prepare(Experiment(str(tmp_path / "net.onnx"), data, (), Training(epochs=1)))
    assert prepared.spec.input == (4, 9, 8), "as large as the data set's"


def test_several_outputs_are_named(tmp_path):
    model = model_of([make("Flatten", ["x"], ["y"]), make("Relu", ["x"], ["map"])])
    model.graph.output.append(onnx.helper.make_tensor_value_info("map", onnx.TensorProto.FLOAT, [None] * 4))
    with pytest.raises(UserError, match="it has 2 outputs; choose one with --output: y, map"):
        read(model, tmp_path)
    path = tmp_path / "several.onnx"
    onnx.save(model, str(path))
    for output in ("y", 0, "0"):
        found = read_onnx(path, None, output)
        assert found.classes == math.prod(found.input) and "relu" not in found.module.code
    for output, line in (("map", "it is no classifier"), ("z", "no output z; --output can be one of y, map")):
        with pytest.raises(UserError, match=line):
            read_onnx(path, None, output)
    assert named(str(path), None, None, output="y").classes == math.prod(found.input)


def test_half_precision_is_read_as_single(tmp_path):
    nodes = [*CONV, make("Cast", ["z"], ["single"], to=1), make("Flatten", ["single"], ["y"])]
    model = model_of(nodes, w=WEIGHT["w"].astype(np.float16))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    found = read(model, tmp_path)
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}


BYTES = model_of(flat(*CONV), **WEIGHT).SerializeToString()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 9)
)
def test_a_damaged_file_is_a_line_or_a_network(tmp_path_factory, changes, cut):
    data = bytearray(BYTES)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        read_onnx(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_the_outputs_are_compared_with_onnxruntimes(tmp_path, monkeypatch):
    """A stand-in whose outputs are ONNX's reference's, or others."""
    for shift in (0.0, 0.1):

        class Session:
            def __init__(self, model, options, providers, shift=shift):
                self.reference, self.shift = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model)), shift

            def run(self, names, inputs):
                return [y + self.shift for y in self.reference.run(names, inputs)]

        runtime = types.SimpleNamespace(SessionOptions=types.SimpleNamespace, InferenceSession=Session)
        monkeypatch.setitem(reader.__dict__, "find_spec", lambda name: name)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        if shift:
            with pytest.raises(UserError, match="the network read is not the file's: 0"):
                read(model_of(flat(*CONV), **WEIGHT), tmp_path)
        else:
            read(model_of(flat(*CONV), **WEIGHT), tmp_path)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx; pip install 'parelu\[onnx\]'"):
        read_onnx(tmp_path / "net.onnx")


def test_paths_of_names():
    names = {
        "/layer1/layer1.0/conv1/Conv": "layer1.0.conv1.Conv",
        "/stage/stage.1/layers/layers.0/Relu": "stage.1.layers.0.Relu",
        "onnx::Conv_12": "onnx.Conv_12",
        "resnet/block 1/kernel:0": "resnet.block_1.kernel.0",
        "": "layer",
        "...": "layer",
    }
    assert {name: valid_path(name) for name in names} == names
