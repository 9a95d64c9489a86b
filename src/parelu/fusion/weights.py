"""The weights of convolutions that are composed, spread or regrouped (`composition.py`)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parelu.fusion.composition import Convolution, pair


def compose(first: Convolution, weight: Tensor, second: Convolution, after: Tensor) -> Tensor:
    """The weight of `first.before(second)`; weight and after: theirs."""
    whole = first.before(second)
    groups, (rows, columns) = whole.groups, first.stride
    w1 = _regrouped(weight, first, groups).unflatten(0, (groups, -1))
    w2 = _regrouped(after, second, groups).unflatten(0, (groups, -1))
    result = weight.new_zeros(whole.weight_shape).unflatten(0, (groups, -1))
    for i in range(second.kernel[0]):
        for j in range(second.kernel[1]):
            top, left = rows * i, columns * j
            part = torch.einsum("gnm,gmcab->gncab", w2[..., i, j], w1)
            result[..., top : top + first.kernel[0], left : left + first.kernel[1]] += part
    return result.flatten(0, 1)


def expanded(layer: Convolution, weight: Tensor) -> Tensor:
    """The weight of `layer.expanded`."""
    if layer.dilation == (1, 1):
        return weight
    (rows, columns), kernel = layer.dilation, pair(reach for _, reach, _, _ in layer.axes())
    wide = weight.new_zeros((*weight.shape[:2], *kernel))
    wide[:, :, ::rows, ::columns] = weight
    return fitted(dataclasses.replace(layer, kernel=kernel, dilation=(1, 1)), wide, layer.expanded)


def fitted(layer: Convolution, weight: Tensor, into: Convolution) -> Tensor:
    """The weight of the same map with the kernel, padding and groups of `into`, which differ by rows of zeros."""
    weight = _regrouped(weight, layer, into.groups)
    result = weight.new_zeros(into.weight_shape)
    there, here = [], []
    for k, p, wide, ahead in zip(layer.kernel, layer.padding, into.kernel, into.padding, strict=True):
        start, end = max(0, p - ahead), min(k, wide + p - ahead)
        here.append(slice(start, end))
        there.append(slice(start + ahead - p, end + ahead - p))
    result[:, :, there[0], there[1]] = weight[:, :, here[0], here[1]]
    return result


def _regrouped(weight: Tensor, layer: Convolution, groups: int) -> Tensor:
    """The weight of the same map written with fewer groups, a divisor of its own."""
    if groups == layer.groups:
        return weight
    outputs, inputs = layer.outputs // layer.groups, layer.inputs // layer.groups
    together = layer.groups // groups
    result = weight.new_zeros((layer.outputs, layer.inputs // groups, *layer.kernel))
    for group in range(layer.groups):
        own, place = slice(group * outputs, (group + 1) * outputs), group % together * inputs
        result[own, place : place + inputs] = weight[own]
    return result
