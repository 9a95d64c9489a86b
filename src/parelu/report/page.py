"""One self-contained HTML page about one or more runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.metrics import ROLES
from parelu.report import engines, latency, plots, seconds, tables
from parelu.report.beside import Beside, beside_named, cells, ratio_lines
from parelu.report.compared import beside_svg
from parelu.report.grids import Column, Grid, Line, count, words
from parelu.report.live import drawn, live, networks_grid
from parelu.report.private import PARTS, PARTS_NOTE, duration, size
from parelu.report.stages import stages_grid
from parelu.report.tables import Comparison, Row
from parelu.runs.folder import Record, Run
from parelu.runs.predictions import Queries

WEB = Path(__file__).parent / "web"
SCRIPTS = ("plot.js", "table.js", "page.js")


def write_report(runs: Sequence[Run], path: Path, queries: Queries | None = None) -> Path:
    """Write the page; returns its path.

    queries: that are predicted; left out, as `bench` runs them.

    Raises:
        UserError: no run has a finished network, or the runs are of different data.
    """
    data = _distinct(runs, "data")
    if len(data) > 1:
        raise UserError(f"these runs are of different data ({', '.join(data)}); give runs of one data set")
    records = tables.records_of(runs)
    queries = seconds.with_links(queries or Queries.of(), records)
    records = tables.foretold(records, queries)
    rows = tables.frontier_rows(records)
    few = drawn(records, rows)
    grids = [networks_grid(rows), seconds.seconds_grid(records, rows, queries), stages_grid(records, rows)]
    grids += [latency.measured_grid(records), engines.engines_grid(records), compared_grid(tables.compare(records))]
    style, script = (WEB / "page.css").read_text(), "\n".join((WEB / name).read_text() for name in SCRIPTS)
    # What a run's files say is text, and is escaped; as data of the script too.
    environment = Environment(loader=PackageLoader("parelu.report", "web"), autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    environment.filters |= {"duration": duration, "size": size}
    page = environment.get_template("page.html.jinja").render(
        title=f"{', '.join(_distinct(runs, 'model'))} on {', '.join(data)}",
        headline=headline(rows),
        style=Markup(style),
        script=Markup(script),
        script_sha256=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=live(rows, [record for record in few if record.history], [grid for grid in grids if grid.lines]),
        grids={grid.id: grid for grid in grids},
        few=len(few) if len(few) < len(records) else 0,
        seeds=max(row.seeds for row in rows),
        criticality=_labelled(runs, "criticality"),
        skipped=_labelled(runs, "skipped"),
        takes_svg=Markup(seconds.seconds_svg(few, queries, rows)),
        takes_note=seconds.caption(records, queries),
        measured=(measured := latency.measured_rows(few)),
        part_heads=[head for head, *_ in latency.PART_HEADS],
        parts=list(PARTS.values()),
        parts_note=PARTS_NOTE,
        beside=(found := beside_named(runs)),
        beside_cells=cells(found) if isinstance(found, Beside) else [],
        beside_ratios=ratio_lines(found) if isinstance(found, Beside) else [],
        beside_svg=Markup(beside_svg(found)) if isinstance(found, Beside) else "",
        latency=Markup(latency.latency_svg(few)) if measured else "",
        engines=Markup(engines.engines_svg(few)) if engines.engine_rows(few) else "",
        frontier=Markup(plots.frontier_svg(records)),
        curves=Markup(plots.curves_svg(few)) if any(record.history for record in few) else "",
        counted=_counted(records),
        unfinished=sum(map(_unfinished, runs)),
        configuration=flat(runs[0].config)
        if len(runs) == 1
        else [(run.path.name, f"seed {run.config.get('seed')}") for run in runs]
        + flat({key: value for key, value in runs[0].config.items() if key != "seed"}),
        environment=_environment(runs),
    )
    storage.write_atomic(path, page.encode())
    return path


def _labelled(runs: Sequence[Run], name: str) -> list[tuple[str, Any]]:
    """A record of a method in all its entries, those with a label too, by what tells them apart."""
    found = ((run, key, value) for run in runs for key, value in run.records().items())
    return [
        (" ".join((run.path.name, key.removeprefix(name).removeprefix("-"))).strip(), value)
        for run, key, value in found
        if key == name or key.startswith(f"{name}-")
    ]


def compared_grid(found: Sequence[Comparison]) -> Grid:
    """Methods at equal ReLUs, a row a pair."""
    ours = found[0].method if found else ""
    several = any(one.seeds > 1 for one in found)
    columns: list[Column] = [
        (f"{ours}'s network", "long"),
        ("ReLUs", "number"),
        (f"{ours}, %", "number"),
        ("other", "text"),
        ("other, %", "number"),
        ("difference", "number"),
        ("seeds", "number"),
    ]
    lines = [
        Line(
            [
                words(one.label),
                count(one.relus),
                (f"{one.ours:.1f}", one.ours),
                words(f"{one.other}, {one.network}" if one.network else one.other),
                (f"{one.theirs:.1f}", one.theirs),
                (f"{one.difference:+.1f}" + (f" ± {one.spread:.1f}" if one.seeds > 1 else ""), one.difference),
                count(one.seeds),
            ]
        )
        for one in found
    ]
    caption = "Test accuracy, paired by seed" + ("; ± is the standard deviation of the differences." * several or ".")
    return Grid("compared", columns, lines, caption, filtered=False)


def headline(rows: Sequence[Row]) -> list[str]:
    """What the frontier says, in a sentence each; of several networks, each beside its own full-ReLU network."""
    networks = list(dict.fromkeys(row.network for row in rows))
    if len(networks) == 1:
        return _sentences(rows, losses=(2, 5, 15))
    apart = [[row for row in rows if row.network == network] for network in networks]
    return [sentence for group in apart for sentence in _sentences(group, losses=(2,))]


def _sentences(rows: Sequence[Row], losses: Sequence[float]) -> list[str]:
    """losses: points of validation accuracy below the full network's that the least network may have."""
    full = max(rows, key=lambda row: row.relus)
    accuracy = tables.plus_minus(full.test, full.spread, full.seeds)
    sentences = [f"{full.label}: {full.relus:,} ReLUs{tables.with_comparisons(full)}, {accuracy} % test accuracy."]
    for points, squares in itertools.product(losses, (False, True)):
        good = [row for row in rows if row.validation >= full.validation - points]
        within = [row for row in good if bool(row.squares) == squares]
        least = min(within, key=lambda row: (row.relus, -row.validation), default=full)
        if least.relus < full.relus:
            with_squares = f" and {least.squares:,} squares" if squares else ""
            fewer = f"{full.relus / least.relus:.1f}× fewer ReLUs" if least.relus else "No ReLU"
            change = f"{least.test - full.test:+.1f}".replace("-", "−")
            sentences.append(
                f"{fewer} at {change} points: {least.label}, {least.relus:,} ReLUs{with_squares}, "
                f"{tables.plus_minus(least.test, least.spread, least.seeds)} %."
            )
    return list(dict.fromkeys(sentences))


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A nested configuration as rows of dotted names and values."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [row for i, inner in enumerate(value, start=1) for row in flat(inner, f"{name}.{i}")]
    return [(name, value if isinstance(value, str) else json.dumps(value))]


def _distinct(runs: Sequence[Run], key: str) -> list[str]:
    return list(dict.fromkeys(str(run.config.get(key)) for run in runs))


def _environment(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The runs' environments as rows; where they differ, each value once."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[str(value)] = None
    return [(key, "; ".join(values)) for key, values in found.items()]


def _unfinished(run: Run) -> int:
    """Networks whose training has begun and not ended."""
    return sum(not (folder / "candidate.json").exists() for folder in (run.path / "candidates").glob("*/"))


def _counted(records: Sequence[Record]) -> dict[str, int]:
    roles = [record.metrics.role for record in records]
    return {role: roles.count(role) for role in ROLES if role in roles}
