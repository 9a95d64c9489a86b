"""Tables, figures and the page, on records that are made up and on a finished run."""

import dataclasses
import functools
import math
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Silent
from made_records import changed, record

from parelu.errors import UserError
from parelu.network.candidate import Candidate
from parelu.network.count import count, skeleton
from parelu.network.metrics import metrics_from_json
from parelu.network.spec import spec_of
from parelu.network.steps import apply_steps
from parelu.private.rows import Cost, Costs, Difference, PrivateInference, RingAccuracy, Row
from parelu.report import plots, tables
from parelu.report.inspection import inspection, notes_lines
from parelu.report.live import drawn, networks_grid
from parelu.report.page import flat, headline, write_report
from parelu.report.stages import stages_grid
from parelu.runs import pareto
from parelu.runs.folder import Record, Run
from parelu.training.history import Epoch, write_history

STAGES = ("S1", "S2", "S3", "S4")
THINNED = {"S1": "S2+S3+S4", "S1+S4": "S2+S3", "S1+S3+S4": "S2"}
STEPS = [
    step
    for culled, rest in THINNED.items()
    for step in (
        f"cull {culled}",
        *(
            f"cull {culled}; thin {rest}{scale}"
            for scale in ("", "; channels 0.5", "; fmap 0.5", "; channels 0.5; fmap 0.5")
        ),
    )
]


FULL = spec_of("resnet10 m=8", (1, 28, 28), 10)


whole = functools.cache(lambda spec: (skeleton(spec), count(skeleton(spec))))


@functools.cache
def counted(steps: str) -> tuple[Candidate, dict[str, Any]]:
    """A candidate without weights, of a ResNet10 of width 8 on 28×28, and what it counts."""
    reduced = apply_steps(FULL, steps or "none")
    network, uncut = whole(reduced.spec)
    counts = uncut.to_json()
    sites = {name: site.relus for name, site in reduced.plan.sites.items()}
    for stage, value in counts["stages"].items():
        value["relus"] = sum(sites[name] for name, site in network.sites.items() if site.stage == stage)
    full = counted("")[1]["stages"] if steps else counts["stages"]
    return Candidate(reduced.spec, reduced.plan, {}), {
        **counts,
        "sites": sites,
        "relus": reduced.plan.relus,
        "relus_without_stem": reduced.plan.relus - counts["stages"]["stem"]["relus"],
        "relus_full": sum(value["relus"] for value in full.values()),
        "stages_full": {stage: value["relus"] for stage, value in full.items()},
    }


def keep(run: Run, name: str, steps: str, epochs: int = 10, **tags: Any) -> None:
    """Put a made-up finished network into a run folder: the accuracy falls with the logarithm of the ReLUs."""
    candidate, counts = counted(steps)
    relus, full = tags.pop("relus", counts["relus"]), counts["relus_full"]
    noise = random.Random(f"{name} {tags['seed']}")
    penalty = {"random": 3.0, "uniform": 5.0}.get(tags["method"], 0.0)
    accuracy = 91.5 - 3.2 * math.log10(full / relus) ** 1.8 - penalty + noise.gauss(0, 0.5)
    history = [
        {
            "epoch": e,
            "loss": 2.3 * math.exp(-0.4 * e) + 0.02 * (100 - accuracy),
            "ce": 1.0,
            "kd": 0.5,
            "lr": 0.1,
            "validation_accuracy": accuracy - 40 * math.exp(-0.6 * e) * (e < epochs),
            "seconds": 2.0,
        }
        for e in range(1, epochs + 1)
    ]
    if tags["budget"]:
        kept = {s: {**v, "relus": round(v["relus"] * relus / full)} for s, v in counts["stages"].items()}
        counts = {**counts, "stages": kept, "relus_without_stem": relus - kept["stem"]["relus"]}
    metrics = {
        **counts,
        "steps": steps,
        "relus": relus,
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy - 0.4 + noise.gauss(0, 0.2),
        "epochs": epochs,
        "seconds": 20.0,
        "job": name,
        **tags,
    }
    folder = run.folder(name)
    write_history(folder, [Epoch.from_json(epoch) for epoch in history])
    dataclasses.replace(candidate, metrics=metrics_from_json(metrics)).save(folder)


