"""Weights as people keep them: formats, nesting, prefixes, precision; what is damaged or does not fit is a line."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_networks import same_weights
from torch import nn

from parelu.errors import UserError
from parelu.models.weights import KEYS, fit_weights, load, read_weights


def net(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes))


OWN = net()
STATE = {name: tensor + 1 for name, tensor in OWN.state_dict().items()}
BEFORE_1_6 = {"_use_new_zipfile_serialization": False}


def loaded(source) -> tuple[nn.Module, tuple[str, ...]]:
    module = net()
    notes = load(module, source)
    return module, notes


def trained() -> nn.Module:
    module = net()
    module.load_state_dict(STATE)
    return module


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.bin", "net.ckpt", "net.pth.tar", "net", "net.safetensors"])
@pytest.mark.parametrize("options", [{}, BEFORE_1_6], ids=["zip", "before 1.6"])
def test_the_file_says_what_it_is_and_not_its_name(tmp_path, name, options):
    torch.save(STATE, tmp_path / name, **options)
    module, notes = loaded(tmp_path / name)
    assert same_weights(module, trained()) and notes == ()
    save_file(STATE, tmp_path / name)
    module, notes = loaded(tmp_path / name)
    assert same_weights(module, trained()) and notes == ()


@pytest.mark.parametrize("key", KEYS)
def test_a_checkpoint_of_a_training_is_opened(tmp_path, key):
    optimizer = {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "optimizer": optimizer, key: STATE}, tmp_path / "net.pth")
    module, notes = loaded(tmp_path / "net.pth")
    assert same_weights(module, trained())
    assert notes == (f"--weights {tmp_path / 'net.pth'}: the state dict is under {key!r}",)


def test_of_several_state_dicts_the_chosen_one_is_named():
    other = {name: tensor * 0 for name, tensor in STATE.items()}
    module, notes = loaded({"ema": {"state_dict": other}, "model": {"state_dict": STATE}, "epoch": 1})
    assert same_weights(module, trained())
    assert notes[0] == "the weights: 'model' was taken, not 'ema'"
    assert notes[1] == "the weights: the state dict is under 'model.state_dict'"


@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "0"]), min_size=1, max_size=3))
def test_a_prefix_is_named_and_taken_off(parts):
    prefix = ".".join(parts) + "."
    module, notes = loaded({prefix + name: tensor for name, tensor in STATE.items()})
    assert same_weights(module, trained())
    assert notes == (f"the prefix {prefix!r} of the weights' names was taken off",)


def test_what_stands_outside_the_prefix_is_named():
    extra = {"n_averaged": torch.tensor(3), "criterion.weight": torch.ones(4)}
    module, notes = loaded({f"module.{name}": tensor for name, tensor in STATE.items()} | extra)
    assert same_weights(module, trained())
    assert notes[0].endswith("left aside, outside of it: 2 tensors (criterion.weight, n_averaged)")


def test_a_network_held_twice_is_refused():
    twice = {f"{p}.{name}": tensor for p in ("student", "teacher") for name, tensor in STATE.items()}
    with pytest.raises(UserError, match=r"2 times, under 'student\.' and 'teacher\.'; save the one you mean"):
        loaded(twice)


def test_names_that_fit_keep_their_prefix():
    """A network whose own names begin with "module."."""
    module = nn.Sequential()
    module.add_module("module", OWN)
    weights, notes = fit_weights(module, {f"module.{name}": tensor for name, tensor in STATE.items()})
    assert notes == () and weights.keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]
)
def test_other_precisions_become_the_networks(dtype):
    source = {n: t.to(dtype) if t.is_floating_point() else t for n, t in STATE.items()}
    module, notes = loaded(read_weights(source))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert notes == (f"weights of {dtype} became torch.float32",)


def test_a_cast_of_the_whole_state_dict_casts_counters_too():
    module, _ = loaded({name: tensor.half() for name, tensor in STATE.items()})
    assert module.get_buffer("1.num_batches_tracked").dtype == torch.long


def test_counters_of_batches_may_be_missing_or_more():
    module, _ = loaded({name: tensor for name, tensor in STATE.items() if "num_batches" not in name})
    assert module.get_buffer("1.num_batches_tracked") == 0
    loaded(STATE | {"9.num_batches_tracked": torch.tensor(3)})


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in STATE.items() if name not in names}


def with_number(name: str, number: float) -> dict[str, torch.Tensor]:
    changed = STATE[name].clone()
    changed.view(-1)[-1] = number
    return STATE | {name: changed}


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        (net(7).state_dict(), "their classifier tells 7 classes apart, the network's 4: take weights finetuned for 4"),
        (without("4.bias"), "the weights lack 4.bias; they are of another network"),
        (without("0.weight", "0.bias", "4.weight", "4.bias"), "lack 4 tensors (0.bias, 0.weight, 4.bias, …)"),
        (STATE | {"5.weight": torch.ones(2)}, "have an unknown 5.weight"),
        (STATE | {"0.weight": torch.ones(2, 3, 3, 3)}, "have 0.weight as (2, 3, 3, 3), the network as (2, 1, 3, 3)"),
        ({"features.0.weight": torch.ones(3)}, "lack 7 tensors (0.bias"),
        (with_number("4.weight", float("nan")), "4.weight has 1 of 32 numbers not finite (NaN)"),
        (with_number("1.running_var", float("inf")), "1.running_var has 1 of 2 numbers not finite (infinite)"),
        (
            STATE | {"4.bias": torch.ones(4, dtype=torch.int8)},
            "4.bias is of torch.int8, the network's of torch.float32",
        ),
        (STATE | {"4.bias": torch.ones(4, dtype=torch.complex64)}, "4.bias is of torch.complex64"),
        (STATE | {"4.bias": torch.ones(4).to_sparse()}, "4.bias is no plain tensor"),
        (STATE | {"4.bias": [1.0]}, "the weights hold no state dict but a dict whose '4.bias' is a list"),
        ({}, "no state dict but an empty dict"),
        ({"epoch": 3, "optimizer": {}}, "no state dict but a dict of 'epoch', 'optimizer'"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(weights, line):
    with pytest.raises(UserError) as error:
        loaded(weights)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_finite_does_not_get_past_fitting_either():
    with pytest.raises(UserError, match=r"4\.weight has 1 of 32 numbers not finite"):
        fit_weights(net(), with_number("4.weight", float("nan")))


class Code:
    def __reduce__(self):
        return print, ("this must never be seen",)


def scripted(path):
    path.write_bytes(b"")
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(OWN.eval(), torch.ones(1, 1, 4, 4)), path)


def cut(path):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-700])


def cut_before_1_6(path):
    torch.save(STATE, path, **BEFORE_1_6)
    path.write_bytes(path.read_bytes()[:-70])


def cut_safetensors(path):
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: torch.save(OWN, path), "holds Python objects that would run code (torch.nn.modules.container"),
        (lambda path: torch.save({"model": STATE, "x": Code()}, path), "would run code (print)"),
        (lambda path: path.write_bytes(pickle.dumps(Code())), "would run code"),
        (scripted, "is a TorchScript archive; save the model's state_dict() alone"),
        (cut, "is no whole checkpoint of torch"),
        (cut_before_1_6, "is no whole checkpoint of torch"),
        (cut_safetensors, "is no whole safetensors file"),
        (lambda path: path.write_bytes(b""), "is neither a safetensors file nor a checkpoint of torch"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "is neither a safetensors file"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "is neither a safetensors file"),
        (lambda path: torch.save(torch.ones(3), path), "holds no state dict but a Tensor"),
        (lambda path: torch.save(with_number("0.bias", float("nan")), path), "0.bias has 1 of 2 numbers not finite"),
    ],
    ids=range(12),
)
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, capsys, write, line):
    write(tmp_path / "net.pth")
    with pytest.raises(UserError) as error:
        read_weights(tmp_path / "net.pth")
    assert line in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_an_onnx_file_is_a_network(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(UserError, match=r"give it as --model"):
        read_weights(tmp_path / "net.onnx")
