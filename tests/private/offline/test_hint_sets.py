"""Sets of hints: what they are for and drawn from, and their files on both sides."""

import dataclasses
import errno
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_programs import Hand
from two_parties import NARROW, Ends

from parelu.errors import ProtocolError
from parelu.fusion.hint_plan import OFTEN, ONCE, plan
from parelu.private.crypto.lattice import parameters
from parelu.private.crypto.lattice.scheme import public_matrices, public_polynomials
from parelu.private.crypto.prg import Stream
from parelu.private.lowering.layers import layers
from parelu.private.lowering.lowered import Lowered
from parelu.private.offline import hint_exchange, hint_sets
from parelu.private.offline.hint_exchange import fetched, root, send, statement
from parelu.private.offline.hint_sets import Made, Use
from parelu.private.offline.mode import Keep

ROOT = Path(__file__).parents[3]


def network(seed: int = 0, kernel: int = 3, ring: Any = NARROW) -> Lowered:
    hand = Hand((2, 6, 6), ring, seed)
    first = hand.truncate(hand.conv(0, 36, kernel, padding=kernel // 2))
    hand.linear(first, 4)
    return hand.lowered()


LOWERED = network()
pytestmark = pytest.mark.usefixtures("two_sets")


def uses(lowered: Lowered) -> tuple[Use, ...]:
    """Of both plans, outside of tests too."""
    found = layers(lowered.program)
    return tuple(Use(lowered.program.digest, lowered.commitment, plan(found, asked)) for asked in (ONCE, OFTEN))


def made(lowered: Lowered = LOWERED, keep: Keep | None = None) -> tuple[Made, ...]:
    return tuple(Made(use, lowered, keep or Keep()) for use in uses(lowered))


MADE = made()


def changed(lowered: Lowered) -> Lowered:
    """One weight is one more."""
    weights = {number: {name: x.copy() for name, x in named.items()} for number, named in lowered.weights.items()}
    weights[0]["weight"][3, 1, 0, 2] += 1
    return dataclasses.replace(lowered, weights=weights)


def public_of(use: Use) -> list[bytes]:
    """All a_i and M_g modulo each prime, a polynomial each."""
    found = []
    for number, upload in enumerate(use.plan.uploads):
        for of_prime in public_polynomials(use.public, number, upload.polynomials):
            found += [of_prime[:, r, i].tobytes() for r, i in np.ndindex(of_prime.shape[1:])]
    for of_prime in public_matrices(use.public):
        found += [of_prime[:, r, i].tobytes() for r, i in np.ndindex(of_prime.shape[1:])]
    return found


def secret_of(each: Made) -> list[bytes]:
    """All u_τ, and the seed that hides each op."""
    found = []
    for reader in each.use.plan.readers.values():
        hiding = each._hiding(reader)
        u = hiding.u()
        found += [hiding._seed, *(u[:, r, t].tobytes() for r, t in np.ndindex(u.shape[1:]))]
    return found


OTHERS = {
    "a weight": changed(LOWERED),
    "the salt": dataclasses.replace(LOWERED, salt=bytes(32)),
    "the program": dataclasses.replace(LOWERED, program=network(kernel=5).program),
    "the ring": dataclasses.replace(LOWERED, program=dataclasses.replace(LOWERED.program, ring=type(NARROW)(64))),
}


def test_the_sets_have_several_uploads_and_secrets():
    assert len(MADE) == 2
    assert {reader.per_row > 1 for each in MADE for reader in each.use.plan.readers.values()} == {False, True}
    assert any(len(secret_of(each)) > 2 * 3 + 2 for each in MADE)


def test_public_polynomials_differ_pairwise():
    """Within a set, between the sets of a model, and from those for any other weights, salt, program, or ring."""
    sets = [use for low in (LOWERED, *OTHERS.values()) for use in uses(low)]
    found = [polynomial for use in sets for polynomial in public_of(use)]
    assert len(found) == len(set(found))
    assert len({use.identity for use in sets}) == len({use.public for use in sets}) == len(sets)


def test_public_polynomials_of_a_known_seed():
    """Another answer is another format: clients and servers of two versions would not understand each other."""
    a, m = public_polynomials(bytes(16), 1, 2), public_matrices(bytes(16))
    assert [x[5, 1, 1] for x in a] == KNOWN_A
    assert [x[2047, 2, 23] for x in m] == KNOWN_M
    for k, (of_a, of_m) in enumerate(zip(a, m, strict=True)):
        for found, labels in ((of_a, ("polynomials", 1, k)), (of_m, ("matrices", k))):
            words = Stream(bytes(16), *labels).bytes(8 * found.size).view(np.uint32).astype(np.int64)
            prime = parameters.PRIMES[k]
            taken = words[words < (1 << 32) // prime * prime][: found.size] % prime
            assert np.array_equal((taken - found.reshape(-1)) % prime, np.zeros(found.size))


KNOWN_A = [33025750, 22506516, -20471692, -1844906, -10446926, 2237052]
KNOWN_M = [22522491, 9530556, 33274534, -11548462, 11758726, 10738033]


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_has_other_secrets_everywhere(what):
    """The same u under other weights would give their difference away."""
    other = OTHERS[what]
    found = [secret for each in (*MADE, *map(_unmade(other), uses(other))) for secret in secret_of(each)]
    assert len(found) == len(set(found))


def _unmade(lowered: Lowered) -> Any:
    """A set whose hints are not made."""

    def make(use: Use) -> Made:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Made, "_kept", lambda self: bytes(32))
            return Made(use, lowered, Keep())

    return make


def test_other_parameters_have_other_secrets_and_polynomials(monkeypatch):
    before = [(use.identity, secret_of(_unmade(LOWERED)(use)), public_of(use)) for use in uses(LOWERED)]
    monkeypatch.setattr(parameters, "DESCRIPTION", parameters.DESCRIPTION + " ")
    for (identity, secrets, public), use in zip(before, uses(LOWERED), strict=True):
        assert use.identity != identity
        assert not set(secrets) & set(secret_of(_unmade(LOWERED)(use))) and not set(public) & set(public_of(use))


def test_another_plan_of_the_same_layers_has_other_secrets():
    """As a version that plans otherwise would make it."""
    one, other = uses(LOWERED)
    assert not set(secret_of(_unmade(LOWERED)(one))) & set(secret_of(_unmade(LOWERED)(other)))
    assert not set(public_of(one)) & set(public_of(other))


def test_hints_are_the_same_when_they_are_made_again():
    again = made(dataclasses.replace(LOWERED))
    assert [each.digest for each in again] == [each.digest for each in MADE]
    assert [[*each.body()] for each in again] == [[*each.body()] for each in MADE]


KNOWN_SETS = [
    "ee071d1204c9534c7c803e9ce8cb8379b173ed765726d6fd12f458e913849ae6",
    "998d3d91c14b78fb3965229a01e466b8dbc2e6c45d6c2764b56943e1994e1b0f",
]

ELSEWHERE = """
import os, sys, threading
from pathlib import Path
from test_hint_sets import *
digests = [each.digest.hex() for each in made(keep=Keep(folder=Path(sys.argv[1])))]
print(*digests, flush=True)
"""


def test_hints_are_the_same_in_every_process_and_version(tmp_path):
    """Other hints of these weights under these secrets would be a second sample of them, and give them away: whoever
    changes what is drawn, or how, has to give hints another format. Two processes make the same files at once."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment["PARELU_KERNELS"] = "numpy"
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = [process.communicate()[0].split() for process in processes]
    assert found[0] == found[1] == [each.digest.hex() for each in MADE] == KNOWN_SETS
    assert len([*tmp_path.iterdir()]) == len(MADE)
    kept = made(keep=Keep(folder=tmp_path, progress=lambda done, total: pytest.fail("they were made again")))
    assert [[*each.body()] for each in kept] == [[*each.body()] for each in MADE]
    damaged_files_are_made_again(tmp_path)


def damaged_files_are_made_again(folder: Path) -> None:
    """A file of the server's that is damaged in any way is made again."""
    files = sorted(folder.iterdir())
    whole = [file.read_bytes() for file in files]
    for damaged in (
        whole[0][:-1],
        whole[0] + b"x",
        b"",
        whole[0][:100] + bytes([whole[0][100] ^ 1]) + whole[0][101:],
        whole[0][:-1] + bytes([whole[0][-1] ^ 1]),
        bytes(len(whole[0])),
        whole[1],
    ):
        files[0].write_bytes(damaged)
        found = made(keep=Keep(folder=folder))
        assert [each.digest for each in found] == [each.digest for each in MADE]
        assert files[0].read_bytes() == whole[0] and sorted(folder.iterdir()) == files
    files[0].unlink()
    files[0].mkdir()  # as nobody writes it
    notices = []
    found = made(keep=Keep(folder=folder, notice=notices.append))
    assert [[*each.body()] for each in found] == [[*each.body()] for each in MADE] and len(notices) == 1


class Exchange:
    """A set from a server's to a client; use and hints are what the client has then, error what ended it."""

    def __init__(self, keep: Keep, sets: tuple[Made, ...] = MADE, lowered: Lowered = LOWERED) -> None:
        self.sent = 0
        digest = root(statement(sets))

        def server(channel: Any) -> Use:
            use = send(channel, sets).use
            self.sent = channel.meter.now.sent
            return use

        self.results = Ends(lambda channel: fetched(channel, lowered.program, digest, keep), server).results
        self.error = self.results["client"] if isinstance(self.results["client"], Exception) else None
        self.use, self.hints = (None, None) if self.error else self.results["client"]

    @property
    def came(self) -> bool:
        return self.sent > min(each.use.bytes for each in MADE)


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(a, b) for number in one for a, b in zip(one[number], other[number], strict=True)
    )


def test_a_client_takes_the_set_for_its_queries_or_one_for_more_that_it_has(tmp_path):
    once, often = Exchange(Keep(1)), Exchange(Keep(1000))
    assert [once.use, often.use] == [each.use for each in MADE] == [once.results["server"], often.results["server"]]
    assert once.came and often.came
    keep = Keep(1000, tmp_path)
    assert Exchange(keep).came
    for queries in (1, 1000):
        for again in (dataclasses.replace(keep, queries=queries), Keep(queries, tmp_path)):
            exchange = Exchange(again)
            assert exchange.use == often.use and not exchange.came and same(exchange.hints, often.hints)
    few = tmp_path / "few"
    assert Exchange(Keep(1, few)).came
    exchange = Exchange(Keep(1000, few))
    assert exchange.came and exchange.use == often.use and len([*few.iterdir()]) == 2


def test_a_clients_damaged_file_comes_again(tmp_path):
    honest = Exchange(Keep(1000, tmp_path))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert whole == b"".join(MADE[1].body())
    ones = whole[:26] + b"\xff" * 26 + whole[52:]
    for damaged in (whole[:-1], whole + b"x", b"", whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], ones):
        file.write_bytes(damaged)
        exchange = Exchange(Keep(1000, tmp_path))
        assert exchange.came and same(exchange.hints, honest.hints)
        assert file.read_bytes() == whole and [*tmp_path.iterdir()] == [file]
    other = made(OTHERS["the salt"])[1]  # a foreign set of the same size, under the name of this one
    file.write_bytes(b"".join(other.body()))
    assert Exchange(Keep(1000, tmp_path)).came and file.read_bytes() == whole


