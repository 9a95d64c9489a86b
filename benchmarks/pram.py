"""What the forms of PRAM weigh beside the other losses, and what they are worth: SENet's finetuning with each of them.

    python benchmarks/pram.py run --out runs/pram --seeds 0       some 20 minutes on one core; goes on where it stopped
    python benchmarks/pram.py table --out runs/pram --seeds 0
    python benchmarks/pram.py values --out runs/pram --seeds 0    seconds

The formula of the papers, a norm with the weight β = 1000, can be read in several ways (`losses.pram`). `run` finetunes
what one search of SENet found, from the same weights, with each reading, and with none. `values` prints for each
reading β/2·PRAM of a batch and the norm of its gradient, beside those of the other terms, where finetuning begins and
where the one with `attention` has ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from lines import Lines
from torch import Tensor

from parelu.methods.base import Context
from parelu.methods.jobs import TEACHER, Job
from parelu.methods.senet import SENet
from parelu.network.candidate import Candidate
from parelu.network.sites import Network, observed
from parelu.runs import experiment
from parelu.runs.experiment import Experiment, Reduction
from parelu.runs.folder import Run
from parelu.runs.measurement import dataset_of
from parelu.training.batches import fit, normalised_batches
from parelu.training.losses import PramForm, kd, pram
from parelu.training.schedule import SHORT

FORMS: tuple[PramForm, ...] = get_args(PramForm)
BETA, LAMBDA, TEMPERATURE = 1000.0, 0.9, 4.0  # shallow-again, section 5.1
BUDGETS = ("0.18", "0.045")  # ResNet18 at 100,000 and 25,000 ReLUs


@dataclasses.dataclass(frozen=True)
class Forms(SENet):
    """SENet whose finetuning is done with each form of PRAM, and without."""

    name: ClassVar[str] = "senet-forms"

    def finetuned(self, context: Context, jobs: Sequence[Job]) -> list[Candidate]:
        return context.train([changed for job in jobs for changed in self._variants(job)])

    def _variants(self, job: Job) -> list[Job]:
        betas = {"none": 0.0, **dict.fromkeys(FORMS, self.pram)}
        return [
            dataclasses.replace(
                job,
                name=f"{job.name}-{label}",
                objective=dataclasses.replace(self, pram=beta, pram_form=label if beta else "elements").objective(
                    finetuning=True
                ),
                tags=dataclasses.replace(job.tags, note=label),
            )
            for label, beta in betas.items()
        ]


def values(arguments: argparse.Namespace) -> None:
    """Prints a row a term and network: its value in the loss, and the norm of its gradient by the weights."""
    print("| ReLUs | finetuning | term | value | norm of the gradient |\n|---|---|---|---|---|")
    for seed in arguments.seeds:
        run = Run.open(Path(arguments.out) / f"seed{seed}")
        teacher = run.candidate(TEACHER)
        dataset = dataset_of(teacher)
        full = teacher.network()
        images, labels = next(iter(normalised_batches(dataset, SHORT, seed, 0)))
        with torch.no_grad(), observed(full.sites) as theirs:
            answers = full(fit(images, full))
        for begun in sorted((run.path / "searches").glob("*/*/candidate.json")):
            name = f"senet-forms-{begun.parent.name}-attention"
            for stands, candidate in (("begins", Candidate.load(begun.parent)), ("has ended", run.candidate(name))):
                network = candidate.network()
                network.train()  # batch-norms go by the batch, as in training
                for label, term in terms(network, labels, answers, theirs).items():
                    value, gradient = weighed(network, fit(images, network), term)
                    print(f"| {candidate.plan.relus} | {stands} | {label} | {value:.3g} | {gradient:.3g} |")


def weighed(network: Network, images: Tensor, term: Term) -> tuple[float, float]:
    """A term's value, and the norm of its gradient by the weights."""
    network.zero_grad(set_to_none=True)
    with observed(network.sites) as mine:
        loss = term(network(images), mine)
    loss.backward()
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return loss.item(), float(torch.cat(gradients).norm())


Term = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def terms(network: Network, labels: Tensor, answers: Tensor, theirs: Mapping[str, Tensor]) -> dict[str, Term]:
    """Label → a term of the loss, of the network's logits and maps; answers, theirs: the teacher's."""
    ends = {site.stage: name for name, site in network.sites.items() if site.stage != "stem"}
    found: dict[str, Term] = {
        "CE": lambda logits, _: (1 - LAMBDA) * F.cross_entropy(logits, labels),
        "KD": lambda logits, _: LAMBDA * kd(logits, answers, TEMPERATURE),
    }
    for form in FORMS:
        found[form] = lambda _, mine, form=form: BETA / 2 * pram(mine, theirs, form)
        found[f"{form}, the last of each stage"] = lambda _, mine, form=form: (
            BETA / 2 * pram({name: mine[name] for name in ends.values()}, theirs, form)
        )
    return found


def run(arguments: argparse.Namespace) -> None:
    options = {"search_epochs": arguments.epochs, "finetune_epochs": arguments.epochs, "finetune_lr": arguments.lr}
    reductions = (Reduction(Forms(**options), BUDGETS),)
    training = dataclasses.replace(SHORT, epochs=2 * arguments.epochs)
    for seed in arguments.seeds:
        shape = (3 if arguments.data == "colour-fashion" else 1, arguments.side, arguments.side)
        asked = Experiment(arguments.model, arguments.data, reductions, training, seed, shape, arguments.images)
        experiment.run_experiment(asked, Path(arguments.out) / f"seed{seed}", Lines())


def table(arguments: argparse.Namespace) -> None:
    """Prints a row a budget and form: test accuracy, mean and spread over seeds, and each seed's."""
    found: dict[tuple[int, str], list[float]] = {}
    for seed in arguments.seeds:
        for record in Run.open(Path(arguments.out) / f"seed{seed}").candidates():
            key = (record.metrics.budget or 0, record.metrics.note or "all ReLUs")
            found.setdefault(key, []).append(record.metrics.test_accuracy)
    print("| ReLUs | PRAM | test, % | seeds |\n|---|---|---|---|")
    for (budget, label), accuracies in found.items():
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        print(f"| {budget or ''} | {label} | {statistics.mean(accuracies):.1f}{spread} | {each} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("values", "run", "table"))
    parser.add_argument("--out", default="runs/pram")
    parser.add_argument("--model", default="resnet18 m=8")
    parser.add_argument("--data", default="colour-fashion")
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=4, help="of search and of finetuning; of the full network, twice")
    parser.add_argument("--lr", type=float, default=None, help="of finetuning; the training's 0.3 if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    {"values": values, "run": run, "table": table}[arguments.action](arguments)


if __name__ == "__main__":
    main()
