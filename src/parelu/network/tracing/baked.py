"""Layers whose weights are computed whenever they are called, as layers with the weights that come of it now."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize


def baked(module: nn.Module) -> tuple[nn.Module, str]:
    """The module itself, or where its weights are computed (parametrizations, weight and spectral norm, pruning) one
    with parameters in their place; and what was computed, in words. Other parameters are shared.

    module: a layer of torch.nn, in evaluation mode and called before.
    """
    computed: dict[str, Tensor] = {}
    if parametrize.is_parametrized(module):
        computed = {name: getattr(module, name) for name in module.parametrizations}  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    hooks = {key: hook for key, hook in module._forward_pre_hooks.items() if computes_weights(hook)}
    if hooks:
        computed |= {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    if not computed:
        return module, ""
    kind = parametrize.type_before_parametrizations(module)
    plain: nn.Module = object.__new__(kind)
    plain.__dict__ |= module.__dict__
    plain._modules = {name: part for name, part in module._modules.items() if name != "parametrizations"}
    plain._forward_pre_hooks = type(module._forward_pre_hooks)(
        (key, hook) for key, hook in module._forward_pre_hooks.items() if key not in hooks
    )
    kept = {name: p for name, p in module._parameters.items() if not _is_part(name, computed)}
    plain._buffers = {name: b for name, b in module._buffers.items() if not _is_part(name, computed)}
    plain._parameters = {}
    for name, value in computed.items():
        plain.__dict__.pop(name, None)
        plain._parameters[name] = nn.Parameter(value.detach().clone())
    plain._parameters |= kept
    return plain, f"the network computes its {' and its '.join(computed)}; it is kept as it is now"


def computes_weights(hook: object) -> bool:
    """Whether a hook sets a weight: weight norm and spectral norm of before parametrizations, and pruning."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _is_part(name: str, computed: dict[str, Tensor]) -> bool:
    """Whether a parameter or buffer is one that a weight is computed of: weight_g, weight_orig, weight_mask."""
    return any(name.startswith(f"{weight}_") for weight in computed)
