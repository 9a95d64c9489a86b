"""Runs beside the papers' tables: what stands for what, the figures, the ratios, and what is said of the rest."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from commands import refused, run
from hypothesis import given
from hypothesis import strategies as st

from parelu import api
from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.metrics import Metrics, Tags
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.published import find
from parelu.report.beside import Beside, Pair, Ratio, _ratio, _ratios, beside, beside_text, cells
from parelu.report.compared import beside_svg
from parelu.report.page import write_report
from parelu.report.standing import Point
from parelu.runs.folder import Run

SMALL, SHAPE = "resnet18 m=2", (3, 16, 16)
counts_of = functools.cache(lambda name, shape: count(skeleton(spec_of(name, shape, 10))))


def started(folder: Path, seed: int = 0, model: str = SMALL, data: str = "colour-fashion", **config: Any) -> Run:
    return Run.start(folder, {"model": model, "data": data, "seed": seed, "reductions": [], **config})


def keep(
    run: Run,
    name: str,
    accuracy: float,
    tags: Tags,
    relus: int = 0,
    squares: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    classes: int = 10,
) -> None:
    """A finished network that was never trained; relus: of a mask, 0 for what the steps leave."""
    reduced = apply_steps(spec_of(str(run.config["model"]), shape, classes), tags.steps or "none")
    whole = counts_of(str(run.config["model"]), shape)
    metrics = Metrics.of(
        tags,
        dataclasses.replace(whole, relus=relus or reduced.plan.relus, squares=squares),
        role="teacher" if name == "teacher" else "baseline" if name.startswith("baseline") else "candidate",
        seed=run.config["seed"],
        relus_full=whole.relus,
        stages_full={},
        validation_accuracy=accuracy,
        test_accuracy=accuracy,
        epochs=1,
        seconds=1.0,
        job=name,
    )
    Candidate(reduced.spec, reduced.plan, {}, metrics).save(run.folder(name))


def deepreduced(folder: Path, seed: int = 0, model: str = SMALL) -> Run:
    """As the recipe of DeepReDuce's Table 4 leaves it at small scale: a point below the paper in all changes."""
    made = started(folder, seed, model, reductions=[{"method": "steps", "options": {"distillation": "kd"}}])
    keep(made, "teacher", 80.0 + seed, Tags("train"))
    for row in find("DeepReDuce Table 4"):
        if row.accuracy and row.accuracy_baseline:
            change = row.accuracy - row.accuracy_baseline - 1
            keep(made, row.steps.replace("; ", "_").replace(" ", "-"), 80 + seed + change, Tags("steps", row.steps))
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[Run]:
    folder = tmp_path_factory.mktemp("deepreduced")
    return [deepreduced(folder / f"seed{seed}", seed) for seed in range(2)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Run:
    """AutoReP, quadratic and linear, and SNL, at the shares of its Table 3."""
    made = started(tmp_path_factory.mktemp("learned") / "seed0", paper="AutoReP Table 3")
    keep(made, "teacher", 80.0, Tags("train"))
    full = counts_of(SMALL, SHAPE).relus
    for relus, quadratic, linear, snl in ((50_000, 78.0, 76.0, 75.0), (12_900, 76.0, 71.0, 70.0)):
        kept = round(full * relus / 557_056)
        for name, accuracy, squares in (("quadratic", quadratic, 9), ("linear", linear, 0)):
            tags = Tags("autorep", "", kept, name)
            keep(made, f"autorep-{kept}-{name}", accuracy, tags, relus=kept, squares=squares)
        keep(made, f"snl-{kept}", snl, Tags("snl", "", kept), relus=kept)
    return made


def test_steps_stand_for_their_rows(small: list[Run]):
    found = beside(small, "deepreduce t4")
    assert found.source == "DeepReDuce Table 4" and found.left_out == 0
    assert all(pair.paper and pair.ours for pair in found.pairs), "each row has a network, and each network a row"
    baseline, *reduced = found.pairs
    assert baseline.ours and baseline.ours.accuracy == 80.5 and baseline.ours.seeds == 2
    for pair in reduced:
        assert pair.ours and pair.paper and pair.ours.change is not None and pair.paper.change is not None
        assert pair.ours.change == pytest.approx(pair.paper.change - 1)
        assert pair.ours.share == pytest.approx(pair.paper.share, rel=1e-3), "of ReLUs, as of the whole network's"
        assert (pair.ours.spread, pair.ours.change_spread) == pytest.approx((0.5**0.5, 0)), "by seed they fall alike"


def test_another_data_set_and_network_are_told(small: list[Run]):
    found = beside(small, "DeepReDuce Table 4")
    text = " ".join(found.differences)
    assert not found.is_alike
    assert "The data set is colour-fashion here and cifar100 in the paper" in text
    assert "resnet18 m=2 stands for resnet18" in text and "images of 3x16x16" in text
    assert text in " ".join(beside_text(found).splitlines())
    assert any("13.9 points less" in claim for claim in found.claims)


def test_masks_stand_for_rows_of_their_share(learned: Run):
    found = beside([learned])
    assert found.source == "AutoReP Table 3", "which the run's recipe names"
    ours = {(p.method, p.paper.relus): p.ours.accuracy for p in found.pairs if p.paper and p.ours}
    assert ours == {
        ("autorep", 50_000): 78.0,
        ("autorep", 12_900): 76.0,
        ("snl", 49_900): 75.0,
        ("snl", 12_900): 70.0,
    }
    alone = [(p.method, p.ours.accuracy) for p in found.pairs if p.ours and not p.paper]
    assert sorted(alone) == [("autorep-linear", 71.0), ("autorep-linear", 76.0), ("baseline", 80.0)]
    assert found.left_out > 0, "the rows of WRN-22-8"
    (ratio,) = [r for r in found.our_ratios if (r.method, r.other) == ("autorep", "snl")]
    assert ratio.points == pytest.approx((3.0, 6.0))


def test_masks_of_a_network_that_was_thinned_first_change_from_it(tmp_path):
    made = started(tmp_path, paper="DeepReShape Table 5")
    keep(made, "teacher", 80.0, Tags("train"))
    keep(made, "baseline-thin-all", 78.0, Tags("train", "thin all"))
    kept = round(counts_of(SMALL, SHAPE).relus * 50_000 / 557_056)
    keep(made, "snl", 75.0, Tags("snl", "", kept), kept)
    keep(made, "snl-thin", 77.0, Tags("snl", "thin all", kept, "thin"), kept)
    changes = {pair.what: pair.ours.change for pair in beside([made]).pairs if pair.ours}
    assert changes == {
        "resnet18 Vanilla Baseline": 0,
        "resnet18 w/ Th. Baseline": -2,
        "resnet18 Vanilla 50K": -5,
        "resnet18 w/ Th. 50K": -1,
    }


def test_networks_taught_and_not_are_told_apart_by_their_entries(tmp_path):
    entries = [
        {"method": "steps", "label": label, "options": {"distillation": kind}}
        for label, kind in (("alone", "none"), ("kd", "kd"))
    ]
    made = started(tmp_path, paper="DeepReDuce Table 2", reductions=entries)
    keep(made, "teacher", 80.0, Tags("train"))
    keep(made, "cull-S1-alone", 70.0, Tags("steps", "cull S1", note="alone, no distillation"))
    keep(made, "cull-S1-kd", 75.0, Tags("steps", "cull S1", note="kd"))
    found = {pair.what: pair.ours.accuracy for pair in beside([made]).pairs if pair.ours and pair.paper}
    assert found == {"S2+S3+S4 w/o KD": 70.0, "S2+S3+S4 w/ KD": 75.0}


def test_ratios_are_those_of_one_data_set():
    """The second data set's points lie ten points lower; of both together neither method would be ahead."""
    pairs = [
        Pair(method, "", Point("n", relus, None, accuracy - lower + more, None), None, data)
        for data, lower in (("cifar10", 0), ("cifar100", 10))
        for method, more in (("autorep", 2), ("snl", 0))
        for relus, accuracy in ((100, 50), (1000, 60))
    ]
    (ratio,) = _ratios(("autorep",), pairs, "paper")
    assert ratio.points == pytest.approx((2, 2))


def test_what_is_as_in_the_paper_is_compared_by_numbers(tmp_path):
    made = started(tmp_path, model="resnet18", data="cifar100", paper="AutoReP Table 3")
    for name, relus, accuracy in (("teacher", 557_056, 78.0), ("snl-12900", 12_900, 66.0), ("snl-25000", 25_000, 70.0)):
        tags = Tags("train") if name == "teacher" else Tags("snl", "", relus)
        keep(made, name, accuracy, tags, relus, shape=(3, 32, 32), classes=100)
    found = beside([made])
    assert found.is_alike and "share" not in cells(found)[0]
    (pair,) = [p for p in found.pairs if p.method == "snl" and p.paper and p.paper.relus == 12_900]
    assert pair.ours and (pair.ours.accuracy, pair.ours.relus) == (66.0, 12_900)
    (lone,) = [p for p in found.pairs if p.ours and p.ours.relus == 25_000]
    assert lone.paper is None, "no row has 25K"


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=6, unique=True), st.floats(-9, 9))
def test_a_curve_against_itself_shifted(relus: list[int], shift: float):
    """The same ReLUs and another accuracy: that shift at every ReLU; half the ReLUs: twice fewer at every accuracy."""
    curve = [(number, 10.0 * i) for i, number in enumerate(sorted(relus))]
    points = _ratio("a", "b", [(x, y + shift) for x, y in curve], curve).points
    assert points == pytest.approx((shift, shift), abs=1e-6)
    factor = _ratio("a", "b", [(x / 2, y) for x, y in curve], curve).factor
    assert factor == pytest.approx((2.0, 2.0))


