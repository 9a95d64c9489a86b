"""Whether times and compiled code tell secrets apart: the statistics of benchmarks/timing.py, and branches."""

import platform
import re

import numpy as np
import pytest
from scripts import script

from parelu.private.crypto import kernels

timing = script("benchmarks/timing.py")
N = 6


def words(*shape):
    return np.zeros(shape, np.uint64)


def planes(*shape):
    return np.zeros((*shape, N), np.uint8)


# Kernel → arguments to compile it for; all see labels, Δ, or bits of a party's secrets.
SECRET = {
    "garbler_operands": (words(N, 2), words(N, 2), words(N, 2), words(2), words(4, N, 2)),
    "garble": (*(words(4, N, 2) for _ in range(3)), words(N, 2), words(2), words(2, N, 2), words(N, 2)),
    "evaluate": (*(words(2, N, 2) for _ in range(3)), words(N, 2), words(2, N, 2), words(N, 2)),
    "select_labels": (words(4, N, 2), words(2), words(N), words(4, N, 2)),
    "add_states": (planes(2), planes(1), planes(2, 3), planes(1), planes(2, 2), planes(2), planes(4, 2, 3)),
    "descend": (words(2, N, 2), words(2, N, 2), words(N), 1, words(2, N, 2), words(N, 2)),
    "arrive": (words(N, 2), words(N, 2), words(N), words(2, N, 2), words(N, 2)),
    "correct": (words(8, N, 2), words(8, N, 2), words(N), 1, words(N, 2), words(N, 2), words(2, N, 2)),
    "grow": (words(4, N, 2), words(4, N, 2), 0, N, words(N, 2, 2), words(2, 1, 2), words(2, 1, 2)),
    "correct_children": (words(2, 3, 2), words(2, 2), words(2, 3, 2, 2)),
}


@pytest.mark.parametrize("name", SECRET)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the jumps are those of x86-64")
def test_no_compiled_kernel_branches_on_the_sign_of_a_word(name):
    """A colour is the highest bit: what jumps on it is a jump on the sign, of which a loop's own has none."""
    numba = pytest.importorskip("numba")
    fresh = numba.njit(nogil=True)(getattr(kernels.load("numba"), name).py_func)  # cached code cannot be read
    fresh(*SECRET[name])
    (assembly,) = fresh.inspect_asm().values()
    body = assembly.partition(".Lfunc_end0")[0]
    assert re.search(r"^\s+ret", body, re.MULTILINE)
    assert not re.findall(r"^\s+jn?s\s.*", body, re.MULTILINE)


def test_the_benchmark_names_all_kernels_of_secrets():
    # No bit of these is a condition or a mask; the jumps of a transposition and of a fold are on indices.
    others = {
        "add_tweaks",
        "evaluator_operands",
        "spread",
        "limb_columns",
        "join_limbs",
        "add_sparse",
        "transpose_bits",
        "bit_planes",
        "fold",
    }
    compiled = {n for n, f in vars(kernels.load("numba")).items() if hasattr(f, "py_func") and not n.startswith("_")}
    assert compiled == SECRET.keys() | others


def samples(difference, count=4000, seed=0):
    """Times with a long tail, of which those of random secrets take a little longer."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, count).astype(bool)
    times = 1000 + rng.normal(0, 10, count) + rng.exponential(500, count) * (rng.random(count) < 0.2)
    return times + difference * classes, classes


def test_a_small_difference_under_much_noise_is_found_and_none_is_not():
    found = [[timing.largest_t(*samples(difference, seed=seed)) for seed in range(5)] for difference in (0.0, 3.0)]
    assert timing.verdict(found[0]) == "none found" != timing.verdict(found[1])
    assert np.median(found[1]) > timing.SUSPICIOUS > np.median(np.abs(found[0]))
    assert timing.verdict([timing.largest_t(*samples(-20.0, seed=seed)) for seed in range(3)]) == "leak"


def test_t_is_welchs():
    stats = pytest.importorskip("scipy.stats")
    one, other = np.random.default_rng(1).normal(0, 1, (2, 50)) * [[1], [3]]
    assert timing.welch(one, other[:20]) == pytest.approx(stats.ttest_ind(one, other[:20], equal_var=False).statistic)
    assert timing.welch(one[:1], other) == timing.welch(np.ones(3), np.ones(4)) == 0.0


def test_both_controls_are_told_apart_when_measured():
    subjects = {subject.name: subject for subject in timing.SUBJECTS}
    leaks, masks = (
        [timing.largest_t(*timing.measure(subjects[f"control: {name}"], 0.1)) for _ in range(3)]
        for name in ("early exit", "masks")
    )
    assert timing.verdict(leaks) == "leak"
    assert timing.verdict(masks) != "leak"


@pytest.mark.parametrize("subject", timing.SUBJECTS, ids=lambda subject: subject.name)
def test_every_subject_runs_on_both_classes(subject):
    secret, ready = subject.begin()
    for is_random in (False, True):
        secret.choose(is_random)
        is_fixed = bool((secret.now == secret.fixed).all())
        assert is_fixed != is_random or (is_random and secret.now.size < 64)  # few bits may be drawn alike
        ready()()
