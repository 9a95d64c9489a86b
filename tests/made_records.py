"""Finished networks that nobody trained, in memory."""

import dataclasses
from typing import Any

from parelu.network.metrics import metrics_from_json
from parelu.runs.folder import Record
from parelu.training.history import Epoch


def record(method: str, steps: str, relus: int, validation: float, seed: int = 0, role: str = "candidate") -> Record:
    stages = {"stem": 40, "S1": 60, "S2": 100}
    metrics = {
        "method": method,
        "role": role,
        "steps": steps,
        "budget": relus if method in ("random", "uniform") else None,
        "seed": seed,
        "relus": relus,
        "relus_without_stem": relus - 1,
        "squares": 0,
        "macs": 1000,
        "flops": 2000,
        "params": 5,
        "depth": 3,
        "stages": {s: {"relus": relus // 4, "macs": 9} for s in stages},
        "sites": {},
        "relus_full": 200,
        "stages_full": stages,
        "validation_accuracy": validation,
        "test_accuracy": validation - 1,
        "epochs": 2,
        "seconds": 1.0,
        "job": "",
    }
    history = tuple(Epoch(e, 1.0, {}, 0.1, validation - 2 + e, 1.0) for e in (1, 2))
    return Record(f"seed{seed}", f"{method}-{steps}-{relus}", metrics_from_json(metrics), history)


def changed(one: Record, **metrics: Any) -> Record:
    return dataclasses.replace(one, metrics=dataclasses.replace(one.metrics, **metrics))
