"""A context that trains nothing."""

from collections.abc import Sequence

import torch

from parelu.methods.jobs import FromKept, Job, Search
from parelu.methods.unit import Relus, Unit
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.instrument import network_of
from parelu.network.metrics import Metrics, SearchMetrics
from parelu.network.plan import Plan
from parelu.network.spec import Spec, spec_of
from parelu.training.schedule import SHORT

SPEC = spec_of("resnet10 m=8", (1, 8, 8), 10)


def made_up(job: Job, accuracy: float) -> Metrics:
    """What is measured of a job's network, with an accuracy in percent that was not."""
    network = skeleton(job.spec)
    job.plan.apply(network)
    counts = count(network)
    return Metrics.of(
        job.tags,
        counts,
        role=job.role,
        seed=0,
        relus_full=counts.relus,
        stages_full={},
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        epochs=0,
        seconds=0.0,
        job=job.name,
    )


class DryBench:
    """Returns each job as a candidate with a made-up accuracy that rises with the ReLUs."""

    def __init__(self, seed: int = 0, spec: Spec = SPEC, unit: Unit | None = None) -> None:
        torch.manual_seed(0)
        network = network_of(spec)
        self.teacher = Candidate(spec, Plan.of(network), network.state_dict())
        self.training, self.seed, self.unit = SHORT, seed, unit or Relus(spec)
        self.jobs: list[Job] = []
        self.searches: list[Search] = []
        self.records: dict[str, object] = {}
        self.kept: dict[str, Candidate] = {}
        self.images_asked: list[int] = []

    def train(self, jobs: Sequence[Job]) -> list[Candidate]:
        self.jobs += jobs
        return [Candidate(job.spec, job.plan, {}, made_up(job, 50 + job.plan.relus / 100)) for job in jobs]

    def search(self, searches: Sequence[Search]) -> list[dict[int, Candidate]]:
        """As if a search had ended before its first step."""
        self.searches += searches
        return [{budget: self._left(search, budget) for budget in search.budgets} for search in searches]

    def _left(self, search: Search, budget: int) -> Candidate:
        torch.manual_seed(self.seed)
        network = network_of(search.spec)
        search.plan.apply(network)
        plan = search.left(search.build(network), budget)
        if not search.unit.name:
            plan = Plan.from_masks({name: site.mask for name, site in plan.sites.items()})
        return Candidate(search.spec, plan, {}, SearchMetrics(0, 0.0, plan.relus, plan.squares, 10.0))

    def slope_gradients(self, images: int) -> dict[str, torch.Tensor]:
        self.images_asked.append(images)
        generator = torch.Generator().manual_seed(self.seed)
        sites = self.teacher.plan.sites.items()
        return {name: torch.randn(site.mask.shape, generator=generator) for name, site in sites}

    def keep(self, name: str, candidate: Candidate) -> FromKept:
        self.kept[name] = candidate
        return FromKept(name)

    def record(self, name: str, value: object) -> None:
        self.records[name] = value
