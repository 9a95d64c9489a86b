"""The one registry: what extends parelu is found by name, in a folder of parelu or in an installed package.

A kind of extension has a base class and a folder in which a file is enough. Another package adds its own by an entry
point whose group is the folder's name ("parelu.methods", "parelu.models", "parelu.private.protocol",
"parelu.private.offline", "parelu.private.engines") and whose value is a module, or a class in one. A plugin that cannot
be used is named in one line on stderr (a warning of the logger "parelu.registry"), and the rest goes on.
"""

from __future__ import annotations

import functools
import importlib
import logging
import multiprocessing
import pkgutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class _Unusable(Exception):
    """A plugin that loads, and why it is left out nevertheless."""


def classes(base: type[T], folder: str, key: str = "name") -> dict[str, type[T]]:
    """Name → class: every concrete subclass of `base` in the folder and among the plugins, by name.

    Args:
        folder: the package that the classes live in, and the entry-point group.
        key: the class attribute that names it.
    """
    return dict(_found(base, folder, key))


def instances(base: type[T], folder: str) -> dict[str, T]:
    """Name → an instance of every class that `classes` finds; they have no options and no state."""
    return {name: cls() for name, cls in classes(base, folder).items()}


def is_own(cls: type[Any]) -> bool:
    """Whether a class is parelu's own, not a plugin's."""
    return cls.__module__.startswith("parelu.")


@functools.cache
def _found(base: type[Any], folder: str, key: str) -> dict[str, type[Any]]:
    """What `classes` returns; names of the folder's classes go before those of plugins."""
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        for cls in _defined(importlib.import_module(f"{folder}.{info.name}"), base):
            if not _lacks(cls, key):
                name = getattr(cls, key)
                assert name not in found, f"{cls} and {found[name]} are both named {name!r}"
                found[name] = cls
    for point in sorted(entry_points(group=folder), key=lambda point: point.name):
        try:
            for cls in _loaded(point, base, key):
                if found.setdefault(getattr(cls, key), cls) is not cls:
                    raise _Unusable(f"the name {getattr(cls, key)!r} is taken")
        except Exception as error:  # whatever a plugin raises
            _leave_out(point, error)
    return dict(sorted(found.items()))


def _loaded(point: EntryPoint, base: type[Any], key: str) -> list[type[Any]]:
    """The classes of a plugin that can be used; raises what it raises, or _Unusable where there is none."""
    value = point.load()
    if isinstance(value, ModuleType):
        found = list(_defined(value, base))
    else:
        found = [value] if isinstance(value, type) and issubclass(value, base) else []
    if not found:
        raise _Unusable(f"it has no {base.__name__}")
    usable = [cls for cls in found if not _lacks(cls, key)]
    if not usable:
        raise _Unusable(f"{found[0].__name__} lacks {_lacks(found[0], key)}")
    return usable


def _defined(module: ModuleType, base: type[Any]) -> Iterator[type[Any]]:
    """The subclasses of `base` that a module, or a package with what is below it, defines."""
    for value in dict.fromkeys(value for value in vars(module).values() if isinstance(value, type)):
        if issubclass(value, base) and f"{value.__module__}.".startswith(f"{module.__name__}."):
            yield value


def _lacks(cls: type[Any], key: str) -> str:
    """What a class lacks to be used, such as "name, masks"; "" for nothing."""
    named = () if isinstance(getattr(cls, key, None), str) else (key,)
    return ", ".join((*named, *sorted(getattr(cls, "__abstractmethods__", ()))))


def _leave_out(point: EntryPoint, error: Exception) -> None:
    """Say so once: a worker process is as silent as its parent was not."""
    if multiprocessing.parent_process() is None:
        owner = point.dist.name if point.dist else point.value
        kind = "" if isinstance(error, _Unusable) else f"{type(error).__name__}: "
        reason = (str(error).splitlines() or ["no reason given"])[0]
        log.warning("parelu: plugin %s of %s is left out: %s%s", point.name, owner, kind, reason)
