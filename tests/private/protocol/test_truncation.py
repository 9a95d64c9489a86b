"""Exact truncation: no bit of what a client sees depends on its shares, where every truncation feeds a ReLU."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from two_parties import MODES, NARROW, WIDE, Pair, images_of, lowered_of, ready

from parelu.fusion.fuse import nothing
from parelu.private.crypto.prg import fresh_seed
from parelu.private.lowering import reference
from parelu.private.lowering.ops import Activation, Truncate
from parelu.private.offline.dealer import Mirror
from parelu.private.protocol.delphi import TRUNCATIONS, Model, prepare_client
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_of

TRUNCATING = [name for name, relu in relus().items() if relu.truncates]
PROTOCOLS = [(relu, *mode) for relu in TRUNCATING for mode in MODES]


class Two(nn.Module):
    """Two layers of one image: four ReLUs and three logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = nn.Conv2d(1, 4, 3)
        nn.init.constant_(conv.bias, 4.0)  # all four are on
        self.layers = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def correlated(relu, truncation, repetitions):
    """An honest client asks for one image again and again, and fits the exact logits to what it knows of the truncated
    values: the low bits of its shares. Returns the last layer's columns as it finds them, (classes, ReLUs), and as they
    are."""
    lowered = lowered_of(ready(Two(), (1, 3, 3)), cost=nothing)
    (cut,) = (op.bits for op in lowered.program.ops if isinstance(op, Truncate))
    images = images_of(1, (1, 3, 3), seed=3).expand(100, -1, -1, -1)
    low, logits = [], []
    with Pair(lowered, relu, truncation=truncation) as pair:
        for _ in range(repetitions // 100):
            results, shares = pair.infer_all(images)
            low += [(own[1] % np.uint64(1 << cut)) / 2.0**cut for own in shares]
            logits += list(lowered.program.ring.decode(results).astype(np.float64))
    known, seen = (np.array(each) - np.mean(each, 0) for each in (low, logits))
    slopes, *_ = np.linalg.lstsq(known, seen, rcond=None)
    return slopes.T, lowered.weights[max(lowered.weights)]["weight"].astype(np.float64)


@pytest.mark.parametrize("relu", TRUNCATING)
@pytest.mark.parametrize("truncation", ["local", "exact"])
def test_a_clients_own_shares_tell_it_weights_with_local_truncation_alone(relu, truncation):
    """The direction of each column of the last layer, exact up to a scale."""
    found, weights = correlated(relu, truncation, 800 if truncation == "local" else 100)
    if truncation == "exact":
        assert not found.any(), "logits of one image are one and the same"
    else:
        cosines = (found * weights).sum(0) / np.linalg.norm(found, axis=0) / np.linalg.norm(weights, axis=0)
        assert np.abs(cosines).min() > 0.9, "four directions of R^3 guessed so well by one chance in 10^4"


class Blocks(nn.Module):
    """A stem, then blocks: plain, residual with the identity or a projection, or with a sum of three; pools between."""

    def __init__(self, kinds: list[str], width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = kinds
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.convs = nn.ModuleList(self._conv(width, 3) for _ in kinds)
        self.others = nn.ModuleList(self._conv(width, 1) for _ in kinds)
        self.relus = nn.ModuleList(nn.ReLU() for _ in kinds)
        self.fc = nn.Linear(width, 5)

    def _conv(self, width: int, kernel: int) -> nn.Module:
        conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
        conv.weight.data *= 2.0 ** float(torch.randint(-4, 1, ()))
        return nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for kind, conv, other, relu in zip(self.kinds, self.convs, self.others, self.relus, strict=True):
            y = conv(x)
            if kind == "identity":
                y = y + x
            elif kind == "projection":
                y = y + other(x)
            elif kind == "three":
                y = other(x) + y + x
            x = relu(y)
            if kind == "pool":
                x = nn.functional.avg_pool2d(x, 2, 1)
        return self.fc(x.mean((2, 3)))


KINDS = st.lists(st.sampled_from(("plain", "identity", "projection", "three", "pool")), min_size=1, max_size=3)


@pytest.mark.usefixtures("dealt_base_transfers")
@settings(max_examples=12)
@given(KINDS, st.integers(1, 4), st.integers(0, 2**31), st.sampled_from(PROTOCOLS))
def test_with_all_relus_it_is_the_reference_to_the_bit(kinds, width, seed, protocols):
    """Of no seed: `run` knows nothing of shares."""
    *names, ring = protocols
    lowered = lowered_of(ready(Blocks(kinds, width, seed), (1, 6, 6)), cost=nothing, ring=ring)
    ops = lowered.program.ops
    read = {op.source for op in ops if isinstance(op, Activation)}
    assert read == {number for number, op in enumerate(ops, start=1) if isinstance(op, Truncate)}
    terms = Model(lowered, relus()["sign"], reveal_of("exact"), "exact").terms
    assert terms.truncated_locally == 0
    images = images_of(2, (1, 6, 6), seed=seed)
    with Pair(lowered, *names, truncation="exact") as pair:
        result, _ = pair.infer_all(images)
    assert pair.server_error is None
    expected = reference.run(lowered, images)
    assert expected.overflows == 0, "the ranges have room"
    assert np.array_equal(ring.decode(result) * lowered.program.output_unit, expected.logits)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_both_rings_give_the_same_logits(truncation):
    """One network has the same integers in both. With exact truncations its logits are one; with local ones they differ
    by the roundings, each of them less than 1, which depend on the shares."""
    network = ready(Blocks(["plain", "identity", "three"], 3, 4), (1, 6, 6))
    both, images = [lowered_of(network, ring=ring, cost=nothing) for ring in (NARROW, WIDE)], images_of(4, (1, 6, 6))
    programs = [dataclasses.replace(lowered.program, ring=WIDE).to_bytes() for lowered in both]
    assert programs[0] == programs[1] and both[0].program.digest != both[1].program.digest
    logits = []
    for lowered in both:
        with Pair(lowered, truncation=truncation) as pair:
            logits.append(lowered.program.ring.decode(pair.infer_all(images)[0]) * lowered.program.output_unit)
    local = truncation == "local"
    assert (np.array_equal(*logits), np.abs(logits[0] - logits[1]).max() < 0.05) == (not local, True)


def polynomial(channels: int) -> torch.Tensor:
    """Identity, degree 1 and degree 2 in turn."""
    c = torch.tensor([[0.0, 1.0, 0.0], [0.1, 0.7, 0.0], [0.05, 0.5, 0.2], [-0.1, 0.9, -0.15]])
    return c[torch.arange(channels) % 4].T.contiguous()


@pytest.mark.usefixtures("dealt_base_transfers")
@settings(max_examples=12)
@given(KINDS, st.integers(1, 4), st.integers(0, 2**31), st.floats(0, 1), st.sampled_from(PROTOCOLS), st.booleans())
def test_with_other_positions_it_is_the_replayed_reference(kinds, width, seed, keep, protocols, has_squares):
    """Identities and squares are truncated locally, next to ReLUs that are not."""
    coefficients = polynomial if has_squares else None
    *names, ring = protocols
    network = ready(Blocks(kinds, width, seed), (1, 6, 6), lambda u: u < keep, coefficients)
    lowered = lowered_of(network, ring=ring)
    images = images_of(2, (1, 6, 6), seed=seed)
    with Pair(lowered, *names, truncation="exact") as pair:
        results, shares = pair.infer_all(images)
    assert pair.server_error is None
    for image, result, own in zip(images, results, shares, strict=True):
        assert np.array_equal(result, reference.replay(lowered, image, own, protocols[0], "exact"))


def test_what_is_truncated_locally_is_counted():
    """All with local truncation; with exact what is no ReLU's, or what something else reads as well."""
    lowered = lowered_of(ready(Blocks(["plain", "identity"], 4, 0), (1, 6, 6), lambda u: u < 0.5, polynomial))
    program = lowered.program
    local, exact = (
        Model(lowered, relus()["sign"], reveal_of("exact"), how).terms.truncated_locally for how in TRUNCATIONS
    )
    assert local == sum(r.elements for r in lowered.ranges if r.kind in ("truncate", "square"))
    assert exact == local - program.relus > program.squares > 0


def test_no_transfer_has_the_number_of_another():
    """Each kind of transfer is numbered through the inferences under one key, and sign takes two products a ReLU."""
    used: dict[str, list[int]] = {"product": [], "random_ot": []}

    class Numbered(Mirror):
        def product(self, number, first, values):
            used["product"] += range(first, first + len(values))
            return super().product(number, first, values)

        def random_ot(self, number, first, choices):
            used["random_ot"] += range(first, first + len(choices))
            return super().random_ot(number, first, choices)

    lowered = lowered_of(ready(Blocks(["plain", "identity"], 2, 0), (1, 6, 6)))
    client = Numbered(fresh_seed())
    for _ in range(2):
        prepare_client(Model(lowered, relus()["sign"], reveal_of("label"), "exact").terms, client)
    count = 2 * lowered.program.relus
    assert {what: len(set(numbers)) for what, numbers in used.items()} == {"product": 2 * count, "random_ot": count}
