"""A watcher of trainings that prints a line for each finished network."""

from __future__ import annotations

import time

from parelu.network.candidate import Candidate


class Lines:
    def queued(self, task: object, cost: float) -> None: ...

    def moved(self, name: str, progress: object, where: str = "") -> None: ...

    def finished(self, name: str, candidate: Candidate, *, resumed: bool) -> None:
        if not resumed:
            accuracy = f"{candidate.metrics.validation_accuracy:.1f} %" if candidate.metrics else ""
            print(f"{time.strftime('%H:%M:%S')} {name}: {accuracy}", flush=True)
