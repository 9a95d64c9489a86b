"""The papers' trainings, by name: of the full-ReLU network, of searches, of finetuning, and the methods' options.

[code] stands where a value is from the authors' public code and not in the paper; [memory] where neither text is at
hand; [reading] where the paper leaves it open and it is our choice. Ours in all of them: a part of the training images
is held out to choose by, and the last epoch's weights are kept, never those with the best test accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from parelu.errors import UserError
from parelu.training.schedule import SHORT, Training

PAPER = "paper"  # the name of whatever training is a method's own paper's


@dataclasses.dataclass(frozen=True)
class PaperTraining:
    """A named training.

    Attributes:
        source: where the values stand.
        full: of the full-ReLU network, and of every network that is trained from fresh weights.
        options: method → its options in this paper; `search` and `finetune` of those that learn masks are the fields of
            Training that differ from `full`'s there, and `epochs: 0` of a finetuning is none.
    """

    source: str
    full: Training
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


DEEPREDUCE = PaperTraining(
    source="Jha et al., DeepReDuce, ICML 2021, section 4",
    full=Training(),  # whose defaults are this paper's
    options={"deepreduce": {}, "random": {}, "uniform": {}},
)
DEEPREDUCE_CIFAR10 = dataclasses.replace(
    DEEPREDUCE,
    full=Training(epochs=150, schedule="cosine"),  # section 4: "on CIFAR-10 … cosine learning … 150 epochs"
)

# Cho et al. 2022, section 4, and its public code (NYU-DICE-Lab/selective_network_linearization).
_SNL_SEARCH = {
    "epochs": 2000,  # [code] at the most: it stops at its budget
    "batch": 128,  # [code] scripts
    "optimizer": "adam",
    "lr": 1e-3,
    "schedule": "constant",
    "weight_decay": 0.0,  # [code]
    "clip": 0.0,  # [code]
}
_SNL_FINETUNE = {
    "epochs": 100,
    "batch": 128,  # [code] scripts
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "clip": 0.0,  # [code]
}
_SNL = {
    "search": _SNL_SEARCH,
    "finetune": _SNL_FINETUNE,
    "schedule": "paper",
    "lam": 1e-5,
    "slope_lr": 1e-3,
    "temperature": 4.0,
    "kd_weight": 1.0,  # [code] CE + KD, in the search and after it
    "ce_weight": 1.0,  # [code]
}
SNL = PaperTraining(
    source="Cho et al., Selective Network Linearization, ICML 2022, section 4; its public code",
    full=Training(  # [code] train_unstructured.py
        epochs=160, batch=256, lr=0.1, schedule="step", milestones=(80, 120), weight_decay=5e-4
    ),
    options={"snl": _SNL},
)

# Peng et al. 2023, section 4.1, and its public code (HarveyP123/AutoReP).
_AUTOREP_FULL = Training(
    epochs=400,
    lr=0.1,
    momentum=0.9,
    schedule="cosine",
    batch=256,  # [code] scripts_baseline.sh leaves the default
    weight_decay=5e-4,  # [code] likewise
)
_AUTOREP_SEARCH = {
    "epochs": 150,
    "batch": 128,  # [code] scripts
    "optimizer": "adam",
    "lr": 1e-4,
    "schedule": "cosine",
    "weight_decay": 0.0,  # [code]
    "clip": 0.0,  # [code]
}
_AUTOREP = {
    "search": _AUTOREP_SEARCH,
    "finetune": {"epochs": 0},  # section 3: weights and indicators train until both have converged
    "baseline": "stem linear",  # section 4.1: no ReLU after the first convolution
    "degree": 2,
    "threshold": 0.003,
    "indicator_lr": 1e-3,
    "spread": 1.0,  # [code] U(0, 1)
    "anneal": False,
    # μ by the share of ReLUs that stay, for 6K, 9K, 12.9K, 15K and 25K of ResNet18's 491.52K on CIFAR-100; 50K has
    # that of 25K. [memory] but for 9K [code].
    "mu": {6 / 491.52: 200.0, 9 / 491.52: 140.0, 12.9 / 491.52: 80.0, 15 / 491.52: 60.0, 25 / 491.52: 40.0},
    "wide": 1.0,  # eq. 13
    "tails": 0.0,
    "temperature": 4.0,  # [code]
    "kd_weight": 1.0,  # [code] CE + KD; the paper's loss is "L" (eq. 5)
    "ce_weight": 1.0,  # [code]
}
AUTOREP = PaperTraining(
    source="Peng et al., AutoReP, ICCV 2023, section 4.1",
    full=_AUTOREP_FULL,
    options={"autorep": _AUTOREP},
)
AUTOREP_PUBLIC = PaperTraining(
    source="AutoReP's public code: scripts/cifar100.sh and what it calls",
    full=_AUTOREP_FULL.changed(clip=5.0),
    options={
        "autorep": {
            **_AUTOREP,
            "search": {**_AUTOREP_SEARCH, "epochs": 200, "lr": 1e-3},  # one rate for weights and indicators
            "fit": "public",
        }
    },
)

# Kundu et al. 2023 is not among the texts at hand; Shallow-Again, section 5.1, takes its stages 1 and 2 from there.
_SENET_FULL = Training(
    epochs=240,  # [memory]
    batch=128,  # [reading]
    lr=0.05,  # [memory]
    schedule="step",
    milestones=(150, 180, 210),  # [memory] after 62.5, 75 and 87.5 % of the epochs
    weight_decay=5e-4,  # [memory]
)
_SENET_SEARCH = {  # stage 2
    "epochs": 150,  # [memory]
    "lr": 0.05,  # [memory]
    "schedule": "cosine",  # [reading]
    "clip": 0.0,  # [reading]
}
_SHALLOW_FINETUNE = {  # Shallow-Again, section 5.1
    "epochs": 180,
    "lr": 0.01,
    "schedule": "step",
    "milestones": (90, 140, 160),
    "clip": 0.0,  # [reading]
}
_SENET = {
    "search": _SENET_SEARCH,
    "finetune": _SHALLOW_FINETUNE,  # [reading] of SENet's own rate nothing is at hand: its successor's
    "search_kd_weight": 0.5,  # [memory] stage 2
    "temperature": 4.0,  # Shallow-Again, section 5.1: ρ
    "kd_weight": 0.9,  # likewise λ
    "pram": 1000.0,  # likewise β
    "pram_form": "attention",  # [code] of the authors' later RLNet (sreetamasarkar/rlnet)
}
SENET = PaperTraining(
    source="Kundu et al., SENet, ICLR 2023; Shallow-Again, section 5.1",
    full=_SENET_FULL,
    options={"senet": _SENET},
)
SHALLOW = PaperTraining(
    source="Kundu et al., Making Models Shallow Again, 2023, section 5.1",
    full=_SENET_FULL,
    options={"gated": {**_SENET, "gate_epochs": 90, "gate_schedule": "linear"}, "senet": _SENET},
)

DEEPRESHAPE = PaperTraining(
    source="Jha and Reagen, DeepReShape, TMLR 2024, Appendix J",
    full=Training(epochs=200, lr=0.1, batch=128, momentum=0.9, weight_decay=5e-4, schedule="cosine"),
    options={
        "deepreshape": {"warmup_epochs": 20, "temperature": 4.0, "kd_weight": 0.9, "alpha": 1.0},
        "steps": {"warmup_epochs": 20, "temperature": 4.0, "kd_weight": 0.9, "alpha": 1.0},
        "deepreduce": {},
        "snl": _SNL,  # "we used their default implementation"
    },
)

PAPERS: dict[str, PaperTraining] = {
    "deepreduce": DEEPREDUCE,
    "deepreduce-cifar10": DEEPREDUCE_CIFAR10,
    "snl": SNL,
    "autorep": AUTOREP,
    "autorep-public": AUTOREP_PUBLIC,
    "senet": SENET,
    "shallow": SHALLOW,
    "deepreshape": DEEPRESHAPE,
}
NAMES = (PAPER, "short", *PAPERS)  # that a user can give
_OF_METHOD = {"snl": "snl", "autorep": "autorep", "senet": "senet", "gated": "shallow", "deepreshape": "deepreshape"}


def named(name: str) -> PaperTraining:
    """A training by name, `short` among them, which says nothing of any method.

    Raises:
        UserError: there is none; `paper` is none of its own, but that of a method's paper.
    """
    if name == "short":
        return PaperTraining("one-cycle training in a few epochs (Smith & Topin 2017)", SHORT)
    if name not in PAPERS:
        raise UserError(f"no training {name!r}; known are {', '.join(NAMES)}")
    return PAPERS[name]


def of_method(method: str) -> str:
    """The name of the training of a method's own paper; DeepReDuce's for methods whose paper is none of these."""
    return _OF_METHOD.get(method, "deepreduce")


def options_of(training: str, method: str) -> dict[str, Any]:
    """What a training, by name, says of a method's options, nothing of other papers' methods.

    `paper`: what the method's own paper says.
    """
    options = named(of_method(method) if training == PAPER else training).options.get(method, {})
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}


# Options that a method has in short for a field of its search or finetuning.
SHORT_FORMS = {
    "search_epochs": ("search", "epochs"),
    "weight_lr": ("search", "lr"),
    "finetune_epochs": ("finetune", "epochs"),
    "finetune_lr": ("finetune", "lr"),
}


def merged(training: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options under a training, by name: what is given, before what the training says.

    Args:
        given: options that a user or a recipe writes; fields of `search` and `finetune` one by one, and short forms of
            them, go before the training's.
    """
    said = options_of(training, method)
    for name in ("search", "finetune"):
        fields = dict(said.get(name) or {})
        for short, (where, field) in SHORT_FORMS.items():
            if where == name and given.get(short) is not None:
                fields.pop(field, None)
        fields |= given.get(name) or {}
        if fields:
            said[name] = fields
    if given.get("thin"):  # short for a baseline of its own
        said.pop("baseline", None)
    return {**said, **{name: value for name, value in given.items() if name not in ("search", "finetune")}}
