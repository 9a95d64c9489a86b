"""Losses as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from parelu.training import ranks

PramForm = Literal["attention", "elements", "literal"]


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation: T²·KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over the batch.

    Args:
        student, teacher: logits, (N, classes).
        temperature: T; the factor T² keeps the gradient's size over T (Hinton et al. 2015, section 2).
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Decoupled KD: T²·(α·TCKD + β·NCKD), the mean over the batch (Zhao et al. 2022, eq. 7).

    TCKD compares the probabilities of the label and of all the rest, NCKD the distributions among the rest. KD is
    TCKD + (1 − teacher's probability of the label)·NCKD. All is in logarithms of sums, so that a label with
    probability 1 does not make a logarithm of 0; of two classes the rest is one, and NCKD is 0.

    Args:
        student, teacher: logits, (N, classes); labels: (N,).
    """
    (mine, my_rest), (its, its_rest) = (_decoupled(logits / temperature, labels) for logits in (student, teacher))
    target = F.kl_div(mine, its, reduction="batchmean", log_target=True)
    rest = F.kl_div(my_rest, its_rest, reduction="batchmean", log_target=True)
    return (alpha * target + beta * rest) * temperature**2


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the label and of the rest, (N, 2), and among the rest, (N, classes − 1)."""
    others = torch.arange(logits.shape[1] - 1, device=labels.device)
    rest = logits.gather(1, others + (others >= labels[:, None]))
    pair = torch.stack([logits.gather(1, labels[:, None])[:, 0], rest.logsumexp(1)], dim=1)
    return pair - logits.logsumexp(1, keepdim=True), F.log_softmax(rest, dim=1)


def pram(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], form: PramForm) -> Tensor:
    """Mismatch of post-ReLU maps: the sum over sites of the mean over the batch of a distance of unit vectors.

    "literal" is the formula as it is printed (shallow-again, eq. 2): ‖ψ_s/‖ψ_s‖₂ − ψ_t/‖ψ_t‖₂‖₂ of the flattened maps.
    Formula and β = 1000 are those of attention transfer (Zagoruyko & Komodakis 2017), which has ‖·‖²₂ / (H·W), and for
    ψ an image's mean over channels of the squares: "attention", as the authors' later code has it too (RLNet, of the
    last map of each stage). "elements" is the mean of squares of whole maps, ‖·‖²₂ / (C·H·W), which weighs least.

    Args:
        student, teacher: site → (N, C, H, W), or (N, features), which have no channels to take the mean over.
    """
    terms = []
    for name, mine in student.items():
        a, b = (_direction(map.float(), form) for map in (mine, teacher[name]))
        terms.append((a - b).norm(dim=1).mean() if form == "literal" else (a - b).square().mean())
    return torch.stack(terms).sum()


def _direction(map: Tensor, form: PramForm) -> Tensor:
    """(N, H·W) or (N, all), unit vectors."""
    if form == "attention":
        map = map.square().mean(1) if map.dim() > 2 else map.square()
    return F.normalize(map.flatten(1), dim=1)


def akd(
    auxiliary: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float, ce_weight: float
) -> Tensor:
    """Auxiliary knowledge distillation: weight·KD + ce_weight·CE of a classifier at a shallower depth.

    What the final classifier learns by, less the mismatch of maps (shallow-again, section 4 and eq. 2): both
    classifiers have the full-ReLU network's logits as their teacher.

    Args:
        auxiliary, teacher: logits, (N, classes); labels: (N,).
    """
    return weight * kd(auxiliary, teacher, temperature) + ce_weight * F.cross_entropy(auxiliary, labels)


def tails(maps: Mapping[str, Tensor], limit: float = 2.0) -> Tensor:
    """How far single images stand out: the sum over sites of the batch mean of max(0, e_i/ē − limit).

    e_i: mean square of an image's map; ē: that of the batch. Squares in a row make of an image with twice the scale
    one with 2^2^n times the scale; training against it costs nothing in private inference.

    Args:
        maps: site → (N, C, H, W).
    """
    energies = [map.flatten(1).square().mean(1) for map in maps.values()]
    return torch.stack([F.relu(e / ranks.mean(e) - limit).mean() for e in energies]).sum()
