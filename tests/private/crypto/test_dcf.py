"""Distributed comparison functions: against the function itself, between both sets of kernels, and one key alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.crypto import dcf, kernels
from parelu.private.crypto.dcf import Key, correct, correction_blocks
from parelu.private.crypto.hash import Hash
from parelu.private.crypto.prg import Stream, fresh_seed

PERMUTATION = bytes(range(16))
PAIRS = [(a, b) for a in kernels.NAMES for b in kernels.NAMES]


@contextmanager
def using(name: str) -> Iterator[None]:
    if name == "numba":
        pytest.importorskip("numba", reason="the compiled kernels need numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcf, "kernels", kernels.load(name))
        yield


def keys(levels: int, alphas: Any, betas: Any, seed: bytes | None = None) -> tuple[Key, Key]:
    roots = Stream(seed or fresh_seed(), "roots").blocks(2, len(alphas))
    corrections = correct(PERMUTATION, levels, alphas, betas, (roots[0], roots[1]))
    first, second = (Key(PERMUTATION, party, levels, roots[party], corrections) for party in range(2))
    return first, second


def together(pair: tuple[Key, Key], points: Any) -> Any:
    return pair[0].evaluate(points) + pair[1].evaluate(points)


def below(points: Any, alphas: Any, betas: Any) -> Any:
    """The definition."""
    return np.where((points < alphas)[:, None], betas, np.uint64(0))


@pytest.mark.parametrize(("dealer", "parties"), PAIRS)
@pytest.mark.parametrize("levels", range(1, 7))
def test_all_points_and_all_thresholds(levels, dealer, parties, monkeypatch):
    monkeypatch.setattr(dcf, "CHUNK", 1000)
    grid = np.arange(1 << levels, dtype=np.uint64)
    alphas, points = (side.reshape(-1) for side in np.meshgrid(grid, grid))
    betas = Stream(fresh_seed(), "betas").elements(len(alphas), 2)
    with using(dealer):
        pair = keys(levels, alphas, betas)
    with using(parties):
        assert np.array_equal(together(pair, points), below(points, alphas, betas))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 63), st.integers(0, 6))
def test_any_number_of_levels(data, levels, count):
    """Also where x is α, its neighbours, or shares a long prefix; bits above the levels do not count."""
    word, element = st.integers(0, (1 << levels) - 1), st.integers(0, (1 << 64) - 1)
    case = st.tuples(word, word, st.integers(-1, 1), st.booleans(), element, element)
    drawn = data.draw(st.lists(case, min_size=count, max_size=count))
    alphas = np.array([alpha for alpha, *_ in drawn], np.uint64)
    points = np.array([(alpha + step) % (1 << levels) if near else x for alpha, x, step, near, *_ in drawn], np.uint64)
    betas = np.array([beta for *_, first, second in drawn for beta in (first, second)], np.uint64).reshape(-1, 2)
    above = Stream(fresh_seed(), "above").elements(2, count) << np.uint64(levels)
    pair = keys(levels, alphas + above[0], betas)
    assert np.array_equal(together(pair, points + above[1]), below(points, alphas, betas))


def test_both_sets_of_kernels_give_the_same_bytes():
    stream = Stream(PERMUTATION, "same bytes")
    alphas, points, betas = stream.elements(300), stream.elements(300), stream.elements(300, 2)
    found = []
    for name in kernels.NAMES:
        with using(name):
            pair = keys(17, alphas, betas, PERMUTATION)
            found.append((pair[0].corrections.tobytes(), *(key.evaluate(points).tobytes() for key in pair)))
    assert found[0] == found[1]


def test_an_evaluation_takes_two_blocks_a_level_and_one_on_the_last(monkeypatch):
    blocks = []
    permuted = Hash.permuted

    def counted(self: Hash, scratch: Any) -> Any:
        blocks.append(scratch.operands.size // 2)
        return permuted(self, scratch)

    monkeypatch.setattr(Hash, "permuted", counted)
    count, levels = 2500, 31
    pair = keys(levels, np.zeros(count, np.uint64), np.zeros((count, 2), np.uint64))
    assert sum(blocks) == (8 * levels - 4) * count
    blocks.clear()
    pair[0].evaluate(np.zeros(count, np.uint64))
    assert sum(blocks) == (2 * levels - 1) * count


def bits(words: Any) -> Any:
    """(n, k) words → (n, 64·k) bits."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")


@pytest.mark.parametrize("alpha", [0, 5, 255])
@pytest.mark.parametrize("beta", [0, (1 << 64) - 1])
def test_one_key_looks_the_same_for_every_threshold_and_payload(alpha, beta):
    """The corrections, and one party's value at points on both sides: no bit of them leans to one side."""
    levels, count = 8, 2000
    first, second = keys(levels, np.full(count, alpha, np.uint64), np.full((count, 2), beta, np.uint64))
    assert first.corrections.shape == (correction_blocks(levels, count), 2)
    seen = [bits(level) for level in first.corrections.reshape(2 * levels, count, 2)]
    for point in (0, 4, 5, 255):
        seen += [bits(key.evaluate(np.full(count, point, np.uint64))) for key in (first, second)]
    for found in seen:
        assert np.abs(found.mean(0) - 0.5).max() < 6 * 0.5 / np.sqrt(count)


def test_keys_of_other_roots_share_no_block():
    alphas, betas = np.arange(200, dtype=np.uint64), np.ones((200, 2), np.uint64)
    blocks = np.concatenate([keys(8, alphas, betas)[0].corrections for _ in range(2)])
    assert len(np.unique(blocks, axis=0)) == len(blocks)
