"""Bars on a terminal, for what takes a while and trains nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; gives what to call with the number done."""
    with _bars() as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.advance(task, done)


@contextlib.contextmanager
def share(title: str, elsewhere: str = "") -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal while something comes, and one line elsewhere, when it begins; nothing where nothing comes.

    Gives what to call with the bytes done so far, and with all there are. elsewhere: the end of the line.
    """
    bars: list[Progress] = []

    def moved(done: int, total: int) -> None:
        if not bars:
            bars.append(_bars())
            if not bars[0].console.is_terminal:
                bars[0].console.print(f"{title}: {total / 1e6:.3g} MB{elsewhere}", soft_wrap=True, markup=False)
            bars[0].start()
            bars[0].add_task(title, total=total)
        bars[0].update(bars[0].task_ids[0], completed=done)
        if done >= total:
            bars[0].stop()

    try:
        yield moved
    finally:
        for each in bars:
            each.stop()


def _bars() -> Progress:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description:44.44}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
