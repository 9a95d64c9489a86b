"""From candidates' folders to a server that listens."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from parelu.data.dataset import Dataset
from parelu.network.candidate import Candidate
from parelu.private.offline.mode import DEFAULT, Keep, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_for
from parelu.private.serving.deployment import Deployment
from parelu.private.serving.listening import listen
from parelu.private.serving.log import LOG
from parelu.private.serving.rehearsal import rehearse
from parelu.private.serving.served import DEFAULTS, Served, ServedOptions
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport import tls
from parelu.runs import measurement
from parelu.runs.bars import share

HINTS = "making hints for clients, once"


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the candidate in a folder is served; its program and hints are made and kept there at the first start.

    data_folder: where the data set's files are, to calibrate; calibrate: instead of that set, another or a folder of
    images. reveal, step: as `reveal_for` takes them.
    """

    folder: Path
    relu: str = "sign"
    offline: str = DEFAULT
    reveal: str = "label"
    step: float | None = None
    truncation: str = "local"
    data_folder: Path | None = None
    calibrate: Path | Dataset | None = None
    options: ServedOptions = DEFAULTS

    def load(self) -> Served:
        """Raises UserError where it is no candidate, or one that cannot be served so."""
        mode = modes()[self.offline]
        self.options.check(mode)
        candidate = Candidate.load(self.folder)
        images = self.calibrate
        if isinstance(images, Path):
            images = measurement.calibration_images(candidate, images)
        ring, data = ring_for(self.offline), self.data_folder if images is None else images
        lowered = measurement.lowered(self.folder, candidate, ring, data)
        reveal = reveal_for(self.reveal, lowered.program, self.step)
        model = Model(lowered, relus()[self.relu], reveal, self.truncation)
        mode.check_terms(lowered.program, model.terms.relu)
        mode.check(model)
        hints = measurement.program_folder(self.folder, lowered.program.ring) / "hints"
        with share(HINTS, f", for {hints}") as progress:
            mode.make(model, Keep(folder=hints, alone=True, progress=progress, notice=LOG.info))
        rehearse(model)
        return Served(model, mode, self.options)


@dataclasses.dataclass(frozen=True)
class Candidates(Deployment):
    """Candidates by the names that clients ask for; "" for one alone that has none."""

    settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)

    def load(self) -> dict[str, Served]:
        return {name: setting.load() for name, setting in self.settings.items()}

    def since(self, before: Deployment) -> Candidates:
        """What is calibrated on images of one's own has another program each time, so that is done once."""
        assert isinstance(before, Candidates)
        known = {name: one for name, one in self.settings.items() if before.settings.get(name) == one}
        again = {name: dataclasses.replace(one, calibrate=None) for name, one in known.items()}
        return dataclasses.replace(self, settings={**self.settings, **again})


def server_of(setting: Setting, address: tuple[str, int], certificates: Path | None, options: ServerOptions) -> Server:
    """A server of one candidate, listening. Raises UserError where it cannot be served, or not there."""
    tls.check_plain(address[0], certificates)
    return Server(setting.load(), address, certificates, options)


def serve_until_stopped(
    reread: Callable[[], Candidates],
    address: tuple[str, int],
    announce: Callable[[Server], None],
    *,
    processes: int = 1,
    drain: float = 30.0,
    metrics: tuple[str, int] | None = None,
    log: tuple[str, str] = ("text", "info"),
) -> int:
    """Serve what `reread` says, now and at each SIGHUP; see `private.serving.daemon.serve` and its `Service`."""
    from parelu.private.serving import daemon  # the client library of Prometheus takes a tenth of a second
    from parelu.private.serving import log as logs

    logs.configure(*log)
    deployment = reread()
    tls.check_plain(address[0], deployment.certificates)
    service = daemon.Service(address, processes, drain, metrics, log)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(*address)]
        return daemon.serve(deployment, reread, listeners, service, announce)
