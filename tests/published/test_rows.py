"""The rows that the papers print: how they are read and found."""

import pytest

from parelu.errors import UserError
from parelu.published import TITLES, find, rows, tables


def test_every_row_is_read():
    assert len(rows()) == 852
    assert {row.paper for row in rows()} == set(TITLES)
    named = [(row.paper, row.table, row.row) for row in rows()]
    assert len(named) == len(set(named)), "a row has one name"


def test_a_row_says_what_the_paper_says():
    (row,) = [row for row in find("DeepReDuce Table 4") if row.relus == 28670]
    assert (row.printed, row.accuracy, row.dataset) == ("28.67K", 68.68, "cifar100")
    assert row.source == "DeepReDuce Table 4"
    assert row.per_kilorelu == pytest.approx(float(row.stated["acc_per_kilorelu"]), abs=0.01)


@pytest.mark.parametrize("paper", TITLES)
def test_every_table_is_found_by_each_of_its_names(paper):
    for table in tables(paper):
        short = table.replace("Table ", "T").replace("Figure ", "fig. ")
        for text in (f"{TITLES[paper]} {table}", f"{paper.upper()} {short}", f"{paper.replace('-', ' ')}, {table}"):
            assert {row.source for row in find(text)} == {f"{TITLES[paper]} {table}"}
    assert len(find(TITLES[paper])) == sum(row.paper == paper for row in rows())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DeepReduse Table 4", "known are DeepReDuce, AutoReP, Shallow-Again, DeepReShape"),
        ("", "known are DeepReDuce"),
        ("DeepReDuce Table 9", "Table 9 of DeepReDuce has no published rows here; there are Table 1, Table 2"),
        ("AutoReP Figure 7", "Figure 7 of AutoReP has no published rows here"),
        ("AutoReP nonsense", "nonsense of AutoReP has no published rows here"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(text, message):
    with pytest.raises(UserError, match=message):
        find(text)
