"""What `parelu design` prints: the ReLUs, FLOPs and stages of networks side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

from parelu.network.count import HEAD, Counts, count, shared_skeleton
from parelu.network.spec import Spec
from parelu.report.tables import aligned


def designs_text(networks: Sequence[tuple[str, Spec]], *, as_json: bool) -> str:
    """networks: name and spec of each. As JSON, a list with the counts of each; else a row for each."""
    counts = [(name, count(shared_skeleton(spec))) for name, spec in networks]
    if as_json:
        return json.dumps([{"network": name, **found.to_json()} for name, found in counts], indent=1)
    stages = list(dict.fromkeys(stage for _, found in counts for stage in found.stages if stage != HEAD))
    cells = [["ReLUs", "FLOPs", *(f"{stage} %" for stage in stages), "network"]]
    for name, found in counts:
        shares = [f"{_share(found, stage):.1f}" for stage in stages]
        cells.append([f"{found.relus:,}", f"{found.flops / 1e6:,.1f} M", *shares, name])
    return aligned(cells, left=1)


def _share(counts: Counts, stage: str) -> float:
    """Percent of the network's ReLUs that stand in a stage."""
    return 100 * counts.stages[stage].relus / counts.relus if stage in counts.stages else 0.0
