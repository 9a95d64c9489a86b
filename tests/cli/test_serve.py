"""serve --config: every option, by the same names, and several models."""

import dataclasses
from pathlib import Path

import pytest
from commands import refused

from parelu.cli import serve
from parelu.cli.output import duration_of
from parelu.cli.serve import Entry, Model, Serve
from parelu.errors import UserError

serve.resolve()


def configured(folder, text):
    (folder / "serve.yaml").write_text(text)
    return Serve(config=folder / "serve.yaml").configured()


def test_a_file_says_what_the_options_say(tmp_path):
    text = """
candidate: here
port: 7001
host: "::"
tls: certs
processes: 3
drain: 2m
allow: clients.yaml
offline: seal
budget: 7
mean: [0.5, 0.25]
"""
    found, models = configured(tmp_path, text)
    expected = Serve(
        candidate="here",
        port=7001,
        host="::",
        tls=Path("certs"),
        processes=3,
        drain="2m",
        allow=Path("clients.yaml"),
        offline="seal",
        budget=7,
        mean=(0.5, 0.25),
    )
    assert found == expected and models == expected.configured()[1]


def test_every_option_may_stand_in_a_file(tmp_path):
    """At its default, where it has one that YAML can say."""
    lines = ["candidate: x"]
    for field in dataclasses.fields(Serve):
        value = getattr(Serve(candidate="x"), field.name)
        if field.name not in ("candidate", "config") and value is not None:
            lines.append(
                f"{field.name}: {list(value) if isinstance(value, tuple) else repr(value)}".replace("False", "false")
            )
    assert configured(tmp_path, "\n".join(lines))[0] == Serve(candidate="x")


def test_models_have_the_options_of_the_file_and_their_own(tmp_path):
    text = "offline: dealer\nbudget: 5\nmodels: {a: {candidate: x}, b-2: {candidate: y, budget: 9, stock_dir: s}}"
    _, models = configured(tmp_path, text)
    assert list(models) == ["a", "b-2"] and models["a"] == Entry(candidate="x", offline="dealer", budget=5)
    assert models["b-2"] == Entry(candidate="y", offline="dealer", budget=9, stock_dir=Path("s"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("candidate: x\nprot: 3", "unknown key 'prot'; nearest is 'port'; known are"),
        ("candidate: x\nport: many", "port is 'many'; it should be a whole number"),
        ("candidate: x\nport: 70000", "--port from 0 to 65535"),
        ("candidate: x\noffline: none", "offline is 'none'; it should be one of dealer, hints, seal"),
        ("candidate: x\ntls: 3", "tls is 3; it should be a path, as text"),
        ("candidate: x\ndrain: soon", "--drain 'soon' is not a time"),
        ("candidate: x\nconfig: y", "config is this file"),
        ("port: 3", "give one of candidate, and models"),
        ("candidate: x\nmodels: {a: {candidate: y}}", "give one of candidate, and models"),
        ("models: {a: 3}", "models.a is 3; it should be a mapping"),
        ("models: {a: {}}", "models.a.candidate is missing"),
        ("models: {a b: {candidate: y}}", "'a b' is no name of a model"),
        ("models: {a: {candidate: y, port: 3}}", "unknown key 'models.a.port'"),
        ("models: {a: {candidate: y, ofline: seal}}", "unknown key 'models.a.ofline'; nearest is 'offline'"),
        ("[]", "is not a mapping of keys"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, message):
    with pytest.raises(UserError, match=r"serve\.yaml") as error:
        configured(tmp_path, text)
    assert message in str(error.value)


def test_options_are_in_one_place(tmp_path, capsys):
    (tmp_path / "serve.yaml").write_text("candidate: nowhere\noffline: dealer")
    options = ("--config", str(tmp_path / "serve.yaml"))
    assert refused(capsys, "serve", *options, "--port", "3") == "--config has all options: write port into it"
    assert "nowhere holds no candidate" in refused(capsys, "serve", *options)
    assert "give the folder of a candidate, or --config FILE" in refused(capsys, "serve")
    assert "other.yaml cannot be read" in refused(capsys, "serve", "--config", str(tmp_path / "other.yaml"))


def test_models_have_every_option_that_is_about_one():
    assert {field.name for field in dataclasses.fields(Entry)} == {
        *(field.name for field in dataclasses.fields(Model)),
        "candidate",
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("1h", 3600), ("1d", 86400), ("5", 5), ("0", 0)]
)
def test_times(text, seconds):
    assert duration_of("--drain", text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1.5s", "٣s", "1w", "9999999s"])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match=r"--drain .* is not a time such as 30s"):
        duration_of("--drain", text)
