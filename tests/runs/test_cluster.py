"""Tasks on a local Ray: two nodes of one machine, what a cluster must not do, and what is said then."""

import dataclasses
import socket
import threading

import pytest
from conftest import TINY, Silent, tiny_experiment

from parelu.errors import UserError
from parelu.runs import cluster
from parelu.runs.at_once import run_at_once
from parelu.runs.cluster import OnRay
from parelu.runs.executor import InProcess
from parelu.runs.experiment import run_experiment
from parelu.runs.folder import Run

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning")


def of(run: Run) -> dict[str, tuple[str, float]]:
    """Plan and accuracy of each candidate."""
    return {r.name: (run.candidate(r.name).plan.digest(), r.metrics.test_accuracy) for r in run.candidates()}


def test_texts_are_executors():
    assert OnRay.parse("ray") == OnRay()
    assert OnRay.parse("ray:10.0.0.1:6379") == OnRay("10.0.0.1:6379")
    assert OnRay.parse("ray:auto,cpus=2,gpus=0.5") == OnRay("auto", 2, 0.5)


@pytest.mark.parametrize(
    "text", ["slurm", "ray:auto,gpu=1", "ray,cpus=half", "ray,cpus=0", "ray,gpus=-1", "ray,gpus=x"]
)
def test_others_are_refused(text):
    with pytest.raises(UserError, match="such as ray"):
        OnRay.parse(text)


def test_an_address_that_does_not_answer_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}.*ray start --head --port {port}"):
        cluster.connected(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match="HOST:PORT"):
        cluster.connected("head")


def test_a_listener_that_is_no_head_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "JOINED", 0.2)
    monkeypatch.setattr(ray, "init", lambda **_: threading.Event().wait(1))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="no head of a Ray cluster"):
            cluster.connected(f"127.0.0.1:{other.getsockname()[1]}")


def test_a_node_must_see_the_folder_and_have_the_versions(tmp_path):
    ours = cluster.versions()
    with pytest.raises(UserError, match="node7 does not see"):
        cluster._check(tmp_path, ("token", *ours), "node7")
    (tmp_path / cluster.TOKEN).write_text("token")
    cluster._check(tmp_path, ("token", *ours), "node7")
    with pytest.raises(UserError, match="torch on node7"):
        cluster._check(tmp_path, ("token", ours[0], "1.0"), "node7")


@pytest.fixture(scope="module")
def two_nodes():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    yield nodes, second
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_two_nodes_do_what_one_process_does(two_nodes, tmp_path, monkeypatch):
    """Two experiments at once, of which a node dies in the middle."""
    nodes, second = two_nodes
    experiments = [dataclasses.replace(tiny_experiment("random"), training=TINY, seed=seed) for seed in (0, 1)]
    there = [tmp_path / "there" / f"seed{one.seed}" for one in experiments]
    watcher = Losing(nodes, second)
    found = run_at_once(experiments, there, watcher, OnRay(nodes.address))
    assert watcher.is_lost
    assert print.__module__ == "builtins"
    for one, run in zip(experiments, found, strict=True):
        here = run_experiment(one, tmp_path / "here" / f"seed{one.seed}", Silent(), InProcess())
        assert of(run) == of(here)
        assert not (run.path / cluster.TOKEN).exists()


class Losing(Silent):
    """Kills a node once something is finished."""

    def __init__(self, nodes, node) -> None:
        super().__init__()
        self.nodes, self.node, self.is_lost = nodes, node, False

    def finished(self, name, candidate, *, resumed) -> None:
        super().finished(name, candidate, resumed=resumed)
        if not self.is_lost:
            self.is_lost = True
            self.nodes.remove_node(self.node, allow_graceful=False)


@pytest.mark.slow
def test_errors_of_a_task_come_back_and_shares_are_checked(two_nodes, tmp_path, monkeypatch):
    nodes, _ = two_nodes
    one = tiny_experiment("random")
    with pytest.raises(UserError, match="gpus=1, the Ray cluster has 0"):
        run_experiment(one, tmp_path / "a", Silent(), OnRay(nodes.address, gpus=1))
    monkeypatch.setattr(cluster, "versions", lambda: ("0.0", "0.0"))
    with pytest.raises(UserError, match=r"parelu on .* where the run was started"):
        run_experiment(one, tmp_path / "b", Silent(), OnRay(nodes.address))
