"""Export to ONNX: whole networks of every kind with masks and polynomials, every opset, and what is refused.

Each op by itself: `contracts/test_ops.py`.
"""

import numpy as np
import pytest
import torch
from small_networks import network, quadratic
from torch import nn

from parelu.errors import UserError
from parelu.models import onnx_export
from parelu.models.onnx import read_onnx
from parelu.models.onnx_export import LEAST_OPSET, OPSET, to_onnx
from parelu.network.count import count
from parelu.network.instrument import instrument

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")


def masked(network):
    for site in network.sites.values():
        site.assign(torch.rand(site.shape) < 0.4)
    return network


def mixed(network):
    """In turn the identity, an offset, a slope and a square, channel by channel."""
    kinds = torch.tensor([[0.0, 1.0, 0.0], [0.2, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 1.0, 0.1]]).T
    for site in network.sites.values():
        site.assign(torch.rand(site.shape) < 0.4, kinds[:, torch.arange(site.shape[0]) % 4])
    return network


def pieces():
    """SiLUs as they run privately, and ReLU6."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, 2), nn.SiLU(), nn.Conv2d(3, 2, 2), nn.ReLU6(), nn.Flatten(), nn.Linear(8, 3)
    return instrument(nn.Sequential(*layers), (1, 8, 8))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc((x * gate).mean((2, 3)))


def outputs(model, images):
    return torch.from_numpy(reference.ReferenceEvaluator(model).run(None, {"images": images.numpy()})[0])


NETWORKS = {
    "resnet": lambda: masked(network()),
    "resnet with squares": lambda: quadratic(network()),
    "a polynomial a channel": lambda: mixed(instrument(Gated(), (1, 7, 6))),
    "vgg with max-pools": lambda: masked(network(name="vgg16 m=2 (16 classifier)", side=32)),
    "gates": lambda: quadratic(instrument(Gated(), (1, 7, 6))),
    "pieces": lambda: masked(pieces()),
    "pieces with squares": lambda: quadratic(pieces()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_with_its_outputs_and_relus(name, tmp_path):
    exported = NETWORKS[name]().eval()
    images = torch.randn(3, *exported.input_shape)
    with torch.no_grad():
        expected = exported(images)
    model = to_onnx(exported)
    assert torch.allclose(outputs(model, images), expected, rtol=1e-4, atol=1e-5)
    onnx.save(model, str(tmp_path / "net.onnx"))
    found = read_onnx(tmp_path / "net.onnx")
    again = instrument(found.module, found.input)
    with torch.no_grad():
        assert torch.allclose(again(images), expected, rtol=1e-4, atol=1e-5)
    relus = {name: site.relus for name, site in exported.sites.items() if site.relus}
    assert {name: site.relus for name, site in again.sites.items()} == relus
    assert count(again).comparisons == count(exported).comparisons


@pytest.mark.parametrize("opset", [LEAST_OPSET, OPSET, onnx.defs.onnx_opset_version()])
def test_every_opset_computes_the_same(opset):
    exported = NETWORKS["vgg with max-pools"]().eval()
    model = to_onnx(exported, opset=opset)
    images = torch.randn(1, *exported.input_shape)
    assert model.opset_import[0].version == opset
    with torch.no_grad():
        assert torch.allclose(outputs(model, images), exported(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [LEAST_OPSET - 1, onnx.defs.onnx_opset_version() + 1])
def test_another_opset_is_a_line(opset):
    with pytest.raises(UserError, match=f"opset {opset} cannot be written; --opset can be from {LEAST_OPSET} to"):
        to_onnx(network(), opset=opset)


def test_a_layer_that_is_called_twice_has_its_weights_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            return self.fc(
                torch.relu(self.fc(torch.relu(self.conv(self.conv(x)))))[:, :, :, :1].repeat(1, 1, 1, 6)
            ).flatten(1)

    exported = instrument(Twice(), (1, 1, 6)).eval()
    model = to_onnx(exported)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names)) and sum("weight" in name or "matrix" in name for name in names) == 2
    called = [node.name for node in model.graph.node]
    assert len(called) == len(set(called)), "runtimes refuse a name that comes twice"
    images = torch.randn(2, 1, 1, 6)
    with torch.no_grad():
        assert torch.allclose(outputs(model, images), exported(images), atol=1e-6)


def test_what_does_not_fit_a_file_is_a_line(monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST", 100)
    with pytest.raises(UserError, match=r"GiB of weights; an ONNX file holds less than 2: export with --torch"):
        to_onnx(network())


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx; pip install 'parelu\[onnx\]'"):
        to_onnx(network())


def test_masks_and_weights_are_constants_of_the_file():
    exported = NETWORKS["resnet with squares"]().eval()
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in to_onnx(exported).graph.initializer}
    for name, site in exported.sites.items():
        assert np.array_equal(known[f"{name}_mask"], site.mask)
        c0, c1, c2 = site.coefficients[:, :, None, None].numpy()
        assert all(np.array_equal(known[f"{name}_c{i}"], c) for i, c in enumerate((c0, c1, c2)))
    for name, tensor in exported.named_parameters():
        assert np.array_equal(known[name], tensor.detach())
