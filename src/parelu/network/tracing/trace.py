"""Tracing: a module as an fx graph in which no image depends on another."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from parelu.errors import UserError
from parelu.network.nodes import APART, BATCH, at_inference, check_names, images, place, unfitting
from parelu.network.tracing.baked import computes_weights
from parelu.network.tracing.outputs import chosen
from parelu.network.tracing.tracer import Tracer, Untraceable

TOLERANCE = 1e-4  # of the largest number of a tensor, between two ways to compute it in single precision


def trace(
    module: nn.Module,
    input_shape: tuple[int, ...],
    leaves: tuple[type[nn.Module], ...] = (),
    output: int | str | None = None,
) -> fx.GraphModule:
    """What a module's forward does to an image at inference, as an fx graph.

    Modules of torch.nn stay calls of modules, with their weights, that follow the mode (batch-norm, dropout); all
    other calls are functions of torch and methods of tensors, out of place. What does not depend on the image is
    computed; parameters and buffers that are read as they are keep their names. `meta["notes"]` says what was computed
    of weights, `node.meta["shape"]` is each tensor's shape without the batch.

    Args:
        module: maps (batch, *input_shape) to (batch, classes); its mode is left as it is.
        input_shape: (C, H, W).
        leaves: more kinds of modules whose calls stay calls.
        output: which of several outputs is the logits: an index, or a name.

    Raises:
        UserError: the module asks for tensors' values, raises, does not take the input, or mixes images.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"the model is a {type(module).__name__}; give a torch.nn.Module")
    module = unwrapped(module)
    tracer = Tracer(module, lambda m: isinstance(m, leaves) or (_is_of_torch(m) and not _does_more(m)))
    with at_inference(module):
        batch = images(module, input_shape)
        try:
            result = tracer.run(module, batch, _input_name(module))
        except Exception as error:  # a forward raises whatever it wants to
            raise UserError(_reason(error, tracer, module, input_shape)) from error
        tracer.finish(chosen(result, output))
        check_names(str(node.target) for node in tracer.graph.nodes if node.op in ("call_module", "get_attr"))
        traced = fx.GraphModule(_tree(tracer.constants.named, tracer.graph), tracer.graph, type(module).__name__)
        _check_images_are_apart(traced.eval(), batch)
    traced.training = getattr(module, "training", False)
    traced.meta["notes"] = tracer.constants.notes
    return traced


def unwrapped(module: nn.Module) -> nn.Module:
    """The module in wrappers that only say how it is run: compiled, or on several devices."""
    inner = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
    while type(module).__module__.startswith("torch.") and type(module).__name__ in inner:
        module = getattr(module, inner[type(module).__name__])
    return module


def _is_of_torch(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not is_container


def _does_more(module: nn.Module) -> bool:
    """Whether a call of it is more than its class says: it has hooks, or a forward of its own."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return "forward" in vars(module) or not all(map(computes_weights, hooks))


def _input_name(module: nn.Module) -> str:
    """Of a forward's first argument; "x" where it has none of its own, or is a script that names none."""
    try:
        return next(iter(inspect.signature(module.forward).parameters), "x")
    except ValueError:
        return "x"


def _reason(error: Exception, tracer: Tracer, module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """What went wrong while a module was traced, in one line."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    where = tracer.owner or type(module).__name__
    if isinstance(error, Untraceable):
        return f"{where}: cannot be traced: {line}"
    if error is tracer.failed:
        return f"{unfitting(input_shape, error)} (in {where})"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where}: its forward raises {type(error).__name__}: {line} ({place.filename}:{place.lineno})"


def _tree(attributes: Mapping[str, Tensor | nn.Module], graph: fx.Graph) -> nn.Module:
    """Modules and tensors at their dotted names, in the order in which the graph uses them."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        *parents, name = str(node.target).split(".")
        holder = root
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, nn.Module())
            holder = getattr(holder, parent)
        value = attributes[str(node.target)]
        if getattr(holder, name, None) is value:
            continue
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            holder.register_buffer(name, value)
        else:
            setattr(holder, name, value)
    return root


def _check_images_are_apart(network: fx.GraphModule, images: Tensor) -> None:
    """Raise `UserError` where a call gives an image another result beside others, or moves the images elsewhere."""
    run = fx.Interpreter(network)
    run.args_iter = iter((images.clone(),))
    sizes: dict[fx.Node, Any] = {}  # for one image
    looked_at = range(1 if images.is_meta else BATCH)  # where there are shapes alone, all images have the same
    for node in network.graph.nodes:
        if node.op == "output":
            return
        try:
            alone = [_of_one(run, node, i, sizes) for i in looked_at] if node.all_input_nodes else []
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{place(node)} takes a batch of {BATCH} images alone; {APART}") from error
        run.env[node] = together = run.run_node(node)
        for read in run.user_to_last_uses.get(node, ()):
            del run.env[read]
        if not isinstance(together, Tensor):
            sizes[node] = alone[0]
        elif alone:
            _check_apart(node, together, alone)


def _of_one(run: fx.Interpreter, node: fx.Node, i: int, sizes: Mapping[fx.Node, Any]) -> Any:
    """What a call makes of the parts of its arguments that belong to one image."""

    def part(term: fx.Node) -> Any:
        if term in sizes and not isinstance(run.env[term], tuple | list | dict):
            return sizes[term]
        value = run.env[term]
        return value if term.op == "get_attr" else map_aggregate(value, lambda t: _image(t, i))

    args, kwargs = fx.map_arg(node.args, part), fx.map_arg(node.kwargs, part)
    return getattr(run, node.op)(node.target, args, kwargs)


def _image(value: Any, i: int) -> Any:
    return value[i : i + 1].clone() if isinstance(value, Tensor) else value


def _check_apart(node: fx.Node, together: Tensor, alone: list[Tensor]) -> None:
    if together.shape[:1] != (BATCH,) or any(one.shape != (1, *together.shape[1:]) for one in alone):
        raise UserError(f"{place(node)} gives {tuple(together.shape)} for {BATCH} images; {APART}")
    if not together.is_meta and not are_close(together, torch.cat(alone)):
        what = "gives an image another result beside another image, or at random"
        raise UserError(f"{place(node)} {what}; {_remedy(node)}")


def are_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to compute a tensor gave the same but for rounding; of what is rounded to whole numbers: yes."""
    if expected.is_meta or not expected.is_floating_point() or not expected.numel():
        return True
    relative = max(TOLERANCE, 100 * torch.finfo(expected.dtype).eps)
    absolute = relative * float(expected.abs().nan_to_num(posinf=0).amax())
    return torch.allclose(found.to(expected.dtype), expected, rtol=0, atol=absolute, equal_nan=True)


def _remedy(node: fx.Node) -> str:
    is_dropout = "dropout" in str(getattr(node.target, "__name__", node.target))
    return "give it training=self.training, or use nn.Dropout" if is_dropout else APART
