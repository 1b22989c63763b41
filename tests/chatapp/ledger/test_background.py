"""The ledger of a process, in its life and at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from chatapp.database.connection import Database
from chatapp.ledger.background import BackgroundLedger
from chatapp.ledger.reports import Reports
from tests.chatapp.ledger.calls import begun, finished

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import os, signal, sys
from chatapp.database.connection import Database
from chatapp.ledger.background import BackgroundLedger
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
    """A worker that is told to end takes nothing with it."""
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
    """Parent and child write what each of them was told, once."""
    assert run(database_url, "fork") == 0
    kept = statuses(database_url)
    assert kept.pop("child") == "unfinished"
    assert set(kept.values()) == {"answered"}
    assert len(kept) == 50


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    """A ledger that is only made has no thread and no file: gunicorn may fork yet."""
    file = tmp_path / "never.db"
    BackgroundLedger(Database(f"sqlite:///{file}"))
    assert not os.path.lexists(file)
