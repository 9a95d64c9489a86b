"""A recipe at a scale that two cores do in minutes: narrower networks, fewer images and epochs, images that are here.

Steps, options and labels stay, budgets keep their shares of the ReLUs (of many, three), and the networks' widths their
ratios, so that the shape of a table can be seen; its figures cannot be compared with the paper's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from parelu.errors import UserError
from parelu.methods.autorep import AutoReP
from parelu.methods.base import Method
from parelu.methods.budget import parse_budget
from parelu.methods.gated import Gated
from parelu.methods.learned import LearnedMasks
from parelu.methods.limits import is_of_query
from parelu.methods.snl import SNL
from parelu.methods.steps import Steps
from parelu.models.vgg import VGG16
from parelu.models.wide_resnet import WideResNet
from parelu.network.count import Counts, counts
from parelu.network.spec import Spec, scaled, spec_of
from parelu.network.steps import apply_steps
from parelu.runs.dry_run import stated
from parelu.runs.experiment import Experiment, Reduction, spread
from parelu.training.schedule import SHORT

DATA, INPUT, CLASSES, IMAGES = "colour-fashion", (3, 16, 16), 10, 24_000
OWN_DATA = ("digits", "colour-digits", "fashion-mnist", DATA)  # which stay what they are
# From fresh weights: few epochs of many images. The other way round, 20 of 6,000, accuracy hangs on which weights these
# are (docs/results.md).
FULL = SHORT.changed(epochs=5, batch=128, lr=0.4)
SEARCH, FINETUNE = 4, 2  # epochs
BUDGETS = 3  # of an entry, at the most
FASTER = 10  # rates of Adam: 750 steps instead of the 50,000 and more of the papers' searches
MACS = 6e6  # an image, the mean over a recipe's networks; a teacher of its own at most twice as many
LEAST, LEAST_REUSED = 4, 8  # channels of the first stage; ReLU-reuse by 16 needs 16 in the second


OURS = {"torchvision:efficientnet_b2": "efficientnet-b2 (relu)"}  # networks of others that have one of ours like them


def small(experiments: Sequence[Experiment], whole: Sequence[Experiment]) -> list[Experiment]:
    """Experiments of one recipe, smaller; whole: all of it, which decides by how much."""
    factor = _factor([_own(one) for one in whole])
    return [_small(_own(one), factor) for one in experiments]


def _own(one: Experiment) -> Experiment:
    """Of a network of ours, from fresh weights."""
    name = OURS.get(str(one.model))
    return one if name is None else dataclasses.replace(one, model=name, replace="", weights=None, pretrained=False)


def difference(before: Sequence[Experiment], after: Sequence[Experiment]) -> str:
    """What `small` changed, in words."""
    first = after[0]
    networks = ", ".join(dict.fromkeys(str(one.model) for one in after))
    shape = "x".join(map(str, first.input or ()))
    return (
        f"small scale: {networks}, {first.images:,} images of {first.data} at {shape} instead of {before[0].data}; "
        f"{first.training.epochs} epochs from fresh weights, {SEARCH} of a search, {FINETUNE} of finetuning"
    )


def _small(one: Experiment, factor: float) -> Experiment:
    shape, classes = stated(one)
    full = counts(spec_of(str(one.model), shape, classes))
    model = narrowed(str(one.model), factor)
    spec = spec_of(model, INPUT, CLASSES) if isinstance(model, str) else model
    return dataclasses.replace(
        one,
        model=model,
        teacher=one.teacher and _teacher(str(one.teacher)),
        data=one.data if one.data in OWN_DATA else DATA,
        input=INPUT if one.data != "fashion-mnist" else (1, *INPUT[1:]),
        images=min(one.images or IMAGES, IMAGES),
        training=FULL,
        reductions=tuple(_reduction(reduction, full, spec) for reduction in one.reductions),
    )


def narrowed(name: str, factor: float) -> str | Spec:
    """A network with `factor` times the channels: its name, or the spec where its family has no width in its names.

    Raises:
        UserError: that is no whole number of channels.
    """
    spec = spec_of(name, INPUT, CLASSES)
    if factor == 1:
        return name
    wanted = _narrow_blocks(spec, factor) if isinstance(spec, WideResNet) else spec.scale_channels(factor)
    if isinstance(wanted, WideResNet):
        return f"wrn-{wanted.depth}-{wanted.widen} m={wanted.stem}"
    plain = re.sub(r" m=\d+", "", name)
    width = f" m={getattr(wanted, 'stem', 0)}"
    hidden = (
        [f" ({'-'.join(map(str, wanted.hidden))} classifier)"] if isinstance(wanted, VGG16) and wanted.hidden else []
    )
    for found in (plain + width, "".join([plain.partition(" ")[0], width, *hidden])):
        if _is_named(found, wanted):
            return found
    return wanted


def _narrow_blocks(spec: WideResNet, factor: float) -> WideResNet:
    """Less wide blocks first, and then a narrower stem: it has the colours to keep."""
    widen = spec.widen * factor
    if widen >= 1:
        return dataclasses.replace(spec, widen=scaled(spec.widen, factor, f"{spec.widen} times the channels"))
    return dataclasses.replace(spec, widen=1, stem=scaled(spec.stem, widen, f"{spec.stem} channels"))


def _is_named(name: str, spec: Spec) -> bool:
    try:
        return spec_of(name, spec.input, spec.classes) == spec
    except UserError:
        return False


def _factor(experiments: Sequence[Experiment]) -> float:
    """The largest power of 1/2 that brings the mean of the networks' multiply-adds below MACS, and none below LEAST."""
    named = {str(one.model): one for one in experiments}
    specs = {name: spec_of(name, INPUT, CLASSES) for name in named}
    mean = sum(counts(spec).macs for spec in specs.values()) / len(specs)
    least = max(_least(one) / _width(specs[name]) for name, one in named.items())
    return _halved(mean, MACS, least)