def fabricated(folder: Path, seed: int, others: Sequence[str] = ()) -> Run:
    """A run folder as DeepReDuce leaves it, and with other methods at the counts of five of its candidates."""
    config = {
        "command": "reduce",
        "model": "resnet10 m=8",
        "data": "fashion-mnist",
        "budget": None,
        "seed": seed,
        "training": {"epochs": 10, "lr": 0.1},
        "methods": [{"name": n, "match": 5} for n in ("deepreduce", *others)],
    }
    run = Run.start(folder, config)
    keep(run, "full", "", method="train", role="teacher", seed=seed, budget=None)
    for stage in STAGES:
        keep(run, f"only-{stage}", f"only {stage}", method="deepreduce", role="criticality", seed=seed, budget=None)
    for steps in STEPS:
        name = steps.replace("; ", "_").replace(" ", "-")
        keep(run, name, steps, method="deepreduce", role="candidate", seed=seed, budget=None)
    for method in others:
        for relus in sorted({counted(steps)[1]["relus"] for steps in STEPS})[::2]:
            tags = {"method": method, "role": "candidate", "seed": seed, "budget": relus, "relus": relus}
            keep(run, f"{method}-{relus}", "", **tags)
    stages = {}
    for rank, stage in enumerate(("S1", "S4", "S3", "S2")):
        relus = counted(f"only {stage}")[1]["relus"]
        value = 4 * rank / (relus / 1000) ** 0.07
        stages[stage] = {
            "relus": relus,
            "relus_thousands": relus / 1000,
            "accuracy": 70 + 4 * rank,
            "criticality": value,
        }
    run.record("criticality", {"w": 0.07, "stages": stages, "order": list(stages)})
    return run


RECORDS = [
    *(record("train", "", 200, 90 + seed, seed, "teacher") for seed in (0, 1)),
    *(record("deepreduce", "cull S1", 100, 88 + 2 * seed, seed) for seed in (0, 1)),
    *(record("deepreduce", "cull S1; thin S2", 50, 70 + seed, seed) for seed in (0, 1)),
    *(record("random", "", 100, 60 + 3 * seed, seed) for seed in (0, 1)),
    record("uniform", "", 50, 71, 0),
    record("uniform", "", 20, 50, 0),
    record("deepreduce", "only S2", 100, 99, 0, "criticality"),
]


def test_squares_have_a_frontier_of_their_own():
    plain = [record("train", "", 200, 90, role="teacher"), record("snl", "", 50, 80), record("snl", "", 20, 70)]
    squared = [record("autorep", "", 50, 85), record("autorep", "", 30, 86), record("autorep", "", 10, 84)]
    squared = [
        dataclasses.replace(r, metrics=dataclasses.replace(r.metrics, squares=190 - r.metrics.relus)) for r in squared
    ]
    rows = {(row.method, row.relus): row.on_frontier for row in tables.frontier_rows([*plain, *squared])}
    assert rows == {
        ("train", 200): True,
        ("snl", 50): True,
        ("snl", 20): True,
        ("autorep", 50): False,
        ("autorep", 30): True,
        ("autorep", 10): True,
    }
    text = tables.frontier_text([*plain, *squared])
    assert "squares" in text.splitlines()[0]
    assert "networks with squares have one of their own" in text
    assert "squares" not in tables.frontier_text(plain)
    assert "with squares" in plots.frontier_svg([*plain, *squared])


def test_rows_are_means_over_seeds():
    rows = {(row.method, row.relus): row for row in tables.frontier_rows(RECORDS)}
    assert len(rows) == 6, "the criticality network is no candidate"
    culled = rows["deepreduce", 100]
    assert (culled.validation, culled.test, culled.seeds, culled.low, culled.high) == (89, 88, 2, 87, 89)
    assert culled.spread == pytest.approx(2**0.5)


def test_the_frontier_is_chosen_by_validation_accuracy():
    rows = tables.frontier_rows(RECORDS)
    chosen = pareto.frontier([(row.relus, row.validation) for row in rows])
    assert [i for i, row in enumerate(rows) if row.on_frontier] == sorted(chosen)
    assert [row.relus for row in rows if row.on_frontier] == [200, 100, 50, 20]


