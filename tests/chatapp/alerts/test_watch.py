"""When alerts are raised: by the ledger's settled spending, once for all workers."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, text

from chatapp.alerts import table, watch
from chatapp.alerts.alert import Alert
from chatapp.alerts.watch import Alerts, Rules, Standing
from chatapp.database.connection import Database
from chatapp.ledger.call import Call
from chatapp.ledger.reports import Reports, midnight
from chatapp.ledger.table import write
from chatapp.upstreams.keys import RefusedKey
from tests.chatapp.ledger.calls import begun, finished
from tests.servers import eventually

USD = 1_000_000
KEY = "0123456789abcdef"
RULES = Rules(at=(50, 80, 100), times=5.0, least_micro_usd=10 * USD)
MakeAlerts = Callable[..., Alerts]
#: All budgets of a run are of one window, which does not end meanwhile.
BEGAN = datetime.now(UTC).replace(second=0, microsecond=0)


@pytest.fixture
def make_alerts(database: Database) -> Iterator[MakeAlerts]:
    made = []

    def make(**rules: Any) -> Alerts:
        fields = {name: getattr(RULES, name) for name in ("at", "times", "least_micro_usd")}
        made.append(Alerts(database, Reports(database), Rules(**fields | rules)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def alerts(make_alerts: MakeAlerts) -> Alerts:
    return make_alerts()


def standing(**fields: Any) -> Standing:
    """Alice's budget of 10 dollars, in the middle of its window, with nothing used."""
    resets_at = BEGAN + timedelta(hours=12)
    usual: dict[str, Any] = {
        "identity": "user:alice",
        "user": "user:alice",
        "name": "usd-day",
        "amount": 10 * USD,
        "used": 0,
        "count": lambda: None,
        "refuses": False,
        "since": resets_at - timedelta(days=1),
        "window": resets_at.timestamp(),
        "resets_at": resets_at,
    }
    return Standing(**usual | fields)


def decide(alerts: Alerts, *budgets: Standing) -> None:
    """A decision that saw these budgets."""
    refused = any(budget.refuses for budget in budgets)
    names = tuple(f"{each.identity}/{each.name}" for each in budgets)
    alerts.get().note_decision(names, lambda: budgets, refused=refused)


def spend(alerts: Alerts, usd: float, **fields: Any) -> Call:
    """A call of that cost, in the ledger."""
    started_at = fields.pop("started_at", datetime.now(UTC))
    call = finished(begun(started_at=started_at), cost_micro_usd=round(usd * USD), **fields)
    write(alerts.get()._database, [call])
    alerts.get().note_calls([call])
    return call


def looked(alerts: Alerts) -> list[Any]:
    """All alerts once the worker has looked for more, the oldest first."""
    assert alerts.get().flush(60)
    return table.alerts(alerts.get()._database, since=None)[::-1]


def raised(alerts: Alerts) -> list[tuple[str, int]]:
    """The identities and thresholds of all alerts; 0 for unusual usage."""
    return [(row["identity"], row["threshold"]) for row in looked(alerts)]


def thresholds(alerts: Alerts) -> list[int]:
    return [threshold for _, threshold in raised(alerts)]


# -- budgets -----------------------------------------------------------------------------------


def test_a_budget_of_nothing_raises_nothing(alerts: Alerts) -> None:
    """It refuses every call, and nothing of it is ever spent."""
    decide(alerts, standing(amount=0, refuses=True, count=lambda: 0))
    assert raised(alerts) == []


def test_each_threshold_is_raised_once(alerts: Alerts) -> None:
    """At the amount, not a micro-dollar before it, and never again in the window."""
    seen = []
    for usd in (4.999999, 0.000001, 2.9, 0.1, 1.0, 1.0, 5.0):
        decide(alerts, standing())
        decide(alerts, standing(used=20 * USD))
        spend(alerts, usd)
        seen.append(thresholds(alerts))
    assert seen == [[], [50], [50], [50, 80], [50, 80], [50, 80, 100], [50, 80, 100]]


def test_several_thresholds_at_once_are_one_alert(alerts: Alerts) -> None:
    """The highest, which says it all."""
    decide(alerts, standing())
    spend(alerts, 9)
    assert thresholds(alerts) == [80]


