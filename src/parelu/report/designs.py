"""What `parelu design` prints: the ReLUs, FLOPs and stages of networks side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

from parelu.network.count import HEAD, Counts, count, shared_skeleton
from parelu.network.spec import Spec
from parelu.report.predicted import cells, heads, note, predicted_json
from parelu.report.tables import aligned
from parelu.runs.predictions import Queries


def designs_text(networks: Sequence[tuple[str, Spec]], queries: Queries, *, as_json: bool) -> str:
    """What each counts, and what queries of it are predicted to take, with all its ReLUs.

    networks: name and spec of each. As JSON, a list; else a row for each.
    """
    counts = [(name, count(shared_skeleton(spec))) for name, spec in networks]
    expected = [queries.network(shared_skeleton(spec)) for _, spec in networks]
    if as_json:
        rows = [
            {"network": name, **found.to_json(), "predicted": predicted_json(each, queries)}
            for (name, found), each in zip(counts, expected, strict=True)
        ]
        return json.dumps(rows, indent=1)
    stages = list(dict.fromkeys(stage for _, found in counts for stage in found.stages if stage != HEAD))
    table = [["ReLUs", "FLOPs", *(f"{stage} %" for stage in stages), *heads(queries.links), "network"]]
    for (name, found), each in zip(counts, expected, strict=True):
        shares = [f"{_share(found, stage):.1f}" for stage in stages]
        seconds = cells(each.by_link, queries.links)
        table.append([f"{found.relus:,}", f"{found.flops / 1e6:,.1f} M", *shares, *seconds, name])
    return "\n".join([aligned(table, left=1), note(queries, [each.why for each in expected])])


def _share(counts: Counts, stage: str) -> float:
    """Percent of the network's ReLUs that stand in a stage."""
    return 100 * counts.stages[stage].relus / counts.relus if stage in counts.stages else 0.0
