"""parelu where nothing can be written: neither beside its sources, nor at home, nor beside a served network."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hardened import Installation
from PIL import Image

from parelu import client
from parelu.errors import UserError
from parelu.network.cache import folder
from parelu.network.spec import spec_of
from parelu.private.fresh import noise, untrained
from parelu.private.offline.mode import ring_for
from parelu.runs import measurement

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("hardened"))
    yield installation
    installation.remove()


@pytest.fixture(scope="module")
def network(installation: Installation) -> Path:
    """A network with its program, read-only."""
    place = installation.work / "network"
    candidate = untrained(spec_of("resnet10 m=1", SHAPE, 3), 0.1, 0)
    candidate.save(place)
    measurement.lowered(place, candidate, ring_for("dealer"), noise(4, SHAPE, 0))
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return place


def test_help_of_a_read_only_installation(installation: Installation):
    for arguments in (("--help",), ("infer", "--help")):
        process = installation.start(*arguments)
        shown, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "parelu" in shown and not errors


@pytest.mark.slow
def test_a_read_only_installation_serves_and_infers(installation: Installation, network: Path, tmp_path: Path):
    """Loops are compiled in each process, which costs seconds and no error."""
    Image.fromarray(noise(1, SHAPE, 1)[0, 0].numpy()).save(tmp_path / "image.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    options = ("--port", port, "--offline", "dealer", "--ledger", installation.work / "clients.sqlite")
    server = installation.start("serve", network, *options)
    assert server.stderr is not None
    try:
        while line := server.stderr.readline():
            if " listening on " in line:
                break
        infer = installation.start("infer", f"127.0.0.1:{port}", tmp_path / "image.png", "--offline", "dealer")
        shown, errors = infer.communicate(timeout=120)
        assert infer.returncode == 0 and ": class " in shown and "Traceback" not in errors, errors
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
    assert "1 inferences" in rest, rest
    assert not list(installation.home.iterdir()) and not list(installation.site.rglob("__pycache__"))


def test_a_program_that_cannot_be_kept_is_no_program(network: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It would have another pin at each start."""
    candidate = untrained(spec_of("resnet10 m=1", SHAPE, 3), 0.1, 0)

    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(measurement.Lowered, "save", full)
    with pytest.raises(UserError, match=r"cannot be kept there \(Read-only file system\); start once where"):
        measurement.lowered(network, candidate, ring_for("hints"), noise(4, SHAPE, 0))


def test_a_user_without_a_home_keeps_hints_in_memory(monkeypatch: pytest.MonkeyPatch):
    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert client.hints_folder() is None
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        folder()
