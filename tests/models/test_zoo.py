"""Every family goes the whole way: inspect, reduce, lower, the ring reference, secure inference."""

import json
import sys

import numpy as np
import pytest
from commands import refused, run
from conftest import Silent
from two_parties import Pair, images_of

from parelu import data
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.network.spec import spec_of
from parelu.private.crypto.ring import WIDE
from parelu.private.fresh import untrained
from parelu.private.lowering import reference
from parelu.private.lowering.lower import lower
from parelu.private.lowering.refusals import problems
from parelu.runs import experiment, measurement
from parelu.runs.experiment import Experiment, Reduction
from parelu.training.schedule import Training

SECURE = ("vgg16 m=2 (16 classifier)", "mobilenetv1 m=2", "wrn-10-1 m=2")
BRIEF = Training(epochs=1, batch=128, lr=0.05, schedule="one-cycle")


def fisher(name, folder):
    method = methods()["fisher"](search_epochs=1, finetune_epochs=1)
    one = Experiment(name, "digits", (Reduction(method, ("0.3",)),), BRIEF, images=384)
    return experiment.run_experiment(one, folder, Silent())


@pytest.mark.slow
@pytest.mark.parametrize("name", SECURE)
def test_from_a_name_to_secure_inference(name, tmp_path):
    done = fisher(name, tmp_path)
    (record,) = [r for r in done.candidates() if r.metrics.method == "fisher"]
    assert record.metrics.relus == round(0.3 * record.metrics.relus_full)
    candidate = done.candidate(record.name)
    assert problems(candidate.network()) == ()
    digits = data.load("digits")
    lowered = measurement.lowered(done.folder(record.name), candidate, WIDE, digits)
    ring = measurement.ring_accuracy(lowered, candidate, digits.test)
    assert ring.agreement >= 99 and ring.overflow_rate < 1e-3
    assert lowered.program.relus == record.metrics.relus
    with Pair(lowered) as pair:
        for image in digits.test.images[:2]:
            result, shares = pair.infer(image)
            assert np.array_equal(result, reference.replay(lowered, image, shares, "sign"))


def test_what_cannot_run_privately_is_counted_but_not_trained(capsys, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))\n"
    )
    name = f"{tmp_path}/nets.py:build"
    assert run("inspect", name, "--input", "1x8x8", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["relus"] == 72 and counts["macs"] == 72 * 9 + 720 and counts["private"] is None
    assert counts["unsupported"][0].startswith("1: group_norm is not supported; --replace groupnorm=batchnorm")
    assert run("inspect", name, "--input", "1x8x8") == 0
    assert "1: group_norm is not supported; --replace groupnorm=batchnorm" in capsys.readouterr().out
    for command in (["train"], ["reduce", "random", "--budget", "5"]):
        line = refused(capsys, *command, "--model", name, "--run", str(tmp_path / "run"))
        assert line.startswith("1: group_norm is not supported; --replace groupnorm=batchnorm")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*SECURE, "efficientnet-b0 (relu, no se) m=8", "efficientnet-b0 (relu) m=8"])
def test_an_untrained_network_has_a_program(name):
    spec = spec_of(name, (1, 16, 16), 10)
    candidate = untrained(spec, 0.5, seed=0)
    lowered = lower(candidate.network(), images_of(32, spec.input), candidate.preprocessing)
    result = reference.run(lowered, images_of(8, spec.input, seed=1))
    assert lowered.program.relus == candidate.plan.relus and lowered.wrap_bound < 1e-5
    assert np.isfinite(result.logits).all() and result.logits.std() > 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = = 1", "own:build failed: SyntaxError: invalid syntax"),
        ("raise RuntimeError('no')", "own:build failed: RuntimeError: no ("),
        ("def build():\n    raise ValueError('bad\\nworse')", "own.py, line 2); mend it and run again"),
        (
            "def build(width): ...",
            "own:build needs width; give those a default, or name a function that calls it",
        ),
        ("build = 3", "own:build is a int; name a function or class that builds the network"),
        ("def build(): return 3", "own:build returned a int, not a torch.nn.Module"),
        ("", "own:build: module 'own' has no attribute 'build'; is its folder on PYTHONPATH?"),
    ],
    ids=["syntax", "import", "call", "argument", "no callable", "no module", "no name"],
)
def test_a_users_builder_that_fails_is_one_line(tmp_path, monkeypatch, code, message):
    (tmp_path / "own.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(UserError) as error:
        spec_of("own:build", (3, 8, 8), 10).module()
    assert message in str(error.value) and "\n" not in str(error.value)
