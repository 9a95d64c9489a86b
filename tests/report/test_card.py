"""Model cards: what they say is what the candidate and its run say, in Markdown that hubs read."""

import re

import pytest
import yaml

from parelu.report.card import card, write_card

pytestmark = pytest.mark.slow


def cells(text):
    """First cell → the second, of all tables."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]*?) \|", text, re.MULTILINE))


def test_a_card_says_what_was_measured_and_where_it_comes_from(finished, tmp_path):
    run, _ = finished
    folder, candidate = run.folder("random-37"), run.candidate("random-37")
    text = write_card(folder, tmp_path / "README.md").read_text()
    metrics, told = candidate.trained, cells(text)
    head = yaml.safe_load(text.split("---")[1])
    (result,) = head["model-index"][0]["results"]
    assert head["license"] == "other" and result["dataset"]["name"] == "digits"
    assert result["metrics"][0]["value"] == pytest.approx(metrics.test_accuracy, abs=0.005)
    assert told["test accuracy"] == f"{metrics.test_accuracy:.2f} %"
    assert told["ReLUs"] == "37" and told["seed"] == str(metrics.seed) and told["method"] == "random"
    assert {stage: told[stage] for stage in metrics.stages} == {s: f"{c.relus:,}" for s, c in metrics.stages.items()}
    assert told["plan, SHA-256"] == candidate.plan.digest() and told["data, SHA-256"] == run.config["data_sha256"]
    assert "semi-honest" in text and f"torch {run.environment['torch']}" in told["made with"]
    assert "data_folder" not in text, "no place on this machine"


def test_a_card_of_a_candidate_alone(finished, tmp_path):
    """Without a run, and with nothing measured."""
    run, _ = finished
    candidate = run.candidate("teacher")
    bare = type(candidate)(candidate.spec, candidate.plan, candidate.weights)
    bare.save(tmp_path)
    text = card(tmp_path)
    assert "model-index" not in text and "normalised: as its data were" in text
    assert cells(text)["ReLUs"] == f"{candidate.plan.relus:,}"