def test_the_papers_own_ratios():
    """DeepReDuce Table 6: 3.5 times fewer ReLUs than CryptoNAS at equal accuracy."""
    rows = find("DeepReDuce Table 6")
    ours, other = ([(r.relus, r.accuracy) for r in rows if r.method == name] for name in ("deepreduce", "cryptonas"))
    found = _ratio("deepreduce", "cryptonas", sorted(set(ours)), sorted(other))  # pyright: ignore[reportArgumentType]
    assert isinstance(found, Ratio) and found.factor and found.factor[1] > 3.4


def test_json_and_text_and_picture_say_the_same(small: list[Run], learned: Run, capsys, in_process):
    paths = [str(one.path) for one in small]
    assert run("compare", *paths, "--paper", "DeepReDuce Table 4", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    found = beside(small, "DeepReDuce Table 4")
    assert value == json.loads(json.dumps(found.to_json()))
    assert len(value["pairs"]) == len(found.pairs) == 11
    assert run("compare", str(learned.path)) == 0
    assert capsys.readouterr().out == beside_text(beside([learned])) + "\n"
    svg = beside_svg(beside([learned]))
    assert svg.startswith("<svg") and svg.count('class="tip"') == sum(
        bool(side and side.share and side.change is not None)
        for p in beside([learned]).pairs
        for side in (p.paper, p.ours)
    )


def test_the_page_has_the_table_that_the_recipe_names(learned: Run, tmp_path):
    text = write_report([learned], tmp_path / "report.html").read_text()
    assert "<h2>Beside AutoReP Table 3</h2>" in text and 'id="beside-' in text
    for line in cells(beside([learned]))[1:]:
        assert "".join(f"<td>{cell}</td>" for cell in line[:-2]) in text
    other = Run(learned.path, {**learned.config, "paper": "DeepReDuce Figure 6"})
    assert "Figure 6 of DeepReDuce has no published rows" in write_report([other], tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    ("paper", "message"),
    [
        ((), "name no table of a paper"),
        (("--paper", "DeepReduse Table 4"), "no paper 'DeepReduse Table 4'"),
        (("--paper", "DeepReDuce Table 99"), "there are Table 1"),
        (("--paper", "AutoReP Table 2"), "no accuracies"),
    ],
)
def test_what_cannot_be_compared_is_one_line(small: list[Run], paper: tuple[str, ...], message: str, capsys):
    assert message in refused(capsys, "compare", str(small[0].path), *paper)


@pytest.mark.parametrize(
    ("picture", "message"), [("table.gif", "is neither .png nor .svg"), ("nowhere/table.png", "is no folder")]
)
def test_a_picture_that_cannot_be_written_is_refused_first(learned, picture, message, tmp_path, capsys):
    assert run("compare", str(learned.path), "--picture", str(tmp_path / picture)) == 2
    shown = capsys.readouterr()
    assert message in shown.err and not shown.out


def test_runs_without_a_baseline_or_of_two_data_sets_are_refused(small: list[Run], tmp_path):
    empty = started(tmp_path / "empty")
    with pytest.raises(UserError, match="no full-ReLU network yet"):
        beside([empty], "DeepReDuce Table 4")
    with pytest.raises(UserError, match="different data"):
        beside([small[0], started(tmp_path / "other", data="digits")], "DeepReDuce Table 4")


def test_a_recipe_ends_with_the_table_that_it_names(tmp_path, capsys, in_process):
    text = "title: t\npaper: AutoReP Table 3\nmodel: resnet10 m=2\ndata: digits\nimages: 384\nmethods: []\n"
    (tmp_path / "mine.yaml").write_text(text + "training: {preset: short, epochs: 1}\n")
    (one,) = api.read_recipe(str(tmp_path / "mine.yaml")).experiments
    assert one.config()["paper"] == "AutoReP Table 3"
    assert run("recipe", str(tmp_path / "mine.yaml"), "--run", str(tmp_path / "runs")) == 0
    made = Run.open(tmp_path / "runs" / "seed0")
    assert made.config["paper"] == "AutoReP Table 3"
    assert f"AutoReP Table 3 beside these runs\n\n{beside_text(beside([made]))}\n" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["AutoReP Table 4", "Shallow-Again Table 2", "DeepReShape Table 7", "DeepReShape"])
def test_every_table_is_shown_or_says_why_not(small: list[Run], source: str):
    """Of networks that are none of the table's: its rows are left out, and ours are still there."""
    try:
        found = beside(small[:1], source)
    except UserError as error:
        assert "no accuracies" in str(error)
    else:
        assert isinstance(found, Beside) and sum(pair.ours is not None for pair in found.pairs) >= 11


def test_what_stands_for_no_row_is_named_by_its_network(tmp_path):
    runs = [started(tmp_path / name, model=model) for name, model in (("a", SMALL), ("b", "resnet10 m=8"))]
    for made in runs:
        keep(made, "teacher", 90.0, Tags("train"))
        keep(made, "steps-cull-S2", 80.0, Tags("steps", "cull S2"))
    found = {pair.what for pair in beside(runs, "DeepReDuce Table 4").pairs if pair.paper is None}
    assert {f"{SMALL}: cull S2", "resnet10 m=8: cull S2"} <= found
