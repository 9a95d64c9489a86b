"""`torchrun … -m -- parelu reduce …`, as it is typed: a rank that is killed, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from parelu.network.candidate import Candidate

RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
REDUCE = ["reduce", "snl", "--model", "resnet10 m=2", "--data", "digits", "--training", "short", "--epochs", "2"]
SEARCH = ["--search-epochs", "4", "--finetune-epochs", "1", "--budget", "100"]


def started(*words: str) -> subprocess.Popen[str]:
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env={**os.environ, **paths}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of what torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in children.read_text().split()] if children.exists() else []


def complaints(words: str) -> list[str]:
    return [line for line in words.splitlines() if line.startswith("parelu: ")]


@pytest.mark.long
def test_a_rank_that_is_killed_leaves_the_same_plan(tmp_path):
    whole = started(*RUN, "-m", "--", "parelu", *REDUCE, *SEARCH, "--run", str(tmp_path / "whole"))
    shown, said = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    assert shown.count("snl mask") == 1 and said.count("snl-100: 100 ReLUs") == 1, "the first rank alone speaks"
    killed = started(
        *RUN, "--max-restarts", "2", "-m", "--", "parelu", *REDUCE, *SEARCH, "--run", str(tmp_path / "killed")
    )
    history = tmp_path / "killed/searches/snl/metrics.jsonl"
    until = time.monotonic() + 300
    while not history.exists() and time.monotonic() < until:
        time.sleep(0.01)
    victim = ranks_of(killed)[-1]
    os.kill(victim, signal.SIGKILL)
    _, said = killed.communicate(timeout=600)
    assert killed.returncode == 0, said
    one, other = (Candidate.load(tmp_path / name / "candidates/snl-100") for name in ("whole", "killed"))
    assert one.plan == other.plan
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert victim not in ranks_of(killed)


@pytest.mark.long
def test_what_ranks_do_not_do_is_one_line(tmp_path):
    for words, complaint in (
        (["bench", "resnet20"], "parelu: bench is one process; start it without torchrun"),
        ([*REDUCE, *SEARCH, "--batch", "0", "--run", str(tmp_path)], "parelu: batch is 0; it should be a whole number"),
    ):
        one = started(*RUN, "-m", "--", "parelu", *words)
        _, said = one.communicate(timeout=300)
        assert one.returncode
        (line,) = complaints(said)
        assert line.startswith(complaint)
