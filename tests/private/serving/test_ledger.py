"""What clients have used: counted once whoever counts, and on disk before it is given."""

import multiprocessing
import sqlite3
import threading

import pytest

from parelu.errors import ProtocolError, UserError
from parelu.private.serving.ledger import MOST_UNANSWERED, Ledger

NAMED = b"tableclients"  # in SQLite's schema, whose names its messages quote


def count(file, times):
    account = Ledger(file).account("a")
    for _ in range(times):
        account.infer(1)


def test_processes_and_threads_count_together(tmp_path):
    file = tmp_path / "clients.sqlite"
    ledger, spawn = Ledger(file), multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=count, args=(file, 50)) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [ledger.account("a").phase() for _ in range(25)]) for _ in range(2)]
    for each in (*processes, *threads):
        each.start()
    for each in (*processes, *threads):
        each.join()
    (record,) = ledger.records()
    assert ledger.record("a") == record
    assert (record.inferences, record.phases) == (100, 50)
    ledger.close()


def test_budgets_end_where_they_say(tmp_path):
    file = tmp_path / "clients.sqlite"
    account = Ledger(file, inferences=8).account("a")
    assert account.left == 8 and Ledger().account("a").left is None
    account.infer(5)
    with pytest.raises(ProtocolError, match=r"used up: 5 of 8 inferences; ask the operator"):
        account.infer(4)
    assert account.left == 3, "what is refused is not counted"
    account.infer(3)
    for _ in range(9 + 16):
        Ledger(file, inferences=8).account("a").phase()
    with pytest.raises(ProtocolError, match=r"used up: 25 of 25 offline phases"):
        account.phase()
    assert account.used == "8 inferences, 0 offline phases, a"
    assert Ledger(file, inferences=20).account("a").left == 12, "a larger budget goes on from what was used"


def test_marks_and_bars_stay(tmp_path):
    file = tmp_path / "clients.sqlite"
    account = Ledger(file).account("a")
    for _ in range(MOST_UNANSWERED + 3):
        account.opened(answered=True)
    for _ in range(MOST_UNANSWERED):
        assert not Ledger(file).account("a").record.barred
        account.opened(answered=False)
    for asked in (lambda: account.phase(), lambda: account.infer(1)):
        with pytest.raises(ProtocolError, match=r"barred \(3 offline phases were not shown\)"):
            asked()
    Ledger(file).account("b").bar("a reason")
    assert [record.barred for record in Ledger(file).records()] == [
        "3 offline phases were not shown",
        "caught: a reason",
    ]
    assert Ledger(file).forget("a") and not Ledger(file).forget("a")
    account.phase()
    assert account.record.phases == 1


def test_a_kill_between_counting_and_giving_counts(tmp_path):
    """Every change is in the file when its method returns, whatever becomes of the process."""
    file = tmp_path / "clients.sqlite"
    killed = Ledger(file)
    killed.account("a").infer(3)
    with sqlite3.connect(file) as other:
        assert other.execute("SELECT inferences FROM clients").fetchall() == [(3,)]


KINDS = ["folder", "text", "other table", "words", "below zero", "no text", "control", "nowhere"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_ledger_is_refused_in_one_line(tmp_path, kind):
    file = tmp_path / "clients.sqlite"
    if kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_text("nothing that counts, at some length")
    elif kind == "other table":
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE clients (name TEXT)")
    elif kind in ("words", "below zero"):
        Ledger(file).account("a").infer(1)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE clients SET phases = ?", ("many" if kind == "words" else -1,))
    elif kind in ("no text", "control"):
        Ledger(file).close()
        content = file.read_bytes()
        assert NAMED in content
        file.write_bytes(content.replace(NAMED, NAMED[:-1] + (b"\xac" if kind == "no text" else b"\1")))
    else:
        file = tmp_path / "nowhere" / "clients.sqlite"
    with pytest.raises(UserError, match=r"clients\.sqlite: cannot count what clients use there \(.*\)") as error:
        Ledger(file)
    assert str(error.value).isprintable()


def test_a_ledger_that_cannot_be_opened_says_how_to_have_one_elsewhere(tmp_path):
    with pytest.raises(
        UserError, match=r"clients.sqlite: cannot count .*; `parelu serve --ledger FILE` counts elsewhere"
    ):
        Ledger(tmp_path / "missing" / "clients.sqlite")


def test_what_becomes_no_ledger_while_it_is_used_is_refused_in_one_line(tmp_path):
    ledger = Ledger(tmp_path / "clients.sqlite")
    account = ledger.account("a")
    account.infer(1)
    ledger._database.execute("ALTER TABLE clients ADD COLUMN more")
    account.infer(1)
    assert [record.inferences for record in ledger.records()] == [2]
    ledger._database.execute("UPDATE clients SET inferences = 'many'")
    with pytest.raises(ProtocolError, match="a row is not of this program's"):
        account.infer(1)
    with pytest.raises(UserError, match="a row is not of this program's"):
        ledger.records()


def test_a_disk_that_is_full_gives_nothing(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "clients.sqlite")
    account = ledger.account("a")
    account.infer(1)
    ledger._database.execute("PRAGMA query_only = ON")
    with pytest.raises(ProtocolError, match="the server cannot count what its clients use"):
        account.infer(1)
    ledger._database.execute("PRAGMA query_only = OFF")
    assert account.record.inferences == 1


@pytest.mark.parametrize("audit", [0.0, 0.1, 0.2, 0.5])
def test_the_budget_of_phases_makes_up_for_those_that_are_opened(audit):
    """Six standard deviations of what an honest client opens on the way."""
    for inferences in (1, 30, 300, 10_000):
        opened = inferences * audit / (1 - audit)
        deviation = (inferences * audit) ** 0.5 / (1 - audit)
        assert Ledger(inferences=inferences, audit=audit).phases >= inferences + opened + min(6 * deviation, 15)
