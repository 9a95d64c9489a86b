"""Recording what a module's forward does to an image, as an fx graph.

The forward is run as it is, on real tensors, in a mode that sees every call of torch: so shapes are numbers, the types
are torch's own, and whatever does not depend on the image is simply computed. What a call does to the image, or to
what came of it, becomes a node. In-place calls are recorded out of place: every name of a tensor is one object here.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from parelu.network.nodes import BATCH
from parelu.network.spec import AUXILIARY
from parelu.network.tracing import calls
from parelu.network.tracing.baked import baked
from parelu.network.tracing.constants import Constants
from parelu.network.tracing.memory import Memory, version


class Untraceable(Exception):
    """A forward does what no graph can: what it is, and what to do instead."""

    @classmethod
    def values(cls, name: str) -> Untraceable:
        return cls(f"it reads a tensor's values by {name}; make it free of control flow that depends on them")


class BatchSize(int):
    """The number of images, or what was computed of it: a number to Python, a node to the graph."""

    node: fx.Node

    @classmethod
    def at(cls, value: int, node: fx.Node, alone: int) -> BatchSize:
        """alone: the value for a batch of one."""
        size = cls(value)
        size.node = node
        node.meta["number"] = alone
        return size


def _arithmetic(call: Callable[[Any, Any], Any], is_reflected: bool) -> Callable[[BatchSize, Any], Any]:
    def result(self: BatchSize, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        pair: tuple[Any, Any] = (other, self) if is_reflected else (self, other)
        value = call(*map(int, pair))
        alone = call(*(p.node.meta["number"] if isinstance(p, BatchSize) else p for p in pair))
        nodes = tuple(p.node if isinstance(p, BatchSize) else p for p in pair)
        return BatchSize.at(value, self.node.graph.call_function(call, nodes), alone)

    return result


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _call = getattr(operator, _name)
    setattr(BatchSize, f"__{_name}__", _arithmetic(_call, is_reflected=False))
    setattr(BatchSize, f"__r{_name}__", _arithmetic(_call, is_reflected=True))


class Tracer(TorchFunctionMode):
    """Records the calls that are made while it is entered.

    Args:
        root: the module, in evaluation mode.
        is_leaf: whether a module's call is one node.
    """

    def __init__(self, root: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants = Constants(root)
        self.failed: Exception | None = None  # what a call of torch raised last
        self._is_leaf = is_leaf
        self._memory = Memory()
        self._stack: dict[str, tuple[str, type]] = {}  # of the modules whose forward runs
        self._depth = 0  # of calls of torch that are one node each
        self._batch: BatchSize
        self._is_meta: bool
        self._device: str

    def run(self, root: nn.Module, image: Tensor, name: str) -> Any:
        """What a module makes of `BATCH` images, the graph's input by that name."""
        node = self.graph.placeholder(name)
        self._hold(image, node)
        self._is_meta = image.is_meta
        self._batch = BatchSize.at(BATCH, self.graph.call_method("size", (node, 0)), 1)
        self._device = image.device.type
        single = torch.autocast("cpu" if self._is_meta else self._device, enabled=False)
        with single, torch.no_grad(), self._calls_of_modules(), _Beneath(self), self:
            return root(image)

    def finish(self, result: Tensor) -> None:
        """Make a tensor the graph's output, and leave out what it does not read."""
        node = self.graph.output(self._argument(result))
        node.meta["shape"] = tuple(result.shape[1:])
        for unread in reversed(self.graph.nodes):
            if not is_needed(unread):
                self.graph.erase_node(unread)
        self.constants.finish(self.graph)

    @property
    def owner(self) -> str:
        """Path of the module whose forward runs; "" for the root."""
        return next(reversed(self._stack.values()))[0] if self._stack else ""

    # Calls of modules

    @contextlib.contextmanager
    def _calls_of_modules(self) -> Iterator[None]:
        """While entered, they are seen."""
        original, thread = nn.Module.__call__, threading.get_ident()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._depth or threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return self._module(original, module, args, kwargs)

        nn.Module.__call__ = call
        try:
            yield
        finally:
            nn.Module.__call__ = original

    def _module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.constants.path(module, self.owner)
        key = f"{path}@{len(self._stack)}"
        self._stack[key] = (path, type(module))
        if self._is_leaf(module):
            with torch._C.DisableTorchFunction():
                result = self._leaf(call, path, module, args, kwargs)
        else:
            result = call(module, *args, **kwargs)
        del self._stack[key]  # not in a finally: after an error the owner is the module that raised it
        return result

    def _leaf(self, call: Callable[..., Any], path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = _tensors((args, kwargs))
        if not any(t in self._memory for t in given):
            return call(module, *args, **kwargs)
        written = calls.Call("call_module", path, self._arguments(args), self._arguments(kwargs))
        result = self._called(lambda: call(module, *args, **kwargs), written, given)
        if path not in self.constants.named:
            self.constants.named[path], note = baked(module)
            self.constants.notes += [f"{path}: {note}"] if note else []
        return result

    # Calls of functions and methods

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(getattr(func, "overloadpacket", func), "__name__", str(func))
        given = _tensors((args, kwargs))
        if not any(t in self._memory for t in given):
            result, is_told = func(*args, **kwargs), _has_size((args, kwargs))
            if is_told and self._is_meta and isinstance(result, Tensor):
                result = result.to("meta")  # zeros for each image, which the forward makes where weights usually are
            self.constants.follow(_tensors(result), given, BATCH, is_told)
            return result
        if name in _VALUES:
            raise Untraceable.values(name)
        if name in ("__get__", "__set__"):
            return self._property(func, name, args)
        if name in _FACTS or (name == "type" and len(args) + len(kwargs) == 1):
            with self._one_call():
                return self._fact(name.removeprefix("sym_"), args, func(*args, **kwargs))
        if name in _LIKE or (name in ("to", "type_as") and args[0] not in self._memory):
            with self._one_call():
                result = func(*args, **kwargs)
            self.constants.follow(_tensors(result), (), BATCH, is_told=True)
            return result
        if found := calls.dropout_module(func, args, kwargs):
            return nn.Module.__call__(*found)
        written = calls.call_of(func, self._arguments(args), self._arguments(kwargs))
        return self._called(lambda: func(*args, **kwargs), written, given, name)

    def beneath(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call of aten's operator that no call of torch's functions made."""
        if self._depth:
            return func(*args, **kwargs)
        given = _tensors((args, kwargs))
        if not any(t in self._memory for t in given):
            result = func(*args, **kwargs)
            self.constants.follow(_tensors(result), given, BATCH)
            return result
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal"):
            raise Untraceable.values(name)
        if name in ("detach", "alias"):
            result = func(*args, **kwargs)
            self._memory.hold(result, self._memory.node(given[0]))
            return result
        written = calls.call_of(func, self._arguments(args), self._arguments(kwargs))
        return self._called(lambda: func(*args, **kwargs), written, given, name, calls.changed_by(func, args, kwargs))

    def _called(
        self,
        call: Callable[[], Any],
        written: calls.Call,
        given: list[Tensor],
        name: str = "",
        uncounted: Sequence[Tensor] | None = None,
    ) -> Any:
        """The result of a call, after which it and what the call changed in place are a node's.

        uncounted: of an operator of aten, what it changes; torch counts that after it.
        """
        if self._is_mixed():
            raise Untraceable("its forward switches autocast on; leave it to who calls the network, around the call")
        before, depends = [version(t) for t in given], [t for t in given if t in self._memory]
        start = depends[0].shape
        with self._one_call():
            result = call()
        pending = int(bool(uncounted))
        changed = [(t, version(t)) for t in uncounted or ()] or [
            (t, old) for t, old in zip(given, before, strict=True) if version(t) != old
        ]
        if not changed and (result is None or result in self._memory):
            if written.kind != "call_module" or result is None:
                return result
            with self._one_call():
                result = result.detach()  # of a module that returns its input, such as dropout: another tensor's name
        if depends[0] is given[0]:
            written = calls.shaped(written, name, start, result)
        node = self.graph.create_node(*written)
        node.meta["nn_module_stack"] = dict(self._stack)
        for t, old in changed:
            self._memory.changed(t, old, pending)
            self._hold(t, node, pending)
        if not any(result is t for t, _ in changed):
            is_first_alone = uncounted is not None and name in calls.FIRST_ALONE
            self._results(node, result[0] if is_first_alone else result)
            for unread in result[1:] if is_first_alone else ():
                self._memory.hold(unread, None)
        return result

    def _is_mixed(self) -> bool:
        kinds = ("cpu", "cuda") if self._is_meta else (self._device,)
        return any(torch.is_autocast_enabled(kind) for kind in kinds)

    @contextlib.contextmanager
    def _one_call(self) -> Iterator[None]:
        """While entered, nothing beneath is recorded."""
        self._depth += 1
        try:
            yield
        except Exception as error:
            self.failed = error
            raise
        finally:
            self._depth -= 1

    def _property(self, func: Any, name: str, args: Any) -> Any:
        attribute = func.__self__.__name__
        if name == "__set__":
            if attribute == "data":
                raise Untraceable("it assigns to a tensor's data; assign to the tensor: x = …")
            return func(*args)
        if attribute == "data":
            return args[0]
        if attribute in ("T", "mT"):
            return self.__torch_function__(Tensor.transpose, (), (args[0], -2, -1))
        return self._fact(attribute, args, func(*args))

    def _fact(self, name: str, args: Any, result: Any) -> Any:
        """What is known of a tensor without its values; in it the batch's size is a node."""
        x = args[0]
        if not x.dim() or x.shape[0] != BATCH:
            return result
        if isinstance(result, torch.Size):
            return torch.Size([self._batch, *result[1:]])
        if name == "size" and isinstance(result, int):
            return self._batch if args[1:] in ((0,), (-x.dim(),)) else result
        return self._batch * (result // BATCH) if name in ("numel", "nelement") else result

    # Nodes

    def _results(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self._hold(result, node)
        elif isinstance(result, tuple | list | dict):
            for key, part in result.items() if isinstance(result, dict) else enumerate(result):
                if isinstance(part, Tensor | tuple | list | dict):
                    item = self.graph.call_function(operator.getitem, (node, key))
                    item.meta["nn_module_stack"] = dict(self._stack)
                    self._results(item, part)
        elif result is not None:
            raise Untraceable.values(f"{node.name}, which gives a {type(result).__name__}")

    def _hold(self, tensor: Tensor, node: fx.Node, pending: int = 0) -> None:
        node.meta["shape"] = tuple(tensor.shape[1:])
        self._memory.hold(tensor, node, pending)

    def _arguments(self, value: Any) -> Any:
        written = map_aggregate(value, self._argument)
        return dict(written) if isinstance(value, dict) else written

    def _argument(self, value: Any) -> Any:
        if isinstance(value, BatchSize):
            return value.node
        if not isinstance(value, Tensor):
            return value
        if value not in self._memory:
            return self._constant(value)
        node = self._memory.node(value)
        if node is None:
            raise Untraceable("it reads a second result of a compiled call; write it with functions of torch")
        if self._memory.is_stale(value):
            raise Untraceable(
                f"it reads {node.name} after a view of it was changed in place; write the change out of place "
                "(inplace=False)"
            )
        return node

    def _constant(self, value: Tensor) -> fx.Node:
        node = self.graph.get_attr(self.constants.name(value, self.owner))
        if self.constants.is_long(value):
            node = self.graph.call_method("expand", (node, (self._batch.node, *(-1 for _ in value.shape[1:]))))
        for each in (node, *node.all_input_nodes):
            each.meta.setdefault("nn_module_stack", dict(self._stack))
            each.meta.setdefault("shape", tuple(value.shape[1:]))
        return node


class _Beneath(TorchDispatchMode):
    """Sees the calls of operators that are made beneath torch's functions: by scripts, and functions of autograd."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's guard of modes against its compiler imports it all, for a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._tracer.beneath(func, args, kwargs or {})


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def look(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
        return part

    map_aggregate(value, look)
    return found


def _has_size(value: Any) -> bool:
    found: list[bool] = []
    map_aggregate(value, lambda part: found.append(isinstance(part, BatchSize)))
    return any(found)


# What asks for values, in Python.
_VALUES = frozenset(
    (
        *("__bool__", "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__complex__", "__array__"),
        *("equal", "allclose", "is_nonzero", "__contains__", "__dlpack__", "nonzero", "unique", "masked_select"),
    )
)
# What is known of a tensor without its values.
_FACTS = frozenset(
    (
        *(
            "size",
            "sym_size",
            "dim",
            "ndimension",
            "numel",
            "nelement",
            "stride",
            "is_contiguous",
            "element_size",
            "type",
        ),
        *("storage_offset", "is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "get_device"),
        *("is_same_size", "data_ptr", "untyped_storage", "is_shared", "is_inference", "is_pinned", "result_type"),
        *("requires_grad_", "register_hook", "__len__", "__format__", "__repr__", "__hash__"),
    )
)
# What takes of a tensor its shape alone.
_LIKE = frozenset(
    ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty")
)


def is_needed(node: fx.Node) -> bool:
    """Whether anything reads what a node makes; the training reads an auxiliary classifier."""
    return bool(node.users) or node.op in ("placeholder", "output") or node.target == AUXILIARY
