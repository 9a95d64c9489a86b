"""examples/second_client, which shares no code with the package, against `parelu serve`'s server."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import deployed
from hand_programs import Hand
from two_parties import NARROW, images_of
from wire_vectors import network

from parelu.private.lowering import reference
from parelu.private.lowering.lowered import Lowered
from parelu.private.serving import session
from parelu.private.transport.tls import make_certificates

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples/second_client"


def run(*arguments) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-E", str(EXAMPLE / "client.py"), *map(str, arguments)], capture_output=True, text=True
    )


def every_op() -> Lowered:
    """Every kind of op, in the shapes that a second reading may get wrong."""
    hand = Hand((2, 6, 6), NARROW, seed=5)
    x = hand.activation(hand.truncate(hand.conv(0, 4)), relus=0.5, squares=0.3)
    y = hand.shift(hand.scale(hand.select(hand.resample(x, 1, 5, 3), 2, 5), 3))
    y = hand.permute(hand.concat(y, y), 2, 0, 1)
    y = hand.activation(hand.truncate(hand.multiply(hand.truncate(y))), relus=1.0)
    hand.linear(hand.pool(hand.add(y, y)), 3)
    return hand.lowered()


def convolutions() -> Lowered:
    """A stride, groups, layers that share an upload, and tiles, all with ReLUs."""
    hand = Hand((1, 48, 48), NARROW, seed=2)
    x = hand.activation(hand.truncate(hand.conv(0, 2, kernel=5, stride=3, padding=2)), relus=0.05)
    y = hand.add(hand.conv(x, 4, groups=2), hand.conv(x, 4, kernel=1, padding=0))
    hand.linear(hand.pool(hand.activation(hand.truncate(y), relus=0.02), 16, 16), 3)
    return hand.lowered()


def differing(lowered: Lowered, count: int) -> torch.Tensor:
    """Images whose label no rounding changes."""
    images = images_of(200, lowered.program.input_shape, seed=1)
    best = reference.run(lowered, images).logits
    margin = np.diff(np.sort(best, 1), axis=1)[:, -1]
    return images[np.argsort(-margin)[:count].copy()]


@pytest.mark.parametrize(
    ("lowered", "offline", "truncation"),
    [
        (every_op, "dealer", "local"),
        (every_op, "dealer", "exact"),
        (convolutions, "dealer", "exact"),
        (convolutions, "hints", "local"),
        (every_op, "hints", "exact"),
    ],
)
def test_it_gets_the_labels(lowered, offline, truncation, tmp_path):
    lowered = lowered()
    images = differing(lowered, 3 if offline == "dealer" else 1)
    np.save(tmp_path / "images.npy", images.numpy())
    with deployed(lowered, offline=offline, truncation=truncation, audit=0.0) as (server, lines):
        found = run(f"127.0.0.1:{server.port}", tmp_path / "images.npy", "--offline", offline)
    expected = reference.run(lowered, images).logits.argmax(1)
    assert (found.stdout.split(), found.stderr) == ([str(label) for label in expected], ""), lines
    assert "inferences" in lines[-1]


def test_it_shows_what_an_audit_asks_for(tmp_path):
    lowered = network()
    np.save(tmp_path / "image.npy", differing(lowered, 1).numpy())
    with deployed(lowered, offline="hints", audit=0.5) as (server, lines), pytest.MonkeyPatch.context() as patch:
        tosses = iter([True, True, False])
        patch.setattr(session, "_toss", lambda share: next(tosses))
        found = run(f"127.0.0.1:{server.port}", tmp_path / "image.npy", "--offline", "hints")
    assert found.stderr == "" and "1 inferences, 3 offline phases" in lines[-1], lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relu": "full"}, "the server offers relu 'full'"),
        ({"reveal": "label"}, "the server offers reveal 'label'"),
        ({"offline": "hints"}, "the server offers offline 'hints'"),
        ({"pin": "0" * 64}, "the server's offer is not the pinned one"),
    ],
)
def test_it_refuses_what_it_cannot_do(options, message, tmp_path):
    lowered = network()
    np.save(tmp_path / "image.npy", images_of(1, lowered.program.input_shape).numpy())
    pin = options.pop("pin", "")
    with deployed(lowered, **options) as (server, _):
        found = run(f"127.0.0.1:{server.port}", tmp_path / "image.npy", "--offline", "dealer", "--pin", pin)
    assert found.returncode == 1 and message in found.stderr and "Traceback" not in found.stderr


def test_it_speaks_tls_and_takes_the_pin(tmp_path):
    make_certificates(tmp_path)
    lowered = network()
    np.save(tmp_path / "image.npy", images_of(1, lowered.program.input_shape).numpy())
    with deployed(lowered, tmp_path, host="localhost") as (server, lines):
        address, pin = f"localhost:{server.port}", server.offer.pin
        found = run(address, tmp_path / "image.npy", "--offline", "dealer", "--pin", pin, "--tls", tmp_path)
    assert found.stderr == "" and len(found.stdout.split()) == 1, lines


def test_it_imports_nothing_of_ours():
    own = {path.stem for path in EXAMPLE.glob("*.py")}
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert {name.split(".")[0] for name in names} <= own | {"numpy"} | sys.stdlib_module_names, path
