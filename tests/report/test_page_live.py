"""The page in a real browser: what is drawn, filtered, sorted and handed out is what the tables say."""

import csv
import dataclasses
import functools
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browser  # noqa: F401
from made_records import changed, record

from parelu.private.cost.predict import Estimate, Predicted, Prediction
from parelu.report import tables
from parelu.report.page import write_report
from parelu.runs.folder import Record, Run

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CONFIG = {"model": "resnet10 m=8", "data": "digits", "seed": 0}


def prediction(seconds: float) -> Prediction:
    each = Estimate(seconds, seconds, seconds, {"client": 0.1}, {"client": 1e5 * seconds, "server": 5.0}, 4)
    return Prediction(each, each, each, {"client": 1.0, "server": 1.0})


def made(number: int, label: str = "") -> list[Record]:
    """A full-ReLU network, and candidates of three methods, the last with squares."""
    found = [record("train", "", 200_000, 91, 0, "teacher")]
    for i in range(number - 1):
        method = ("snl", "random", "autorep")[i % 3]
        relus = round(150_000 * 0.993**i) + 1
        accuracy = 90 - 2 * math.log10(200_000 / relus) ** 2 + math.sin(i) - (2 if method == "random" else 0)
        one = changed(record(method, "", relus, accuracy), budget=relus, squares=900 if method == "autorep" else 0)
        found.append(dataclasses.replace(one, name=f"{method}-{relus}{label}"))
    found = [
        dataclasses.replace(one, metrics=dataclasses.replace(one.metrics, method=one.metrics.method + label))
        if label and one.metrics.role == "candidate"
        else one
        for one in found
    ]
    return [
        dataclasses.replace(one, predicted=Predicted({"lan": prediction(one.metrics.relus / 1e6)})) for one in found
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Record]], Path]:
    """Writes the page of so many networks, once each."""

    @functools.cache
    def write(number: int, label: str) -> Path:
        records, folder = made(number, label), tmp_path_factory.mktemp("page")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "candidates", lambda self: records)
            patch.setattr(tables, "foretold", lambda records, queries: records)
            return write_report([Run.start(folder / "run", CONFIG)], folder / "report.html")

    return lambda records: write(len(records), EVIL if EVIL in records[-1].name else "")


@contextmanager
def opened(path: Path, chromium: Any, **options: Any) -> Iterator[Any]:
    """A page in the browser; it must ask for nothing, and have no error."""
    context = chromium.new_context(accept_downloads=True, **options)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text))
    page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(("file:", "blob:")) else None)
    page.goto(path.as_uri())
    yield page
    context.close()
    assert faults == []


def cells(page: Any, table: str, column: int) -> list[str]:
    return page.locator(f"#{table} tbody tr td:nth-child({column})").all_text_contents()


def test_a_thousand_networks_are_few_nodes_and_all_there(browser, written):  # noqa: F811
    records = made(1000)
    rows = tables.frontier_rows(records)
    with opened(written(records), browser) as page:
        assert page.evaluate("document.querySelectorAll('*').length") < 8000
        assert page.locator("#networks tbody tr").count() == 50
        assert page.locator("#frontier-plot path.mark").count() <= 2 * 4
        assert page.locator("#networks + *, .foot").first.is_visible()
        page.get_by_role("button", name="next").first.click()
        assert cells(page, "networks", 3) == [f"{row.relus:,}" for row in rows[50:100]]
        page.locator("#networks").get_by_role("button", name="test, %").click()
        best = sorted((row.test for row in rows), reverse=True)[:50]
        assert cells(page, "networks", 9) == [f"{test:.1f}" for test in best], "sorted over all pages"
        with page.expect_download() as got:
            page.get_by_role("button", name="download all networks as CSV").click()
        table = list(csv.DictReader(io.StringIO(Path(got.value.path()).read_text())))
        assert [(one["name"], int(one["relus"])) for one in table] == [(row.name, row.relus) for row in rows]
        with page.expect_download() as got:
            page.get_by_role("button", name="download all networks as JSON").click()
        values = json.loads(Path(got.value.path()).read_text())
        assert [one["online_seconds_lan"] for one in values] == [row.predicted for row in rows]


