"""The ledger of a process: what it writes, while it runs and when it ends."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import DataError, OperationalError

from chatapp.background import Patience
from chatapp.database.connection import Database
from chatapp.ledger.call import Call
from chatapp.ledger.reports import Reports
from chatapp.ledger.writer import BackgroundLedger, new_writer
from tests.chatapp.ledger.calls import begun, finished

WAIT_S = 10
ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import os, signal, sys
from chatapp.database.connection import Database
from chatapp.ledger.writer import BackgroundLedger
from tests.chatapp.ledger.calls import begun, finished
ledger = BackgroundLedger(Database(sys.argv[1]))
how = sys.argv[2]
calls = [begun(id=str(number)) for number in range(50)]
for call in calls:
    ledger.begin(call)
if how == "kill":
    ledger.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if how == "fork":
    ledger.flush()
    if os.fork() == 0:
        ledger.begin(begun(id="child"))
        sys.exit()
    os.wait()
for call in calls:
    ledger.finish(finished(call))
"""


class Shelf:
    """A database that keeps calls by id, can be unavailable, or refuse one of them."""

    def __init__(self) -> None:
        self.kept: dict[str, Call] = {}
        self.failures = 0
        self.refused: str | None = None
        self.refusal: Exception = DataError("INSERT", {}, Exception("value out of range"))

    def write(self, calls: Sequence[Call]) -> None:
        if self.failures:
            self.failures -= 1
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        if any(call.id == self.refused for call in calls):
            raise self.refusal
        self.kept |= {call.id: call for call in calls}


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The ids of the calls that only the log has."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    return [json.loads(line.partition("only here: ")[2])["id"] for line in lines if "{" in line]


def run(url: str, how: str) -> int:
    command = [sys.executable, "-c", WORKER, url, how]
    return subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode


def statuses(url: str) -> dict[str, str]:
    return {row["id"]: row["status"] for row in Reports(Database(url)).calls()}


def test_begin_and_finish_are_one_row(database: Database) -> None:
    """Neither waits; both arrive."""
    ledger = BackgroundLedger(database)
    call = begun()
    ledger.begin(call)
    ledger.finish(finished(call))
    assert ledger.flush()
    (row,) = Reports(database).calls()
    assert (row["status"], row["cost_micro_usd"]) == ("answered", 1485)


def test_a_process_that_ends_has_written_everything(database_url: str) -> None:
    """A worker that stops has written all calls."""
    assert run(database_url, "exit") == 0
    assert set(statuses(database_url).values()) == {"answered"}
    assert len(statuses(database_url)) == 50


def test_a_killed_process_leaves_what_was_known(database_url: str) -> None:
    """The beginnings stay, unfinished, with the price of their estimates."""
    assert run(database_url, "kill") == -signal.SIGKILL
    assert statuses(database_url) == {str(number): "unfinished" for number in range(50)}
    user = "user:alice"
    spent = Reports(Database(database_url)).spent_micro_usd(user, begun().started_at)
    assert spent == 50 * begun().cost_micro_usd


def test_a_fork_has_a_writer_of_its_own(database_url: str) -> None:
    """Parent and child each write their own calls, once."""
    assert run(database_url, "fork") == 0
    kept = statuses(database_url)
    assert kept.pop("child") == "unfinished"
    assert set(kept.values()) == {"answered"}
    assert len(kept) == 50


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    """An unused ledger has no thread and no file: gunicorn may still fork."""
    file = tmp_path / "never.db"
    BackgroundLedger(Database(f"sqlite:///{file}"))
    assert not os.path.lexists(file)


def test_the_end_of_a_call_replaces_its_beginning() -> None:
    """While the beginning waits: one row is written, with the outcome."""
    shelf = Shelf()
    writer = new_writer(shelf.write, linger_s=3600)
    calls = [begun() for _ in range(3)]
    for call in calls:
        writer.put(call.id, call)
        writer.put(call.id, finished(call))
    writer.close()
    assert list(shelf.kept.values()) == [finished(call) for call in calls]


def test_a_short_outage_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The writer retries, and the log only warns."""
    shelf = Shelf()
    shelf.failures = 5
    writer = new_writer(shelf.write, patience=Patience(first_s=0.001, longest_s=0.001))
    calls = [begun() for _ in range(10)]
    for call in calls:
        writer.put(call.id, call)
    assert writer.flush(WAIT_S)
    assert list(shelf.kept.values()) == calls
    assert lost(caplog) == []
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 5
    writer.close()


def test_a_lost_call_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """As JSON, at ERROR: after a long outage, and for lack of room."""
    shelf = Shelf()
    shelf.failures = 1_000_000
    patience = Patience(first_s=0.001, longest_s=0.002, whole_s=0.05, at_end_s=0)
    writer = new_writer(shelf.write, most=1, linger_s=0.01, patience=patience)
    first, second = begun(), begun()
    writer.put(first.id, first)
    writer.put(second.id, second)
    assert writer.flush(WAIT_S)
    assert sorted(lost(caplog)) == sorted([first.id, second.id])
    writer.close()


@pytest.mark.parametrize("of", ["the database", "its driver"])
def test_one_bad_row_costs_no_other(caplog: pytest.LogCaptureFixture, of: str) -> None:
    """It goes to the log, and the rest of its batch into the database."""
    shelf = Shelf()
    if of == "its driver":
        shelf.refusal = OverflowError("Python int too large to convert to SQLite INTEGER")
    writer = new_writer(shelf.write)
    calls = [begun() for _ in range(5)]
    shelf.refused = calls[2].id
    for call in calls:
        writer.put(call.id, call)
    assert writer.flush(WAIT_S)
    assert set(shelf.kept) == {call.id for call in calls} - {calls[2].id}
    assert lost(caplog) == [calls[2].id]
    writer.close()
