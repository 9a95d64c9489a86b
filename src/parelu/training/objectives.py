"""Objectives: what the training loop minimises, made of losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from parelu.network.settings import younger
from parelu.training.losses import PramForm, akd, dkd, kd, pram, tails


@dataclasses.dataclass(frozen=True)
class Batch:
    """What an objective may read of a step.

    Attributes:
        labels: (N,).
        maps: site → the network's outputs there, (N, C, H, W); empty unless the objective `reads_maps`.
        teacher: gives the teacher's logits, (N, classes); teacher_maps: its outputs of sites; None without a teacher.
        progress: share of the training's steps that are done with this one, in (0, 1].
        auxiliary: logits of the auxiliary classifier, (N, classes); None unless the objective `reads_auxiliary`.
        ends: the last site of each stage.
    """

    labels: Tensor
    maps: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    teacher: Callable[[], Tensor] | None = None
    teacher_maps: Callable[[], Mapping[str, Tensor]] | None = None
    progress: float = 1.0
    auxiliary: Tensor | None = None
    ends: Sequence[str] = ()


class Objective(Protocol):
    """What the training loop minimises: the sum of named terms."""

    @property
    def reads_maps(self) -> bool:
        """Whether it asks for the outputs of sites, which the loop then keeps."""
        return False

    @property
    def reads_auxiliary(self) -> bool:
        """Whether it asks for the logits of the auxiliary classifier, which the network then has."""
        return False

    def __call__(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """logits: (N, classes)."""
        ...


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy on the labels."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"ce": F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)}


@dataclasses.dataclass(frozen=True)
class Distillation(Objective):
    """ce_weight·CE + weight·KD + ½·mismatch·PRAM + tails·tails + auxiliary·AKD, with a frozen teacher.

    ce_weight: 1 − weight where it is left out; form: of PRAM, see `losses.pram`;
    "attention" is of the stages' last maps, the others of all.
    """

    temperature: float = 4.0  # DeepReDuce, section 4
    weight: float = 0.9  # DeepReDuce, section 4
    mismatch: float = 0.0  # β of shallow-again, eq. 2
    tails: float = 0.0
    auxiliary: float = 0.0
    ce_weight: float | None = younger(None)
    form: PramForm = younger("elements")

    @property
    def reads_maps(self) -> bool:
        return self.mismatch > 0 or self.tails > 0

    @property
    def reads_auxiliary(self) -> bool:
        return self.auxiliary > 0

    def __call__(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if batch.teacher is None or batch.teacher_maps is None:
            raise ValueError("distillation needs a teacher")
        soft = kd(logits, batch.teacher(), self.temperature)
        hard = 1 - self.weight if self.ce_weight is None else self.ce_weight
        terms = {"ce": hard * F.cross_entropy(logits, batch.labels), "kd": self.weight * soft}
        if self.mismatch:
            ends = batch.ends if self.form == "attention" else ()
            mine = {name: batch.maps[name] for name in ends or batch.maps}
            terms["pram"] = self.mismatch / 2 * pram(mine, batch.teacher_maps(), self.form)
        if self.tails:
            terms["tails"] = self.tails * tails(batch.maps)
        if self.auxiliary:
            assert batch.auxiliary is not None
            terms["akd"] = self.auxiliary * akd(
                batch.auxiliary, batch.teacher(), batch.labels, self.temperature, self.weight, hard
            )
        return terms


@dataclasses.dataclass(frozen=True)
class DecoupledDistillation(Objective):
    """CE + DKD with a frozen teacher; the weight of DKD grows from 0 to 1 in the warm-up's share of the training."""

    temperature: float = 4.0  # Zhao et al. 2022, section 4
    alpha: float = 1.0
    beta: float = 1.0
    warmup: float = 0.09  # DeepReShape, Appendix J: 20 of 220 epochs

    def __call__(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if batch.teacher is None:
            raise ValueError("distillation needs a teacher")
        soft = dkd(logits, batch.teacher(), batch.labels, self.temperature, self.alpha, self.beta)
        weight = min(1.0, batch.progress / self.warmup) if self.warmup else 1.0
        return {"ce": F.cross_entropy(logits, batch.labels), "dkd": weight * soft}
