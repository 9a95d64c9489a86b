"""What a query of a candidate is predicted to take, kept beside it: to work it out takes a tenth of a second each.

private/predicted.json is of a candidate, its program, a way to run queries, a calibration and the source that predicts:
where one of these is another now, nothing of it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import parelu
from parelu.network import storage
from parelu.network.spec import families
from parelu.private.cost.predict import PHASES, Estimate, Predicted, Prediction
from parelu.private.engines.base import Options
from parelu.private.offline.mode import modes
from parelu.private.protocol.relu import relus
from parelu.registry import is_own

NAME = "predicted.json"
ROOMS = ("network", "models", "fusion", "private")  # whose source decides a prediction


@dataclasses.dataclass(frozen=True)
class Kept:
    """Predictions of one candidate. identity: of all that they hang on but the link.

    by_link: as of `Predicted`; why: likewise, "" where all is said.
    """

    identity: str
    by_link: Mapping[str, Prediction] = dataclasses.field(default_factory=dict)
    why: str = ""

    @classmethod
    def read(cls, folder: Path, identity: str) -> Kept:
        """Of a candidate's folder; empty where nothing of this identity is kept, whatever else the file holds."""
        try:
            value = json.loads((folder / "private" / NAME).read_bytes())
            if value.pop("sha256") == storage.digest(value) and value["identity"] == identity:
                return cls(identity, {link: _prediction(one) for link, one in value["by_link"].items()}, value["why"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return cls(identity)

    def adding(self, found: Predicted) -> Kept:
        return Kept(self.identity, {**self.by_link, **found.by_link}, found.why)

    def write(self, folder: Path) -> None:
        """Nothing where the folder cannot be written: it is worked out again then."""
        value = dataclasses.asdict(self)
        with contextlib.suppress(OSError):
            storage.write_json(folder / "private" / NAME, {**value, "sha256": storage.digest(value)})


def _prediction(value: Mapping[str, Any]) -> Prediction:
    phases = {phase: Estimate(**value[phase]) for phase in PHASES}
    return Prediction(**phases, memory=value["memory"])


def identity(folder: Path, program: Path, options: Options, calibration: str) -> str:
    """program: where its own would be kept; calibration: its digest. Files are taken as their headers say they are."""
    headers = [_sha256(file) for file in (folder / "candidate.json", program)]
    asked = dataclasses.asdict(dataclasses.replace(options, link=""))
    return storage.digest([headers, asked, calibration, _source(options.relu, options.offline)])


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


@functools.cache
def _source(relu: str, offline: str) -> str:
    """SHA-256 of the source that predicts: parelu's, and of the plugins that are used."""
    root = Path(parelu.__file__).parent
    own = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    extensions = [*families().values(), type(relus()[relu]), type(modes()[offline])]
    others = [Path(inspect.getfile(cls)) for cls in extensions if not is_own(cls)]
    whole = hashlib.sha256()
    for path in [*own, *others]:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()
