"""The one registry: what extends parelu is found by name, in a folder of parelu or in an installed package.

A kind of extension has a base class and a folder in which a file is enough. Another package adds its own by an entry
point whose group is the folder's name ("parelu.methods", "parelu.models", "parelu.private.protocol",
"parelu.private.offline", "parelu.private.engines") and whose value is a module, or a class in one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A plugin that is left out, and why."""


def classes(base: type[T], folder: str, key: str = "name") -> dict[str, type[T]]:
    """Name → class: every concrete subclass of `base` in the folder and among the plugins, by name.

    Args:
        folder: the package that the classes live in, and the entry-point group.
        key: the class attribute that names it.
    """
    found: dict[str, type[T]] = {}
    for cls in _classes(base, folder):
        name = getattr(cls, key, None)
        if isinstance(name, str) and not inspect.isabstract(cls) and found.setdefault(name, cls) is not cls:
            _leave_out(f"{cls.__module__}:{cls.__qualname__}", f"the name {name!r} is taken")
    return dict(sorted(found.items()))


def instances(base: type[T], folder: str) -> dict[str, T]:
    """Name → an instance of every class that `classes` finds; they have no options."""
    return {name: cls() for name, cls in classes(base, folder).items()}


@functools.cache
def _classes(base: type[Any], folder: str) -> tuple[type[Any], ...]:
    """Subclasses of `base`, those of the folder first."""
    package = importlib.import_module(folder)
    own = [importlib.import_module(f"{folder}.{info.name}") for info in pkgutil.iter_modules(package.__path__)]
    found = [cls for module in own for cls in _defined(module)]
    for point in sorted(entry_points(group=folder), key=lambda point: point.name):
        found += _loaded(point, base)
    return tuple(dict.fromkeys(cls for cls in found if issubclass(cls, base)))


def _loaded(point: EntryPoint, base: type[Any]) -> list[type[Any]]:
    """The classes of a plugin; one that raises is named, and the others go on."""
    try:
        value = point.load()
    except Exception as error:  # whatever a plugin raises
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        _leave_out(_named(point), f"{type(error).__name__}: {reason}")
        return []
    found = list(_defined(value)) if isinstance(value, ModuleType) else [value]
    if not any(isinstance(cls, type) and issubclass(cls, base) for cls in found):
        _leave_out(_named(point), f"it has no {base.__name__}")
        return []
    return found


def _named(point: EntryPoint) -> str:
    return f"{point.name} of {point.dist.name if point.dist else point.value}"


def _leave_out(what: str, reason: str) -> None:
    warnings.warn(f"plugin {what} is left out: {reason}", PluginWarning, stacklevel=3)


def _defined(module: ModuleType) -> Iterator[type[Any]]:
    """The classes that a module, or a package with what is below it, defines."""
    for value in vars(module).values():
        if isinstance(value, type) and (value.__module__ + ".").startswith(module.__name__ + "."):
            yield value
