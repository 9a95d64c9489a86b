"""What a query is predicted to take, as it is shown: beside networks, in tables, and in pictures."""

import dataclasses
import json
import re

import pytest
from conftest import Silent
from markupsafe import escape
from small_networks import program_of

from parelu.errors import UserError
from parelu.network.count import skeleton
from parelu.network.plan import Plan
from parelu.network.spec import spec_of
from parelu.private.cost.predict import averaged
from parelu.private.lowering import refusals
from parelu.private.offline.mode import ring_for
from parelu.private.rows import Cost, Costs, Difference, PrivateInference, RingAccuracy, Row
from parelu.report import seconds, tables
from parelu.report.designs import designs_text
from parelu.report.fusion import fusion
from parelu.report.inspection import inspection
from parelu.report.page import write_report
from parelu.report.private import duration, size
from parelu.runs import pareto
from parelu.runs.folder import Record, Run
from parelu.runs.predictions import Queries

SPEC = spec_of("resnet10 m=2", (1, 8, 8), 10)
WHOLE = Plan.of(skeleton(SPEC))


@pytest.fixture(scope="module")
def queries() -> Queries:
    return Queries.of()


def test_a_network_is_predicted_of_its_shapes_about_as_of_its_program(queries):
    lowered = program_of(SPEC, WHOLE, ring_for("hints"))
    shapes, program = queries.plan(SPEC, WHOLE), queries.program(lowered.program, lowered)
    for link in ("lan", "wan"):
        for phase in ("online", "offline", "setup"):
            a, b = (getattr(each.by_link[link], phase) for each in (shapes, program))
            assert a.seconds == pytest.approx(b.seconds, rel=0.05) and a.rounds == b.rounds
            assert a.bytes == pytest.approx(b.bytes, rel=0.05)


def test_inspect_says_what_a_query_takes_over_each_link(queries):
    lowered = program_of(SPEC, WHOLE, ring_for("hints"))
    text = inspection(SPEC, "resnet10", WHOLE, lowered, (), None, queries, as_json=False)
    lan = queries.program(lowered.program, lowered).by_link["lan"].online
    assert f"  lan  {duration(lan.seconds)} ({duration(lan.low)} to {duration(lan.high)})" in text
    assert f"{lan.rounds:g} rounds, {size(lan.bytes)} online" in text and "\n  wan  " in text
    assert queries.by in text
    said = json.loads(inspection(SPEC, "resnet10", WHOLE, lowered, (), None, queries, as_json=True))["predicted"]
    assert said["by_link"]["lan"]["online"]["seconds"] == lan.seconds


def test_without_a_program_there_is_a_reason_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(refusals, "LARGEST_TOTAL", 10_000)
    large = spec_of("resnet10 m=2", (1, 32, 32), 10)
    found = Queries.of().plan(large, Plan.of(skeleton(large)))
    assert not found.by_link and "use smaller images" in found.why and "\n" not in found.why
    fss = dataclasses.replace(Queries.of(relu="fss"), links=("lan",))
    wide = dataclasses.replace(program_of(SPEC, WHOLE).program)
    ops = tuple(dataclasses.replace(op, bits=40) if hasattr(op, "relus") else op for op in wide.ops)
    assert "another --relu" in fss.program(dataclasses.replace(wide, ops=ops)).why
    text = designs_text([("large", large), ("small", SPEC)], Queries.of(), as_json=False)
    assert "–" in text.splitlines()[1] and found.why in text and " ms" in text.splitlines()[2]


def test_what_there_is_not_is_refused():
    for given in ({"link": "lam"}, {"relu": "sigh"}, {"offline": "hint"}):
        with pytest.raises(UserError, match=r"known|give"):
            Queries.of(**given)


def test_fusion_is_shown_in_seconds_before_and_after(queries):
    text = fusion(SPEC, "resnet10", WHOLE, queries, as_json=False)
    assert re.search(r"online lan +offline lan +online wan +offline wan +sent", text) and queries.by in text
    said = json.loads(fusion(SPEC, "resnet10", WHOLE, queries, as_json=True))
    assert set(said) == {"as_it_is", "fused", "merged"}
    assert all(one["predicted"]["by_link"]["wan"]["offline"]["seconds"] > 0 for one in said.values())


