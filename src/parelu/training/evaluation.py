"""What is read off a network in evaluation mode: accuracy, ranges, gradients; and its batch-norms set anew."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parelu import data
from parelu.data.dataset import Dataset
from parelu.data.readers.base import Images
from parelu.network.plan import Plan
from parelu.network.sites import Network
from parelu.training import ranks
from parelu.training.batches import autocast, device, fit, moved, normalised_batches, resident
from parelu.training.norms import shared_statistics
from parelu.training.schedule import Training


def accuracy(network: Network, split: Images, dataset: Dataset, batch: int = 512) -> float:
    """Top-1 accuracy in percent of a network, in evaluation mode; images whose logits are not finite count as wrong."""
    return 100 * _count(network, split, dataset, batch, lambda logits, labels: logits.argmax(1) == labels) / len(split)


def unbounded(network: Network, split: Images, dataset: Dataset, batch: int = 512) -> float:
    """Images in percent whose logits are not finite, in evaluation mode: squares in a row grow without bound."""
    finite = _count(network, split, dataset, batch, lambda logits, labels: torch.ones_like(labels, dtype=torch.bool))
    return 100 * (len(split) - finite) / len(split)


def _count(
    network: Network, split: Images, dataset: Dataset, batch: int, is_so: Callable[[Tensor, Tensor], Tensor]
) -> int:
    """Images with finite logits of which something is so; counted on the device, and read once."""
    total = torch.zeros((), dtype=torch.int64, device=device())
    for logits, labels in _outputs(network, split, dataset, batch):
        total += (is_so(logits, labels) & logits.isfinite().all(1)).sum()
    ranks.add_up(total)
    return int(total)


def _outputs(network: Network, split: Images, dataset: Dataset, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, in evaluation mode, of batches in order, of which each rank has its own."""
    was_training = network.training
    network.eval().to(device())
    with torch.no_grad(), autocast():
        for images, labels in resident(split).in_order(batch, ranks.mine()):
            pixels = data.normalise(moved(images), dataset.mean, dataset.std)
            yield network(fit(pixels, network)), moved(labels)
    network.train(was_training)


def recalibrate(network: Network, dataset: Dataset, training: Training, seed: int, batches: int = 40) -> None:
    """Set the batch-norms' running statistics to the medians over the last epoch's first batches.

    After squares one image that stands out moves a running variance, or a mean of variances, by far more than itself.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    means, variances = ([[] for _ in norms] for _ in range(2))
    for norm in norms:
        norm.momentum = 1.0  # the running statistics are those of the latest batch
    network.train()
    with torch.no_grad(), autocast(), shared_statistics(network):
        for images, _ in itertools.islice(normalised_batches(dataset, training, seed, training.epochs - 1), batches):
            network(fit(images, network))
            for norm, mean, variance in zip(norms, means, variances, strict=True):
                mean.append(norm.get_buffer("running_mean").clone())
                variance.append(norm.get_buffer("running_var").clone())
    network.eval()
    for norm, momentum, mean, variance in zip(norms, momenta, means, variances, strict=True):
        norm.momentum = momentum
        norm.get_buffer("running_mean").copy_(torch.stack(mean).median(0).values)
        norm.get_buffer("running_var").copy_(torch.stack(variance).median(0).values)


def ranges(network: Network, split: Images, dataset: Dataset, batch: int = 512) -> dict[str, tuple[float, float]]:
    """Site with squares → least and greatest input over the images of a split, in evaluation mode.

    Without images whose input there is not finite; a site where none is left is left out.
    """
    plan = Plan.of(network)
    squared = {name: site for name, site in network.sites.items() if plan.sites[name].squares}
    none = torch.tensor(torch.inf, device=device())
    found = dict.fromkeys(squared, (none, -none))

    def extend(site: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0].flatten(1)
        images = images[images.isfinite().all(1)]
        if len(images):
            low, high = torch.aminmax(images)
            before = found[str(site.name)]
            found[str(site.name)] = (torch.minimum(before[0], low), torch.maximum(before[1], high))

    hooks = [site.register_forward_pre_hook(extend) for site in squared.values()]
    accuracy(network, split, dataset, batch)
    for hook in hooks:
        hook.remove()
    if not found:
        return {}
    least, greatest = (torch.stack([pair[end] for pair in found.values()]) for end in (0, 1))
    ranks.extremes(least, greatest)
    pairs = zip(found, zip(least.tolist(), greatest.tolist(), strict=True), strict=True)
    return {name: (low, high) for name, (low, high) in pairs if low <= high}


def slope_gradients(network: Network, dataset: Dataset, images: int, seed: int, batch: int = 128) -> dict[str, Tensor]:
    """Site → ∂L/∂a, `site.shape`, of activations a·relu(x) + (1 − a)·x at a = 1.

    L is the cross-entropy, the mean over `images` training images drawn by the seed, with the network in evaluation
    mode. The gradient of one position is the mean of its output's gradient times (relu(x) − x).
    """
    split, count = dataset.train, min(images, len(dataset.train))
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    totals = {name: torch.zeros(site.shape, device=device()) for name, site in network.sites.items()}

    def collect(site: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        total, falls = totals[str(site.name)], F.relu(-inputs[0].detach())

        def add(gradient: Tensor) -> None:
            total.add_((gradient * falls).sum(0))

        output.register_hook(add)

    hooks = [site.register_forward_hook(collect) for site in network.sites.values()]
    network.eval().to(device()).requires_grad_(False)
    for drawn, labels in split.parts(chosen.split(batch)[ranks.mine()]):
        pixels = data.normalise(drawn.to(device()), dataset.mean, dataset.std)
        logits = network(fit(pixels, network).requires_grad_())  # no other gradient is needed
        (F.cross_entropy(logits, labels.to(device()), reduction="sum") / count).backward()
    for hook in hooks:
        hook.remove()
    ranks.add_up(*totals.values())
    return {name: total.cpu() for name, total in totals.items()}
