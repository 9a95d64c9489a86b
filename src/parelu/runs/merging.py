"""From a trained candidate to its merged network: layers with the padding of their sum, finetuned.

Merging two layers that both pad changes the function near the border. Here that is accepted, and trained away: the
merged network is an architecture of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from parelu.errors import UserError
from parelu.fusion.fuse import fuse, layers
from parelu.methods.base import Job
from parelu.models.merged import merged, weights_of
from parelu.network.candidate import Candidate
from parelu.network.plan import Plan
from parelu.runs.executor import DataSource, Trainer, Watcher
from parelu.runs.folder import Run
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

LR, CLIP = 0.05, 1.0  # of finetuning: there are no batch-norms, so gradients are clipped
NOTE = "merged"


def merge(run: Run, name: str, epochs: int, watcher: Watcher) -> Candidate:
    """The merged network of a candidate of a run, finetuned with distillation and kept in the run as NAME-merged.

    Raises:
        UserError: nothing merges that is not merged exactly already, or the candidate is a merged one.
    """
    candidate = run.candidate(name)
    start, job = _starting_point(candidate, name, epochs, Training(**run.config["training"]))
    start.save(run.path / "searches" / job.start)
    folder, image = run.config.get("data_folder"), candidate.preprocessing["image"]
    source = DataSource(run.config["data"], Path(folder) if folder else None, run.config["images"], tuple(image))
    with run.locked(), Trainer(run, source, run.config["seed"], watcher) as trainer:
        (finetuned,) = trainer.train([job])
    return finetuned


def _starting_point(candidate: Candidate, name: str, epochs: int, training: Training) -> tuple[Candidate, Job]:
    network = candidate.network()
    fused = fuse(network, padded=True)
    if len(layers(fused)) >= len(layers(fuse(network))):
        raise UserError(
            f"{name}: no two layers merge that are not merged exactly already: a ReLU stands between them, "
            "their shapes forbid it, or it would cost more; bench it as it is"
        )
    spec, plan = merged(fused, candidate.spec.classes), Plan.of(fused)
    tags = {key: candidate.metrics[key] for key in ("method", "steps", "budget")}
    note = ", ".join(part for part in (candidate.metrics.get("note", ""), NOTE) if part)
    job = Job(
        name=f"{name}-{NOTE}",
        role="candidate",
        spec=spec,
        plan=plan,
        training=dataclasses.replace(training, epochs=epochs, lr=LR, schedule="cosine", clip=CLIP),
        objective=Distillation(tails=1.0 if plan.squares else 0.0),
        tags={**tags, "note": note},
        start=f"{name}-{NOTE}/start",
    )
    return Candidate(spec, plan, weights_of(fused)), job
