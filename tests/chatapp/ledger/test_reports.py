"""Totals from the ledger."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.call import Call
from chatapp.ledger.forecast import DAY, Budget, Forecast
from chatapp.ledger.reports import MICRO, OTHERS, DayTotal, Reports
from tests.chatapp.ledger.calls import NOON, begun, finished, renewed

MIDNIGHT = NOON.replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def reports(database: Database) -> Reports:
    """Two days, two users, one running call."""
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
    """To the microsecond; a running call counts with its estimate, other users do not."""
    assert reports.spent_micro_usd("user:alice", MIDNIGHT) == 1485 + 3400
    assert reports.spent_micro_usd("user:alice", MIDNIGHT - timedelta(days=1)) == 2 * 1485 + 3400
    assert reports.spent_micro_usd("user:zoe", MIDNIGHT) == 0
    assert reports.spent_micro_usd("user:alice' OR '1'='1", MIDNIGHT) == 0


def test_limits_hold_what_is_settled(database: Database) -> None:
    """All finished calls, the last known usage of a stream, and the estimate of a call whose worker
    died; not that of one that is running."""
    calls = [
        finished(begun()),
        finished(begun(), status="cut_off", cost_micro_usd=20),
        renewed(begun(), cost_micro_usd=300),
        begun(cost_micro_usd=4_000),
        begun(started_at=datetime.now(UTC), cost_micro_usd=80_000),
        finished(begun(), status="timeout", cost_micro_usd=50_000),
        finished(begun(), status="overloaded", cost_micro_usd=0),
        renewed(begun(user="user:bob"), cost_micro_usd=600_000),
        renewed(begun(started_at=MIDNIGHT - timedelta(days=1)), cost_micro_usd=7_000_000),
    ]
    table.write(database, calls)
    assert (
        Reports(database).settled_micro_usd("user:alice", MIDNIGHT)
        == 1485 + 20 + 300 + 4_000 + 50_000
    )


def test_a_forecast_reads_five_weeks(database: Database) -> None:
    """Of a user or a team, by the hour, without credits and the estimates of running
    calls: three dollars every noon for a user, one of them for the team."""
    noon = datetime.now(UTC).replace(minute=0) - timedelta(hours=6)
    calls = [
        finished(begun(started_at=noon - days * DAY, team=team), cost_micro_usd=usd * MICRO)
        for days in range(40)
        for usd, team in ((1, "red"), (2, None))
    ]
    calls += [
        finished(begun(started_at=noon, user="user:zoe", team="red"), cost_micro_usd=5 * MICRO),
        finished(begun(started_at=noon, team="red"), status="credited", cost_micro_usd=-MICRO),
        begun(started_at=datetime.now(UTC), team="red"),
    ]
    table.write(database, calls)
    reports = Reports(database)
    begin = noon.replace(second=0, microsecond=0)

    def budget(days: int, usd: int = 200) -> Budget:
        return Budget(usd * MICRO, 10**15, begin - days * DAY, noon + 20 * DAY)

    for days in (0, 10):
        alice = reports.forecast(budget(days), user="user:alice")
        red = reports.forecast(budget(days), team="red")
        assert (alice and alice.spent, red and red.spent) == (
            (3 * days + 3) * MICRO,
            (days + 6) * MICRO,
        )
    assert reports.forecast(budget(0), user="user:zoe2") is None
    ends = reports.forecast(budget(10, usd=36), user="user:alice")
    assert ends == Forecast(begin + DAY, 1.0, 33 * MICRO)


def test_a_ledger_that_is_down_has_no_forecast(database: Database) -> None:
    """As for what was spent."""
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE calls RENAME TO gone"))
    budget = Budget(1, 1, MIDNIGHT, MIDNIGHT + DAY)
    assert Reports(database).forecast(budget, user="user:alice") is None


def test_totals_are_by_day_and_user(reports: Reports) -> None:
    """The newest day first; days are those of UTC."""
    assert list(reports.totals(user=None, since=None)) == [
        DayTotal("ip:198.51.100.7", 1, 1000, 200, 1485, day="2026-11-25"),
        DayTotal("user:alice", 2, 1000, 200, 4885, day="2026-11-25"),
        DayTotal("user:alice", 1, 1000, 200, 1485, day="2026-11-24"),
    ]
    assert len(reports.totals(user="user:alice", since=None)) == 2
    assert len(reports.totals(user="user:alice", since=MIDNIGHT)) == 1


def test_totals_among_some_sum_up_all_others(database: Database) -> None:
    """Also if calls without a subject are among them, or are not."""
    calls = [finished(begun(team=team)) for team in ("red", None, "blue", "green")]
    table.write(database, calls)
    reports, cost = Reports(database), calls[0].cost_micro_usd
    for among, expected in (
        (["red"], {"red": 1, OTHERS: 3}),
        (["red", None], {None: 1, "red": 1, OTHERS: 2}),
        (["red", "blue", "green", None], {None: 1, "red": 1, "blue": 1, "green": 1}),
        ([], {OTHERS: 4}),
    ):
        totals = reports.totals(by="team", among=among)
        found = {total.subject: (total.calls, total.cost_micro_usd) for total in totals}
        assert found == {subject: (n, n * cost) for subject, n in expected.items()}


@pytest.mark.parametrize("by", ["user", "team"])
def test_sums_are_read_from_an_index_alone(database_url: str, by: str) -> None:
    """SQLite neither sorts the rows of the time nor reads them. PostgreSQL has statistics to choose
    by."""
    database, read = Database(database_url), list[Any]()
    with database.reading() as connection:
        event.listen(
            connection.engine, "before_cursor_execute", lambda *words: read.append(words[2:4])
        )
    Reports(database).spending(by=by, since=MIDNIGHT)
    sql, values = read[-1]
    with database.reading() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()
    database.close()
    assert f"USING COVERING INDEX ix_calls_{by}_started_at" in str(plan)
    assert "GROUP BY" not in str(plan)


def test_calls_without_a_subject_come_first(database: Database) -> None:
    """Where days and costs are equal, on each kind of database."""
    table.write(database, [finished(begun(team=team)) for team in ("red", None, "blue")])
    reports = Reports(database)
    for totals in (
        reports.totals(user=None, since=None, by="team"),
        reports.spending(since=None, by="team"),
    ):
        assert [total.subject for total in totals] == [None, "blue", "red"]


def used(input_tokens: int, output_tokens: int, **fields: object) -> Call:
    """A call with an estimate of 900 and 500 tokens."""
    return finished(begun(**fields), usage=Usage(input_tokens, output_tokens))


def tokens(estimated: int, used: int, calls_over: int) -> dict[str, int]:
    return {"estimated": estimated, "used": used, "calls_over": calls_over}


def test_estimates_are_compared_by_model(database: Database) -> None:
    """Sums over all calls of the model, and the number of calls above their estimates."""
    calls = [used(1000, 100), used(900, 501, user="user:bob"), used(1, 0, slug="gpt-4o")]
    table.write(database, calls)
    names = ("slug", "calls", "input", "output")
    found = Reports(database).estimates(since=None)
    assert [[row[name] for name in names] for row in found] == [
        ["claude-haiku-4-5", 2, tokens(1800, 1900, 1), tokens(1000, 601, 1)],
        ["gpt-4o", 1, tokens(900, 1, 0), tokens(500, 0, 0)],
    ]


def test_estimates_are_compared_from_an_instant_on(database: Database) -> None:
    """The call at that instant is one of them, the one a microsecond before it is not."""
    before = used(5, 5, started_at=NOON - timedelta(microseconds=1))
    table.write(database, [before, used(7, 7)])
    (found,) = Reports(database).estimates(since=NOON)
    assert (found["calls"], found["input"]["used"], found["output"]["used"]) == (1, 7, 7)
    (found,) = Reports(database).estimates(since=NOON - timedelta(days=1))
    assert found["calls"] == 2


UNMEASURED = {
    "under way, or its worker died": begun(),
    "estimated from its size": finished(begun(), estimated=True),
    "left by its client": finished(begun(), status="cut_off", estimated=True, client_left=True),
    "refused": finished(begun(), status="overloaded", usage=Usage(0, 0), cost_micro_usd=0),
    "late": finished(begun(), status="timeout", usage=Usage(900, 0), estimated=True),
}


@pytest.mark.parametrize("name", UNMEASURED)
def test_what_no_provider_reported_is_left_out(database: Database, name: str) -> None:
    """It would compare one estimate with another, or a model with an outage."""
    table.write(database, [UNMEASURED[name]])
    assert Reports(database).estimates(since=None) == []
    table.write(database, [used(900, 250)])
    (found,) = Reports(database).estimates(since=None)
    assert (found["calls"], found["input_ratio"], found["output_ratio"]) == (1, 1.0, 0.5)


def test_an_estimate_of_nothing_has_a_ratio(database: Database) -> None:
    """An estimate of no tokens counts as one."""
    table.write(database, [used(3, 3, estimated_input_tokens=0)])
    (found,) = Reports(database).estimates(since=None)
    assert (found["input_ratio"], found["input_over"]) == (3.0, 1.0)
