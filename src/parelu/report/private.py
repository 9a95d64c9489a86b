"""What `parelu bench` prints: one row of measured private inference."""

from __future__ import annotations

from collections.abc import Mapping
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
    """The row as text: both phases, then the layers that cost most online."""
    lines = [
        f"{row['engine']}, ReLU {row['relu']}, offline {row['offline_mode']}, {row['network']}: "
        f"{row['relus']:,} ReLUs, {row['squares']:,} squares",
        f"({row['threat_model']})",
        "",
        f"  {'':<8}{'wall':>10}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}{'rounds':>8}",
    ]
    for phase in ("offline", "online"):
        p = row[phase]
        lines.append(
            f"  {phase:<8}{duration(p['seconds']):>10}{duration(p['cpu_client']):>12}{duration(p['cpu_server']):>12}"
            f"{size(p['bytes_to_client']):>12}{size(p['bytes_to_server']):>12}{p['rounds']:>8g}"
        )
    batch, relus = row["batch"], max(row["relus"] * row["batch"], 1)
    per_relu = (row["online"]["bytes_to_client"] + row["online"]["bytes_to_server"]) / relus
    query = f"queries of {batch} images" if batch > 1 else "inferences"
    lines += [
        "",
        f"  online {per_relu:,.0f} B a ReLU, {1e6 * row['online']['seconds'] / relus:.2f} µs a ReLU, "
        f"the linear layers included; {batch / row['online']['seconds']:.1f} images a second",
        f"  medians of {row['images'] // batch} {query} after one to warm up; peak memory of both parties "
        f"{row['peak_mb']:,.0f} MB",
        f"  largest error of a logit {row['max_error']:.4f}, top-1 agreement with the float network "
        f"{100 * row['agreement']:.1f} %",
        "",
        "  online, layer by layer",
    ]
    shown = [layer for layer in row["layers"] if layer["phase"] == "online"]
    wide = max(len(layer["layer"]) for layer in shown)
    lines.append(f"  {'':<{wide}}{'client CPU':>12}{'server CPU':>12}{'to client':>12}{'to server':>12}")
    for layer in shown:
        lines.append(
            f"  {layer['layer']:<{wide}}{duration(layer.get('cpu_client', 0)):>12}"
            f"{duration(layer.get('cpu_server', 0)):>12}{size(layer.get('bytes_to_client', 0)):>12}"
            f"{size(layer.get('bytes_to_server', 0)):>12}"
        )
    return "\n".join(lines)