def costing(one: Record, macs: int, depth: int, seconds: float | None = None, squares: int = 0) -> Record:
    """The record with other costs, measured if it has seconds."""
    private = None if seconds is None else measured(seconds)
    return dataclasses.replace(changed(one, macs=macs, depth=depth, squares=squares), private=private)


def measured(seconds: float) -> PrivateInference:
    online = Cost(seconds, {"client": 900, "server": 100 * seconds}, 5, {"client": 0.1, "server": 0.1})
    costs = Costs(online=online, total=online)
    row = Row("delphi", "sign", "seal", "", "loopback", 0, 0, 1, 1, costs, 0.0, 1.0, Difference(0.0, 1, 1, 1), (), ())
    return PrivateInference(RingAccuracy(90.0, 90.0, 100.0, 0.0, 0.0, 1), row)


def test_other_costs_have_frontiers_of_their_own():
    networks = [
        costing(record("train", "", 200, 90, role="teacher"), 1000, 9, 8.0),
        costing(record("snl", "", 100, 85), 1000, 9, 5.0),
        costing(record("gated", "", 90, 84), 700, 7),
        costing(record("autorep", "", 50, 86), 1000, 9, 6.0, squares=50),
        costing(record("deepreduce", "cull S1", 120, 83), 600, 8, 7.0),
    ]
    expected = {
        "relus": ["train", "snl", "gated", "autorep"],
        "macs": ["train", "autorep", "gated", "deepreduce"],
        "depth": ["train", "autorep", "gated"],
        "latency": ["train", "autorep", "snl"],
        "bytes": ["train", "autorep", "snl"],
    }
    for axis, methods in expected.items():
        rows = tables.frontier_rows(networks, axis)
        assert sorted(row.method for row in rows if row.on_frontier) == sorted(methods)
        costs = [getattr(row, axis) for row in rows if getattr(row, axis) is not None]
        assert costs == sorted(costs, reverse=True)
        board = [row for row in rows if getattr(row, axis) is not None and (axis in tables.MEASURED or not row.squares)]
        points = [(getattr(row, axis), row.validation) for row in board]
        chosen = {board[i].method for i in pareto.frontier(points)}
        assert chosen == {row.method for row in board if row.on_frontier}
    text = tables.frontier_text(networks, "latency")
    assert "on the frontier over online time" in text and "squares have one of their own" not in text
    assert text.splitlines()[0].split()[-3:] == ["online", "method", "network"] and "–" in text and "5 s" in text
    assert "1.4 kB" in tables.frontier_text(networks, "bytes")
    assert "over multiply-adds" in tables.frontier_text(networks, "macs")


def test_measured_costs_are_means_over_the_measured_seeds():
    pair = [costing(record("snl", "", 100, 85, seed), 1000, 9, seconds) for seed, seconds in ((0, 4.0), (1, 6.0))]
    (row,) = tables.frontier_rows([*pair, costing(record("snl", "", 100, 85, 2), 1000, 9)], "latency")
    assert (row.latency, row.bytes, row.seeds) == (5.0, 1400.0, 3)


@pytest.mark.parametrize("axis", ["latency", "bytes"])
def test_a_measured_axis_needs_a_measurement(axis):
    with pytest.raises(UserError, match=f"no network of these runs has a measured {axis}; run parelu bench RUN first"):
        tables.frontier_rows(RECORDS, axis)


def test_comparison_is_paired_by_seed():
    (at_random, at_uniform) = tables.compare(RECORDS)
    assert (at_random.other, at_random.relus, at_random.seeds) == ("random", 100, 2)
    assert at_random.difference == pytest.approx((28 + 27) / 2)
    assert at_random.spread == pytest.approx(0.5**0.5)
    assert (at_uniform.other, at_uniform.relus, at_uniform.seeds, at_uniform.difference) == ("uniform", 50, 1, -1)


def test_comparison_takes_one_network_for_all_seeds():
    rivals = [record("deepreduce", "cull S2", 100, 99 - 20 * seed, seed) for seed in (0, 1)]
    (at_random, _) = tables.compare([*RECORDS, *rivals])
    assert (at_random.label, at_random.seeds) == ("cull S1", 2), "best on average, not the best of each seed"
    alone = [record("deepreduce", "cull S3", 100, 99.5, 0)]
    assert tables.compare([*RECORDS, *alone])[0].label == "cull S1", "more seeds say more"


