"""What commands say to people."""

from __future__ import annotations

import os
import sys

from parelu.errors import UserError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds
SEVERAL = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1  # processes of one command: torchrun's
IS_FIRST = not SEVERAL or os.environ["RANK"] == "0"


def say(text: str) -> None:
    """One line for people, on standard error so that standard output stays data; the first rank speaks for all."""
    if IS_FIRST:
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """What is wrong, a line each."""
    for line in text.splitlines():
        print(f"parelu: {line}", file=sys.stderr, flush=True)


def duration_of(option: str, text: str) -> float:
    """Seconds, from 30s, 2m, 1h, 1d or a number of seconds; raises UserError for anything else."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    if not (number.isascii() and number.isdecimal() and len(number) < 7):
        raise UserError(f"{option} {text!r} is not a time such as 30s, 2m, 1h or 1d")
    return float(number) * UNITS[unit]
