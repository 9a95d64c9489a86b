"""What `parelu bench` prints, one row of measured private inference or several engines side by side; and `clients`."""

from __future__ import annotations

from collections.abc import Sequence

from parelu.private.rows import LINEAR, RELU, Cost, Difference, LayerCost, Part, Row
from parelu.private.serving.ledger import Record

PARTS = {LINEAR: "linear", RELU: "ReLUs"}
PARTS_NOTE = "ReLUs: with the squares, and online until the client's answer is there; linear: all else of the phase."


def size(count: float) -> str:
    """Bytes for people: 1 500 000 → "1.5 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people: 0.0123 → "12.3 ms"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bench_text(row: Row) -> str:
    """The row as text: its phases, or the whole cost where it has none, then its layers online."""
    costs = row.costs
    phases = {"offline": costs.offline, "online": costs.online} if costs.online else {"total": costs.total}
    lines = [
        f"{row.setting}: {row.relus:,} ReLUs, {row.squares:,} squares",
        f"({row.threat_model})",
        "",
        f"  {'':<8}{'wall':>10}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}{'rounds':>8}",
    ]
    for name, cost in phases.items():
        if cost:
            lines.append(_phase(name, cost))
            lines += [_part(PARTS[part], found) for part, found in (costs.parts or {}).get(name, {}).items()]
    if costs.parts:
        lines += ["", f"  {PARTS_NOTE}"]
    if costs.hints_bytes is not None:
        lines += ["", f"  hints, once: {size(costs.hints_bytes)}, which a client keeps"]
    name, last = [(name, cost) for name, cost in phases.items() if cost][-1]
    batch, relus = row.batch, max(row.relus * row.batch, 1)
    query = f"queries of {batch} images" if batch > 1 else "inferences"
    lines += [
        "",
        f"  {name} {last.bytes / relus:,.0f} B a ReLU, {1e6 * last.seconds / relus:.2f} µs a ReLU, "
        f"the linear layers included; {batch / last.seconds:.1f} images a second",
        f"  medians of {row.images // batch} {query} after one to warm up"
        + (f"; peak memory of both parties {costs.peak_mb:,.0f} MB" if costs.peak_mb is not None else ""),
        f"  largest error of a logit {row.max_error:.4f}, top-1 agreement with the float network "
        f"{100 * row.agreement:.1f} %",
    ]
    return "\n".join(lines + (_layers(costs.layers) if costs.layers else []))


def _phase(name: str, cost: Cost) -> str:
    return (
        f"  {name:<8}{duration(cost.seconds):>10}{duration(cost.cpu['client']):>12}{duration(cost.cpu['server']):>12}"
        f"{size(cost.sent['client']):>12}{size(cost.sent['server']):>12}{cost.rounds:>8g}"
    )


def _part(name: str, part: Part) -> str:
    to_client, to_server = (size(part.sent[party]) for party in ("client", "server"))
    return f"    {name:<6}{duration(part.seconds):>10}{'':24}{to_client:>12}{to_server:>12}"


def _layers(layers: Sequence[LayerCost]) -> list[str]:
    lines = ["", "  online, layer by layer"]
    shown = [layer for layer in layers if layer.phase == "online"]
    wide = max(len(layer.layer) for layer in shown)
    lines.append(f"  {'':<{wide}}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}")
    for layer in shown:
        lines.append(
            f"  {layer.layer:<{wide}}{duration(layer.cpu_client or 0):>12}{duration(layer.cpu_server or 0):>12}"
            f"{size(layer.bytes_to_client or 0):>12}{size(layer.bytes_to_server or 0):>12}"
        )
    return lines


def side_by_side_text(rows: Sequence[Row], difference: Difference) -> str:
    """A line for each engine, on one network and the same images.

    difference: of `bench.difference`, between the ring reference and all rows.
    """
    has_helper = any("helper" in row.costs.total.sent for row in rows)
    parties = ("client", "server", "helper") if has_helper else ("client", "server")
    head = (
        "engine",
        "online",
        "whole cost",
        *(f"to {party}" for party in parties),
        "rounds",
        "from float",
        "from ring",
        "same label",
        "threat model",
    )
    cells = [head, *(_engine(row, parties) for row in rows)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    edges = ["<", *[">"] * (len(head) - 2), "<"]
    table = [
        "  ".join(f"{cell:{edge}{width}}" for cell, edge, width in zip(line, edges, wide, strict=True)).rstrip()
        for line in cells
    ]
    batch, images = rows[0].batch, rows[0].images
    query = f"a query of {batch} images" if batch > 1 else "an image"
    return "\n".join(
        [
            f"{rows[0].relus:,} ReLUs, {rows[0].squares:,} squares; the cost of {query}, the median of "
            f"{images // batch} after one to warm up",
            "",
            *table,
            "",
            "The whole cost is offline and online together; an engine without the two makes its randomness as it goes. "
            "Bytes and rounds are of the whole.",
            f"Between these engines and the ring reference a logit differs by {difference.largest:.4f} at most; "
            f"of {images} images {difference.clear} have a larger margin, and all agree on the label of "
            f"{difference.same} of those, and of {difference.same_of_all} of all.",
        ]
    )


def _engine(row: Row, parties: Sequence[str]) -> tuple[str, ...]:
    total, online = row.costs.total, row.costs.online
    return (
        f"{row.engine}, {row.relu_setting}, {row.offline_mode}" if online else row.engine,
        duration(online.seconds) if online else "–",
        duration(total.seconds),
        *(size(total.sent[party]) if party in total.sent else "–" for party in parties),
        f"{total.rounds:g}",
        f"{row.max_error:.4f}",
        f"{row.ring.largest:.4f}",
        f"{100 * row.agreement:.1f} %",
        row.threat_model,
    )


def hints_text(digest: str, sizes: Sequence[int]) -> str:
    """A server's hints: of the offer, and bytes of each set, for clients of the fewest queries first."""
    few = f" ({size(sizes[0])} for one of few queries)" if len(sizes) > 1 else ""
    return f"hints {digest[:16]}…: {size(sizes[-1])} to each client, once{few}"


def clients_text(records: Sequence[Record]) -> str:
    """A line for each client of a server."""
    if not records:
        return "no client yet"
    names = [record.name or "(this machine)" for record in records]
    wide = max(map(len, names))
    lines = [f"{'client':<{wide}}{'inferences':>12}{'phases':>9}{'opened':>9}{'shown':>9}"]
    for name, record in zip(names, records, strict=True):
        counts = f"{record.inferences:>12,}{record.phases:>9,}{record.opened:>9,}{record.answered:>9,}"
        lines.append(f"{name:<{wide}}{counts}" + (f"  barred: {record.barred}" if record.barred else ""))
    return "\n".join(lines)
