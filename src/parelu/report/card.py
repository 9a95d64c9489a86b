"""A model card: what a candidate is, what was measured of it and where it comes from, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.count import Counts, count, skeleton
from parelu.network.metrics import Metrics
from parelu.private.rows import PrivateInference
from parelu.report.private import duration, size
from parelu.runs.folder import PLACES, Run, read_private_inference

THREAT_MODEL = """\
By default between two semi-honest parties and no third: the server learns nothing of an image, the client nothing of
the weights but what its answers tell. The architecture and the masks are public, and so are the weights to whoever has
these files: who serves the model keeps them."""
VERSIONS = ("parelu", "torch", "numpy", "python", "device")


def card(folder: Path) -> str:
    """The card of the candidate in a folder, with what its run says of it where it is in one.

    Raises:
        UserError: the folder holds no candidate, or it was damaged.
    """
    candidate, header = Candidate.load(folder), storage.read_header(folder, "candidate")
    network = skeleton(candidate.spec)
    candidate.plan.apply(network)
    counts, metrics = count(network), candidate.metrics
    name, place = folder.resolve().name, folder.resolve().parent.parent
    run = Run.open(place) if (place / "config.json").is_file() else None
    parts = [
        _front_matter(name, candidate),
        f"# {name}",
        _summary(candidate, counts),
        "## Measured",
        _table(("", ""), _figures(counts, metrics if isinstance(metrics, Metrics) else None)),
        _table(("stage", "ReLUs", "MACs"), ((s, f"{c.relus:,}", f"{c.macs:,}") for s, c in counts.stages.items())),
        "## Private inference",
        *_private(read_private_inference(folder, header)),
        THREAT_MODEL,
        "## Use",
        _use(candidate),
        "## Provenance",
        _table(("", ""), _provenance(candidate, header, run)),
        *_configuration(run),
        "## Licence",
        "Not chosen yet: replace `other` at the top, and this line. The licence of the data may bind the weights too.",
    ]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, path: Path) -> Path:
    """Write the card of the candidate in a folder; returns its path."""
    storage.write_atomic(path, card(folder).encode())
    return path


def _front_matter(name: str, candidate: Candidate) -> str:
    """What hubs read, as YAML, whose strings JSON's are."""
    lines = ["license: other", "library_name: parelu", "pipeline_tag: image-classification"]
    lines += ["tags: [private-inference, relu-reduction]"]
    if isinstance(candidate.metrics, Metrics):
        data = json.dumps(candidate.preprocessing.get("dataset", "unknown"))
        metric = f"{{type: accuracy, name: test accuracy, value: {candidate.metrics.test_accuracy:.2f}}}"
        task, dataset = "task: {type: image-classification}", f"dataset: {{name: {data}, type: {data}}}"
        lines += ["model-index:", f"- name: {json.dumps(name)}"]
        lines += ["  results:", f"  - {task}", f"    {dataset}", f"    metrics: [{metric}]"]
    return "\n".join(("---", *lines, "---"))


def _summary(candidate: Candidate, counts: Counts) -> str:
    shape, data = "×".join(map(str, candidate.spec.input)), candidate.preprocessing.get("dataset")
    kept = ""
    if isinstance(candidate.metrics, Metrics) and candidate.metrics.relus_full:
        kept = f", of {candidate.metrics.relus_full:,}"
    trained = f" trained on {data}" if data else ""
    return (
        f"A classifier of {shape} images into {candidate.spec.classes} classes{trained}, made for private inference: "
        f"it has {counts.relus:,} ReLUs{kept}."
    )


def _figures(counts: Counts, metrics: Metrics | None) -> list[tuple[str, str]]:
    rows = []
    if metrics:
        rows += [("test accuracy", f"{metrics.test_accuracy:.2f} %")]
        rows += [("validation accuracy", f"{metrics.validation_accuracy:.2f} %")]
    rows += [("ReLUs", f"{counts.relus:,}"), ("comparisons of max-pools", f"{counts.comparisons:,}")]
    rows += [("squares", f"{counts.squares:,}"), ("multiply-adds", f"{counts.macs:,}")]
    return [*rows, ("parameters", f"{counts.params:,}"), ("depth", f"{counts.depth} convolutions")]


def _private(measured: PrivateInference | None) -> list[str]:
    """A table, where `parelu bench` has measured."""
    if measured is None:
        return []
    row = measured.row
    phases = {"offline": row.costs.offline, "online": row.costs.online, "total": row.costs.total}
    costs = ((name, duration(c.seconds), size(c.bytes), f"{c.rounds:g}") for name, c in phases.items() if c)
    table = _table(("a query", "seconds", "bytes", "rounds"), costs)
    accuracy = f"Accuracy in the ring over {measured.ring.images:,} test images: {measured.ring.accuracy:.2f} %."
    return [f"{row.setting}, {row.batch} images a query. {accuracy}", table]


def _use(candidate: Candidate) -> str:
    known = candidate.preprocessing
    moments = [f"{key} {json.dumps(known[key])}" for key in ("mean", "std") if key in known]
    return (
        "`candidate.json` and `candidate.safetensors` are all of it, and hold no code: `parelu serve FOLDER`, "
        "`parelu inspect FOLDER`, or in Python `parelu.load(FOLDER).network()`.\n"
        f"The network takes images from 0 to 1, normalised: {', '.join(moments) or 'as its data were'}, a channel each."
    )


def _provenance(candidate: Candidate, header: Mapping[str, Any], run: Run | None) -> list[tuple[str, str]]:
    metrics = candidate.metrics
    rows = []
    if isinstance(metrics, Metrics):
        rows += [("method", f"{metrics.method} {metrics.steps}".strip()), ("seed", str(metrics.seed))]
        rows += [("epochs", str(metrics.epochs))]
    if run:
        rows += [("network", run.network), ("data", str(run.config.get("data")))]
        rows += [("data, SHA-256", str(run.config.get("data_sha256")))]
        rows += [("made with", ", ".join(f"{key} {run.environment.get(key)}" for key in VERSIONS))]
    return [*rows, ("plan, SHA-256", candidate.plan.digest()), ("weights, SHA-256", header["tensors_sha256"])]


def _configuration(run: Run | None) -> list[str]:
    """All that decided the outcome, without places on the machine that it was made on."""
    if run is None:
        return []
    methods = " ".join(dict.fromkeys(str(one.get("method")) for one in run.config.get("reductions", ())))
    known = {key: value for key, value in run.config.items() if key not in PLACES}
    text = json.dumps(known, indent=1).replace("```", "")
    return [f"The options of `parelu {f'reduce {methods}' if methods else 'train'}`:", f"```json\n{text}\n```"]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
