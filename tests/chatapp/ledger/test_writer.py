"""The writer's thread: never in anybody's way, and nothing lost unsaid."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import DataError, OperationalError

from chatapp.ledger.call import Call
from chatapp.ledger.writer import Patience, Writer
from tests.chatapp.ledger.calls import begun, finished

QUICK = Patience(first_s=0.001, longest_s=0.002, whole_s=0.05, at_end_s=0.2)
WAIT_S = 10


class Shelf:
    """A database that keeps calls by id, can be slow, away, or dislike one of them."""

    def __init__(self) -> None:
        self.kept: dict[str, Call] = {}
        self.batches: list[int] = []
        self.away = 0
        self.dislikes: str | None = None
        self.dislike: Exception = DataError("INSERT", {}, Exception("value out of range"))
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def write(self, calls: Sequence[Call]) -> None:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.away:
            self.away -= 1
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        if any(call.id == self.dislikes for call in calls):
            raise self.dislike
        self.batches.append(len(calls))
        self.kept |= {call.id: call for call in calls}


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The ids of the calls that only the log has."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    return [json.loads(line.partition("only here: ")[2])["id"] for line in lines if "{" in line]


def test_calls_arrive(shelf: Shelf) -> None:
    """All of them, soon, without anybody asking."""
    writer = Writer(shelf.write)
    calls = [begun() for _ in range(1200)]
    for call in calls:
        writer.put(call)
    assert writer.flush(WAIT_S)
    assert list(shelf.kept.values()) == calls
    assert max(shelf.batches) <= 500
    writer.close()


def test_a_slow_database_slows_nobody(shelf: Shelf) -> None:
    """`put` comes back while a write hangs; beginnings that wait become their ends."""
    writer = Writer(shelf.write, linger_s=0)
    shelf.gate.clear()
    first = begun()
    writer.put(first)
    assert shelf.entered.wait(WAIT_S)
    second = begun()
    writer.put(second)
    writer.put(finished(second))
    writer.put(finished(first))
    assert not writer.flush(0)
    shelf.gate.set()
    assert writer.flush(WAIT_S)
    assert list(shelf.kept.values()) == [finished(first), finished(second)]
    assert shelf.batches == [1, 2]
    writer.close()


def test_a_database_that_comes_back_has_everything(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    """A short outage is tried through, in order, and the log only warns."""
    shelf.away = 5
    writer = Writer(shelf.write, patience=Patience(first_s=0.001, longest_s=0.001))
    calls = [begun() for _ in range(10)]
    for call in calls:
        writer.put(call)
    assert writer.flush(WAIT_S)
    assert list(shelf.kept.values()) == calls
    assert lost(caplog) == []
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 5
    writer.close()


def test_a_long_outage_goes_to_the_log(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """After the patience every row stands there as JSON, and later calls are written again."""
    shelf.away = 1_000_000
    writer = Writer(shelf.write, patience=QUICK)
    call = begun()
    writer.put(call)
    assert writer.flush(WAIT_S)
    assert lost(caplog) == [call.id]
    shelf.away = 0
    later = begun()
    writer.put(later)
    assert writer.flush(WAIT_S)
    assert list(shelf.kept) == [later.id]
    writer.close()


def test_what_has_no_room_goes_to_the_log(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """Memory is bounded; an end has room where its beginning waits."""
    writer = Writer(shelf.write, most=2, linger_s=0)
    shelf.gate.clear()
    writer.put(begun())
    assert shelf.entered.wait(WAIT_S)
    waiting, second, third = begun(), begun(), begun()
    for call in (waiting, second, third, finished(waiting)):
        writer.put(call)
    assert lost(caplog) == [third.id]
    shelf.gate.set()
    assert writer.flush(WAIT_S)
    assert shelf.kept[waiting.id].status == "answered"
    assert third.id not in shelf.kept
    writer.close()


@pytest.mark.parametrize("of", ["the database", "its driver"])
def test_one_bad_row_costs_no_other(
    shelf: Shelf, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    """It goes to the log, the rest of its batch into the database, whoever refuses it."""
    if of == "its driver":
        shelf.dislike = OverflowError("Python int too large to convert to SQLite INTEGER")
    writer = Writer(shelf.write)
    calls = [begun() for _ in range(5)]
    shelf.dislikes = calls[2].id
    for call in calls:
        writer.put(call)
    assert writer.flush(WAIT_S)
    assert set(shelf.kept) == {call.id for call in calls} - {calls[2].id}
    assert lost(caplog) == [calls[2].id]
    writer.close()


def test_a_failure_of_ours_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is raised, the next call is written."""
    kept: list[str] = []

    def write(calls: Sequence[Call]) -> None:
        if not caplog.records:
            raise RuntimeError("unforeseen")
        kept.extend(call.id for call in calls)

    writer = Writer(write)
    first, second = begun(), begun()
    writer.put(first)
    assert writer.flush(WAIT_S)
    writer.put(second)
    assert writer.flush(WAIT_S)
    assert kept == [second.id]
    assert lost(caplog) == [first.id]
    writer.close()


def test_the_end_writes_what_waits(shelf: Shelf) -> None:
    """However little time has passed; afterwards nothing is taken any more."""
    writer = Writer(shelf.write, linger_s=60)
    calls = [begun() for _ in range(700)]
    for call in calls:
        writer.put(call)
    writer.close()
    assert list(shelf.kept.values()) == calls
    writer.close()


def test_the_end_does_not_wait_for_ever(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    """With the database away, what waits is in the log when the process ends."""
    shelf.away = 1_000_000
    patience = Patience(first_s=0.001, longest_s=0.001, whole_s=WAIT_S, at_end_s=0.1)
    writer = Writer(shelf.write, patience=patience, linger_s=0)
    calls = [begun() for _ in range(3)]
    for call in calls:
        writer.put(call)
    writer.close()
    assert sorted(lost(caplog)) == sorted(call.id for call in calls)
    late = begun()
    writer.put(late)
    assert lost(caplog)[-1] == late.id
