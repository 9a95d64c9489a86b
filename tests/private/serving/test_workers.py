"""The further processes of a server: replaced, added up, and never left behind."""

import os
import signal

from deployed import until
from worker import work

from parelu.private.serving import workers
from parelu.private.serving.log import telling
from parelu.private.serving.workers import Workers


def test_a_dead_process_is_logged_and_replaced_and_its_counts_stay(monkeypatch):
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.01)
    lines = []
    others = Workers(2, work, lambda: (0,), telling(lines.append))
    assert until(lambda: others.ready == 2, 60)
    assert until(lambda: workers.added(others.figures()) == figures_of(10.0, 2.0))
    others.tell(7)
    assert until(lambda: workers.added(others.figures()) == figures_of(14.0, 2.0))
    os.kill(next(iter(others._processes.values())).pid, signal.SIGKILL)
    assert until(lambda: others.restarts == 1 and others.ready == 2, 60)
    assert until(lambda: workers.added(others.figures()) == figures_of(19.0, 2.0))
    assert any("of this server died (status -9); another starts in" in line for line in lines)
    others.stop()
    assert others.join(10) and others.ready == 0


def figures_of(counted, gauge):
    return [
        ["n", "counted", "counter", [["n_total", {}, counted]]],
        ["g", "now", "gauge", [["g", {}, gauge]]],
    ]


def test_a_process_that_cut_its_clients_is_told():
    others = Workers(1, work, lambda: (1,), telling(lambda line: None))
    assert until(lambda: others.ready == 1, 60)
    others.stop()
    assert not others.join(10)