def test_networks_of_several_runs_are_told_apart():
    """Equal counts of two networks are neither one row nor a pair."""
    here, there = ([dataclasses.replace(r, network=name) for r in RECORDS] for name in ("resnet18", "wrn-22-8"))
    rows, alone = tables.frontier_rows([*here, *there]), tables.frontier_rows(RECORDS)
    assert len(rows) == 2 * len(alone) and {row.label.split(": ")[0] for row in rows} == {"resnet18", "wrn-22-8"}
    compared = tables.compare([*here, *(changed(r, test_accuracy=0.0) for r in there)])
    for name, difference in (("resnet18", tables.compare(RECORDS)[0].difference), ("wrn-22-8", 0.0)):
        (mine, *_) = [one for one in compared if one.network == name and one.other == "random"]
        assert mine.difference == difference and mine.label.startswith(f"{name}: ")
    assert "random, wrn-22-8" in tables.frontier_text([*here, *there])


def test_runs_of_one_network_do_not_name_it(finished: tuple[Run, Silent], tmp_path: Path):
    one, _ = finished
    assert {record.network for record in tables.records_of([one, one])} == {""}
    other = dataclasses.replace(one, config={**one.config, "model": {"family": "vgg16", "stem": 8}})
    assert {record.network for record in tables.records_of([one, other])} == {"resnet10 m=2", "vgg16 m=8"}


def test_comparison_without_ours_takes_the_first_method():
    others = [r for r in RECORDS if r.metrics.method != "deepreduce"] + [record("uniform", "", 100, 62, 0)]
    (row,) = tables.compare(others)
    assert (row.method, row.other, row.difference, row.seeds) == ("random", "uniform", -2, 1)
    assert tables.compare(RECORDS[:2]) == []
    assert {r.other for r in tables.compare(RECORDS, ours="random")} == {"deepreduce"}


def test_a_run_given_twice_is_no_second_seed():
    assert {row.seeds for row in tables.frontier_rows([RECORDS[0], RECORDS[0]])} == {1}


def test_stages_show_every_network():
    records = [*RECORDS, record("random", "", 20, 30)]
    grid = stages_grid(records, tables.frontier_rows(records))
    assert [title for title, _ in grid.columns] == ["network", "ReLUs", "stem, 40", "S1, 60", "S2, 100"]
    assert sum(line.cells[0][0] == "random mask" for line in grid.lines) == 2, "a mask of each budget"
    half = next(line for line in grid.lines if line.cells[0][0] == "cull S1")
    assert [text for text, _ in half.cells[1:]] == ["100", "62 %", "42 %", "25 %"] and half.is_on


def test_of_many_networks_those_on_a_frontier_are_in_the_document():
    records = [
        record("train", "", 900, 90, role="teacher"),
        *(record("snl", "", 400 - i, 80 - i % 7) for i in range(300)),
    ]
    rows = tables.frontier_rows(records)
    grid, few = networks_grid(rows), drawn(records, rows)
    assert len(grid.lines) == 301 and 0 < len(grid.standing) == len(few) < 100
    assert {line.name for line in grid.standing} == {row.name for row in rows if row.on_frontier} | {"train--900"}
    assert {one.name for one in few} >= {line.name for line in grid.standing}
    assert drawn(RECORDS, tables.frontier_rows(RECORDS)) == RECORDS


def test_a_network_without_relus_is_drawn():
    records = [*RECORDS, record("deepreduce", "cull all", 0, 30)]
    svg = plots.frontier_svg(records)
    assert svg.count('class="tip"') == len(tables.frontier_rows(records))
    assert not re.search(r'c[xy]="(nan|-?inf)', svg)
    assert ">no ReLU</text>" in svg
    rows = tables.frontier_rows([RECORDS[0], record("deepreduce", "cull all", 0, 89)])
    assert headline(rows)[1] == "No ReLU at −1.0 points: cull all, 0 ReLUs, 88.0 %."


def test_every_curve_has_a_tip_at_its_end():
    svg = plots.curves_svg(RECORDS)
    assert svg.count('class="tip"') == 2 * len(RECORDS), "its accuracy and its loss"
    assert "only S2\n100 ReLUs, seed 0\n99 after 2" in svg


