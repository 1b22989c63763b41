"""`chat ledger check`: what the ledger sums and what the limits in dollars hold are one figure."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.reports import Reports, midnight, month_start
from chatapp.ledger.table import CALLS
from chatapp.services import services_of
from chatapp.web import call_limits
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import Answer, UpstreamServer
from tests.servers import Server

CALL = {"message": "hi", "model": "gpt-4o"}


@pytest.fixture
def app(
    make_app: AppMaker, redis_server: Server, redis_client: redis.Redis, provider: UpstreamServer
) -> Iterator[Flask]:
    """The application on a real storage, with a provider that answers."""
    app = make_app(RATELIMIT_STORAGE_URI=redis_server.uri)
    yield app
    services_of(app).ledger.flush()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def checked(app: Flask, *, status: int = 0) -> str:
    """The output once all calls are written."""
    assert services_of(app).ledger.flush()
    return run(app, "ledger", "check", status=status).output


def test_what_is_spent_is_what_the_limits_hold(app: Flask, client: FlaskClient) -> None:
    """To the micro-dollar, for names and for addresses, whole answers and streams."""
    for number in range(3):
        assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code == 200
        assert client.post("/chat", json={**CALL, "user_id": f"u{number}"}).status_code == 200
    assert client.post("/chat", json=CALL).status_code == 200
    stream = {**CALL, "stream": True, "user_id": "alice"}
    with client.post("/chat", json=stream) as response:  # what is settled is settled at its close
        assert b"event: done" in response.data
    output = checked(app)
    assert "limits of 5 users compared; 0 problems" in output
    assert "user:alice  0.0" in output


@pytest.fixture
def key(database_url: str) -> PresentedKey:
    """A key of alice, made before the application starts."""
    accounts = Accounts(Database(database_url))
    return accounts.create_key("alice", plan="pro", default_plan="starter")


def test_with_accounts_it_is_the_plan_of_the_account(
    key: PresentedKey, app: Flask, client: FlaskClient
) -> None:
    """The new plan has other amounts and the same buckets."""
    for _ in range(3):
        response = client.post("/chat", json=CALL, headers={"x-api-key": key.text})
        assert response.status_code == 200
    assert "limits of 1 user compared; 0 problems" in checked(app)


def test_a_failed_call_is_in_no_limit(
    app: Flask, client: FlaskClient, provider: UpstreamServer, database_url: str
) -> None:
    """The reservation was refunded; only the ledger has the cost of the prompt."""
    provider.script(Answer(200, b"nonsense"))
    assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code >= 500
    assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code == 200
    assert "0 problems" in checked(app)
    costs = {
        row["status"]: row["cost_micro_usd"] for row in Reports(Database(database_url)).calls()
    }
    assert costs["malformed"] > 0


def test_a_call_may_run_for_its_lease(
    make_app: AppMaker, redis_server: Server, redis_client: redis.Redis, database_url: str
) -> None:
    """The configured one, if it is longer than the default."""
    app = make_app(RATELIMIT_STORAGE_URI=redis_server.uri, RATELIMIT_LEASE_SECONDS=7200)
    call = begun(started_at=datetime.now(UTC) - timedelta(hours=1))
    table.write(Database(database_url), [call])
    assert "1 call, 1 running" in checked(app)


def test_a_difference_is_found(app: Flask, client: FlaskClient, database_url: str) -> None:
    """A call that no limit was charged for, in each of its windows."""
    assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code == 200
    rogue = finished(begun(started_at=datetime.now(UTC)))
    table.write(Database(database_url), [rogue])
    output = checked(app, status=1)
    for name in ("usd-hour", "usd-day", "usd-month"):
        assert f"in the window of {name!r}" in output
    assert "3 problems" in output


def by_ledger(at: datetime, client: redis.Redis) -> datetime:
    """That instant of Redis's clock by this process's clock, to the millisecond."""
    seconds, micros = client.time()
    ahead_s = time.time() - seconds - micros / 1_000_000
    return at + timedelta(seconds=ahead_s) if abs(ahead_s) > 0.1 else at


def test_a_month_is_that_of_the_calendar(
    app: Flask, client: FlaskClient, database_url: str, redis_client: redis.Redis
) -> None:
    """By UTC: a call of its first moment is in the window of the month, and one before is not."""
    assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code == 200
    month = month_start()
    first = by_ledger(month, redis_client)
    before = first - timedelta(milliseconds=1 if first == month else 100)
    table.write(Database(database_url), [finished(begun(started_at=before))])
    assert "0 problems" in checked(app)
    table.write(Database(database_url), [finished(begun(started_at=first))])
    output = checked(app, status=1)
    assert "in the window of 'usd-month' since" in output
    if first == month:
        assert f"since {month:%Y-%m-%d} 00:00:00" in output


@pytest.mark.parametrize("ahead_s", [-300, 300])
@pytest.mark.parametrize(("ago_s", "is_missed"), [(0, True), (30, False)])
def test_the_clocks_of_the_ledger_and_of_redis_may_differ(
    app: Flask,
    client: FlaskClient,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: int,
    ago_s: int,
    is_missed: bool,
) -> None:
    """A call that no limit counts is missed by the window in which it began, from the window's
    beginning on, and not by that of later calls."""
    now = SimpleNamespace(time=lambda: time.time() + ahead_s)
    monkeypatch.setattr(call_limits, "time", now)
    assert client.post("/chat", json={**CALL, "user_id": "alice"}).status_code == 200
    assert services_of(app).ledger.flush()
    began = datetime.now(UTC) + timedelta(seconds=ahead_s)
    with Database(database_url).writing() as connection:
        connection.execute(update(CALLS).values(started_at=began))
    assert "0 problems" in checked(app)
    rogue = finished(begun(started_at=began - timedelta(seconds=ago_s)))
    table.write(Database(database_url), [rogue])
    output = app.test_cli_runner().invoke(args=["chat", "ledger", "check"]).output
    assert ("in the window of 'usd-hour'" in output) == is_missed
    assert "2 calls" in output


@pytest.mark.parametrize(
    ("ago", "status"), [(timedelta(seconds=10), 0), (timedelta(minutes=30), 1)]
)
def test_a_call_of_the_window_before_may_leave_an_excess(
    app: Flask, database_url: str, ago: timedelta, status: int
) -> None:
    """A call from shortly before the hour's window may have settled in it; older calls have not."""
    call_twice(app, database_url, ago)
    output = checked(app, status=status)
    assert ("in the window of 'usd-hour'" in output) == bool(status)


