"""Plan and candidate: exact round trips, and one clear error for every damaged file."""

import dataclasses
import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.instrument import instrument, network_of
from parelu.network.metrics import SearchMetrics
from parelu.network.plan import Plan, SitePlan
from parelu.network.spec import spec_of

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)


def random_plan(seed: int) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for name, site in network_of(SPEC).sites.items():
        mask = torch.rand(site.shape, generator=generator) < torch.rand((), generator=generator)
        sites[name] = SitePlan(mask, torch.randn(3, site.shape[0], generator=generator))
    return Plan(sites)


def candidate(seed: int = 0) -> Candidate:
    torch.manual_seed(seed)
    weights = SPEC.module().state_dict()
    plan = Plan.from_masks({name: site.mask for name, site in random_plan(seed).sites.items()})
    return Candidate(SPEC, plan, weights, SearchMetrics(3, 1.5, 12, 0, 81.5), {"mean": [0.5]})


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_plan_round_trip(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    plan = random_plan(seed)
    plan.save(folder)
    assert Plan.load(folder) == plan
    network = network_of(SPEC)
    plan.apply(network)
    assert Plan.of(network) == plan
    assert plan.relus == sum(int(s.mask.sum()) for s in plan.sites.values())


def test_a_plan_goes_to_another_process_without_file_descriptors():
    plan = random_plan(3)
    before = len(list(Path("/proc/self/fd").iterdir()))
    data = ForkingPickler.dumps(plan)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert ForkingPickler.loads(data) == plan


def test_diff_names_what_differs():
    plan = random_plan(1)
    name, site = next(iter(plan.sites.items()))
    other = Plan({**plan.sites, name: SitePlan(torch.ones_like(site.mask), site.coefficients)})
    assert plan.diff(other) == {name: (site.relus, site.mask.numel())}
    assert plan != other
    assert plan.diff(Plan({})) == {n: (s.relus, 0) for n, s in plan.sites.items()}


def test_candidate_round_trip(tmp_path):
    before = candidate()
    before.save(tmp_path)
    after = Candidate.load(tmp_path)
    assert after.spec == before.spec
    assert after.plan == before.plan
    assert (after.metrics, after.preprocessing) == (before.metrics, before.preprocessing)
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(after.network()(x), before.network()(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidate.json", "candidate.safetensors"]


def test_plan_of_another_network_is_refused():
    plan = random_plan(0)
    other = instrument(spec_of("resnet10 m=4", (1, 8, 8), 10).module(), (1, 8, 8))
    with pytest.raises(UserError, match="another network: site relu"):
        plan.apply(other)
    with pytest.raises(UserError, match="another network"):
        plan.apply(instrument(spec_of("resnet18 m=2", (1, 8, 8), 10).module(), (1, 8, 8)))


def test_weights_of_another_network_are_refused():
    lacking = dict(candidate().weights)
    lacking.pop("fc.bias")
    with pytest.raises(UserError, match=r"lack fc\.bias"):
        dataclasses.replace(candidate(), weights=lacking).network()
    wrong = {**candidate().weights, "fc.bias": torch.zeros(7)}
    with pytest.raises(UserError, match=r"fc.bias as \(7,\), the network as \(10,\)"):
        dataclasses.replace(candidate(), weights=wrong).network()


def rewritten(folder: Path, **changes: object) -> None:
    """Change the header and give it a digest that matches: what somebody would do on purpose."""
    header = json.loads((folder / "candidate.json").read_text())
    header.pop("sha256")
    header |= changes
    storage.write_json(folder / "candidate.json", {**header, "sha256": storage.digest(header)})


SITES = {"relu": [2, 8, 8]}
METRICS = SearchMetrics(3, 1.5, 12, 0, 81.5).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {"family": "resnet"}}, "fields"),
        ({"spec": {"family": "os.system"}}, "no known architecture"),
        ({"spec": {**SPEC.to_json(), "stem": "2"}}, "stem is '2'"),
        ({"spec": {**SPEC.to_json(), "stem": 10**9}}, "65536"),
        ({"spec": {**SPEC.to_json(), "depths": [1] * 99}}, "depths"),
        ({"spec": {**SPEC.to_json(), "input": [1, 10**6, 8]}}, "input"),
        ({"sites": {"relu": [2, 8, 9]}}, "masks do not fit"),
        ({"sites": {"relu": "x"}}, "masks do not fit"),
        ({"sites": {"other": [2, 8, 8]}}, "masks do not fit"),
        ({"sites": []}, "lacks its spec, sites"),
        ({"metrics": None}, "lacks its spec"),
        ({"metrics": {"relus": 12}}, "the metrics lack epochs"),
        ({"metrics": {**METRICS, "relus": "12"}}, "the metrics' relus is '12'"),
    ],
)
def test_files_made_on_purpose_are_checked(tmp_path, changes, message):
    candidate().save(tmp_path)
    rewritten(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        Candidate.load(tmp_path)


def test_a_file_does_not_choose_which_code_runs(tmp_path):
    candidate().save(tmp_path)
    rewritten(tmp_path, spec={"family": "external", "input": [1, 8, 8], "classes": 10, "target": "os:getcwd"})
    with pytest.raises(UserError, match="a file does not decide which code runs"):
        Candidate.load(tmp_path)
