"""Where the ReLUs of each network stayed, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from parelu.report.grids import Cell, Grid, count, words
from parelu.report.live import line
from parelu.report.tables import Row, by_network, row_of
from parelu.runs.folder import Record


def stages_grid(records: Sequence[Record], rows: Sequence[Row]) -> Grid:
    """A row a network: the share of each stage's ReLUs, of its full network's, that stayed; means over the seeds.

    rows: of all, which say which are on the frontier.
    """
    groups = by_network(records)
    fulls = [group[0].metrics.stages_full for group in groups]
    stages = list(dict.fromkeys(stage for full in fulls for stage, relus in full.items() if relus))
    same = all(full == fulls[0] for full in fulls)
    known = {row.key: row for row in rows}
    lines = []
    for group in groups:
        row = row_of(group)
        row = known.get(row.key, row)
        lines.append(line(row, words(row.label), count(row.relus), *(_cell(group, stage) for stage in stages)))
    heads = [f"{stage}, {fulls[0][stage]:,}" if same else stage for stage in stages]
    return Grid("stages", [("network", "long"), ("ReLUs", "number"), *((head, "share") for head in heads)], lines)


def _cell(group: Sequence[Record], stage: str) -> Cell:
    share = _share(group, stage)
    return "0" if not share else f"{share:.0f} %" if share >= 1 else f"{share:.1f} %", round(share, 2)


def _share(group: Sequence[Record], stage: str) -> float:
    """Percent of a stage's ReLUs that stayed, the mean over the seeds of one network."""
    full = group[0].metrics.stages_full.get(stage, 0)
    kept = statistics.mean(_relus(record, stage) for record in group)
    return 100 * kept / full if full else 0.0


def _relus(record: Record, stage: str) -> int:
    stages = record.metrics.stages
    return stages[stage].relus if stage in stages else 0
