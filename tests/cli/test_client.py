"""The commands of a client, as processes of their own: what they import, and where they run."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from deployed import deployed
from PIL import Image
from two_parties import Residual, images_of, lowered_of, ready

from parelu.errors import ProtocolError
from parelu.private.serving.session import Session

LOWERED = lowered_of(ready(Residual(), (1, 6, 6)))
HEAVY = ("torch", "sklearn", "matplotlib")  # none of which a client has to wait for
IMPORTED = f"""
import sys
from parelu.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.kron(images_of(1, (1, 6, 6))[0, 0].numpy(), np.ones((2, 2), np.uint8))).save(path)  # 12×12
    return path


def client(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORTED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("offline", ["hints", "dealer"])
def test_infer_and_help_do_without_torch(offline: str, image: Path, tmp_path: Path):
    with deployed(LOWERED, offline=offline) as (server, _):
        done = client("infer", f"127.0.0.1:{server.port}", image, "--offline", offline, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0 and ": class " in done.stdout, done.stderr
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    for arguments in (("--help",), ("infer", "--help"), ("prepare", "--help"), ("serve", "--help")):
        done = client(*arguments)
        assert done.returncode == 0 and done.stderr == "[]\n", done.stderr


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str, int], None]:
    """Lets the server of a session go away at the n-th call of a method."""

    def go(cls: type, name: str, last: int) -> None:
        calls, method = itertools.count(1), getattr(cls, name)

        def call(self: Any, *arguments: Any) -> Any:
            if next(calls) == last:
                raise ProtocolError("the server went away")
            return method(self, *arguments)

        monkeypatch.setattr(cls, name, call)

    return go


def test_what_was_inferred_is_printed_before_the_server_goes(capsys, image: Path, asked_of):
    with deployed(LOWERED) as (server, _):
        asked = ["infer", f"127.0.0.1:{server.port}", *[str(image)] * 5, "--offline", "dealer"]
        asked_of(Session, "infer", 4)
        assert run(*asked) == 2
        shown = capsys.readouterr()
        assert shown.out.count(": class ") == 3 and "the server went away; 3 of 5 images have an answer" in shown.err
        asked_of(Session, "infer", 3)
        assert run(*asked, "--json") == 2
        assert [row["prepared"] for row in json.loads(capsys.readouterr().out)] == [1, 1]


def test_an_interrupted_preparation_goes_on(capsys, image: Path, asked_of, tmp_path: Path):
    with deployed(LOWERED, stock=tmp_path / "server", ahead=9) as (server, _):
        asked = [
            "prepare",
            f"127.0.0.1:{server.port}",
            "7",
            "--stock-dir",
            str(tmp_path / "own"),
            "--offline",
            "dealer",
        ]
        asked_of(Session, "add_to_stock", 6)  # the connection's first four are counted when they are all there
        assert run(*asked) == 2
        assert "the server went away; 5 of 7 were made, and the same command goes on" in capsys.readouterr().err
        assert run(*asked) == 0
        assert "7 in " in (said := capsys.readouterr().err) and ", 2 made in" in said
