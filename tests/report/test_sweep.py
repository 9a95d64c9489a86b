"""A sweep: what is trained, its table and its picture."""

import pytest
from commands import refused, run
from conftest import Silent

from parelu.errors import UserError
from parelu.report.sweep import save_sweep, sweep_text
from parelu.runs.folder import Run

TINY = [
    "--model",
    "resnet10",
    "--m",
    "2",
    "--multipliers",
    "2x2x2x",
    "4x2x2x",
    "--methods",
    "snip",
    "--data",
    "digits",
    "--images",
    "384",
    "--training",
    "short",
    "--epochs",
    "1",
    "--budget",
    "650",
    "100",
]


def test_a_sweep_and_its_second_run(capsys, tmp_path):
    command = ["sweep", *TINY, "--run", str(tmp_path)]
    assert run(*command) == 0
    first = capsys.readouterr().out
    runs = [Run.open(tmp_path / f"resnet10-{multipliers}-m=2") for multipliers in ("2x2x2x", "4x2x2x")]
    counts = [[r.metrics.relus for r in one.candidates() if r.metrics.role == "candidate"] for one in runs]
    assert counts == [[100], [650, 100]], "a budget above the network's 608 ReLUs is left out"
    assert first == sweep_text(runs, [650, 100]) + "\n"
    assert all((tmp_path / f"sweep.{ending}").stat().st_size > 10_000 for ending in ("png", "svg"))
    stamps = [path.stat().st_mtime_ns for one in runs for path in (one.path / "candidates").glob("*/candidate.json")]
    assert run(*command) == 0 and capsys.readouterr().out == first
    assert stamps == [
        path.stat().st_mtime_ns for one in runs for path in (one.path / "candidates").glob("*/candidate.json")
    ]


def test_the_table_takes_the_best_validated_within_a_budget(finished: tuple[Run, Silent]):
    run, _ = finished
    found = [r.metrics for r in run.candidates() if r.metrics.method == "deepreduce"]
    found = [m for m in found if m.role == "candidate" and m.relus <= 100]
    best = max(found, key=lambda m: m.validation_accuracy).test_accuracy
    lines = sweep_text([run], [100, 0]).splitlines()
    (row,) = [line.split() for line in lines if "deepreduce" in line]
    assert row[5].removeprefix("*") == f"{best:.1f}" and row[6] == "–"
    stages = run.candidates()[0].metrics.stages
    share = 100 * (stages["stem"].relus + stages["S1"].relus) / 608
    assert row[0] == "608" and row[3] == f"{share:.1f}"


def test_bad_sweeps(capsys, finished: tuple[Run, Silent], tmp_path):
    assert "not a fraction" in refused(capsys, "sweep", *TINY[:-2], "0.5", "--run", str(tmp_path))
    assert "unknown method 'magic'" in refused(capsys, "sweep", *TINY, "--methods", "magic", "--run", str(tmp_path))
    with pytest.raises(UserError, match=r"neither .png nor .svg"):
        save_sweep([finished[0]], tmp_path / "sweep.pdf")
