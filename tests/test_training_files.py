"""Files that start trainings on clusters: what they call exists, and is read as it is meant."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from parelu.cli import main
from parelu.runs.cluster import OnRay
from parelu.runs.recipes import recipes

FOLDER = Path(__file__).parents[1] / "deploy" / "training"
VALUES = {"$recipe": "deepreduce/table4", "$run": "/shared/run", "$data": "/shared/data", "$head": "10.0.0.1"}
VALUES |= {"$port": "6379", "$JOB_COMPLETION_INDEX": "2"}


def commands(text: str) -> list[list[str]]:
    """The words after each `parelu`, with the shell's variables put in."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"\bparelu ((?:recipe|reduce|sweep|train) [^\n;&]*)", joined)
    for name, value in VALUES.items():
        found = [line.replace(name, value) for line in found]
    return [line.replace('"', "").split() for line in found]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash_and_their_commands_ours(path):
    subprocess.run(["bash", "-n", path], check=True)
    found = commands("\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    assert found
    for words in found:
        command = main._command(words)
        assert str(command.run) == "/shared/run"
        if command.on:
            assert OnRay.parse(command.on) == OnRay("10.0.0.1:6379", 4, 0.5)


def test_the_job_of_kubernetes_is_whole():
    claim, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]] == [claim["metadata"]["name"]]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    ((words,),) = [commands(line) for line in container["args"]]
    command = main._command(words)
    assert command.recipe in recipes()
    assert command.seeds == (2,)
    assert command.run == Path("/runs/table4/seed2")
