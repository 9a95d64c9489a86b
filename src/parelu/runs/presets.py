"""Named trainings put to use: the full-ReLU network's, and the options of the methods that they speak of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from parelu.methods.base import Method
from parelu.training import papers
from parelu.training.schedule import Training

M = TypeVar("M", bound=Method)


def training_of(name: str, first: str = "") -> Training:
    """Of the full-ReLU network, and of all that trains from fresh weights, under a training's name.

    first: the run's first method, whose own paper `paper` is; DeepReDuce's without one.

    Raises:
        UserError: there is no such training.
    """
    return papers.named(papers.of_method(first) if name == papers.PAPER else name).full


def method_of(kind: type[M], training: str, given: Mapping[str, Any]) -> M:
    """A method with the options that are given, then those of a training, by name, then its defaults."""
    return kind(**papers.merged(training, kind.name, given))


def under(method: M, training: str) -> M:
    """The same for a method that is there: what has its default is not given."""
    fields = {field.name: field.default for field in dataclasses.fields(method)}
    given = {name: getattr(method, name) for name in fields if getattr(method, name) != fields[name]}
    return method_of(type(method), training, given)
