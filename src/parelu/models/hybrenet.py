"""Names of DeepReShape's networks; each is a ResNet of basic blocks under another name.

hrn-5x5x3x      HybReNet: ResNet18's depths, m = 16, multipliers α, β, γ = 5, 5, 3 (Table 16)
hrn34-2x6x3x    with ResNet34's depths (Table 14)
stagech-4x      StageCh: one multiplier for all stages; 4 is that of CryptoNAS and Sphynx (Table 2)
basech m=32     BaseCh: multipliers of 2, only the base width changes
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BASE = 16  # m where a name does not say it (DeepReShape, Tables 16 and 17)

_NAME = re.compile(
    r"(?:hrn(?P<hrn>34)?-(?P<multipliers>(?:\d+x)+)|stagech(?P<stagech>34)?-(?P<multiplier>\d+x)"
    r"|basech(?P<basech>34)?)(?P<options>(?: .+)?)"
)


def plain(name: str) -> str:
    """The ResNet's name of a network of DeepReShape; any other name as it is."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    base = match["hrn"] or match["stagech"] or match["basech"] or "18"
    multipliers = match["multipliers"] or (match["multiplier"] or "2x") * 3
    width = "" if re.search(r"\bm=", match["options"]) else f" m={BASE}"
    return f"resnet{base} {multipliers}{width}{match['options']}"


def hybrid(base: str, multipliers: Sequence[int], m: int) -> str:
    """The name of a base network with these multipliers and base width."""
    text = "".join(f"{number}x" for number in multipliers)
    short = {"resnet18": "hrn-", "resnet34": "hrn34-"}.get(base)
    return f"{short}{text} m={m}" if short else f"{base} {text} m={m}"
