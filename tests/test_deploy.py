"""deploy/: every file is what its reader takes, and names only what there is."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from parelu.cli import client, serve
from parelu.cli.serve import Serve
from parelu.private.serving.daemon import of_all
from parelu.private.serving.metrics import Metrics
from parelu.private.serving.quotas import Allowed
from parelu.private.serving.watcher import Standing

FOLDER = Path(__file__).parent.parent / "deploy"
COMMANDS = {**serve.COMMANDS, **client.COMMANDS}
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
KUBERNETES = {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
UNIT = (FOLDER / "parelu.service").read_text()
serve.resolve()


def check_command(words):
    """Every option that a command line names exists."""
    options = {field.name.replace("_", "-") for field in dataclasses.fields(COMMANDS[words[0]])}
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert given <= options and given, words


def test_configurations(tmp_path):
    files = {FOLDER / "serve.yaml": FOLDER / "clients.yaml"}
    for name, text in KUBERNETES["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    files[tmp_path / "serve.yaml"] = tmp_path / "clients.yaml"
    for config, clients in files.items():
        options, models = Serve(config=config).configured()
        assert options.metrics_port == 7080 and options.port == 7000 and models
        assert len(Allowed.read(clients)) == 1


def test_compose():
    server, caller = COMPOSE["services"]["server"], COMPOSE["services"]["client"]
    for service in (server, caller):
        check_command(service["command"])
        assert service["read_only"] and service["user"] == "10001:10001" and service["cap_drop"] == ["ALL"]
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            made = source in ("./data", "./certs", "./client")  # by the operator
            assert made or source in COMPOSE["volumes"] or (FOLDER / source).exists(), source
    (job,) = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:7080"]}]
    for file in FOLDER.rglob("provisioning/*/*.yaml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


def test_dockerfile():
    text = (FOLDER / "Dockerfile").read_text()
    assert text.count("\nFROM ") == 2 and "\nUSER 10001:10001\n" in text
    for line in text.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (FOLDER.parent / source).exists()
    check_command(json.loads(re.search(r"^CMD (\[.*\])$", text, re.M)[1]))


def test_kubernetes():
    pod = KUBERNETES["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in KUBERNETES["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert mounted == claims | {volume["name"] for volume in pod["volumes"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in ("/healthz", "/readyz")
    drain = yaml.safe_load(KUBERNETES["ConfigMap"]["data"]["serve.yaml"])["drain"]
    assert pod["terminationGracePeriodSeconds"] > int(drain.removesuffix("s"))


def test_dashboard_names_metrics_that_there_are():
    metrics = Metrics(lambda: Standing(0, 0, 0, {"": 0}))
    metrics.prepared("", 1.0)
    metrics.inferred("", 1, 1.0)
    metrics.passed("", {})
    known = {name for name, *_ in (*metrics.snapshot(), *of_all(True, 1, 0, {}, {}))}
    dashboard = json.loads((FOLDER / "grafana/dashboards/parelu.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {re.sub("_(total|bucket)$", "", name) for text in expressions for name in re.findall(r"parelu_\w+", text)}
    assert named == known, "every metric is shown"


def test_unit(tmp_path):
    command = re.search("^ExecStart=(.*)$", UNIT, re.M)[1].split()
    check_command(command[1:])
    assert command[0].endswith("/parelu")
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    unit = tmp_path / "parelu.service"
    unit.write_text(UNIT.replace(command[0], sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    said = [line for line in found.stderr.splitlines() if "parelu.service" in line]
    assert not said and found.returncode == 0, found.stderr
