"""Budgets in seconds or bytes through a whole run, and what is refused of them before it begins."""

import dataclasses

import pytest
from conftest import TINY, Silent, tiny_experiment
from stand_in import StandIn

from parelu.cli.main import main
from parelu.errors import UserError
from parelu.methods.base import methods
from parelu.private.engines.base import Options
from parelu.report.tables import frontier_text
from parelu.runs import pricing
from parelu.runs.budgets import query_of
from parelu.runs.executor import InProcess
from parelu.runs.experiment import Experiment, Reduction, run_experiment


def test_a_run_meets_its_budgets_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(pricing, "price_of", lambda query: StandIn(round=1e-4))
    monkeypatch.setattr(pricing, "config", dataclasses.asdict)
    snl = methods()["snl"](search_epochs=1, finetune_epochs=1)
    entries = (Reduction(snl, ("900us", "0.5", "1.1ms")), Reduction(methods()["uniform"](), ("1ms+bytes:20kB",)))
    training = dataclasses.replace(TINY, epochs=1, batch=64)
    one = Experiment("resnet10 m=2", "digits", entries, training, images=64, query=Options(link="wan"))
    first, again = Silent(), Silent()
    run = run_experiment(one, tmp_path / "run", first, InProcess())
    made = {record.name: record.metrics for record in run.candidates() if record.metrics.role == "candidate"}
    assert sorted(made) == ["snl-1.1ms", "snl-304", "snl-900us", "uniform-1ms+bytes-20kB"]
    assert made["snl-304"].limits is None and made["snl-304"].relus == 304
    for name, most in (("snl-1.1ms", 1.1e-3), ("snl-900us", 0.9e-3), ("uniform-1ms+bytes-20kB", 1e-3)):
        candidate = run.candidate(name)
        assert candidate.trained.foretold == StandIn(round=1e-4)(candidate.spec, candidate.plan)
        assert candidate.trained.foretold["online"] <= most and candidate.plan.relus > 100
    assert "snl mask, 900us" in frontier_text(run.candidates())
    run_experiment(one, tmp_path / "run", again, InProcess())
    assert not again.trained and set(again.read) == set(first.trained)
    with pytest.raises(UserError, match=r"another configuration \(query.link is .wan. there and .lan. now\)"):
        other = dataclasses.replace(one, query=Options(link="lan"))
        run_experiment(other, tmp_path / "run", Silent(), InProcess())


def test_a_run_without_such_budgets_has_the_configuration_that_it_had():
    one = tiny_experiment("random")
    assert dataclasses.replace(one, query=Options(link="wan")).config() == one.config()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "0.5", "--link", "wan"], "--link: no budget is of seconds or bytes; give one"),
        (["--budget", "200ms", "--link", "0Mb/s,1ms"], "link '0Mb/s,1ms': '0Mb/s' is no number above zero"),
        (["--budget", "200parsec"], "'parsec' is no unit of online"),
    ],
)
def test_what_cannot_be_is_one_line(options, said, tmp_path, capsys):
    given = ["--model", "resnet10 m=2", "--data", "digits", "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main(["reduce", *given, *options, "random"])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_query_is_of_budgets_that_are_about_one():
    assert query_of(["0.5", "5k"]) is None
    assert query_of(["0.5", "bytes:5MB"], relu="full") == Options(relu="full")
