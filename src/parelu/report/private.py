"""What `parelu bench` prints: one row of measured private inference, or several engines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def size(count: float) -> str:
    """Bytes for people: 1 500 000 → "1.5 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds for people: 0.0123 → "12.3 ms"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bench_text(row: Mapping[str, Any]) -> str:
    """The row as text: its phases, or the whole cost where it has none, then its layers online."""
    phases = [phase for phase in ("offline", "online") if phase in row] or ["total"]
    lines = [
        f"{row['engine']}, ReLU {row['relu']}, offline {row['offline_mode']}, {row['network']}: "
        f"{row['relus']:,} ReLUs, {row['squares']:,} squares",
        f"({row['threat_model']})",
        "",
        f"  {'':<8}{'wall':>10}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}{'rounds':>8}",
    ]
    for phase in phases:
        p = row[phase]
        lines.append(
            f"  {phase:<8}{duration(p['seconds']):>10}{duration(p['cpu_client']):>12}{duration(p['cpu_server']):>12}"
            f"{size(p['bytes_to_client']):>12}{size(p['bytes_to_server']):>12}{p['rounds']:>8g}"
        )
    batch, relus = row["batch"], max(row["relus"] * row["batch"], 1)
    last = row[phases[-1]]
    query = f"queries of {batch} images" if batch > 1 else "inferences"
    lines += [
        "",
        f"  {phases[-1]} {all_bytes(last) / relus:,.0f} B a ReLU, {1e6 * last['seconds'] / relus:.2f} µs a ReLU, "
        f"the linear layers included; {batch / last['seconds']:.1f} images a second",
        f"  medians of {row['images'] // batch} {query} after one to warm up"
        + (f"; peak memory of both parties {row['peak_mb']:,.0f} MB" if "peak_mb" in row else ""),
        f"  largest error of a logit {row['max_error']:.4f}, top-1 agreement with the float network "
        f"{100 * row['agreement']:.1f} %",
    ]
    return "\n".join(lines + (_layers(row) if "layers" in row else []))


def _layers(row: Mapping[str, Any]) -> list[str]:
    lines = ["", "  online, layer by layer"]
    shown = [layer for layer in row["layers"] if layer["phase"] == "online"]
    wide = max(len(layer["layer"]) for layer in shown)
    lines.append(f"  {'':<{wide}}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}")
    for layer in shown:
        lines.append(
            f"  {layer['layer']:<{wide}}{duration(layer.get('cpu_client', 0)):>12}"
            f"{duration(layer.get('cpu_server', 0)):>12}{size(layer.get('bytes_to_client', 0)):>12}"
            f"{size(layer.get('bytes_to_server', 0)):>12}"
        )
    return lines


def side_by_side_text(rows: Sequence[Mapping[str, Any]], difference: Mapping[str, Any]) -> str:
    """A line for each engine, on one network and the same images.

    difference: of `bench.difference`, between the ring reference and all rows.
    """
    has_helper = any("bytes_to_helper" in row["total"] for row in rows)
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
    batch, images = rows[0]["batch"], rows[0]["images"]
    query = f"a query of {batch} images" if batch > 1 else "an image"
    return "\n".join(
        [
            f"{rows[0]['relus']:,} ReLUs, {rows[0]['squares']:,} squares; the cost of {query}, the median of "
            f"{images // batch} after one to warm up",
            "",
            *table,
            "",
            "The whole cost is offline and online together; an engine without the two makes its randomness as it goes. "
            "Bytes and rounds are of the whole.",
            f"Between these engines and the ring reference a logit differs by {difference['largest']:.4f} at most; "
            f"of {images} images {difference['clear']} have a larger margin, and all agree on the label of "
            f"{difference['same']} of those, and of {difference['same_of_all']} of all.",
        ]
    )


def _engine(row: Mapping[str, Any], parties: Sequence[str]) -> tuple[str, ...]:
    total = row["total"]
    has_phases = "online" in row
    name = f"{row['engine']}, {row['relu']}, {row['offline_mode']}" if has_phases else row["engine"]
    sent = (size(total[f"bytes_to_{party}"]) if f"bytes_to_{party}" in total else "–" for party in parties)
    return (
        name,
        duration(row["online"]["seconds"]) if has_phases else "–",
        duration(total["seconds"]),
        *sent,
        f"{total['rounds']:g}",
        f"{row['max_error']:.4f}",
        f"{row['ring']['largest']:.4f}",
        f"{100 * row['agreement']:.1f} %",
        row["threat_model"],
    )


def all_bytes(cost: Mapping[str, float]) -> float:
    """Bytes of a phase or a whole cost, to all parties."""
    return sum(value for name, value in cost.items() if name.startswith("bytes_to_"))