def test_text_is_aligned_and_marks_the_frontier():
    lines = tables.frontier_text(RECORDS).splitlines()
    assert lines[1].startswith("*")
    assert "at equal ReLUs, test accuracy in percent, paired by seed" in lines
    assert len({line.index("deepreduce") for line in lines[2:4] if "deepreduce" in line}) == 1


def test_every_point_has_a_tip():
    svg = plots.frontier_svg(RECORDS)
    assert svg.count('class="tip"') == len(tables.frontier_rows(RECORDS))
    for row in tables.frontier_rows(RECORDS):
        tip = re.search(rf'data-tip="{re.escape(row.label)}\n{row.relus:,} ReLUs[^"]*"', svg)
        assert tip
        assert f"test {row.test:.1f}" in tip[0]
        assert row.name in tip[0]
    assert svg == plots.frontier_svg(RECORDS)


def test_headline_compares_with_the_full_network():
    sentences = headline(tables.frontier_rows(RECORDS))
    assert sentences[0] == "all ReLUs: 200 ReLUs, 89.5 ± 0.7 % test accuracy."
    assert sentences[1].startswith("2.0× fewer ReLUs at −1.5 points: cull S1, 100 ReLUs")


def test_headline_compares_each_network_with_its_own_full_one():
    narrow = [dataclasses.replace(one, network="resnet10 m=8") for one in RECORDS]
    wide = [
        dataclasses.replace(
            one, network="resnet10 m=16", metrics=dataclasses.replace(one.metrics, relus=10 * one.metrics.relus)
        )
        for one in RECORDS
    ]
    sentences = headline(tables.frontier_rows([*narrow, *wide]))
    assert [sentence.partition(":")[0] for sentence in sentences if "all ReLUs" in sentence] == [
        "resnet10 m=16",
        "resnet10 m=8",
    ]
    gains = [sentence for sentence in sentences if "fewer" in sentence]
    assert len(gains) == 2 and all(sentence.startswith("2.0× fewer ReLUs at −1.5 points") for sentence in gains)
    assert "resnet10 m=16: cull S1, 1,000 ReLUs" in gains[0] and "resnet10 m=8: cull S1, 100 ReLUs" in gains[1]


def test_short_numbers():
    assert [plots.short(n) for n in (7, 999, 1000, 30_272, 2_000_000)] == ["7", "999", "1k", "30.3k", "2M"]


def test_flat_configuration():
    assert flat({"a": {"b": 1}, "c": [{"d": "x"}], "e": [1, 2]}) == [("a.b", "1"), ("c.1.d", "x"), ("e", "[1, 2]")]


class Page(HTMLParser):
    """Collects what a browser would load, and the cells of the table of networks."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.unclosed: list[str] = []
        self.networks: list[list[str]] = []
        self.shaded: list[bool] = []
        self.table = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v and v[0] != "#"]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.unclosed += [tag] if tag not in self.VOID else []
        if tag == "table":
            self.table = given.get("id") or ""
        if self.table == "networks" and tag == "tr" and "tbody" in self.unclosed:
            self.networks.append([])
            self.shaded.append(given.get("class") == "on")
        if self.table == "networks" and tag == "td":
            self.networks[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.table == "networks" and self.unclosed[-1:] == ["td"]:
            self.networks[-1][-1] += data


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three seeds of three methods; not changed by any test."""
    folder = tmp_path_factory.mktemp("made-up")
    return [fabricated(folder / f"seed{seed}", seed, ("random", "uniform")) for seed in range(3)]


def all_of(runs: Sequence[Run]) -> list[Record]:
    return [record for run in runs for record in run.candidates()]


