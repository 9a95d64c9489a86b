"""Extensions of another package: one of each kind in one file, found by entry point and run by the command line."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import run

from parelu import registry
from parelu.methods.base import Method, methods
from parelu.network.spec import families, spec_of
from parelu.private.cost.traffic import total, traffic
from parelu.private.engines.base import engines
from parelu.private.offline.mode import modes
from parelu.private.protocol.delphi import Terms
from parelu.private.protocol.relu import relus
from parelu.private.protocol.reveal import Exact
from parelu.runs.folder import Run
from parelu.runs.workload import untrained_workload

PACKAGE = Path(__file__).parent / "plugin"
SOURCES = Path(registry.__file__).parents[1]
GROUPS = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
KINDS = {
    "parelu.methods": methods,
    "parelu.models": families,
    "parelu.private.protocol": relus,
    "parelu.private.offline": modes,
    "parelu.private.engines": engines,
}


def install(folder: Path, groups: dict[str, dict[str, str]]) -> Path:
    """What an installer leaves of the package in a folder of installed packages, which it returns."""
    (folder / "parelu_example").symlink_to(PACKAGE / "parelu_example")
    info = folder / "parelu_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parelu-example\nVersion: 1.0\n")
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *map(" = ".join, points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs entry points (group → name → value) for this process and those that it starts; nothing found before
    or after counts."""

    def make(groups: dict[str, dict[str, str]]) -> None:
        folder = tmp_path / "site-packages"
        folder.mkdir()
        monkeypatch.syspath_prepend(install(folder, groups))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(SOURCES)]))
        registry._found.cache_clear()

    yield make
    registry._found.cache_clear()


def parelu(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "parelu", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done


def test_each_kind_is_found_by_entry_point_and_gone_with_the_package(installed):
    installed(GROUPS)
    for folder, found in KINDS.items():
        (name,) = GROUPS[folder]
        cls = found()[name] if isinstance(found()[name], type) else type(found()[name])
        assert cls.__module__ == f"parelu_example.{name}"
        assert not registry.is_own(cls)
        assert list(found()) == sorted(found())


def test_tables_of_the_documentation_are_of_parelu_alone(installed):
    spec = importlib.util.spec_from_file_location("generate", PACKAGE.parents[1] / "docs/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    tables = ("methods", "protocols", "offline-modes", "engines")
    before = [generate.TABLES[name]() for name in tables]
    installed(GROUPS)
    assert set(methods()) > {"first"}
    assert [generate.TABLES[name]() for name in tables] == before


@pytest.mark.slow
def test_a_method_and_a_network_by_the_command_line(installed, tmp_path, capsys, caplog):
    """Beside a plugin that raises on import, which is one line of a command that asks for methods."""
    broken = {"broken": "parelu_example.broken"}
    installed({**GROUPS, "parelu.methods": {**GROUPS["parelu.methods"], **broken}})
    line = "parelu: plugin broken of parelu-example is left out: ImportError: no module named 'something'"
    assert run("inspect", "tinynet m=2", "--input", "1x8x8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["relus"] == 2 * 8 * 8 + 4 * 4 * 4
    assert caplog.messages == []
    folder, network = tmp_path / "run", ("--model", "tinynet m=2", "--data", "digits", "--images", "300")
    command = ["reduce", "first", *network, "--training", "short", "--epochs", "1", "--budget", "100"]
    done = parelu(*command, "--run", str(folder))
    assert done.stderr.count("left out") == done.stderr.splitlines().count(line) == 1
    plan = Run.open(folder).candidate("first-100").plan
    kept = [site.mask.flatten() for site in plan.sites.values()]
    assert [int(mask.sum()) for mask in kept] == [100, 0]
    assert bool(kept[0][:100].all())


@pytest.mark.slow
def test_a_protocol_an_offline_mode_and_an_engine_by_the_command_line(installed, capsys):
    """Both parties are processes that find them by themselves."""
    installed(GROUPS)
    options = ("--input", "1x8x8", "--images", "2", "--json", "--relu", "exposed", "--offline", "again")
    assert run("bench", "tinynet m=2", *options, "--engine", "delphi,cleartext") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["engine"] for row in rows] == ["delphi", "cleartext"]
    assert (rows[0]["relu"], rows[0]["offline_mode"]) == ("exposed", "again")
    lowered = untrained_workload(spec_of("tinynet m=2", (1, 8, 8), 10), 1.0, 2, 0, "again").lowered
    told = traffic(Terms(lowered.program, relus()["exposed"], Exact()), modes()["again"])
    for phase in ("offline", "online"):
        sent = total(told, phase)
        assert rows[0][phase]["bytes_to_client"] == sent.to_client
        assert rows[0][phase]["bytes_to_server"] == sent.to_server


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("parelu_example.broken", "ImportError: no module named 'something'"),
        ("parelu_example.absent", "ModuleNotFoundError: No module named 'parelu_example.absent'"),
        ("parelu_example.first:Last", "AttributeError: module 'parelu_example.first' has no attribute 'Last'"),
        ("parelu_example.tinynet", "it has no Method"),
        ("parelu_example.cleartext:time", "it has no Method"),
        ("parelu.methods.fixed:FixedMasks", "FixedMasks lacks name, masks"),
        ("parelu.methods.uniform:Uniform", None),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_and_the_rest_goes_on(installed, caplog, value, reason):
    installed({"parelu.methods": {"afirst": value, "first": "parelu_example.first"}})
    with caplog.at_level(logging.WARNING):
        found = methods()
        assert methods() == found
    line = f"parelu: plugin afirst of parelu-example is left out: {reason}"
    assert caplog.messages == ([line] if reason else [])
    assert {"first", "snl", "uniform"} <= set(found)


def test_a_name_that_is_taken_stays_with_parelu(installed, caplog, monkeypatch):
    installed({"parelu.methods": {"mine": "parelu_example.first", "snl": "parelu_example.first"}})
    own = methods()["snl"]
    from parelu_example.first import First

    monkeypatch.setattr(First, "name", "snl")
    registry._found.cache_clear()
    caplog.clear()
    assert methods()["snl"] is own
    lines = [
        f"parelu: plugin {name} of parelu-example is left out: the name 'snl' is taken" for name in ("mine", "snl")
    ]
    assert caplog.messages == lines


def test_two_of_parelu_with_one_name_are_a_mistake(monkeypatch):
    registry._found.cache_clear()
    monkeypatch.setattr(methods()["uniform"], "name", "snl")
    registry._found.cache_clear()
    with pytest.raises(AssertionError, match="both named 'snl'"):
        registry.classes(Method, "parelu.methods")
    registry._found.cache_clear()


def test_the_example_in_the_readme_is_the_example_here():
    readme = (PACKAGE.parents[1] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(@dataclasses.*?)```", readme, re.DOTALL)
    assert (PACKAGE / "parelu_example/first.py").read_text().endswith(example)
