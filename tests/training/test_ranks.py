"""Two ranks that train together against one process, and that they stay equal to each other bit for bit."""

import pytest
import torch
import two_ranks
from torch import Tensor, nn

from parelu.training import norms


def assert_equal(found: Tensor, expected: Tensor, name: str) -> None:
    """To float32's rounding, which a dozen steps have made larger; what is chosen, exactly."""
    if expected.dtype.is_floating_point:
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-4, msg=lambda text: f"{name}: {text}")
    else:
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    "what", [pytest.param("trained", marks=pytest.mark.slow), pytest.param("every_search", marks=pytest.mark.long)]
)
def test_two_ranks_find_what_one_process_does(what, tmp_path):
    """And end with one line where they have other data."""
    expected = two_ranks.WHATS[what](tmp_path / "alone")
    (first, silent), (second, said) = two_ranks.by_two(what, tmp_path / "together")
    assert list(first) == sorted(expected), said
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the ranks"
        assert_equal(first[name], tensor, name)
    assert silent == ""
    assert said.startswith("rank 1, on ") and said.endswith(
        " has another data than rank 0: clothes, not digits; give all ranks the same\n"
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (9, 3)])
def test_a_shared_norm_of_one_rank_is_torchs(shape, affine, training, monkeypatch):
    """Forward, backward and what it keeps; `shared_statistics` leaves the same module behind."""
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    torch.manual_seed(0)
    net = nn.Sequential(kind(3, affine=affine)).train(training)
    plain = nn.Sequential(kind(3, affine=affine)).train(training)
    x, g = 100 + 3 * torch.randn(shape), torch.randn(shape)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with monkeypatch.context() as alone:
        alone.setattr(norms.ranks, "size", lambda: 2)
        with norms.shared_statistics(net):
            assert type(net[0]) is not kind and isinstance(net[0], kind)
            alone.undo()
            found = net(mine)
            found.backward(g)
    assert type(net[0]) is kind
    expected = plain(theirs)
    expected.backward(g)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, msg=name)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
