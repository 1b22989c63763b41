"""Calls leave the ledger when they are old, in small batches and in one process at a time."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatapp.database.connection import Database
from chatapp.ledger import retention, table
from chatapp.ledger.call import Call
from chatapp.ledger.reports import Reports
from chatapp.ledger.writer import BackgroundLedger
from tests.chatapp.ledger.calls import begun
from tests.servers import eventually

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def calls(number: int, *, days_old: float, now: datetime = NOW) -> list[Call]:
    began = now - timedelta(days=days_old)
    return [begun()._replace(started_at=began) for _ in range(number)]


def left(database: Database) -> int:
    return sum(1 for _ in Reports(database).calls())


def test_old_calls_go_and_others_stay(database: Database) -> None:
    """The bound is exclusive: a call of that instant stays."""
    table.write(database, [*calls(3, days_old=101), *calls(2, days_old=100), *calls(1, days_old=0)])
    before = NOW - timedelta(days=100)
    assert retention.prune(database, before=before) == 3
    assert retention.prune(database, before=before) == 0
    assert left(database) == 3


def test_a_transaction_deletes_a_bounded_number(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writers run between two batches, and the end of the process stops it there."""
    monkeypatch.setattr(retention, "BATCH", 10)
    table.write(database, calls(35, days_old=101))
    seen: list[int] = []

    def pause(_: float) -> bool:
        seen.append(left(database))
        return len(seen) == 3

    assert retention.prune(database, before=NOW, pause=pause) == 30
    assert seen == [25, 15, 5]


def test_processes_do_not_delete_twice(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they delete what there is, and none fails."""
    monkeypatch.setattr(retention, "BATCH", 5)
    table.write(database, calls(100, days_old=101))
    with ThreadPoolExecutor(4) as pool:
        deleted = pool.map(
            lambda _: retention.prune(database, before=NOW, pause=lambda _: None), range(4)
        )
        assert sum(deleted) == 100
    assert left(database) == 0


def test_a_defect_does_not_end_the_thread(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next hour's pruning comes."""
    table.write(database, calls(2, days_old=101, now=datetime.now(UTC)))
    defects = iter([ValueError("a row is unreadable")])

    def prune(*words: object, **options: object) -> int:
        for defect in defects:
            raise defect
        return prune_really(*words, **options)

    prune_really: Any = retention.prune
    monkeypatch.setattr(retention, "prune", prune)
    thread = retention.Retention(database, keep=timedelta(days=100), every_s=0.01)
    eventually(lambda: left(database) == 0)
    thread.close()
    assert "a row is unreadable" in caplog.text


def test_the_application_prunes_beside_its_requests(database: Database) -> None:
    """From its first call on, if a number of days is set."""
    now = datetime.now(UTC)
    table.write(database, calls(2, days_old=101, now=now))
    ledger = BackgroundLedger(database, keep=timedelta(days=100))
    for call in calls(1, days_old=1, now=now):
        ledger.begin(call)
    assert ledger.flush()
    eventually(lambda: left(database) == 1)
