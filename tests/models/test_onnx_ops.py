"""Each op of ONNX that is read, against ONNX's own reference."""

import numpy as np
import pytest
from onnx_models import check, flat, make, model_of, numbers, read, whole

from parelu.models.onnx_ops import RULES

CASES = {
    "Conv": [
        (["w", "b"], {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"w": numbers(2, 4, 3, 3), "b": numbers(2)}),
        (["w"], {"group": 2, "dilations": [2, 1], "auto_pad": "SAME_UPPER"}, {"w": numbers(6, 2, 3, 2)}),
        (["w"], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, {"w": numbers(2, 4, 3, 2)}),
        (["w"], {"auto_pad": "VALID"}, {"w": numbers(2, 4, 3, 3)}),
    ],
    "ConvTranspose": [
        (["w"], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}, {"w": numbers(4, 2, 3, 3)})
    ],
    "BatchNormalization": [
        (["s", "b", "m", "v"], {"epsilon": 1e-3}, {n: numbers(4) for n in "sbm"} | {"v": numbers(4, low=0.5)})
    ],
    "Gemm": [
        (["w", "b"], {"alpha": 0.5, "beta": 2.0}, {"w": numbers(5, 3), "b": numbers(3)}),
        (["w"], {"transB": 1}, {"w": numbers(3, 5)}),
        (["w", "b"], {}, {"w": numbers(5, 3), "b": numbers(1)}),
    ],
    "MatMul": [(["w"], {}, {"w": numbers(5, 3)})],
    "Relu": [([], {}, {})],
    "LeakyRelu": [([], {"alpha": 0.3}, {})],
    "Elu": [([], {"alpha": 0.7}, {})],
    "Selu": [([], {}, {})],
    "HardSwish": [([], {}, {})],
    "HardSigmoid": [([], {}, {}), ([], {"alpha": 1 / 6}, {})],
    "Mish": [([], {}, {})],
    "Sigmoid": [([], {}, {})],
    "Tanh": [([], {}, {})],
    "Softplus": [([], {}, {})],
    "Gelu": [([], {}, {}), ([], {"approximate": "tanh"}, {})],
    "PRelu": [(["w"], {}, {"w": numbers(4, 1, 1)}), (["w"], {}, {"w": numbers(1)})],
    "Clip": [
        (["a", "b"], {}, {"a": np.float32(-0.5), "b": np.float32(0.3)}),
        (["a", "b"], {}, {"a": np.float32(0), "b": np.float32(6)}),
        (["a"], {}, {"a": np.float32(0)}),
        ([], {}, {}),
    ],
    "MaxPool": [
        ([], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, {}),
        ([], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, {}),
        ([], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, {}),
    ],
    "AveragePool": [
        ([], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}, {}),
        ([], {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}, {}),
        ([], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}, {}),
        ([], {"kernel_shape": [2, 2], "strides": [2, 1], "auto_pad": "SAME_UPPER"}, {}),
    ],
    "GlobalAveragePool": [([], {}, {})],
    "GlobalMaxPool": [([], {}, {})],
    "ReduceMean": [([], {"axes": [2, 3], "keepdims": 0}, {}), ([], {"axes": [-1]}, {})],
    "ReduceSum": [(["a"], {"keepdims": 0}, {"a": whole(2)})],
    "ReduceMax": [([], {"axes": [2, 3]}, {})],
    "ReduceMin": [([], {"axes": [1]}, {})],
    "Add": [(["w"], {}, {"w": numbers(4, 1, 1)}), (["w"], {}, {"w": numbers(1)})],
    "Sub": [(["w"], {}, {"w": numbers(4, 1, 5)})],
    "Mul": [(["w"], {}, {"w": numbers(4, 1, 1)})],
    "Div": [(["w"], {}, {"w": numbers(4, 1, 1, low=0.5)}), (["w"], {}, {"w": np.float32(3)})],
    "Pow": [(["w"], {}, {"w": np.float32(2)})],
    "Max": [(["w"], {}, {"w": bound}) for bound in (np.float32(0.1), np.float32(0), numbers(4, 1, 1))],
    "Min": [(["w"], {}, {"w": np.float32(0.1)}), (["x"], {}, {})],
    "Neg": [([], {}, {})],
    "Abs": [([], {}, {})],
    "Exp": [([], {}, {})],
    "Erf": [([], {}, {})],
    "Sum": [(["w", "x"], {}, {"w": numbers(4, 1, 1)})],
    "Softmax": [([], {"axis": 1}, {})],
    "LogSoftmax": [([], {"axis": -1}, {})],
    "LayerNormalization": [(["w", "b"], {"axis": -1}, {"w": numbers(5), "b": numbers(5)})],
    "InstanceNormalization": [(["w", "b"], {}, {"w": numbers(4), "b": numbers(4)})],
    "Identity": [([], {}, {})],
    "Dropout": [([], {}, {})],
    "Cast": [([], {"to": 11}, {})],
    "Reshape": [(["s"], {}, {"s": whole(*sizes)}) for sizes in ((0, 2, -1), (1, 8, 15), (-1, 4, 30))],
    "Flatten": [([], {}, {})],
    "Unsqueeze": [(["a"], {}, {"a": whole(1, -1)})],
    "Transpose": [([], {"perm": [0, 2, 3, 1]}, {})],
    "Concat": [(["x", "w"], {"axis": 1}, {"w": np.zeros((1, 2, 6, 5), np.float32)}), (["x"], {"axis": -1}, {})],
    "Slice": [
        (["s", "e", "a", "t"], {}, {"s": whole(0, -1), "e": whole(9, -9), "a": whole(2, 3), "t": whole(2, -2)}),
        (["s", "e"], {}, {"s": whole(0, 1), "e": whole(1, 3)}),
    ],
    "Gather": [
        (["i"], {"axis": 2}, {"i": whole(2, -1, 0, 5).reshape(2, 2)}),
        (["i"], {"axis": 1}, {"i": whole(2, -1)}),
        (["i"], {"axis": 3}, {"i": np.array(1)}),
    ],
    "Expand": [(["s"], {}, {"s": whole(1, 1, 6, 5)})],
    "Tile": [(["s"], {}, {"s": whole(1, 2, 1, 2)})],
    "Pad": [
        (["p"], {}, {"p": whole(0, 1, 0, 2, 0, 0, 1, 1)}),
        (["p", "v"], {}, {"p": whole(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(0.5)}),
        (["p"], {"mode": "reflect"}, {"p": whole(0, 0, 1, 1, 0, 0, 1, 1)}),
        (["p"], {"mode": "edge"}, {"p": whole(0, 0, 1, 1, 0, 0, 1, 1)}),
    ],
    "DepthToSpace": [([], {"blocksize": 2}, {}), ([], {"blocksize": 2, "mode": "CRD"}, {})],
    "Resize": [
        (["", "s"], {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
         {"s": np.array([1, 1, 2, 3], np.float32)}),
        (["", "s"], {"mode": "nearest"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
        (["", "", "z"], {"mode": "nearest", "nearest_mode": "ceil"}, {"z": whole(1, 4, 3, 7)}),
        (["", "s"], {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
        (["", "", "z"], {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
         {"z": whole(1, 4, 9, 7)}),
    ],
}  # fmt: skip
# Ops of shapes and of fixed numbers; the shape arithmetic below meets them.
FOLDED = {
    "Constant", "ConstantOfShape", "Shape", "Size", "Range", "Where", "NonZero", "ReduceProd", "CastLike", "Equal",
    "Greater", "Less", "And", "Or", "Not", "Mod", "Floor", "Ceil", "Round", "Sign", "Sqrt", "Log", "Reciprocal",
}  # fmt: skip
APART = {"Split", "Squeeze", "SpaceToDepth", "Upsample"}


def test_each_op_that_is_read_has_a_case():
    assert set(RULES) == set(CASES) | FOLDED | APART


@pytest.mark.parametrize(
    ("op", "inputs", "options", "known"),
    [pytest.param(op, *case, id=f"{op}{i}") for op, cases in CASES.items() for i, case in enumerate(cases)],
)
def test_each_op_gives_what_onnx_says(tmp_path, op, inputs, options, known):
    on_lines = op == "Gemm"
    shape = (1, 5, 1, 1) if on_lines else (1, 4, 6, 5)
    names = ["q" if name == "z" and op == "Resize" else name for name in inputs]
    known = {"q" if name == "z" else name: value for name, value in known.items()}
    operands = names if op == "Concat" else ["v" if on_lines else "x", *names]
    first = [make("Flatten", ["x"], ["v"])] if on_lines else []
    opset = 20 if op == "Gelu" else 18 if op == "Mish" else 17
    check(model_of([*first, *flat(make(op, operands, ["z"], **options))], shape, opset, **known), tmp_path, shape)


@pytest.mark.parametrize(
    ("nodes", "opset", "known"),
    [
        ([make("Split", ["x", "s"], ["a", "b"], axis=1), make("Concat", ["b", "a"], ["z"], axis=1)], 17,
         {"s": whole(1, 3)}),
        ([make("Split", ["x"], ["a", "b"], axis=1), make("Sub", ["a", "b"], ["z"])], 17, {}),
        ([make("Split", ["x"], ["a", "b"], axis=1, split=[2, 2]), make("Mul", ["a", "b"], ["z"])], 11, {}),
        ([make("GlobalAveragePool", ["x"], ["a"]), make("Squeeze", ["a", "s"], ["z"])], 17, {"s": whole(2, 3)}),
        ([make("GlobalAveragePool", ["x"], ["a"]), make("Squeeze", ["a"], ["z"], axes=[-1, 2])], 11, {}),
        ([make("Resize", ["x", "", "s"], ["a"]), make("SpaceToDepth", ["a"], ["z"], blocksize=2)], 17,
         {"s": np.array([1, 1, 2, 2], np.float32)}),
        ([make("Upsample", ["x", "s"], ["z"], mode="nearest")], 9, {"s": np.array([1, 1, 2, 2], np.float32)}),
        ([make("Clip", ["x"], ["z"], min=0.0, max=6.0)], 7, {}),
        ([make("Pad", ["x"], ["z"], pads=[0, 0, 1, 1, 0, 0, 1, 1])], 7, {}),
        ([make("Slice", ["x"], ["z"], starts=[1], ends=[3], axes=[1])], 9, {}),
    ],
)  # fmt: skip
def test_ops_of_several_outputs_and_of_older_versions(tmp_path, nodes, opset, known):
    if opset == 9:  # which ONNX's reference has no Upsample and Slice of; their newer twins say the same
        read(model_of(flat(*nodes), opset=opset, **known), tmp_path)
    else:
        check(model_of(flat(*nodes), opset=opset, **known), tmp_path)


def test_a_weight_that_is_standardised_is_computed(tmp_path):
    """As torch's exporter writes the weight-standardised convolutions of timm: a batch-norm in training mode."""
    nodes = [
        make("Reshape", ["w", "flat"], ["rows"]),
        make("BatchNormalization", ["rows", "gain", "none", "none", "ones"], ["n", "m", "v"], training_mode=1),
        make("Reshape", ["n", "sizes"], ["standard"]),
        make("Conv", ["x", "standard"], ["z"]),
    ]
    weight = numbers(2, 4, 3, 3)
    known = {"w": weight, "flat": whole(1, 2, -1), "sizes": whole(2, 4, 3, 3), "gain": numbers(2)}
    known |= {"none": np.zeros(2, np.float32), "ones": np.ones(2, np.float32)}
    found = read(model_of(flat(*nodes), **known), tmp_path)
    rows = weight.reshape(2, -1)
    spread = np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    standard = (rows - rows.mean(1, keepdims=True)) / spread * known["gain"][:, None]
    (read_weight,) = found.module.parameters()
    np.testing.assert_allclose(read_weight.detach().numpy().reshape(2, -1), standard, atol=1e-5)
