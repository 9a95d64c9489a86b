"""The commands of a client, as processes of their own: what they import, and where they run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deployed import deployed
from PIL import Image
from two_parties import Residual, images_of, lowered_of, ready

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