def test_a_frontier_over_predicted_seconds(finished: tuple[Run, Silent], queries):
    run, _ = finished
    records = tables.records_of([run], queries)
    rows = tables.frontier_rows(records, "predicted")
    assert all(row.by_link for row in rows)
    costs = [row.predicted for row in rows]
    assert costs == sorted(costs, reverse=True) == [row.by_link["lan"].online.seconds for row in rows]
    best = {rows[i].name for i in pareto.frontier([(row.predicted, row.validation) for row in rows])}
    assert best == {row.name for row in rows if row.on_frontier}
    text = tables.frontier_text(records, "predicted", queries)
    assert "online wan" in text and "over predicted online time" in text and queries.by in text
    with pytest.raises(UserError, match="can be predicted: none is asked"):
        none = [
            dataclasses.replace(r, predicted=dataclasses.replace(r.predicted, by_link={}, why="none is asked"))
            for r in records
            if r.predicted
        ]
        tables.frontier_rows(none, "predicted")


def test_a_mean_of_predictions_is_one_of_each_number(queries):
    one = queries.plan(SPEC, WHOLE).by_link["lan"]
    longer = dataclasses.replace(one.online, seconds=3 * one.online.seconds, sent={"client": 0.0, "server": 0.0})
    found = averaged([one, dataclasses.replace(one, online=longer)])
    assert found.online.seconds == pytest.approx(2 * one.online.seconds)
    assert found.online.sent["client"] == one.online.sent["client"] / 2
    assert found.offline == one.offline and found.memory == one.memory


def limited(record: Record, limits: str, query: str) -> Record:
    return dataclasses.replace(record, metrics=dataclasses.replace(record.metrics, limits=limits), query=query)


def as_measured(record: Record, link: str, online: float) -> Record:
    cost = Cost(online, {"client": 1, "server": 1}, 5, {"client": 0.1, "server": 0.1})
    row = Row(
        "delphi",
        "sign",
        "hints",
        "",
        link,
        0,
        0,
        1,
        1,
        Costs(online=cost, offline=cost, total=cost),
        0.0,
        1.0,
        Difference(0.0, 1, 1, 1),
        (),
        (),
    )
    return dataclasses.replace(record, private=PrivateInference(RingAccuracy(90.0, 90.0, 100.0, 0.0, 0.0, 1), row))


def test_limits_are_named_with_their_link(finished: tuple[Run, Silent]):
    """The same limit on two links is two networks, not two seeds of one."""
    run, _ = finished
    one = next(record for record in run.candidates() if record.metrics.budget)
    here, there = (limited(one, "200ms", link) for link in ("lan", "wan, full"))
    assert tables.label_of(here).endswith(", 200ms over lan") and tables.label_of(there).endswith("over wan, full")
    assert len(tables.by_network([here, there])) == 2


def test_links_of_budgets_and_of_measurements_have_panels(finished: tuple[Run, Silent], queries):
    run, _ = finished
    records = tables.records_of([run], queries)
    masks = [record for record in records if record.metrics.budget][:2]
    others = [record for record in records if record.name not in {mask.name for mask in masks}]
    odd = [limited(masks[0], "7ms+bytes:20MB", "80Mb/s,10ms"), as_measured(masks[1], "loopback", 0.0123)]
    wide = seconds.with_links(queries, [*others, *odd])
    assert wide.links == ("lan", "wan", "80Mb/s,10ms", "loopback")
    assert seconds.with_links(queries, others).links == queries.links
    picture = seconds.seconds_svg([*others, *odd], dataclasses.replace(wide, links=("lan", "loopback")))
    assert "over lan, predicted" in picture and "measured: online 12.3 ms" in picture and "≤ 7ms" not in picture
    again = [dataclasses.replace(one, query="lan") if one.metrics.limits else one for one in odd]
    assert "≤ 7ms" in seconds.seconds_svg([*others, *again], queries)
    assert any("12.3 ms loopback" in one.cells[-1][0] for one in seconds.seconds_grid([*others, *odd], (), wide).lines)


def test_a_report_says_what_queries_take_and_whose_seconds_they_are(finished: tuple[Run, Silent], tmp_path, queries):
    run, _ = finished
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "What a query takes" in page and "online time of a query over wan, predicted" in page
    assert escape(queries.how) in page and escape(queries.by) in page
