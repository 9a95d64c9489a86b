"""Trees of seeds: who regrows one has all leaves but one."""

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.private.crypto import puncture

CONTEXT = bytes(range(32))


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_regrown_tree_lacks_one_leaf(data):
    height = data.draw(st.integers(1, 8))
    choices = np.array(data.draw(st.lists(st.integers(0, 1), min_size=height, max_size=height)), np.uint8)
    pairs = np.frombuffer(os.urandom(32 * height), np.uint8).reshape(height, 2, 16)
    leaves, message, checks = puncture.grow(pairs, CONTEXT, 5)
    chosen = pairs[np.arange(height), choices]
    theirs, their_checks = puncture.regrow(chosen, choices, message, CONTEXT, 5)
    missing = int("".join(map(str, choices)), 2)
    assert len(message) == puncture.message_bytes(height)
    assert leaves.shape == theirs.shape == (1 << height, 16)
    assert their_checks == checks
    same = [np.array_equal(leaves[z ^ missing], theirs[z]) for z in range(1 << height)]
    assert same == [False] + [True] * ((1 << height) - 1)
    assert len(np.unique(leaves, axis=0)) == 1 << height


def test_trees_of_other_contexts_and_numbers_share_nothing():
    pairs = np.frombuffer(os.urandom(64), np.uint8).reshape(2, 2, 16)
    grown = [puncture.grow(pairs, *each)[0] for each in ((CONTEXT, 0), (CONTEXT, 1), (bytes(32), 0))]
    assert len(np.unique(np.concatenate(grown), axis=0)) == 12
