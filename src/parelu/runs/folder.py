"""The run folder: all that one step leaves for the next.

config.json        what was asked for, with its digest; a folder of another configuration is refused
environment.json   versions and machine
candidates/NAME/   one network: candidate.json, candidate.safetensors, metrics.jsonl (a line an epoch),
                   checkpoint/ while it trains, private/ with its program and what private inference measured
searches/NAME/     a search for masks: metrics.jsonl, checkpoint/, BUDGET/ with what it left there; start/ with what
                   merging made of a network before it is finetuned
records/NAME.json  figures of a method, such as its criticality table
report.html
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parelu.errors import UserError
from parelu.network import storage
from parelu.network.candidate import Candidate
from parelu.network.metrics import Metrics, metrics_from_json
from parelu.private.cost.predict import Predicted
from parelu.private.engines.base import Options
from parelu.private.rows import PrivateInference
from parelu.runs.environment import environment
from parelu.training import ranks
from parelu.training.history import Epoch, StoredHistory

PLACES = ("data_folder", "weights")  # of a configuration: paths, of whose contents it has the digests
REMARKS = ("paper",)  # of a configuration: what changes nothing that is trained
# What it means that a digest of a configuration is another one now.
CONTENTS = {
    "data_sha256": "the images or labels of its data set are others now: restore them",
    "weights_sha256": "its weights are others now: give those that it began with",
}


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished network of a run, without its weights.

    Attributes:
        metrics: of the candidate; history: its epochs.
        private: what `parelu bench RUN` measured of this network; None where it did not.
        network: that its run is about, where records of several networks are told apart; "" where they are not.
        query: how the queries run that the run's limits are about; predicted: what one of it takes, where asked for.
        folder: where it stands; None of one that is in memory alone.
    """

    run: str
    name: str
    metrics: Metrics
    history: Sequence[Epoch]
    private: PrivateInference | None = None
    network: str = ""
    query: str = ""
    predicted: Predicted | None = None
    folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def start(cls, path: Path, config: Mapping[str, Any]) -> Run:
        """Make the folder, or continue in it; raises `UserError` where it holds a run of another configuration.

        What lies at a place may move, but not change: digests of contents decide, and the new places are kept.
        """
        config = json.loads(json.dumps(config))
        file = path / "config.json"
        if path.exists() and not file.exists() and (not path.is_dir() or _visible(path)):
            raise UserError(f"{path} exists and is no run folder; give another --run")
        there = None
        if file.exists():
            there = cls.open(path).config
            changed = _first_difference(_deciding(there), _deciding(config))
            if changed:
                raise UserError(
                    f"{path} is a run of another configuration ({_difference(*changed)}); give another --run, or the "
                    "same options to continue it"
                )
        if there != config:
            storage.write_json(file, {"config": config, "sha256": storage.digest(config)})
        if not (path / "environment.json").exists():
            storage.write_json(path / "environment.json", environment())
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A folder that `start` made."""
        path = Path(path)
        file = path / "config.json"
        if not file.is_file():
            raise UserError(f"{path} is no run folder (it has no config.json); make one with `parelu reduce`")
        try:
            stored = json.loads(file.read_bytes())
            if storage.digest(stored["config"]) != stored["sha256"]:
                raise ValueError("its digest does not match")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}); give another --run") from error
        return cls(path, stored["config"])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises `UserError` where another process works in it."""
        if ranks.number():  # the first holds it for all
            yield
            return
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process works in {self.path}; wait for it or give another --run") from None
            yield

    def folder(self, name: str) -> Path:
        """Where a candidate of this name stands."""
        return self.path / "candidates" / name

    def candidate(self, name: str) -> Candidate:
        return Candidate.load(self.folder(name))

    @property
    def network(self) -> str:
        """What the network is called that the run is about."""
        model = self.config.get("model", "")
        if isinstance(model, str):
            return model
        return f"{model['family']} m={model['stem']}" if "stem" in model else model["family"]

    @property
    def outside_teacher(self) -> str:
        """What the architecture is called that teaches in the full-ReLU network's place; "" where that teaches."""
        teacher = self.config.get("teacher", "")
        return teacher if isinstance(teacher, str) else teacher["family"]

    @property
    def query(self) -> str:
        """How the queries run that its budgets are about: the link, and what is not as usual; "" where none is."""
        asked, usual = self.config.get("query"), Options()
        if not asked:
            return ""
        others = [asked[name] for name in ("relu", "offline") if asked[name] != getattr(usual, name)]
        return ", ".join([asked["link"], *others])

    def record(self, name: str, value: Any) -> None:
        """Keep a method's figures, a JSON value."""
        storage.write_json(self.path / "records" / f"{name}.json", value)

    def records(self) -> dict[str, Any]:
        """Name → figures that `record` kept."""
        files = sorted((self.path / "records").glob("*.json"))
        return {file.stem: json.loads(file.read_bytes()) for file in files}

    @property
    def environment(self) -> Mapping[str, Any]:
        return json.loads((self.path / "environment.json").read_bytes())

    def candidates(self) -> list[Record]:
        """The finished networks, by falling number of ReLUs."""
        found = []
        for header in sorted((self.path / "candidates").glob("*/candidate.json")):
            candidate = storage.read_header(header.parent, "candidate")
            found.append(
                Record(
                    self.path.name,
                    header.parent.name,
                    _metrics(header.parent, candidate),
                    StoredHistory(header.parent),
                    read_private_inference(header.parent, candidate),
                    query=self.query,
                    folder=header.parent,
                )
            )
        return sorted(found, key=lambda record: -record.metrics.relus_and_comparisons)


