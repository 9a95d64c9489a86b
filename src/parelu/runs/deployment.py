"""From a candidate's folder to a server that listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parelu.data.dataset import Dataset
from parelu.network.candidate import Candidate
from parelu.private.offline.mode import DEFAULT, Keep, modes, ring_for
from parelu.private.protocol.delphi import Model
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import reveal_for
from parelu.private.serving.rehearsal import rehearse
from parelu.private.serving.server import Server, ServerOptions
from parelu.private.transport import tls
from parelu.runs import measurement
from parelu.runs.bars import share


def server_of(
    folder: Path,
    address: tuple[str, int],
    certificates: Path | None,
    options: ServerOptions,
    *,
    relu: str = "sign",
    offline: str = DEFAULT,
    reveal: str = "label",
    step: float | None = None,
    truncation: str = "local",
    data_folder: Path | None = None,
    calibrate: Path | Dataset | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Server:
    """A server of the candidate in a folder, listening; its program and hints are made and kept there at the first
    start.

    certificates: folder with ca.pem, server.pem and server.key; None for plain connections. log: is told of each
    connection that ends. data_folder: where the data set's files are, to calibrate; calibrate: instead of that set,
    another or a folder of images. reveal, step: as `reveal_for` takes them.
    """
    mode = modes()[offline]
    tls.check_plain(address[0], certificates)
    options.check(mode)
    candidate = Candidate.load(folder)
    images = measurement.calibration_images(candidate, calibrate) if isinstance(calibrate, Path) else calibrate
    lowered = measurement.lowered(folder, candidate, ring_for(offline), data_folder if images is None else images)
    model = Model(lowered, relus()[relu], reveal_for(reveal, lowered.program, step), truncation)
    mode.check_terms(lowered.program, model.terms.relu)
    mode.check(model)
    hints = measurement.program_folder(folder, lowered.program.ring) / "hints"
    with share("making hints for clients, once", f", for {hints}") as progress:
        mode.make(model, Keep(folder=hints, alone=True, progress=progress, notice=log))
    rehearse(model)
    return Server(model, mode, address, certificates, options, log=log)
