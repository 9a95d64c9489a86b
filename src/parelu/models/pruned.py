"""A network whose layers lost channels: another network's architecture with other widths."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any, ClassVar

from torch import nn

from parelu.errors import UserError
from parelu.network.spec import Spec, spec_from_json


@dataclasses.dataclass(frozen=True)
class Pruned(Spec):
    """A network after channel pruning. It has no name; `Pruned.of` reads its widths off a module.

    Attributes:
        base: the JSON of the architecture that was pruned.
        sizes: inputs and outputs of each convolution, linear layer and batch-norm, in the order of the modules.
    """

    family: ClassVar[str] = "pruned"
    examples: ClassVar[tuple[str, ...]] = ()

    base: str
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, spec: Spec, module: nn.Module) -> Pruned:
        """module: what is left of the module that the spec builds."""
        sizes = tuple(size for _, layer in _layers(module) for size in _sizes(layer))
        return cls(spec.input, spec.classes, json.dumps(spec.to_json(), sort_keys=True), sizes)

    @classmethod
    def from_name(cls, name: str, input: tuple[int, int, int], classes: int) -> Pruned | None:
        return None

    def scale_channels(self, factor: float) -> Pruned:
        raise UserError(f"the channels of a pruned network cannot be scaled by {factor:g}; prune it further")

    def module(self) -> nn.Module:
        try:
            base = spec_from_json(json.loads(self.base))
        except ValueError as error:
            raise UserError(f"a pruned network's base is not valid JSON ({error})") from error
        module = dataclasses.replace(base, input=self.input, classes=self.classes).module()
        layers = _layers(module)
        if len(self.sizes) != 2 * len(layers) or not all(1 <= size <= 1 << 20 for size in self.sizes):
            raise UserError(f"a pruned {base.family} with {len(self.sizes)} sizes for {len(layers)} layers")
        for (name, layer), inputs, outputs in zip(layers, self.sizes[::2], self.sizes[1::2], strict=True):
            if _sizes(layer) != (inputs, outputs):
                module.set_submodule(name, _resized(layer, inputs, outputs))
        return module


def _layers(module: nn.Module) -> list[tuple[str, Any]]:
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _sizes(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.num_features, layer.num_features


def _resized(layer: Any, inputs: int, outputs: int) -> nn.Module:
    """A layer with fresh weights and otherwise the same; one with a group a channel stays so."""
    options: dict[str, Any] = {"device": next(itertools.chain(layer.parameters(), layer.buffers())).device}
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        options["bias"] = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, **options)
    if isinstance(layer, nn.Conv2d):
        groups = inputs if layer.groups == layer.in_channels > 1 else layer.groups
        if inputs % groups or outputs % groups:
            raise UserError(f"a convolution of {inputs} to {outputs} channels cannot have {groups} groups")
        same = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        return nn.Conv2d(inputs, outputs, groups=groups, **{name: getattr(layer, name) for name in same}, **options)
    return type(layer)(outputs, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, **options)
