"""The price of a query of a network, before it is trained: by the calibrated cost of private inference."""

from __future__ import annotations

from typing import Any

from parelu.errors import UserError
from parelu.methods.unit import Price
from parelu.private.engines.base import Options


def price_of(query: Options) -> Price:
    """Of a query that runs so."""
    raise UserError(f"budgets of seconds or bytes over {query.link} have no price in this version; give ReLUs")


def config(query: Options) -> dict[str, Any]:
    """What decides a price, as JSON values."""
    return {"link": query.link, "relu": query.relu, "offline": query.offline}
