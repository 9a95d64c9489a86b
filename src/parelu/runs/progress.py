"""Progress of many trainings on a terminal: one bar for all, one line for each that runs, and the time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from parelu.methods.jobs import Task
from parelu.network.candidate import Candidate
from parelu.network.metrics import Metrics
from parelu.training import ranks
from parelu.training.loop import Progress as Step


class TerminalProgress:
    """A `Watcher` that draws bars on a terminal, and prints a line per network elsewhere; quiet, or of another rank
    than the first, it says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet or ranks.number() > 0)
        columns = (
            TextColumn("{task.description:34.34}"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.total = self.bars.add_task("all networks", total=0, note="")
        self.costs: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.tasks: dict[str, int] = {}
        self.started = time.monotonic()

    def __enter__(self) -> TerminalProgress:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bars.stop()

    def queued(self, task: Task, cost: float) -> None:
        self.costs[task.name] = cost
        self.bars.update(self.total, total=sum(self.costs.values()))

    def moved(self, name: str, progress: Step, where: str = "") -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=progress.steps, note="")
        accuracy = "" if progress.validation_accuracy is None else f"{progress.validation_accuracy:5.1f} %"
        note = f"epoch {progress.epoch}, loss {progress.loss:.2f} {accuracy} {where and f'on {where}'}"
        self.bars.update(self.tasks[name], completed=progress.step, note=note)  # pyright: ignore[reportArgumentType]
        self.done[name] = self.costs[name] * progress.step / progress.steps
        self._update_total()

    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None:
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))  # pyright: ignore[reportArgumentType]
        self.done[name] = self.costs[name]
        self._update_total()
        self.console.print(f"  {name}: {said(candidate)}{' (already there)' if resumed else ''}", soft_wrap=True)

    def _update_total(self) -> None:
        done, total = sum(self.done.values()), sum(self.costs.values())
        spent = time.monotonic() - self.started
        left = spent / done * (total - done) if done else 0
        note = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
        self.bars.update(self.total, completed=done, note=note if done else "")


def said(candidate: Candidate) -> str:
    """Of a network that is finished: its ReLUs, and what was measured of it."""
    metrics, words = candidate.metrics, [f"{candidate.plan.relus:,} ReLUs"]
    if metrics:
        words.append(f"{metrics.validation_accuracy:.1f} % validation")
    if isinstance(metrics, Metrics) and metrics.unbounded:
        words.append(f"squares grow without bound on {metrics.unbounded:.2g} % of the images")
    return ", ".join(words)
