"""Channel pruning: whole channels go, with their FLOPs and their ReLUs, by their weights alone.

The groups of layers that must lose the same channels, and the pruning, are torch-pruning's (Fang et al., CVPR 2023).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from parelu.errors import UserError
from parelu.methods.base import Context, Method
from parelu.methods.jobs import Job
from parelu.models.pruned import Pruned
from parelu.network.candidate import Candidate
from parelu.network.count import skeleton
from parelu.network.instrument import instrument, network_of
from parelu.network.metrics import Tags
from parelu.network.plan import Plan
from parelu.network.spec import Spec
from parelu.training.objectives import Distillation
from parelu.training.schedule import Training

STEP = 1 / 64  # of the pruned share


@dataclasses.dataclass(frozen=True)
class ChannelPruning(Method):
    """The channels of smallest L1 norm, the same share of every layer, then finetuning with distillation.

    Attributes:
        temperature: of the distillation.
        kd_weight: of its soft loss.
    """

    name: ClassVar[str] = "channels"
    source: ClassVar[str] = "after Li et al., Pruning Filters, ICLR 2017"
    exact: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = True
    needs: ClassVar[tuple[str, str]] = ("torch_pruning", "prune")

    temperature: float = 4.0
    kd_weight: float = 0.9

    def check(self, spec: Spec, training: Training) -> None:
        network = network_of(spec)
        prune(Candidate(spec, Plan.of(network), network.state_dict()), 1 / 2)

    def reduce(self, context: Context, budgets: Sequence[int]) -> list[Candidate]:
        pruned = {budget: _within(context, budget) for budget in budgets}
        return context.train([self._job(context, budget, *pruned[budget]) for budget in budgets])

    def _job(self, context: Context, budget: int, spec: Pruned, module: nn.Module) -> Job:
        plan, name = Plan.of(skeleton(spec)), f"{self.name}-{context.unit.called(budget)}"
        return Job(
            name=name,
            role="candidate",
            spec=spec,
            plan=plan,
            training=context.training,
            objective=Distillation(self.temperature, self.kd_weight),
            tags=context.unit.tags(Tags(self.name, "", note=""), budget, spec, plan),
            start=context.keep(name, Candidate(spec, plan, instrument(module, spec.input).state_dict())),
        )


def _within(context: Context, budget: int) -> tuple[Pruned, nn.Module]:
    """The teacher pruned as little as a budget allows."""
    teacher, unit = context.teacher, context.unit
    least = unit.spent(teacher.spec, teacher.plan)
    share = max(0.0, 1 - budget / least)
    while share < 1:
        module = prune(teacher, share)
        spec = Pruned.of(teacher.spec, module)
        plan = Plan.of(skeleton(spec))
        if unit.holds(budget, spec, plan):
            return spec, module
        share, least = share + STEP, min(least, unit.spent(spec, plan))
    raise UserError(f"channels reaches {unit.said(least)} at the least on this network; give a larger budget")


def prune(teacher: Candidate, share: float) -> nn.Module:
    """A copy of the teacher's module without this share of each layer's channels; the last layer keeps its outputs.

    Raises:
        UserError: the groups of its channels are not found.
    """
    pruning = importlib.import_module("torch_pruning")
    module, image = teacher.spec.module(), torch.zeros(1, *teacher.spec.input)
    own = module.state_dict()  # what is made of a module has names of its own beside, and the same numbers
    module.load_state_dict({name: teacher.weights.get(name, value).view_as(value) for name, value in own.items()})
    try:
        pruner = pruning.pruner.MagnitudePruner(
            module.eval(),
            image,
            importance=pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=share,
            ignored_layers=_makes_logits(module, teacher.spec),
        )
        pruner.step()
        Pruned.of(teacher.spec, module).module()(image.expand(2, -1, -1, -1))
    except Exception as error:  # it raises whatever it meets in a network that it does not know
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"channels does not find which channels go together here ({reason}); take another method"
        ) from error
    return module


def _makes_logits(module: nn.Module, spec: Spec) -> list[Any]:
    """The last linear layer or convolution that has an output a class."""
    outputs = [
        layer
        for layer in module.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == spec.classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == spec.classes)
    ]
    return outputs[-1:]
