"""What commands say to people."""

from __future__ import annotations

import os
import sys

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
