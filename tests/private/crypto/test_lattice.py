"""The estimates of benchmarks/lattice.py: against the published table, by laws, and against plain searches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import script

lattice = script("benchmarks/lattice.py")
dimensions = st.sampled_from([1024, 2048, 4096, 6144, 8192, 16384])
few = settings(max_examples=30)


@pytest.mark.parametrize(("dimension", "log_q"), lattice.TABLE.items())
def test_the_published_table_is_met_to_a_bit_of_the_modulus(dimension, log_q):
    assert abs(lattice.largest_log_q(dimension) - log_q) <= 1
    assert lattice.BITS - 0.5 < lattice.security(lattice.Instance(dimension, log_q)) < lattice.BITS + 4


@few
@given(dimensions, st.floats(0.01, 0.05), st.floats(0.1, 20))
def test_a_larger_modulus_is_weaker_and_a_larger_dimension_or_error_stronger(dimension, share, more):
    instance = lattice.Instance(dimension, share * dimension)
    for weaker in (
        lattice.Instance(dimension, share * dimension + more),
        lattice.Instance(dimension * 3 // 4, share * dimension),
        lattice.Instance(dimension, share * dimension, instance.error / 2),
    ):
        for attack in (lattice.primal, lattice.dual):
            assert attack(weaker, lattice.sieve).bits <= attack(instance, lattice.sieve).bits + 0.01


@few
@given(dimensions, st.floats(0.015, 0.03))
def test_a_cost_that_is_never_more_gives_no_more_bits(dimension, share):
    instance = lattice.Instance(dimension, share * dimension)
    for attack in (lattice.primal, lattice.dual):
        quantum, core, sieve = (attack(instance, lattice.COSTS[name]).bits for name in ("quantum", "core", "sieve"))
        assert quantum < core < sieve


@pytest.mark.parametrize("instance", [lattice.Instance(1024, 30), lattice.Instance(4096, 109)], ids=str)
def test_the_searches_find_what_a_scan_of_all_block_sizes_finds(instance):
    n, scale = instance.dimension, np.log2(instance.scale)
    smallest, cheapest = None, np.inf
    for block in range(lattice.LEAST, 600):
        log_delta = lattice.log_delta(block)
        for m in instance.samples()[::8]:
            d = n + m + 1
            volume = (m * instance.log_q + n * scale) / d
            fits = np.log2(instance.error * np.sqrt(block)) <= (2 * block - d - 1) * log_delta + volume
            smallest = block if fits and smallest is None else smallest
            length = (d - 1) * log_delta + n * (instance.log_q - scale) / (d - 1)
            if length < instance.log_q + 20:
                advantage = 2 * np.pi**2 * (2 ** (length - instance.log_q) * instance.error) ** 2 / np.log(2)
                cheapest = min(cheapest, lattice.sieve(block, d - 1) + max(0, 2 * advantage - 0.2075 * block))
    assert abs(lattice.primal(instance, lattice.sieve).block - smallest) <= 1
    assert lattice.dual(instance, lattice.sieve).bits == pytest.approx(cheapest, abs=0.3)


def test_what_is_in_use_has_128_bits_by_every_attack_at_the_tables_costs():
    used = lattice.in_use()
    assert used["offline mode hints"].dimension == 6144
    for instance in used.values():
        for attack in lattice.ATTACKS:
            assert attack(instance, lattice.sieve).bits >= lattice.BITS


@pytest.mark.parametrize("instance", lattice.in_use().values(), ids=lattice.in_use())
def test_no_attack_wants_more_samples_than_a_dimensions_worth(instance):
    for attack in lattice.ATTACKS:
        assert attack(instance, lattice.sieve).dimension <= 2 * instance.dimension


@few
@given(dimensions, st.floats(0.015, 0.03))
def test_to_guess_nothing_is_the_dual_attack_and_to_guess_costs_no_more(dimension, share):
    instance = lattice.Instance(dimension, share * dimension)
    plain, guessing = lattice.dual(instance, lattice.sieve).bits, lattice.hybrid(instance, lattice.sieve).bits
    assert plain - 10 < guessing <= plain
