"""Fuzz targets: their samples and some mutations of them, a second each at most; and that no decoder lacks a target."""

import ast
import itertools
import os
import random
import sys
import threading
from pathlib import Path

import pytest

import parelu
from fuzz import edits, run, sessions
from fuzz.corpus import FOLDER, samples
from fuzz.targets import TARGETS, Target
from parelu.errors import UserError
from parelu.private.offline.mode import Deviation

ROOT = Path(parelu.__file__).parent
NEVER_ACCEPTED = {"stock_file": "nobody can write a piece without the key"}
# Calls that look into bytes of others. What makes them is a decoder, and some target has to reach it.
DECODING = {"loads", "frombuffer", "unpack", "unpack_from", "receive", "receive_part", "receive_up_to", "expect"}
DECODING |= {"elements_of", "bits_of", "unpackbits", "fromfile", "_unpack"}
ROOMS = (
    "private",
    "network/storage.py",
    "network/plan.py",
    "data/readers/fashion.py",
    "data/readers/cifar.py",
    "data/readers/pickled.py",
)
NOT_OF_OTHERS = {
    "private/engines": "a process that this one started, over its pipes",
    "private/transport/link.py": "both ends of a measurement on one machine",
    "private/transport/patience.py: held": "a number of the system's",
    "private/transport/channel.py: ended": "what expect refuses, whatever it is",
    "private/crypto/prg.py": "a stream of this party's own bits",
    "private/crypto/seal.py: _version": "bytes that SEAL writes in this process",
    "private/protocol/correlations.py": "declarations",
    "private/lowering/translate.py": "a network of this process",
    "private/lowering/nonlinear.py": "a network of this process",
}


@pytest.mark.parametrize("name", TARGETS)
def test_samples_and_mutations_are_taken_or_refused_as_documented(name):
    target, known, draw = TARGETS[name], samples(name), random.Random(0)
    accepted = [target(sample) for sample in known]
    assert any(accepted) != (name in NEVER_ACCEPTED), "the corpus is of another version: make fuzz-corpus"
    for _ in range(3 if target.seconds > 5 or name.startswith("he_") else 30):
        target(run.mutated(draw, known))
    target(b"")


def test_each_target_has_a_corpus_and_each_corpus_a_target():
    assert {folder.name for folder in FOLDER.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 400_000


def decoders():
    """(file, first line) → name of each function that makes one of the calls of `DECODING`."""
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py") if (ROOT / room).is_dir() else [ROOT / room]:
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.FunctionDef):
                    continue
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
                is_own = any(f"{name}: {node.name}".startswith(own) for own in NOT_OF_OTHERS)
                if names & DECODING and not is_own:
                    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                    found[str(path), first] = f"{name}: {node.name}"
    return found


def test_every_decoder_of_the_sources_is_reached_by_a_target():
    wanted = decoders()
    assert len(wanted) > 40
    missing = set(wanted)

    def note(frame, event, argument):  # returns no tracer of lines
        missing.discard((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    for setting in sessions.SETTINGS:
        sessions.honest(setting)  # what reads in there is reached by no target
    known = [[(target, sample) for sample in samples(name)] for name, target in TARGETS.items()]
    sys.settrace(note)
    threading.settrace(note)
    try:
        for target, sample in filter(None, itertools.chain(*itertools.zip_longest(*known))):
            if missing:
                target(sample)
    finally:
        sys.settrace(None)
        threading.settrace(None)
    assert not sorted(wanted[place] for place in missing)


@pytest.mark.parametrize("setting", sessions.SETTINGS)
def test_recorded_sessions_are_met_to_their_end_again_and_again(setting):
    for party in ("client", "server"):
        sessions.meet(party, setting, b"")
    assert os.urandom(8) != os.urandom(8), "and draw as before afterwards"
    kinds = {message[:4] for message in sessions.honest(setting)[0]}
    assert (b"show" in kinds) == sessions.SETTINGS[setting].opened


@pytest.mark.parametrize(
    ("setting", "sample", "message"),
    [
        ("seal_opened", "another-key", "public key is no encryption of zero"),
        ("hints_opened", "another-seed", "β is not that of its seed"),
    ],
)
def test_another_secret_than_the_sessions_own_is_caught_when_a_phase_is_opened(setting, sample, message):
    edited = (FOLDER / f"server_{setting}" / sample).read_bytes()
    with pytest.raises(Deviation, match=f"an audit: the client's {message}"):
        sessions.meet("server", setting, edited)


def test_edits_say_what_is_changed():
    sent = [b"abcd", b"efgh", b"ij"]
    for one, expected in [
        (b"", b"abcdefghij"),
        (edits.edit("replace", 1, 1, b"XY"), b"abcdeXYhij"),
        (edits.edit("replace", 2, 1, b"XYZ"), b"abcdefghiXYZ"),
        (edits.edit("insert", 0, 4, b"--"), b"abcd--efghij"),
        (edits.edit("delete", 0, 1, size=2), b"adefghij"),
        (edits.edit("double", 1), b"abcdefghefghij"),
        (edits.edit("drop", 0), b"efghij"),
        (edits.edit("swap", 0, 2), b"ijefghabcd"),
        (edits.edit("drop", 0) + edits.edit("drop", 0), b"ij"),
        (edits.edit("drop", 0) * 9, b""),
        (edits.edit("drop", 0)[:-1], b"abcdefghij"),
    ]:
        assert edits.apply(one, sent) == expected
    for seed in range(200):
        assert isinstance(edits.apply(random.Random(seed).randbytes(seed), sent), bytes)


def test_what_no_target_may_do_is_noticed(tmp_path, monkeypatch, capsys):
    """Another error, a line that is none, and an input that takes too long; the input is kept."""

    def fails(data):
        if len(data) > 1:
            raise IndexError("beyond")

    def hangs(data):
        while data:
            pass

    def two_lines(data):
        raise UserError("one\ntwo")

    monkeypatch.setattr(run, "FOUND", tmp_path)
    monkeypatch.setattr("fuzz.corpus.samples", lambda name: [b"ab", b"cd"])
    for name, function in (("fails", fails), ("hangs", hangs)):
        monkeypatch.setitem(TARGETS, name, Target(function, (KeyError,), 0.2))
        with pytest.raises(SystemExit, match="1"):
            run.unguided(name, 5)
        (kept,) = tmp_path.glob(f"{name}-crash-*")
        assert len(kept.read_bytes()) > 1 - (name == "hangs")
    assert "IndexError: beyond" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="no clear line"):
        Target(two_lines, (UserError,))(b"")


@pytest.mark.slow
def test_the_driver_runs_a_target_in_a_process_of_its_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.run_all(["packed_bits"], 1)
    assert "packed_bits" in capsys.readouterr().out