def _halved(macs: float, wanted: float, least: float) -> float:
    """1, 1/2, 1/4, …: the first that brings the multiply-adds to those wanted, or the last that is not too small."""
    factor = 1.0
    while macs * factor**2 > wanted and factor / 2 >= least:
        factor /= 2
    return factor


def _least(one: Experiment) -> int:
    """Channels that an experiment's first stage needs."""
    reused = any("reuse" in steps for r in one.reductions if isinstance(r.method, Steps) for steps in r.method.steps)
    return LEAST_REUSED if reused or any(r.method.name == "deepreshape" for r in one.reductions) else LEAST


def _teacher(name: str) -> str | Spec:
    spec = spec_of(name, INPUT, CLASSES)
    return narrowed(name, _halved(counts(spec).macs, 2 * MACS, LEAST / _width(spec)))


def _width(spec: Spec) -> int:
    """Channels of the first stage."""
    return getattr(spec, "stem", 32) * getattr(spec, "widen", 1)


def _reduction(reduction: Reduction, full: Counts, spec: Spec) -> Reduction:
    whole = full.relus + full.comparisons
    for text in filter(is_of_query, reduction.budgets):
        raise UserError(f"budget {text!r} is of this network's queries, and a smaller one's take less; give ReLUs")
    kept = [parse_budget(text, full.relus, full.comparisons) + full.comparisons for text in reduction.budgets]
    budgets = tuple(f"{number / whole:.6f}" for number in spread(kept, BUDGETS))
    return dataclasses.replace(reduction, method=_method(reduction.method, spec), budgets=budgets)


def _method(method: Method, spec: Spec) -> Method:
    """A method with the epochs of this scale; what a paper says of rates that hang on the epochs goes with them.

    Steps that the narrower network cannot take, such as ReLU-reuse by more than its channels, are left out.
    """
    if isinstance(method, Steps):
        epochs = method.warmup_epochs and max(
            1, round(FULL.epochs * method.warmup_epochs / 200)
        )  # of DeepReShape's 200
        possible = tuple(steps for steps in method.steps if _is_possible(spec, steps))
        return dataclasses.replace(method, steps=possible, warmup_epochs=epochs)
    if not isinstance(method, LearnedMasks):
        return method
    epochs = {"search_epochs": SEARCH, "finetune_epochs": FINETUNE}
    changes: dict[str, Any] = {**epochs, "search": _shorter(method.search, SEARCH)}
    changes["finetune"] = _shorter(method.finetune, FINETUNE)
    if isinstance(method, SNL) and method.schedule == "paper":  # λ creeps once an epoch, for hundreds of them
        changes |= {"schedule": "fast", "slope_lr": None, "weight_lr": None, "search": None, "finetune": None}
    if isinstance(method, AutoReP) and method.search:
        changes |= _annealed(method, changes["search"])
    if isinstance(method, Gated) and method.gate_epochs:
        whole: Any = (method.finetune or {}).get("epochs", method.finetune_epochs) or FULL.epochs
        changes["gate_epochs"] = max(1, round(method.gate_epochs * FINETUNE / whole))
    return dataclasses.replace(method, **changes)


def _is_possible(spec: Spec, steps: str) -> bool:
    try:
        apply_steps(spec, steps)
    except UserError:
        return False
    return True


def _annealed(method: AutoReP, search: Mapping[str, Any]) -> dict[str, Any]:
    """AutoReP's options for a search that is too short to come down to a budget by its penalty alone.

    The indicators move as in the method's defaults, the threshold is as many of their steps as in the paper, and one
    search passes through all budgets, so that each is finetuned after it. Rates this high need what keeps squares in a
    row from a blow-up: the clipped gradient, and the loss term against images that stand out.
    """
    plain = AutoReP()
    search = {**search, "clip": plain.clip}
    return {
        "search": search,
        "tails": plain.tails,
        "indicator_lr": plain.indicator_lr,
        "threshold": method.threshold * plain.indicator_lr / method.indicator_lr,
        "spread": plain.spread,
        "anneal": True,
        "mu": plain.mu if isinstance(method.mu, Mapping) else method.mu,
        "finetune": {**search, "epochs": FINETUNE},
    }


def _shorter(given: Mapping[str, Any] | None, epochs: int) -> dict[str, Any] | None:
    """What a paper says of a search's or a finetuning's training, in fewer epochs."""
    if not given or given.get("epochs") == 0:
        return dict(given) if given else None
    found = {**given, "epochs": epochs, "batch": FULL.batch}
    if "milestones" in given:
        moved = {round(milestone * epochs / given["epochs"]) for milestone in given["milestones"]}
        found["milestones"] = sorted(milestone for milestone in moved if 0 < milestone < epochs)
    if given.get("optimizer") == "adam":
        found["lr"] = FASTER * given["lr"]
    return found