def test_the_sentence_says_who_and_how_much(
    alerts: Alerts, caplog: pytest.LogCaptureFixture
) -> None:
    """At WARNING, in one line."""
    budget = standing(identity=KEY, name="key-usd-day")
    decide(alerts, budget)
    spend(alerts, 8.25, key_id=KEY)
    assert thresholds(alerts) == [80]
    [record] = [each for each in caplog.records if each.name == "chatapp.alerts.watch"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"Key {KEY} of alice has spent 8.25 of 10.00 USD (82 %) of the budget key-usd-day. "
        f"It resets at {budget.resets_at:%Y-%m-%d %H:%M:%S} UTC."
    )


def test_what_a_budget_has_not_counted_raises_nothing(alerts: Alerts, database: Database) -> None:
    """What was spent before a reset, or at an endpoint that the budget does not cover: the limit
    says how much is left of it, also if a decision was of an estimate."""
    earlier = finished(begun(started_at=datetime.now(UTC)), cost_micro_usd=20 * USD)
    write(database, [earlier])
    for counted, expected in ((4_999_999, []), (5_000_001, [50])):
        decide(alerts, standing(used=9 * USD, count=partial(int, counted)))
        spend(alerts, 0.9)
        assert thresholds(alerts) == expected
    assert [row["spent"] for row in table.alerts(database, since=None)] == [5_000_001]


def test_a_limit_that_cannot_be_read_bounds_nothing(alerts: Alerts, database: Database) -> None:
    """Other workers may have spent more since: the ledger alone counts."""
    write(database, [finished(begun(started_at=datetime.now(UTC)), cost_micro_usd=7 * USD)])
    decide(alerts, standing(used=4 * USD))
    spend(alerts, 1)
    assert thresholds(alerts) == [80]


def test_the_latest_decision_of_a_shared_budget_counts(alerts: Alerts, database: Database) -> None:
    """Each member's decision has further budgets, and is kept by their names."""
    own = [standing(identity=f"user:{name}") for name in ("ada", "bob")]
    team = {"identity": "team:red", "name": "team-usd-day"}
    earlier = begun(started_at=datetime.now(UTC), team="red")
    write(database, [finished(earlier, cost_micro_usd=7 * USD)])
    decide(alerts, own[0], standing(**team, used=4 * USD))
    decide(alerts, own[1], standing(**team, used=5 * USD))
    decide(alerts, own[0], standing(**team, used=8 * USD))
    spend(alerts, 1, team="red")
    assert raised(alerts) == [("team:red", 80)]


def test_two_workers_raise_one_alert(make_alerts: MakeAlerts) -> None:
    """And a worker that starts later raises none of those again."""
    one, other = make_alerts(), make_alerts()
    for worker in (one, other):
        decide(worker, standing(used=USD))
    spend(one, 5)
    spend(other, 1)
    assert thresholds(one) == thresholds(other) == [50]
    later = make_alerts()
    decide(later, standing(used=6 * USD))
    spend(later, 1)
    assert thresholds(later) == [50]
    decide(later, standing(used=7 * USD))
    spend(later, 1)
    assert thresholds(later) == [50, 80]


def test_workers_at_once_raise_one_alert(database: Database) -> None:
    """Of eight that see the same threshold at the same time, one raises it."""
    databases = [Database(database.url.render_as_string(hide_password=False)) for _ in range(8)]
    together = threading.Barrier(len(databases))

    def raise_one(own: Database) -> bool:
        alert = Alert(
            type="budget.reached",
            identity="user:alice",
            name="usd-day",
            threshold=50,
            spent=5 * USD,
            amount=10 * USD,
            since=datetime.now(UTC) - timedelta(hours=1),
        )
        with own.reading() as connection:  # connected before the others begin
            connection.execute(text("SELECT 1"))
        together.wait(60)
        return table.remember(own, alert)

    with ThreadPoolExecutor(len(databases)) as pool:
        assert sorted(pool.map(raise_one, databases)) == [False] * 7 + [True]
    for own in databases:
        own.close()


