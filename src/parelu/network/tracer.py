"""Recording what a module's forward does to an image, as an fx graph.

The forward is run as it is, on real tensors, in a mode that sees every call of torch: so shapes are numbers, the types
are torch's own, and whatever does not depend on the image is simply computed. What a call does to the image, or to
what came of it, becomes a node. In-place calls are recorded out of place: every name of a tensor is one object here.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils.weak import WeakTensorKeyDictionary

BATCH = 2  # images a module is traced with


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
        self.is_leaf = is_leaf
        self.paths = {id(module): path for path, module in reversed([*root.named_modules(remove_duplicate=False)])}
        named = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
        self.names = {id(tensor): name for name, tensor in reversed(named)}
        self.attributes: dict[str, Tensor | nn.Module] = {}  # what nodes name, in order
        self.notes: list[str] = []
        self.stack: dict[str, tuple[str, type]] = {}  # of the modules whose forward runs
        self.failed: Exception | None = None  # what a call of torch raised last
        self._nodes = WeakTensorKeyDictionary()  # tensor → (node, the tensor's version)
        self._origins = WeakTensorKeyDictionary()  # constant → name of the parameter that it is computed of
        self._repeated = WeakTensorKeyDictionary()  # constant that is as long as the batch → True
        self._constants = WeakTensorKeyDictionary()  # constant → its node
        self.batch: BatchSize | None = None

    def start(self, image: Tensor, name: str) -> None:
        """Make an image the graph's input."""
        node = self.graph.placeholder(name)
        self._bind(image, node)
        self.batch = BatchSize.at(BATCH, self.graph.call_method("size", (node, 0)), 1)

    def finish(self, result: Tensor) -> None:
        """Make a tensor the graph's output."""
        node = self.graph.output(self._argument(result))
        node.meta["shape"] = tuple(result.shape[1:])
        for unread in reversed(self.graph.nodes):
            if not unread.users and unread.op not in ("placeholder", "output"):
                self.graph.erase_node(unread)

    @property
    def owner(self) -> str:
        """Path of the module whose forward runs; "" for the root."""
        return next(reversed(self.stack.values()))[0] if self.stack else ""

    def depends(self, value: Any) -> bool:
        """Whether a tensor comes of the image."""
        return isinstance(value, Tensor) and value in self._nodes

    # Calls of modules

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """While entered, the calls of modules are seen."""
        original, thread = nn.Module.__call__, threading.get_ident()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return self._module(original, module, args, kwargs)

        nn.Module.__call__ = call
        try:
            yield
        finally:
            nn.Module.__call__ = original

    def _module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self.paths.get(id(module))
        if path is None:  # made in a forward, or kept in a list that torch does not look into
            path = self.unused(_join(self.owner, type(module).__name__.lower()))
            self.paths[id(module)] = path
        key = f"{path}@{len(self.stack)}"
        self.stack[key] = (path, type(module))
        made = self._leaf if self.is_leaf(module) else _made
        result = made(call, path, module, args, kwargs)
        del self.stack[key]  # not in a finally: after an error the owner is the module that raised it
        return result

    def _leaf(self, call: Callable[..., Any], path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            given = _tensors((args, kwargs))
            if not any(map(self.depends, given)):
                return _whole_call(call, module, args, kwargs)
            before = [_version(t) for t in given]
            nodes = self._arguments(args), dict(self._arguments(kwargs))
            with self._calls_of_torch():
                result = _whole_call(call, module, args, kwargs)
            self.attributes[path] = module
            self._record(self.graph.call_module(path, *nodes), given, before, result)
        return result

    # Calls of functions and methods

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__") and args and self.depends(args[0]):
            return self._property(func, name, args)
        given = _tensors((args, kwargs))
        if not any(map(self.depends, given)):
            return self._constant(func, args, kwargs, given)
        if name in _VALUES:
            raise Untraceable.values(name)
        if func in _DROPOUTS and not _is_training(func, args, kwargs):
            return self._dropout(func, args, kwargs)
        if name in _LIKE:
            with self._calls_of_torch():
                result = func(*args, **kwargs)
            self._repeated[result] = True
            return result
        before = [_version(t) for t in given]
        call = self._call(func, name, args, kwargs)
        with self._calls_of_torch():
            result = func(*args, **kwargs)
        changed = [t for t, version in zip(given, before, strict=True) if _version(t) != version]
        if not changed and (name in _FACTS or result is None):
            return self._sized(name, args, result)
        if not changed and isinstance(result, Tensor) and self.depends(result):
            return result
        self._record(self.graph.create_node(*self._plain(call, name, args, result)), given, before, result)
        return result

    def _constant(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """A call that the image has no part in: made, not recorded."""
        result = func(*args, **kwargs)
        is_long = _has_size((args, kwargs)) or any(t in self._repeated for t in given)
        origin = next((name for t in given if (name := self._origin(t))), "")
        for t in _tensors(result):
            if origin and id(t) not in self.names:
                self._origins[t] = origin
            if is_long and t.dim() and t.shape[0] == BATCH:
                self._repeated[t] = True
        return result

    def _dropout(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One that follows the mode, as a module that does so."""
        path = self.unused(_join(self.owner, func.__name__))
        options = inspect.signature(func).bind(*args, **kwargs).arguments
        module = _DROPOUTS[func](options.get("p", 0.5)).eval()
        self.paths[id(module)] = path
        return nn.Module.__call__(module, options["input"])

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
        return self._sized(attribute, args, func(*args))

    def _sized(self, name: str, args: Any, result: Any) -> Any:
        """A fact about a tensor, in which the batch's size is a node."""
        x = args[0]
        if self.batch is None or not isinstance(x, Tensor) or not x.dim() or x.shape[0] != BATCH:
            return result
        if isinstance(result, torch.Size):
            return torch.Size([self.batch, *result[1:]])
        if name == "size" and isinstance(result, int):
            return self.batch if args[1:] in ((0,), (-x.dim(),)) else result
        return self.batch * (result // BATCH) if name in ("numel", "nelement") else result

    @contextlib.contextmanager
    def _calls_of_torch(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed = error
            raise

    # Nodes

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
        """A call as a node's kind, target and arguments, before it is made: in-place ones as their plain twins."""
        nodes, named = self._arguments(args), dict(self._arguments(kwargs))
        named.pop("out", None)
        if name == "__setitem__":
            return "call_function", assigned, nodes, named
        if func in _OPERATORS and len(nodes) <= 2 and not named:
            return "call_function", _OPERATORS[func], nodes, named
        if func in _REFLECTED:
            return "call_function", _REFLECTED[func], nodes[::-1], named
        is_twin = name.endswith("_") and not name.endswith("__")
        if is_tensor_method_or_property(func):
            plain = name.removesuffix("_") if is_twin and hasattr(Tensor, name.removesuffix("_")) else name
            target = getattr(Tensor, plain, None)
            if target in _OPERATORS and len(nodes) <= 2 and not named:
                return "call_function", _OPERATORS[target], nodes, named
            return "call_method", plain, nodes, named
        if is_twin:
            func = getattr(F, name[:-1], None) or getattr(torch, name[:-1], func)
        if any(a is True for a in (*nodes[1:], *named.values())):
            nodes, named = _out_of_place(func, nodes, named)
        return "call_function", func, nodes, named

    def _plain(self, call: tuple[str, Any, Any, Any], name: str, args: Any, result: Any) -> tuple[str, Any, Any, Any]:
        """Reshaping and expanding by the shape that came out, which no size has to be computed for."""
        name = name.removesuffix("_")
        if name not in (*_RESHAPING, *_EXPANDING) or not isinstance(result, Tensor) or not self.depends(args[0]):
            return call
        if args[0].dim() == 0 or result.dim() == 0 or not args[0].shape[0] == result.shape[0] == BATCH:
            return call
        method = "reshape" if name in _RESHAPING else "expand"
        return "call_method", method, (call[2][0], (-1, *map(int, result.shape[1:]))), {}

    def _record(self, node: fx.Node, given: list[Tensor], before: list[int], result: Any) -> None:
        """What a node gives, and what it changes in place: then all that read it later read the node."""
        self._describe(node)
        for t, version in zip(given, before, strict=True):
            if _version(t) != version:
                self._bind(t, node)
        self._results(node, result)

    def _describe(self, node: fx.Node) -> None:
        node.meta["nn_module_stack"] = dict(self.stack)

    def _results(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self._bind(result, node)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor | tuple | list):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    self._describe(item)
                    self._results(item, part)
        elif isinstance(result, dict):
            for key, part in result.items():
                item = self.graph.call_function(operator.getitem, (node, key))
                self._describe(item)
                self._results(item, part)
        elif result is not None:
            raise Untraceable.values(f"{node.name}, which gives a {type(result).__name__}")

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["shape"] = tuple(tensor.shape[1:])
        self._nodes[tensor] = (node, _version(tensor))

    def _arguments(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, self._argument)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, BatchSize):
            return value.node
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            return self._attribute(value)
        node, version = self._nodes[value]
        if version != _version(value):
            raise Untraceable(
                f"it reads {node.name} after a view of it was changed in place; write the change out of place "
                "(inplace=False)"
            )
        return node

    def _attribute(self, value: Tensor) -> fx.Node:
        """The node of a constant: a parameter or buffer by its name, or computed."""
        is_repeated = value in self._repeated and value.dim() and value.shape[0] == BATCH
        name = self.names.get(id(value))
        if name is None:
            origin = self._origin(value)
            name = self.unused(origin or _join(self.owner, "constant"))
            kept = (value[:1] if is_repeated else value).detach().clone()
            if origin:
                kept = nn.Parameter(kept, requires_grad=kept.is_floating_point())
                self.notes.append(f"{origin}: what its forward computes of it is computed once and kept as {name}")
            self.names[id(kept)] = name
            self.attributes[name] = kept
        else:
            self.attributes[name] = value
        node = self.graph.get_attr(name)
        self._describe(node)
        node.meta["shape"] = tuple(value.shape[1:])
        if is_repeated:
            assert self.batch is not None
            sizes = (self.batch.node, *(-1 for _ in value.shape[1:]))
            node = self.graph.call_method("expand", (node, sizes))
            self._describe(node)
            node.meta["shape"] = tuple(value.shape[1:])
        return node

    def _origin(self, value: Tensor) -> str:
        name = self.names.get(id(value), "")
        return name if isinstance(value, nn.Parameter) else self._origins.get(value, "")

    def unused(self, name: str) -> str:
        """`name`, or `name_2`, `name_3`, … where something else has it."""
        taken = {*self.attributes, *self.paths.values(), *self.names.values()}
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        return candidate


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """x with another value at an index."""
    result = x.clone()
    result[index] = value
    return result


def _made(call: Callable[..., Any], path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
    return call(module, *args, **kwargs)


def _whole_call(call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    """A leaf's call, in which the modules inside it are not seen."""
    seen = nn.Module.__call__
    nn.Module.__call__ = call
    try:
        return call(module, *args, **kwargs)
    finally:
        nn.Module.__call__ = seen


def _out_of_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with `inplace` false, where the function has it."""
    with contextlib.suppress(TypeError, ValueError):
        bound = inspect.signature(func).bind(*args, **kwargs)
        if bound.arguments.get("inplace") is True:
            bound.arguments["inplace"] = False
            return bound.args, bound.kwargs
    return args, kwargs


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def look(part: Any) -> Any:
        if isinstance(part, Tensor):
            found.append(part)
        return part

    fx.node.map_aggregate(value, look)
    return found


def _has_size(value: Any) -> bool:
    found: list[bool] = []
    fx.node.map_aggregate(value, lambda part: found.append(isinstance(part, BatchSize)))
    return any(found)


def _is_training(func: Any, args: Any, kwargs: Any) -> bool:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bool(bound.arguments["training"])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _join(*parts: str) -> str:
    return ".".join(p for p in parts if p)


_OPERATORS: dict[Any, Any] = {
    Tensor.add: operator.add,
    Tensor.sub: operator.sub,
    Tensor.mul: operator.mul,
    Tensor.div: operator.truediv,
    Tensor.true_divide: operator.truediv,
    Tensor.matmul: operator.matmul,
    Tensor.neg: operator.neg,
    Tensor.pow: operator.pow,
    Tensor.__getitem__: operator.getitem,
}
_REFLECTED: dict[Any, Any] = {
    Tensor.__rsub__: operator.sub,
    Tensor.__rdiv__: operator.truediv,
    Tensor.__rpow__: operator.pow,
    Tensor.__rmatmul__: operator.matmul,
}
_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}
_RESHAPING = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as", "reshape_as")
_EXPANDING = ("expand", "expand_as")
# What asks for values, in Python.
_VALUES = frozenset(
    ("__bool__", "item", "tolist", "numpy", "__float__", "__int__", "__index__", "__complex__", "__array__")
    + ("equal", "allclose", "is_nonzero", "__contains__", "__dlpack__", "nonzero", "unique", "masked_select")
)
# What is known of a tensor without its values.
_FACTS = frozenset(
    ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "element_size", "storage_offset")
    + ("is_floating_point", "is_complex", "get_device", "type", "__len__", "__format__", "__repr__", "__hash__")
    + ("is_same_size", "data_ptr", "untyped_storage", "is_shared", "is_inference", "requires_grad_", "register_hook")
    + ("is_signed", "is_conj", "is_neg", "is_pinned", "_is_view", "is_set_to", "is_distributed", "numel", "result_type")
)
# What takes of a tensor its shape alone.
_LIKE = frozenset(
    ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty")
)