def _metrics(folder: Path, candidate: Mapping[str, Any]) -> Metrics:
    found = metrics_from_json(candidate["metrics"])
    if not isinstance(found, Metrics):
        raise UserError(f"{folder} was not trained here: its metrics lack the test accuracy; move it elsewhere")
    return found


def read_private_inference(folder: Path, candidate: Mapping[str, Any]) -> PrivateInference | None:
    """What was measured of a candidate, private/measured.json; None where it was another candidate's, or of an older
    form, whose row has no total: it is measured again."""
    try:
        value = json.loads((folder / "private" / "measured.json").read_bytes())
        is_ours = value["identity"]["candidate"] == candidate["tensors_sha256"] and "total" in value["row"]
        return PrivateInference.from_json(value) if is_ours else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/private/measured.json is damaged ({error}); delete it and bench again") from error


def write_private_inference(folder: Path, candidate: Mapping[str, Any], value: PrivateInference) -> None:
    """Write what `read_private_inference` reads. candidate: its checked header."""
    identity = {"candidate": candidate["tensors_sha256"]}
    storage.write_json(folder / "private" / "measured.json", {"identity": identity, **value.to_json()})


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the outcome."""
    return {key: value for key, value in config.items() if key not in PLACES + REMARKS}


def _difference(name: str, there: Any, now: Any) -> str:
    if name in CONTENTS and there and now:
        return f"{name}: {CONTENTS[name]}"
    return f"{name} is {_short(there)} there and {_short(now)} now"


def _visible(folder: Path) -> bool:
    """Whether a folder holds more than the temporary files that a kill can leave."""
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _first_difference(there: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Dotted name and both values of the innermost place where two JSON values first differ."""
    if there == now:
        return None
    if isinstance(there, dict) and isinstance(now, dict):
        inner = [(key, there.get(key), now.get(key)) for key in {**there, **now}]
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        inner = [(str(number), *pair) for number, pair in enumerate(zip(there, now, strict=True), start=1)]
    else:
        return name, there, now
    found = (_first_difference(a, b, f"{name}.{key}" if name else key) for key, a, b in inner)
    return next(filter(None, found), (name, there, now))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
