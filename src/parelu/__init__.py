"""parelu: networks made for private inference, from a ReLU budget to the Pareto frontier, and private inference itself.

    result = parelu.reduce(model, dataset, method=SNL(), budget=5_000, run="runs/mine")
    parelu.bench(result.best(relus=5_000), relu="sign", link="lan")

The verbs live in `parelu.api` and `parelu.client`; they are imported at their first use, so that `import parelu` stays
light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parelu.api import Result, bench, count, export, instrument, load, reduce, serve
    from parelu.client import Client

__all__ = ["Client", "Result", "__version__", "bench", "count", "export", "instrument", "load", "reduce", "serve"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'parelu' has no attribute {name!r}")
    if name == "Client":  # which needs no torch
        from parelu.client import Client

        return Client
    from parelu import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