def call_twice(app: Flask, database_url: str, ago: timedelta) -> None:
    """By alice; the first of the calls seems older."""
    for _ in range(2):
        response = app.test_client().post("/chat", json={**CALL, "user_id": "alice"})
        assert response.status_code == 200
    assert services_of(app).ledger.flush()
    with Database(database_url).writing() as connection:
        first = connection.execute(select(CALLS.c.id, CALLS.c.started_at)).first()
        assert first is not None
        earlier = update(CALLS).where(CALLS.c.id == first.id)
        connection.execute(earlier.values(started_at=first.started_at - ago))


@pytest.mark.parametrize("name", ["usd-hour", "usd-day"])
def test_a_window_that_has_ended_is_not_compared(
    app: Flask, client: FlaskClient, database_url: str, name: str, redis_client: redis.Redis
) -> None:
    """Who has not called since spent nothing in the present one, though less than a period ago."""
    now, today = datetime.now(UTC), by_ledger(midnight(), redis_client)
    before = {"usd-hour": now - timedelta(minutes=30), "usd-day": today - timedelta(seconds=1)}
    table.write(Database(database_url), [finished(begun(started_at=before[name]))])
    output = app.test_cli_runner().invoke(args=["chat", "ledger", "check"]).output
    assert "1 call, 0 running" in output
    assert repr(name) not in output


@pytest.mark.usefixtures("rolling")
def test_other_strategies_are_not_compared(app: Flask, database_url: str) -> None:
    """What a sliding window holds, the dollars of a day, has no common beginning."""
    call_twice(app, database_url, timedelta(minutes=30))
    assert "'rolling'" not in checked(app, status=1)


def test_who_has_calls_under_way_is_not_compared(
    app: Flask, client: FlaskClient, database_url: str
) -> None:
    """The limits hold the estimate, which is correct."""
    table.write(Database(database_url), [begun()._replace(started_at=datetime.now(UTC))])
    assert "limits of 0 users compared; 0 problems" in checked(app)


def test_limits_in_memory_are_not_compared(make_app: AppMaker) -> None:
    """The output says that the limits were not compared."""
    assert "limits not compared" in checked(make_app())


def test_a_caller_writes_nothing_to_the_terminal(app: Flask, client: FlaskClient) -> None:
    """A user_id may have characters that reverse a line; they are shown as escapes."""
    user = "\u202etimda"
    assert client.post("/chat", json={**CALL, "user_id": user}).status_code == 200
    assert "user:\\u202etimda  0.0" in checked(app)
    assert "user:\\u202etimda  1 " in run(app, "ledger", "days").output
