"""Tracing: a module as an fx graph, the shape of every tensor in it, and where a call stands in the module tree."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from parelu.errors import UserError
from parelu.network.outputs import chosen
from parelu.network.tracer import BATCH, Tracer, Untraceable

TOLERANCE = 1e-4  # of the largest number of a tensor, between two ways to compute it in single precision
_APART = "write it for each image by itself, with dimension 0 the images'"


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
    tracer = Tracer(module, lambda m: isinstance(m, leaves) or _is_of_torch(m))
    with at_inference(module):
        batch = images(module, input_shape)
        try:
            result = tracer.run(module, batch, _input_name(module))
        except Exception as error:  # a forward raises whatever it wants to
            raise UserError(_reason(error, tracer, module, input_shape)) from error
        tracer.finish(chosen(result, output))
        traced = fx.GraphModule(_tree(tracer.constants.named, tracer.graph), tracer.graph, type(module).__name__)
        _check_images_are_apart(traced.eval(), batch)
    traced.training = module.training
    traced.meta["notes"] = tracer.constants.notes
    return traced


def unwrapped(module: nn.Module) -> nn.Module:
    """The module in wrappers that only say how it is run: compiled, or on several devices."""
    inner = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
    while type(module).__module__.startswith("torch.") and type(module).__name__ in inner:
        module = getattr(module, inner[type(module).__name__])
    return module


@contextlib.contextmanager
def at_inference(module: nn.Module) -> Iterator[None]:
    """In evaluation mode without gradients; the mode of each part is put back."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def _is_of_torch(module: nn.Module) -> bool:
    is_container = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")) and not is_container


def _input_name(module: nn.Module) -> str:
    """Of a forward's first argument; "x" where it has none of its own."""
    return next(iter(inspect.signature(module.forward).parameters), "x")


def images(module: nn.Module, input_shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A batch of random images, of the module's kind and where its weights are."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = None if first.is_meta else torch.Generator(first.device).manual_seed(seed)
    return torch.rand((BATCH, *input_shape), generator=generator, device=first.device, dtype=first.dtype)


def _reason(error: Exception, tracer: Tracer, module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """What went wrong while a module was traced, in one line."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    where = tracer.owner or type(module).__name__
    if isinstance(error, Untraceable):
        return f"{where}: cannot be traced: {line}"
    if error is tracer.failed:
        return f"{_unfitting(input_shape, error)} (in {where})"
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
    for node in network.graph.nodes:
        if node.op == "output":
            return
        try:
            alone = [_of_one(run, node, i, sizes) for i in range(BATCH)] if node.all_input_nodes else []
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{_place(node)} takes a batch of {BATCH} images alone; {_APART}") from error
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
        raise UserError(f"{_place(node)} gives {tuple(together.shape)} for {BATCH} images; {_APART}")
    if not are_close(together, torch.cat(alone)):
        raise UserError(f"{_place(node)} gives an image another result beside another image, or at random; {_APART}")


def are_close(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to compute a tensor gave the same but for rounding; of what is rounded to whole numbers: yes."""
    if expected.is_meta or not expected.is_floating_point() or not expected.numel():
        return True
    relative = max(TOLERANCE, 100 * torch.finfo(expected.dtype).eps)
    absolute = relative * float(expected.abs().nan_to_num(posinf=0).amax())
    return torch.allclose(found, expected, rtol=0, atol=absolute, equal_nan=True)


def _place(node: fx.Node) -> str:
    path = str(node.target) if node.op == "call_module" else owner(node) or "network"
    module = called_module(node)
    return f"{path}: {type(module).__name__ if module else getattr(node.target, '__name__', node.target)}"


def owner(node: fx.Node) -> str:
    """Path of the module whose forward made this call; "" for the network itself."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def called_module(node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    module = node.graph.owning_module
    assert module is not None
    return module.get_submodule(str(node.target))


class _Shapes(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False  # an error is one line

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            if n.op != "get_attr" and result.shape[:1] != (BATCH,):
                raise UserError(f"{_place(n)} gives {tuple(result.shape)} for {BATCH} images; {_APART}")
            n.meta["shape"] = tuple(result.shape[1:])
        elif n.op != "output":
            n.meta.setdefault("number", result)
        return result


def propagate_shapes(network: fx.GraphModule, input_shape: tuple[int, ...]) -> Tensor:
    """Write every tensor's shape without the batch into `node.meta["shape"]`; returns the output of that run.

    The run is two random images in evaluation mode without gradients; on meta tensors nothing is computed.
    """
    with at_inference(network):
        try:
            return _Shapes(network).run(images(network, input_shape))
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(_unfitting(input_shape, error)) from error


def _unfitting(input_shape: tuple[int, ...], error: Exception) -> str:
    return (
        f"the network does not take an input of shape {'x'.join(map(str, input_shape))}: {str(error).splitlines()[0]}"
    )


def output_shape(network: fx.GraphModule) -> tuple[int, ...]:
    """Of one image's output, where `propagate_shapes` wrote shapes."""
    return next(node.meta["shape"] for node in reversed(network.graph.nodes) if node.op == "output")


def longest_path(network: fx.GraphModule, weight: Callable[[fx.Node], int]) -> int:
    """Largest sum of `weight` over a path from the input to the output."""
    best: dict[fx.Node, int] = {}
    for node in network.graph.nodes:
        before = max((best[n] for n in node.all_input_nodes), default=0)
        best[node] = before + weight(node)
    return max(best.values(), default=0)


def calls(network: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[fx.Node, Any]]:
    """Each call of a module of one of these kinds, in order of execution, with the module."""
    for node in network.graph.nodes:
        module = called_module(node)
        if isinstance(module, kinds):
            yield node, module