def test_page_says_it_all(made_up: list[Run], tmp_path):
    text = write_report(made_up, tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.loads == [], "the page loads nothing"
    assert page.unclosed == []
    assert "@import" not in text
    assert not re.search(r"""url\((?!#)|(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert page.tags.count("svg") == 3
    assert len(page.ids) == len(set(page.ids)), "figures share no id"
    rows = tables.frontier_rows(all_of(made_up))
    cells = [[row.label, row.method, f"{row.relus:,}", f"{row.relus_without_stem:,}"] for row in rows]
    assert [cell[:4] for cell in page.networks] == cells, "every candidate is in the table, in order"
    assert [cell[-2:] for cell in page.networks] == [[f"{row.test:.1f} ± {row.spread:.1f}", "3"] for row in rows]
    assert [row.on_frontier for row in rows] == page.shaded
    assert "3 full-ReLU networks, 12 one-stage networks, 93 candidate networks finished." in text


def test_page_is_the_same_bytes_again(made_up: list[Run], tmp_path, monkeypatch):
    records = made_up[0].candidates()[:6]
    monkeypatch.setattr(Run, "candidates", lambda self: records)
    pages = [write_report(made_up[:1], tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_page_of_a_half_finished_run_says_so(tmp_path):
    run = Run.start(tmp_path / "run", {"model": "resnet10 m=8", "data": "fashion-mnist", "seed": 0})
    keep(run, "full", "", method="train", role="teacher", seed=0, budget=None)
    run.folder("cull-S1").mkdir(parents=True)
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "1 full-ReLU network finished; 1 unfinished, run the same command again" in text


def test_runs_of_different_data_do_not_share_a_page(made_up: list[Run], tmp_path):
    other = Run(made_up[1].path, {**made_up[1].config, "data": "digits"})
    with pytest.raises(UserError, match="different data"):
        write_report([made_up[0], other], tmp_path / "report.html")


def test_what_files_say_is_text(made_up: list[Run], tmp_path, monkeypatch):
    evil = r"""<script>alert(1)</script>"><img src=x onerror=alert(1)>$\frac{"""

    def defaced(r: Record) -> Record:
        return dataclasses.replace(changed(r, steps=evil + r.metrics.steps, method=evil), name=evil)

    records = [defaced(r) if r.metrics.role == "candidate" else r for r in made_up[0].candidates()[:6]]
    monkeypatch.setattr(Run, "candidates", lambda self: records)
    run = Run(made_up[0].path, {**made_up[0].config, "model": evil, evil: {evil: evil}})
    page = Page()
    page.feed(write_report([run], tmp_path / "report.html").read_text())
    assert page.tags.count("script") == 2, "the page's own, and its data"
    assert page.tags.count("img") == 0
    assert page.loads == []
    assert any(cell[0].startswith(evil) for cell in page.networks), "shown as it stands"


@pytest.mark.slow
def test_page_of_a_finished_run(finished: tuple[Run, Silent], tmp_path):
    run, _ = finished
    text = write_report([run], tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.loads == [], "the page loads nothing"
    assert "@import" not in text
    assert "url(http" not in text
    assert page.tags.count("svg") == 3
    for row in tables.frontier_rows(run.candidates()):
        assert f"<td>{row.relus:,}</td>" in text
    for stage, value in run.records()["criticality"]["stages"].items():
        assert re.search(rf">{stage}</td><td>{value['relus']:,}</td><td>{value['accuracy']:.2f}</td>", text)
    assert text == write_report([run], tmp_path / "again.html").read_text()


def test_nothing_finished_is_one_clear_error(tmp_path):
    run = Run.start(tmp_path / "run", {"model": "m", "data": "d", "seed": 0})
    with pytest.raises(UserError, match="no network is finished"):
        write_report([run], tmp_path / "report.html")


def test_saved_picture(tmp_path):
    plots.save_frontier(RECORDS, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    for name in ("one.svg", "two.svg"):
        plots.save_frontier(RECORDS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with pytest.raises(UserError, match=r"neither .png nor .svg"):
        plots.save_frontier(RECORDS, tmp_path / "frontier.pdf")


def test_inspection_bars_are_to_scale():
    reduced = apply_steps(spec_of("resnet18", (3, 32, 32), 10), "cull S1")
    text = inspection(reduced.spec, "resnet18", reduced.plan, None, (), as_json=False)
    bars = {line.split()[1]: line for line in text.splitlines() if line.startswith("  S")}
    assert bars["layer2.0.relu1"].count("█") == 16
    assert bars["layer1.0.relu1"].count("░") == 32
    assert "229,376" in text


def test_notes_of_one_kind_are_one_line():
    notes = ["a.b: SiLU became a ReLU", "c: its gate: piecewise", "d.e: SiLU became a ReLU", "of the whole"]
    assert notes_lines(notes) == [
        "  note: a.b: SiLU became a ReLU (1 more like it)",
        "  note: c: its gate: piecewise",
        "  note: of the whole",
    ]
