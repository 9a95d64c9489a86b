"""One job at a time, in this process."""

import pytest
import torch
from conftest import TINY

from parelu import data
from parelu.methods.jobs import Job
from parelu.network.count import skeleton
from parelu.network.metrics import Tags
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.runs.folder import Run
from parelu.runs.jobs import train_job
from parelu.training.evaluation import recalibrate
from parelu.training.objectives import CrossEntropy


@pytest.mark.parametrize("square", [0.1, 0.0])
def test_after_squares_the_statistics_are_recalibrated(tmp_path, square):
    """Which does nothing the second time; without squares they are those of the training."""
    digits, spec = data.load("digits", images=256), spec_of("resnet10 m=2", (1, 8, 8), 10)
    network = skeleton(spec)
    for site in network.sites.values():
        site.assign(torch.arange(site.mask.numel()).view(site.shape) % 2 == 0, (0.0, 1.0, square))
    job = Job("teacher", "teacher", spec, Plan.of(network), TINY, CrossEntropy(), Tags("train"))
    candidate = train_job(Run.start(tmp_path, {}), job, digits, 0, lambda progress: None)
    again = candidate.network()
    recalibrate(again, digits, TINY, 0)
    after = again.state_dict()
    unmoved = [torch.allclose(value, after[name]) for name, value in candidate.weights.items() if "running" in name]
    assert all(unmoved) if square else not any(unmoved)
    assert bool(candidate.trained.ranges) == bool(square)
