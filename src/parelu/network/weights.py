"""Named weights and the network they are for: what fits, under which prefix, and what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from parelu.errors import UserError, shown

COUNTER = "num_batches_tracked"  # of a batch-norm, which inference does not read
NAMED = 3  # so many names stand in an error
DROPPED_COUNTERS = ("n_averaged",)  # what torch.optim.swa_utils.AveragedModel adds


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises `UserError` with the first tensor that holds a NaN or an infinity."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        numbers = tensor.float() if tensor.element_size() == 1 else tensor  # of eight bits torch knows little
        if not (finite := numbers.isfinite()).all():
            found = numbers[~finite]
            kind = "NaN" if found.isnan().any() else "infinite"
            raise UserError(
                f"the weights' {shown(name)} has {found.numel():,} of {tensor.numel():,} numbers not finite ({kind}); "
                "take a checkpoint from before its training diverged"
            )


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises `UserError` with the names and shapes that differ, where any does."""
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((own, weights), (weights, own)))
    shapes = [n for n, tensor in own.items() if n in weights and tensor.shape != weights[n].shape]
    problems = []
    if missing:
        problems.append(f"lack {_some(missing)}")
    if unknown:
        problems.append(f"have an unknown {_some(unknown)}" if len(unknown) == 1 else f"have unknown {_some(unknown)}")
    if shapes:
        problems.append(_shape_problem(own, weights, shapes))
    if not problems:
        return
    head = _classifier_of_others(own, weights, shapes) if not missing and not unknown else ""
    raise UserError(f"the weights {'; they '.join(problems)}; {head or 'they are of another network'}")


def _some(names: Sequence[str]) -> str:
    """A name; of several, how many and the first ones."""
    more = ", …" if len(names) > NAMED else ""
    first = [shown(name, 60) for name in names[:NAMED]]
    return first[0] if len(names) == 1 else f"{len(names)} tensors ({', '.join(first)}{more})"


def _shape_problem(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Sequence[str]) -> str:
    first = names[0]
    others = f", and {len(names) - 1} more do not fit" if len(names) > 1 else ""
    return f"have {shown(first)} as {tuple(weights[first].shape)}, the network as {tuple(own[first].shape)}{others}"


def _classifier_of_others(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """What to do where all fits but the number of classes of one layer, the classifier."""
    layers = {name.rpartition(".")[0] for name in names}
    same_but_first = all(own[n].shape[1:] == weights[n].shape[1:] for n in names)
    if len(layers) != 1 or not same_but_first:
        return ""
    theirs, ours = (tensors[names[0]].shape[0] for tensors in (weights, own))
    return (
        f"their classifier tells {theirs:,} classes apart, the network's {ours:,}: take weights finetuned for {ours:,} "
        f"classes, or data of {theirs:,}"
    )


def fit_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What of a checkpoint is the module's state dict, in its own types; and notes on what was done to it.

    A prefix of the names ("module.", "model.", "teacher.backbone.") goes where the network's names stand behind it;
    what has another name than that is of another network, such as a head of the training, and is left. Counters of
    batches that batch-norms keep may be missing.

    Raises:
        UserError: tensors are missing, unknown, of another shape, not finite, or no numbers of the kind needed.
    """
    own = module.state_dict()
    notes = list(getattr(weights, "notes", ()))
    found, note = _without_prefix(own, weights)
    notes += [note] if note else []
    found = {n: t for n, t in found.items() if n in own or n.rpartition(".")[2] not in (COUNTER, *DROPPED_COUNTERS)}
    counters = (n for n in own if n not in found and n.rpartition(".")[2] == COUNTER)
    found |= {n: torch.zeros(own[n].shape, dtype=own[n].dtype) for n in counters}
    check_fit(own, found)
    check_finite(found)
    rounded = {str(t.dtype) for n, t in found.items() if t.dtype != own[n].dtype and t.is_floating_point()}
    notes += [f"weights of {dtype} became {_default(own)}" for dtype in sorted(rounded)]
    return {name: _as(name, found[name], tensor.dtype) for name, tensor in own.items()}, tuple(notes)


def _default(own: Mapping[str, Tensor]) -> torch.dtype:
    return next((t.dtype for t in own.values() if t.is_floating_point()), torch.float32)


def _as(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the network's type, as far as that keeps what the numbers are."""
    is_counter = name.endswith(COUNTER)  # a cast of the whole state dict casts it too
    if tensor.is_complex() or (tensor.is_floating_point() != dtype.is_floating_point and not is_counter):
        raise UserError(
            f"the weights' {shown(name)} is of {tensor.dtype}, the network's of {dtype}; they are quantised: "
            "take the float checkpoint"
        )
    return tensor.to(dtype)


def _without_prefix(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under the prefix that all of the network's names have there; all as they are where there is none.

    Where no prefix gives all of them, the one of all names of the checkpoint goes as far as it brings more together.
    """
    needed = {name for name in own if name.rpartition(".")[2] != COUNTER}
    if not needed or needed <= weights.keys():
        return dict(weights), ""
    whole = [p for p in _prefixes(min(needed), weights) if all(p + name in weights for name in needed)]
    if len(whole) > 1:
        raise UserError(
            f"the weights hold the network {len(whole)} times, under {' and '.join(map(repr, whole))}; "
            "save the one you mean alone"
        )
    common = [p for p in _common_prefixes(weights) if any(p + name in weights for name in needed)]
    prefix = whole[0] if whole else max(common, key=len, default="")
    if not prefix:
        return dict(weights), ""
    inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    left = len(weights) - len(inside)
    others = sorted(n for n in weights if not n.startswith(prefix))
    aside = f"; left aside, outside of it: {_some(others)}" if left else ""
    return inside, f"the prefix {prefix!r} of the weights' names was taken off{aside}"


def _prefixes(name: str, weights: Mapping[str, Tensor]) -> list[str]:
    """What stands before a name of the network in the checkpoint's names, in order."""
    return sorted({n.removesuffix(name) for n in weights if n.endswith("." + name)})


def _common_prefixes(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """The dotted beginnings that all names share."""
    names = list(weights)
    parts = names[0].split(".")[:-1] if names else []
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length]) + "."
        if not all(name.startswith(prefix) for name in names):
            return
        yield prefix