def test_the_filter_holds_for_plots_and_tables(browser, written):  # noqa: F811
    records = made(150)
    with opened(written(records), browser) as page:
        legend = page.get_by_role("button", name="random", exact=True)
        legend.click()
        assert legend.get_attribute("aria-pressed") == "false"
        assert "random" not in cells(page, "networks", 2) and "snl" in cells(page, "networks", 2)
        assert page.locator("path.mark[data-method=random]").count() == 0
        assert not any("random" in label for label in cells(page, "stages", 1))
        page.get_by_label("frontier only").check()
        rows = [row for row in tables.frontier_rows(records) if row.on_frontier and row.method != "random"]
        assert cells(page, "networks", 3) == [f"{row.relus:,}" for row in rows]
        page.get_by_label("find a network").fill(rows[-1].name)
        assert cells(page, "networks", 3) == [f"{rows[-1].relus:,}"]


@pytest.mark.parametrize("x", ["relus", "predicted"])
def test_the_frontier_of_the_script_is_the_frontier_of_the_tables(browser, written, x):  # noqa: F811
    records = made(150)
    rows = tables.frontier_rows(records, x)
    with opened(written(records), browser) as page:
        if x == "predicted":
            page.locator("#frontier-plot select").first.select_option(label="online over lan, predicted")
        drawn = page.locator("#frontier-plot path.steps").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    steps = [len(re.findall("[MH]", one)) for one in drawn]
    on = [row for row in rows if row.on_frontier]
    apart = [len([row for row in on if bool(row.squares) == squares]) for squares in (False, True)]
    assert steps == (apart if x == "relus" else [len(on)])


def test_the_plot_is_walked_zoomed_and_hovered_over(browser, written):  # noqa: F811
    records = made(150)
    rows = sorted(tables.frontier_rows(records), key=lambda row: row.relus)
    with opened(written(records), browser) as page:
        stage, tip = page.locator("#frontier-plot .stage"), page.locator("#tip")
        stage.focus()
        page.keyboard.press("ArrowRight")
        for row in rows[:3]:
            said = tip.text_content()
            assert row.label in said and row.name in said and f"test: {row.test:.1f} %" in said
            assert f"online over lan, predicted: {row.predicted * 1000:.3g} ms" in said
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        ticks = stage.locator("text.tick").all_text_contents()
        page.keyboard.press("+")
        assert stage.locator("text.tick").all_text_contents() != ticks
        page.keyboard.press("0")
        assert stage.locator("text.tick").all_text_contents() == ticks
        box = stage.bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 500, box["y"] + 200, steps=4)
        page.mouse.up()
        assert stage.locator("text.tick").all_text_contents() != ticks, "a frame is drawn to zoom"
        stage.dblclick()
        assert stage.locator("text.tick").all_text_contents() == ticks
        marks = stage.locator("path.mark").first
        place = marks.get_attribute("d")
        page.locator("#frontier-plot").get_by_label("log scale").uncheck()
        assert marks.get_attribute("d") != place
        curves = page.locator("#curves-plot path.curve")
        assert 0 < curves.count() < 100, "those on a frontier"
        page.locator("#curves-plot .stage").focus()
        page.keyboard.press("ArrowLeft")
        assert "after epoch 2" in tip.text_content()


def test_what_files_say_runs_nowhere(browser, written):  # noqa: F811
    records = made(20, EVIL)
    with opened(written(records), browser) as page:
        page.locator("#frontier-plot .stage").focus()
        page.keyboard.press("ArrowRight")
        assert EVIL in page.locator("#tip").text_content()
        assert any(EVIL in text for text in cells(page, "networks", 2))
        assert "owned" not in page.title() and page.locator("img").count() == 0


@pytest.mark.parametrize("options", [{"java_script_enabled": False}, {}], ids=["without scripts", "with scripts"])
def test_one_picture_of_each_is_shown(browser, written, options):  # noqa: F811
    with opened(written(made(150)), browser, **options) as page:
        lives = bool(not options)
        assert page.locator(".figure[data-live]").first.is_visible() is not lives
        assert page.locator(".stage svg").first.is_visible() is lives
        assert page.locator("#filter").is_visible() is lives
        assert page.get_by_text("a browser that runs scripts shows all").first.is_visible() is not lives


def test_it_fits_a_narrow_window_and_goes_dark(browser, written):  # noqa: F811
    ground = "getComputedStyle(document.body).backgroundColor"
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
    with opened(written(made(150)), browser, **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = page.evaluate(ground)
        page.get_by_role("button", name="light or dark").click()
        assert page.evaluate(ground) == "rgb(255, 255, 255)" != dark
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        assert not page.locator(".controls").first.is_visible()
        assert page.locator("#filter button").first.is_visible(), "the legend"
