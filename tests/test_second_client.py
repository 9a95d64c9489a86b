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
from two_parties import NARROW, Residual, images_of, lowered_of, ready

from parelu.private.lowering import reference

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples/second_client"
SHAPE = (1, 6, 6)


def run(*arguments) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-E", str(EXAMPLE / "client.py"), *map(str, arguments)], capture_output=True, text=True
    )


def squares(channels: int) -> torch.Tensor:
    """Polynomials of degree 2 in half of the channels."""
    found = torch.zeros(3, channels)
    found[1], found[2, ::2] = 1.0, 0.25
    return found


def every_op() -> Hand:
    hand = Hand((2, 6, 6), NARROW, seed=5, largest=9)
    x = hand.activation(hand.truncate(hand.conv(0, 4)), relus=0.5, squares=0.3)
    y = hand.shift(hand.scale(hand.select(hand.resample(x, 1, 5, 3), 2, 5), 3))
    y = hand.permute(hand.concat(y, hand.select(x, 1, 5) if False else y), 1, 0, 2)
    y = hand.activation(hand.truncate(hand.multiply(hand.truncate(y))), relus=1.0)
    y = hand.pool(hand.add(y, y))
    hand.linear(y, 3)
    return hand


def answers(lowered, folder, *arguments, images, **options):
    np.save(folder / "images.npy", images.numpy())
    with deployed(lowered, offline="dealer", **options) as (server, lines):
        found = run(f"127.0.0.1:{server.port}", folder / "images.npy", "--offline", "dealer", *arguments)
    return found, lines


@pytest.mark.parametrize("masks", ["some relus and squares", "all relus"])
def test_it_gets_the_labels(masks, tmp_path):
    network = (
        ready(Residual(), SHAPE, lambda u: u < 0.5, squares) if masks.startswith("some") else ready(Residual(), SHAPE)
    )
    lowered, images = lowered_of(network), images_of(3, SHAPE, seed=1)
    found, lines = answers(lowered, tmp_path, images=images)
    expected = reference.run(lowered, images).logits.argmax(1)
    assert (found.stdout.split(), found.stderr) == ([str(label) for label in expected], ""), lines


def test_it_imports_nothing_of_ours():
    own = {path.stem for path in EXAMPLE.glob("*.py")}
    for path in EXAMPLE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert {name.split(".")[0] for name in names} <= own | {"numpy"} | sys.stdlib_module_names, path
