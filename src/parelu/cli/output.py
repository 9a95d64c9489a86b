"""What commands say to people."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line for people, on standard error so that standard output stays data."""
    print(text, file=sys.stderr, flush=True)
