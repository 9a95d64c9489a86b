"""Settings that decide an outcome, as JSON values for an identity, which outlives the fields that are added later."""

from __future__ import annotations

import dataclasses
from typing import Any

_YOUNGER = "younger"


def younger(default: Any) -> Any:
    """A field that was added to a dataclass of settings: at its default it stands in no identity.

    So the jobs, searches and runs from before it are found again.
    """
    return dataclasses.field(default=default, metadata={_YOUNGER: True})


def settings(value: Any) -> dict[str, Any]:
    """Field → value of a dataclass, without the `younger` ones that have their default."""
    young = {f.name: f.default for f in dataclasses.fields(value) if _YOUNGER in f.metadata}
    fields = dataclasses.asdict(value)
    return {name: fields[name] for name in fields if name not in young or getattr(value, name) != young[name]}
