"""Predictions that are kept beside candidates: the same as without, and thrown away when anything is another."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Silent

from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.runs import foretold
from parelu.runs.folder import Run
from parelu.runs.jobs import full_job, identity, outcome
from parelu.runs.predictions import Queries


@pytest.fixture
def folder(finished: tuple[Run, Silent], tmp_path: Path) -> Path:
    """A candidate of which nothing is kept."""
    run, _ = finished
    return shutil.copytree(run.folder("random-37"), tmp_path / "random-37", ignore=shutil.ignore_patterns("private"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The links of each call that works a prediction out."""
    calls, real = [], Queries._candidate
    monkeypatch.setattr(Queries, "_candidate", lambda self, place: calls.append(self.links) or real(self, place))
    return calls


def test_what_is_kept_is_what_is_worked_out(folder, monkeypatch):
    queries, calls = Queries.of(), counted(monkeypatch)
    candidate = Candidate.load(folder)
    expected = queries.plan(candidate.spec, candidate.plan)
    assert [queries.candidate(folder) for _ in range(2)] == [expected, expected]
    assert calls == [("lan", "wan")], "once"
    assert list(Queries.of("wan").candidate(folder).by_link) == ["wan"] and len(calls) == 1
    assert list(Queries.of("loopback").candidate(folder).by_link) == ["loopback"] and calls[-1] == ("loopback",)
    assert list(queries.candidate(folder).by_link) == ["lan", "wan"] and len(calls) == 2, "a link more keeps the others"


@pytest.mark.parametrize("what", ["candidate", "program", "options", "calibration", "source", "file"])
def test_nothing_is_used_that_may_be_another(folder, monkeypatch, what):
    queries, calls = Queries.of(), counted(monkeypatch)
    queries.candidate(folder)
    if what == "candidate":
        found = Candidate.load(folder)
        dataclasses.replace(found, preprocessing={**found.preprocessing, "dataset": "another"}).save(folder)
    elif what == "program":
        program = folder / "private" / "64-bit"
        program.mkdir(parents=True)
        (program / "program.json").write_text("{}")
        monkeypatch.setattr("parelu.runs.measurement.kept", lambda *_: None)
    elif what == "options":
        queries = Queries.of(relu="full")
    elif what == "calibration":
        queries = dataclasses.replace(queries, calibration=dataclasses.replace(queries.calibration, made="tomorrow"))
    elif what == "source":
        monkeypatch.setattr(foretold, "_source", lambda *_: "another")
    else:
        kept = folder / "private" / foretold.NAME
        kept.write_text(kept.read_text().replace('"rounds": ', '"rounds": 1'))
    queries.candidate(folder)
    assert len(calls) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"identity": 3}', "null"])
def test_a_damaged_file_is_no_file(folder, text):
    expected = Queries.of("lan").candidate(folder)
    (folder / "private" / foretold.NAME).write_text(text)
    assert Queries.of("lan").candidate(folder) == expected


def test_a_folder_that_cannot_be_written_is_predicted(folder):
    (folder / "private").write_text("in the way")
    assert list(Queries.of("lan").candidate(folder).by_link) == ["lan"]


def test_a_finished_job_is_read_without_its_weights(finished: tuple[Run, Silent], tmp_path: Path):
    run, _ = finished
    teacher = run.candidate("teacher")
    there = shutil.copytree(run.folder("teacher"), tmp_path / "candidates" / "teacher")
    copied = Run(tmp_path, run.config)
    job = full_job(teacher.spec, TINY)
    assert identity(job) == teacher.trained.job
    found = outcome(copied, job)
    assert (found.spec, found.plan, found.metrics, found.preprocessing) == (
        teacher.spec,
        teacher.plan,
        teacher.metrics,
        teacher.preprocessing,
    )
    assert len(found.weights) == len(teacher.weights)
    assert all(found.weights[name].equal(tensor) for name, tensor in teacher.weights.items())
    later = outcome(copied, job)
    (there / "candidate.safetensors").write_bytes(b"truncated")
    with pytest.raises(UserError, match="does not match"):
        later.network()