def test_a_set_that_was_not_written_to_its_end_is_none(tmp_path):
    """A process that was killed leaves a file of another name."""
    Exchange(Keep(1000, tmp_path))
    (file,) = tmp_path.iterdir()
    unfinished = file.with_name(f".{file.name}.1.2")
    file.rename(unfinished)
    assert Exchange(Keep(1000, tmp_path)).came
    assert file.exists()
    made_files = tmp_path / "server"
    made(keep=Keep(folder=made_files))
    for each in made_files.iterdir():
        each.rename(each.with_name(f".{each.name}.1.2"))
    done = []
    assert [each.digest for each in made(keep=Keep(folder=made_files, progress=lambda d, t: done.append(d)))] == [
        each.digest for each in MADE
    ]
    assert done


def test_a_file_that_is_cut_while_it_is_served_is_told(tmp_path):
    kept = made(keep=Keep(folder=tmp_path))
    for each in kept:
        os.truncate(each.file, each.use.bytes - 1)
        with pytest.raises(ProtocolError, match="the server's hints were damaged on its disk"):
            [*each.body()]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """Files that can be opened, and take only so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def patch(self, patch: pytest.MonkeyPatch, folder: Path, at: str) -> None:
        opened, fsync, replace, mkdir = Path.open, os.fsync, Path.replace, Path.mkdir
        disk = self

        class File:
            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, data: Any) -> int:
                if at == "write" and disk.room < len(data):
                    raise FULL
                disk.room -= len(data)
                return self.file.write(data)

            def __enter__(self) -> Any:
                self.file.__enter__()
                return self

            def __exit__(self, *given: Any) -> Any:
                return self.file.__exit__(*given)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def open_(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if folder not in path.parents or "w" not in mode:
                return opened(path, mode, *rest, **more)
            if at == "open":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return File(opened(path, mode, *rest, **more))

        def failing(name: str, real: Any) -> Any:
            def call(*given: Any, **more: Any) -> Any:
                if at == name:
                    raise FULL
                return real(*given, **more)

            return call

        patch.setattr(Path, "open", open_)
        patch.setattr(Path, "replace", failing("replace", replace))
        patch.setattr(Path, "mkdir", failing("mkdir", mkdir))
        for module in (hint_sets, hint_exchange):
            patch.setattr(module.os, "fsync", failing("fsync", fsync))


@pytest.mark.parametrize("at", ["mkdir", "open", "write", "fsync", "replace"])
@pytest.mark.parametrize("party", ["server", "client"])
def test_a_full_disk_is_told_in_a_line_and_ends_nothing(party, at, tmp_path):
    notices: list[str] = []
    folder = tmp_path / "hints"
    keep = Keep(1000, folder, notice=notices.append)
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(100_000).patch(patch, folder, at)
        if party == "server":
            found = made(keep=keep)
            assert [[*each.body()] for each in found] == [[*each.body()] for each in MADE]
            exchange = Exchange(Keep(1000), found)
        else:
            exchange = Exchange(keep)
        assert exchange.came and exchange.use == MADE[1].use
    reason = os.strerror(errno.EACCES if at == "open" else errno.ENOSPC)
    assert len(notices) == (len(MADE) if party == "server" else 1)
    assert all(f"{folder}: hints cannot be kept ({reason})" in line and "\n" not in line for line in notices)
    assert not folder.exists() or not [*folder.iterdir()]


def test_two_threads_fetch_and_make_into_one_folder(tmp_path):
    threads = [threading.Thread(target=Exchange, args=(Keep(1000, tmp_path),)) for _ in range(3)]
    threads += [threading.Thread(target=made, kwargs={"keep": Keep(folder=tmp_path / "server")}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.read_bytes() for file in tmp_path.glob("*.hints")] == [b"".join(MADE[1].body())]
    bodies = {file.read_bytes()[:-32] for file in (tmp_path / "server").iterdir()}
    assert bodies == {b"".join(each.body()) for each in MADE}


def test_a_client_that_goes_in_the_middle_leaves_no_file(tmp_path):
    def broken(done: int, total: int) -> None:
        if done > total // 2:
            raise ProtocolError("gone")

    exchange = Exchange(Keep(1000, tmp_path, progress=broken))
    assert str(exchange.error) == "gone" and not [*tmp_path.iterdir()]


def test_progress_ends_with_all_of_it(tmp_path):
    seen: list[tuple[int, int]] = []
    Exchange(Keep(1000, progress=lambda done, total: seen.append((done, total))))
    assert seen[-1] == (MADE[1].use.bytes, MADE[1].use.bytes) and len(seen) == len(MADE[1].use.chunks)
    assert all(one[0] < other[0] for one, other in itertools.pairwise(seen))
