"""parelu: networks made for private inference, from a ReLU budget to the Pareto frontier, and private inference itself.

`parelu.Client` is the client of `parelu serve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parelu.private.serving.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name != "Client":
        raise AttributeError(f"module 'parelu' has no attribute {name!r}")
    from parelu.private.serving.client import Client

    return Client