def test_a_hold_raises_nothing(alerts: Alerts, database: Database) -> None:
    """Reservations of twice the budget, while calls cost a hundredth of it."""
    for _ in range(3):
        decide(alerts, standing(used=20 * USD))
        spend(alerts, 0.1)
    unfinished = begun(started_at=datetime.now(UTC), cost_micro_usd=20 * USD)
    write(database, [unfinished])
    alerts.get().note_calls([unfinished])
    assert thresholds(alerts) == []


def test_a_budget_far_from_its_thresholds_costs_no_query(
    alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a decision alone."""
    decide(alerts, standing(used=20 * USD))
    asked: list[object] = []
    monkeypatch.setattr(watch.Watch, "_look_at_user", lambda *_: None)
    monkeypatch.setattr(watch.Watch, "_spent", lambda *_: asked.append(1) or 0)
    assert alerts.get().flush(60)
    decide(alerts, standing(used=4 * USD))
    spend(alerts, 0.9)
    assert thresholds(alerts) == asked == []
    spend(alerts, 0.1)
    assert thresholds(alerts) == []
    assert len(asked) == 1


@pytest.mark.parametrize(("spent", "expected"), [(8.99, [80]), (9.0, [100])])
def test_a_budget_that_refuses_calls_is_used_up(
    alerts: Alerts, spent: float, expected: list[int]
) -> None:
    """From 90 % on; less may pay for other calls."""
    decide(alerts, standing())
    spend(alerts, spent)
    decide(alerts, standing(used=int(spent * USD), refuses=True))
    assert thresholds(alerts) == expected
    decide(alerts, standing(used=int(spent * USD), refuses=True))
    assert thresholds(alerts) == expected


def test_a_refusal_says_so(alerts: Alerts, caplog: pytest.LogCaptureFixture) -> None:
    """The line of the log tells a budget that stops calls from one that is only passed."""
    decide(alerts, standing())
    spend(alerts, 9.5)
    assert thresholds(alerts) == [80]
    decide(alerts, standing(used=int(9.5 * USD), refuses=True))
    assert thresholds(alerts) == [80, 100]
    assert "of the budget usd-day, which now refuses calls. It resets" in caplog.messages[-1]


def test_another_amount_is_another_budget(alerts: Alerts) -> None:
    """A raised budget has thresholds of its own; a lowered one, too."""
    decide(alerts, standing())
    spend(alerts, 10)
    assert thresholds(alerts) == [100]
    decide(alerts, standing(amount=20 * USD, used=10 * USD))
    spend(alerts, 0.5)
    assert thresholds(alerts) == [100, 50]
    decide(alerts, standing(amount=12 * USD, used=11 * USD))
    spend(alerts, 0.1)
    assert thresholds(alerts) == [100, 50, 80]


def test_the_next_window_begins_afresh(alerts: Alerts) -> None:
    """With the spending and the alerts since it began."""
    decide(alerts, standing())
    spend(alerts, 6)
    assert thresholds(alerts) == [50]
    fresh = {"since": datetime.now(UTC), "window": 2e9}
    decide(alerts, standing(used=USD, **fresh))
    spend(alerts, 4)
    assert thresholds(alerts) == [50]
    spend(alerts, 2)
    assert thresholds(alerts) == [50, 50]


def test_a_window_that_has_ended_raises_nothing(alerts: Alerts) -> None:
    """Its budget has started afresh."""
    decide(alerts, standing(resets_at=datetime.now(UTC) - timedelta(seconds=1)))
    spend(alerts, 9)
    assert thresholds(alerts) == []


def test_budgets_of_users_keys_teams_and_all(alerts: Alerts) -> None:
    """Each counts its own calls in the ledger."""
    identities = ("user:alice", KEY, "team:research", "*", "team:sales", "0" * 16)
    for identity in identities:
        decide(alerts, standing(identity=identity))
    spend(alerts, 4, team="research")
    spend(alerts, 3, team="research", key_id="f" * 16)
    spend(alerts, 2, user="user:bob", key_id="f" * 16)
    assert sorted(raised(alerts)) == [("*", 80), ("team:research", 50), ("user:alice", 50)]
    spend(alerts, 1)
    assert sorted(raised(alerts))[:3] == [("*", 80), ("*", 100), (KEY, 50)]


def test_the_budget_of_a_key_that_acts_for_users_counts_all_of_them(alerts: Alerts) -> None:
    """None of whom has spent that much alone."""
    for user in ("user:ann", "user:bob", "user:cleo"):
        decide(alerts, standing(identity=KEY, user=user))
        spend(alerts, 3, user=user, key_id=KEY)
    assert thresholds(alerts)[-1:] == [80]


def test_a_sliding_window_has_no_end(alerts: Alerts, caplog: pytest.LogCaptureFixture) -> None:
    """It counts the last period, and is raised once in it."""
    since = datetime.now(UTC) - timedelta(days=1)
    for _ in range(2):
        decide(alerts, standing(since=since, window=7, resets_at=None, used=4 * USD))
        spend(alerts, 3)
        spend(alerts, 100, started_at=since - timedelta(seconds=1))
        assert alerts.get().flush(60)
    assert thresholds(alerts) == [50]
    assert caplog.messages[-1].endswith("of the budget usd-day.")


def test_decisions_that_wait_are_bounded(
    make_alerts: MakeAlerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there are too many, they are read; without a call, one waits for each caller."""
    monkeypatch.setattr(watch, "MOST_WAITING", 2)
    alerts = make_alerts()
    waiting = alerts.get()
    for user in ("ada", "bob", "bob", "cleo"):
        decide(alerts, standing(identity=f"user:{user}"))
        assert len(waiting._readings) <= 2
    assert alerts.get().flush(60)
    assert waiting._readings == {}
    assert set(waiting._budgets) == {"user:ada", "user:bob"}


def test_thresholds_can_be_switched_off(make_alerts: MakeAlerts) -> None:
    """And unusual usage, too."""
    silent = make_alerts(at=(), times=0.0)
    decide(silent, standing())
    spend(silent, 100)
    assert thresholds(silent) == []


def test_a_database_that_is_down_loses_no_alert(
    alerts: Alerts, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It is raised when the database is back; the log says why it waits."""
    decide(alerts, standing())
    spend(alerts, 9)
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE alerts RENAME TO elsewhere"))
    assert not alerts.get().flush(0.2)
    eventually(lambda: "Spending alerts wait for the database" in caplog.text)
    with database.writing() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO alerts"))
    assert thresholds(alerts) == [80]


# -- forecasts ---------------------------------------------------------------------------------


@pytest.fixture
def month_of_spending(database: Database) -> None:
    """A dollar every twelve hours of the last 25 days, of alice for the team red."""
    now = datetime.now(UTC)
    write(
        database,
        [
            finished(begun(started_at=now - half * timedelta(hours=12)), cost_micro_usd=USD)
            for half in range(50)
        ],
    )


def month(**fields: Any) -> Standing:
    """Alice's budget of a month of which ten days are over, so that 20 of 50 dollars are spent."""
    times = {"since": BEGAN - timedelta(days=10), "resets_at": BEGAN + timedelta(days=20)}
    usual: dict[str, Any] = {"name": "usd-month", "amount": 50 * USD, "count": lambda: 20 * USD}
    return standing(**usual | times | {"has_forecast": True} | fields)


def forecasts(alerts: Alerts) -> list[str]:
    return [row["identity"] for row in looked(alerts) if row["type"] == "budget.forecast"]


@pytest.mark.usefixtures("month_of_spending")
def test_a_forecast_is_raised_once_in_a_window(
    make_alerts: MakeAlerts, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """By all workers, and again in the next window. The 30 dollars that are left last for 15 of the
    20 days."""
    workers = [make_alerts(), make_alerts()]
    for alerts in (*workers, *workers):
        decide(alerts, month())
        spend(alerts, 0.000001)
        assert forecasts(alerts) == ["user:alice"]
    sentence = "User alice has spent 20.00 of 50.00 USD of the budget usd-month. At this pace it is"
    assert [sentence in text for text in caplog.messages] == [True]
    before = {"at": BEGAN - timedelta(days=11)}  # as if it had been in the window before
    with database.writing() as connection:
        connection.execute(table.ALERTS.update().values(before))
    decide(workers[0], month(window=1.0))
    spend(workers[0], 0.000001)
    assert forecasts(workers[0]) == ["user:alice"] * 2


@pytest.mark.usefixtures("month_of_spending")
@pytest.mark.parametrize(
    ("rules", "budget"),
    [
        ({}, {"amount": 100 * USD, "count": lambda: 20 * USD}),
        ({}, {"has_forecast": False}),
        ({}, {"refuses": True}),
        ({}, {"count": lambda: None}),
        ({"at": ()}, {}),
    ],
    ids=["lasts", "of some calls", "refuses", "storage is down", "switched off"],
)
def test_other_budgets_raise_no_forecast(
    make_alerts: MakeAlerts, rules: dict[str, Any], budget: dict[str, Any]
) -> None:
    """Those that last, those that the ledger does not know alone, and those that are over."""
    alerts = make_alerts(**rules)
    decide(alerts, month(**budget))
    spend(alerts, 0.000001)
    assert forecasts(alerts) == []


@pytest.mark.usefixtures("month_of_spending")
def test_a_process_looks_ahead_once_an_hour(
    alerts: Alerts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls there are: it costs a query."""
    asked: list[int] = []
    budget = {"amount": 100 * USD, "count": lambda: asked.append(1) or 20 * USD}
    looks = []
    now_s = watch.time.monotonic()
    for later_s in (0, 10, 3590, 3610):
        monkeypatch.setattr(watch.time, "monotonic", lambda at=now_s + later_s: at)
        decide(alerts, month(**budget))
        spend(alerts, 0.000001)
        assert alerts.get().flush(60)
        looks.append(len(asked))
    assert looks == [1, 1, 1, 2]


# -- unusual usage -----------------------------------------------------------------------------


def remember_days(database: Database, *usd: float, first: int = 1, **fields: Any) -> None:
    """Spending on the days before today, the latest first."""
    now = datetime.now(UTC)
    for days, cost in enumerate(usd, first):
        started_at = now - timedelta(days=days)
        call = finished(begun(started_at=started_at), cost_micro_usd=round(cost * USD), **fields)
        write(database, [call])


def test_far_more_than_usual_is_raised_once_a_day(
    make_alerts: MakeAlerts, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """From five times the average of the days with spending on, by any worker."""
    remember_days(database, 4, 0, 9, 0, 2)
    one, other = make_alerts(), make_alerts()
    spend(one, 24.99)
    assert raised(one) == []
    spend(one, 0.01)
    assert raised(one) == [("user:alice", 0)]
    for worker in (one, other):
        spend(worker, 30)
        assert raised(worker) == [("user:alice", 0)]
    assert caplog.messages[-1] == (
        "User alice has spent 25.00 USD today, 5.0 times as much as on a usual day (5.00 USD)."
    )


def test_little_is_never_unusual(alerts: Alerts, database: Database) -> None:
    """Ten times the usual, and below the least amount."""
    remember_days(database, 0.9, 0.9, 0.9)
    spend(alerts, 9.99)
    assert raised(alerts) == []
    spend(alerts, 0.01)
    assert raised(alerts) == [("user:alice", 0)]


@pytest.mark.parametrize("days", [(), (1, 1), (1, 1, 0)])
def test_a_newcomer_is_never_unusual(
    alerts: Alerts, database: Database, days: tuple[float, ...]
) -> None:
    """With less than three days of spending; their budgets raise alerts."""
    remember_days(database, *days)
    spend(alerts, 500)
    spend(alerts, 500)
    assert raised(alerts) == []


def test_the_history_is_14_days_of_the_user(alerts: Alerts, database: Database) -> None:
    """Neither older days nor other users count."""
    remember_days(database, 100, 100, 100, user="user:bob")
    remember_days(database, 100, first=15)
    remember_days(database, 2, 2, first=13)
    spend(alerts, 50)
    assert raised(alerts) == []
    remember_days(database, 2)
    fresh = Alerts(database, Reports(database), RULES)
    spend(fresh, 0.01)
    assert raised(fresh) == [("user:alice", 0)]
    fresh.close()


def test_a_user_costs_a_query_a_minute(
    alerts: Alerts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More only if the calls of this process may have made the day unusual."""
    clock = [0.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    queries: list[str] = []
    engine = database._engine.get()

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and "lock" not in statement:
            queries.append(statement)

    def cost_of(usd: float) -> int:
        event.listen(engine, "before_cursor_execute", count)
        spend(alerts, usd)
        assert alerts.get().flush(60)
        event.remove(engine, "before_cursor_execute", count)
        counted, queries[:] = len(queries), []
        return counted

    remember_days(database, 2, 2, 2)
    assert [cost_of(1) for _ in range(4)] == [1, 0, 0, 0]
    clock[0] = 60.0
    assert cost_of(1) == 1
    assert cost_of(5) == 3  # today, the history, and whether it was raised before
    assert cost_of(5) == 0


def test_the_day_of_a_user_ends_at_midnight(
    alerts: Alerts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next day has a bar of its own: today is a part of its history."""
    remember_days(database, 2, 2, 2)
    spend(alerts, 14)
    assert raised(alerts) == [("user:alice", 0)]
    tomorrow = midnight() + timedelta(days=1)
    monkeypatch.setattr(watch, "midnight", lambda: tomorrow)
    spend(alerts, 24, started_at=tomorrow)
    assert raised(alerts) == [("user:alice", 0)]
    spend(alerts, 1, started_at=tomorrow)
    assert raised(alerts) == [("user:alice", 0)] * 2


# -- keys of providers -------------------------------------------------------------------------


def of_keys(database: Database) -> list[tuple[str, str, str]]:
    rows = table.alerts(database, since=None)
    return [(row["type"], row["identity"], row["name"]) for row in reversed(rows)]


def test_a_rest_of_a_key_is_raised_once_by_all_workers(
    make_alerts: MakeAlerts, database: Database
) -> None:
    """Until it ends, although each worker is refused again and again, and names the end a little
    differently; then once more. Another model has another quota."""
    workers = [make_alerts(), make_alerts()]
    end = datetime.now(UTC) + timedelta(days=2)
    for second in range(3):
        for worker in workers:
            ends_at = end + timedelta(seconds=second)
            worker.get().note_refused_key(RefusedKey("openai", "KEY_1", ends_at, "gpt-5"))
            worker.get().note_refused_key(RefusedKey("openai", "KEY_1", ends_at))
            assert worker.get().flush()
    workers[1].get().note_refused_key(RefusedKey("openai", "KEY_1", end, "gpt-4o"))
    assert workers[1].get().flush()
    quota, cap = "key.exhausted", "key.capped"
    assert of_keys(database) == [
        (quota, "openai/KEY_1", "quota of gpt-5"),
        (cap, "openai/KEY_1", "spending cap"),
        (quota, "openai/KEY_1", "quota of gpt-4o"),
    ]
    with database.writing() as connection:  # as if it had ended, still on the same day
        connection.execute(text("UPDATE alerts SET resets_at = '2026-11-01'"))
    workers[0].get().note_refused_key(
        RefusedKey("openai", "KEY_1", end + timedelta(days=1), "gpt-5")
    )
    assert workers[0].get().flush()
    assert len(of_keys(database)) == 4


def test_a_rest_without_an_end_is_raised_once_a_day(
    alerts: Alerts, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a lack of credit."""
    for _ in range(2):
        alerts.get().note_refused_key(RefusedKey("openai", "KEY_1", None))
        assert alerts.get().flush(30)
    assert len(of_keys(database)) == 1
    tomorrow = midnight() + timedelta(days=1)
    monkeypatch.setattr(watch, "midnight", lambda: tomorrow)
    alerts.get().note_refused_key(RefusedKey("openai", "KEY_1", None))
    assert alerts.get().flush(30)
    assert len(of_keys(database)) == 2


def test_many_calls_that_are_refused_are_one_look(alerts: Alerts, database: Database) -> None:
    """Each would be a transaction otherwise."""
    counted = []
    with database.reading() as connection:
        event.listen(
            connection.engine, "before_cursor_execute", lambda *words: counted.append(words[2])
        )
    for _ in range(100):
        alerts.get().note_refused_key(RefusedKey("openai", "KEY_1", None))
    assert alerts.get().flush(30)
    assert sum("INSERT INTO alerts" in each for each in counted) == 1
    assert sum(each.startswith("SELECT alerts.id") for each in counted) == 1
