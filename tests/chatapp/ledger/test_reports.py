"""What the ledger answers."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.reports import DayTotal, Reports
from tests.chatapp.ledger.calls import NOON, begun, finished, renewed

MIDNIGHT = NOON.replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def reports(database: Database) -> Reports:
    """Two days, two users, one call under way."""
    yesterday = MIDNIGHT - timedelta(microseconds=1)
    calls = [
        finished(begun(started_at=yesterday)),
        finished(begun(started_at=MIDNIGHT)),
        begun(started_at=NOON),
        finished(begun(user="ip:198.51.100.7")),
    ]
    table.write(database, calls)
    return Reports(database)


def test_spending_is_summed_from_an_instant_on(reports: Reports) -> None:
    """To the microsecond; what is under way counts by its estimate, other users do not."""
    assert reports.spent_micro_usd("user:alice", MIDNIGHT) == 1485 + 3400
    assert reports.spent_micro_usd("user:alice", MIDNIGHT - timedelta(days=1)) == 2 * 1485 + 3400
    assert reports.spent_micro_usd("user:nobody", MIDNIGHT) == 0
    assert reports.spent_micro_usd("user:alice' OR '1'='1", MIDNIGHT) == 0


def test_what_limits_hold_is_what_is_settled(database: Database) -> None:
    """Answers, whole or cut off, what may have been billed of others, and of a stream whose worker
    died what it was known to have used; not the estimate of a call that is under way or lost."""
    calls = [
        finished(begun()),
        finished(begun(), status="cut_off", cost_micro_usd=20),
        renewed(begun(), cost_micro_usd=300),
        begun(cost_micro_usd=4_000),
        finished(begun(), status="timeout", cost_micro_usd=50_000),
        finished(begun(), status="overloaded", cost_micro_usd=0),
        renewed(begun(user="user:bob"), cost_micro_usd=600_000),
        renewed(begun(started_at=MIDNIGHT - timedelta(days=1)), cost_micro_usd=7_000_000),
    ]
    table.write(database, calls)
    assert Reports(database).settled_micro_usd("user:alice", MIDNIGHT) == 1485 + 20 + 300 + 50_000


def test_totals_are_by_day_and_user(reports: Reports) -> None:
    """The newest day first; days are those of UTC."""
    assert list(reports.totals(user=None, since=None)) == [
        DayTotal("2026-11-25", "ip:198.51.100.7", 1, 1000, 200, 1485),
        DayTotal("2026-11-25", "user:alice", 2, 1000, 200, 4885),
        DayTotal("2026-11-24", "user:alice", 1, 1000, 200, 1485),
    ]
    assert len(reports.totals(user="user:alice", since=None)) == 2
    assert len(reports.totals(user="user:alice", since=MIDNIGHT)) == 1
