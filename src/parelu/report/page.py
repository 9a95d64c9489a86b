"""One self-contained HTML page about one or more runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from parelu import store
from parelu.report import plots, tables
from parelu.report.tables import Row
from parelu.run import Record, Run


def write_report(runs: Sequence[Run], path: Path) -> Path:
    """Write the page; returns its path.

    Raises:
        UserError: no run has a finished network.
    """
    records = [record for run in runs for record in run.candidates()]
    rows = tables.frontier_rows(records)
    # Without script: everything that a run's files say is text, and is escaped.
    environment = Environment(loader=PackageLoader("parelu.report", "."), autoescape=True, trim_blocks=True)
    environment.filters["short"] = plots.short
    page = environment.get_template("page.html.jinja").render(
        title=f"{runs[0].config['model']} on {runs[0].config['data']}",
        headline=headline(rows),
        rows=rows,
        seeds=max(row.seeds for row in rows),
        spread=tables.plus_minus,
        compared=tables.compare(records),
        ours=tables.OURS,
        criticality=[(run, c) for run in runs if (c := run.records().get("criticality"))],
        skipped=[(run, s) for run in runs if (s := run.records().get("skipped"))],
        frontier=Markup(plots.frontier_svg(records)),
        stages=Markup(plots.stages_svg(records)),
        curves=Markup(plots.curves_svg(records)) if any(record.history for record in records) else "",
        counted=_counted(records),
        configuration=flat(runs[0].config)
        if len(runs) == 1
        else [(run.path.name, run.config["seed"]) for run in runs]
        + flat({key: value for key, value in runs[0].config.items() if key != "seed"}),
        environment=list(runs[0].environment.items()),
    )
    store.write_atomic(path, page.encode())
    return path


def headline(rows: Sequence[Row]) -> list[str]:
    """What the frontier says, in a sentence each."""
    full = max(rows, key=lambda row: row.relus)
    sentences = [f"{full.label}: {full.relus:,} ReLUs, {full.test:.1f} % test accuracy."]
    for points in (1, 5, 15):
        within = [row for row in rows if row.on_frontier and row.validation >= full.validation - points]
        least = min(within, key=lambda row: row.relus, default=full)
        if least.relus < full.relus:
            sentences.append(
                f"{full.relus / least.relus:.1f}× fewer ReLUs at {least.test - full.test:+.1f} points: "
                f"{least.label}, {least.relus:,} ReLUs, {least.test:.1f} %."
            )
    return list(dict.fromkeys(sentences))


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested configuration as rows of dotted names and values."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [row for i, inner in enumerate(value, start=1) for row in flat(inner, f"{name}.{i}")]
    return [(name, value if isinstance(value, str) else json.dumps(value))]


def _counted(records: Sequence[Record]) -> dict[str, int]:
    roles = [record.metrics["role"] for record in records]
    return {role: roles.count(role) for role in ("teacher", "criticality", "candidate") if role in roles}
