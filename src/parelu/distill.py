"""Losses as pure functions of tensors, and the objectives that the training loop minimises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation: T²·KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over the batch.

    Args:
        student, teacher: logits, (N, classes).
        temperature: T; the factor T² keeps the gradient's size over T (Hinton et al. 2015, section 2).
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


class Objective(Protocol):
    """What the training loop minimises: the sum of named terms."""

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Callable[[], Tensor] | None) -> Mapping[str, Tensor]:
        """logits: (N, classes); labels: (N,); teacher: gives the teacher's logits of the batch, (N, classes)."""
        ...


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy on the labels."""

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Callable[[], Tensor] | None) -> Mapping[str, Tensor]:
        return {"ce": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}


@dataclasses.dataclass(frozen=True)
class Distillation:
    """(1 − weight)·CE + weight·KD with a frozen teacher."""

    temperature: float = 4.0  # DeepReDuce, section 4
    weight: float = 0.9  # DeepReDuce, section 4

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Callable[[], Tensor] | None) -> Mapping[str, Tensor]:
        if teacher is None:
            raise ValueError("distillation needs a teacher")
        soft = kd(logits, teacher(), self.temperature)
        return {"ce": (1 - self.weight) * F.cross_entropy(logits, labels), "kd": self.weight * soft}
