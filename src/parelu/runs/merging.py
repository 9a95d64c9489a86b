"""From a trained candidate to its merged network: layers with the padding of their sum, finetuned.

Merging two layers that both pad changes the function near the border. Here that is accepted, and trained away: the
merged network is an architecture of its own.
"""

from __future__ import annotations

import dataclasses

from parelu.data.dataset import Dataset
from parelu.errors import UserError
from parelu.fusion.fuse import fuse, layers
from parelu.methods.jobs import FromKept, Job
from parelu.models.graph import Graph
from parelu.models.writing import graph_of, weights_of
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.runs.context import in_run
from parelu.runs.data_source import source_of
from parelu.runs.executor import Executor, Watcher, Work
from parelu.runs.folder import Run
from parelu.runs.processes import Processes
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

LR, CLIP = 0.05, 1.0  # of finetuning: there are no batch-norms, so gradients are clipped
NOTE = "merged"


def merge(
    run: Run,
    name: str,
    epochs: int,
    watcher: Watcher,
    executor: Executor | None = None,
    dataset: Dataset | None = None,
) -> Candidate:
    """The merged network of a candidate of a run, finetuned with distillation and kept in the run as NAME-merged.

    executor: `Processes` if left out; dataset: the run's, where that was in memory.

    Raises:
        UserError: nothing merges that is not merged exactly already, or the candidate is a merged one.
    """
    candidate, training = run.candidate(name), Training(**run.config["training"])
    start, job = _starting_point(candidate, name, epochs, training)
    start.save(_kept(name).folder(run.path))
    work = Work(run, source_of(run, tuple(candidate.preprocessing["image"]), dataset), run.config["seed"])
    with in_run(work, training, watcher, executor or Processes()) as context:
        (finetuned,) = context.train([job])
    return finetuned


def _starting_point(candidate: Candidate, name: str, epochs: int, training: Training) -> tuple[Candidate, Job]:
    network = candidate.network()
    fused = fuse(network, padded=True)
    if len(layers(fused)) >= len(layers(fuse(network))):
        raise UserError(
            f"{name}: no two layers merge that are not merged exactly already: a ReLU stands between them, "
            "their shapes forbid it, or it would cost more; bench it as it is"
        )
    source = candidate.spec.source if isinstance(candidate.spec, Graph) else ""
    spec, plan = graph_of(fused, candidate.spec.classes, source), Plan.of(fused)
    tags = candidate.trained.tags
    note = ", ".join(part for part in (tags.note, NOTE) if part)
    job = Job(
        name=f"{name}-{NOTE}",
        role="candidate",
        spec=spec,
        plan=plan,
        training=training.changed(epochs=epochs, lr=LR, schedule="cosine", clip=CLIP),
        objective=Distillation(tails=1.0 if plan.squares else 0.0),
        tags=dataclasses.replace(tags, note=note, searched=None),
        start=_kept(name),
    )
    return Candidate(spec, plan, weights_of(spec, fused)), job


def _kept(name: str) -> FromKept:
    """Where a run has what merging made of a network before it is finetuned."""
    return FromKept(f"{name}-{NOTE}", "start")
