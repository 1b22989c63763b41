"""`chat ledger restore`: budgets that the limits' storage has lost, from the ledger."""

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from flask import Flask
from sqlalchemy import update

from chatapp.accounts.store import Accounts
from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.reports import month_start
from chatapp.ledger.table import CALLS
from chatapp.operators.restoration import warn_if_lost
from chatapp.services import services_of
from ratelimit_ext import StorageEvent
from ratelimit_ext.core import clock
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import UpstreamServer
from tests.servers import eventually

CALL = {"message": "hi", "model": "gpt-4o"}


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    """Alice, in a team with a budget, and Bob."""
    accounts = Accounts(Database(database_url))
    accounts.create_team("research", limits={"team-usd-month": "100 usd/month"})
    return accounts


@pytest.fixture
def keys(accounts: Accounts) -> dict[str, str]:
    alice = accounts.create_key(
        "alice",
        plan="pro",
        default_plan="starter",
        team="research",
        limits={"key-usd-day": "2 usd/day"},
    )
    bob = accounts.create_key("bob", plan=None, default_plan="starter")
    return {"alice": alice.text, "bob": bob.text}


@pytest.fixture
def app(keys: dict[str, str], make_app: AppMaker, uri: str, provider: UpstreamServer) -> Flask:
    """A worker that started when the keys existed."""
    return make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_PROVIDER_TIMEOUT_S=5)


def call(app: Flask, key: str, times: int = 1) -> None:
    for _ in range(times):
        answer = app.test_client().post("/chat", json=CALL, headers={"x-api-key": key})
        assert answer.status_code == 200
    assert services_of(app).ledger.flush()


def left(app: Flask, key: str) -> dict[str, Any]:
    """What a caller has left of each budget."""
    shown = app.test_client().get("/usage", headers={"x-api-key": key}).get_json()
    return {each["name"]: each["remaining"] for each in shown["limits"] if each["unit"] == "usd"}


def test_budgets_are_rebuilt_to_the_micro_dollar(
    app: Flask, keys: dict[str, str], redis_client: redis.Redis
) -> None:
    """Of users, keys and teams. A dry run changes nothing, a second run finds nothing."""
    call(app, keys["alice"], 3)
    call(app, keys["bob"])
    before = {name: left(app, key) for name, key in keys.items()}
    assert {"usd-hour", "usd-day", "usd-month", "key-usd-day", "team-usd-month"} == {
        *before["alice"]
    }
    redis_client.flushall()
    fresh = left(app, keys["alice"])
    assert fresh["usd-month"] == 500
    dry = run(app, "ledger", "restore").output
    assert "Nothing was changed" in dry
    assert "team:research" in dry
    assert left(app, keys["alice"]) == fresh
    assert "charged." in run(app, "ledger", "restore", "--apply").output
    assert {name: left(app, key) for name, key in keys.items()} == before
    assert "No limit counts less" in run(app, "ledger", "restore", "--apply").output
    assert {name: left(app, key) for name, key in keys.items()} == before
    assert "0 problems" in run(app, "ledger", "check").output


def test_tokens_are_rebuilt_without_what_a_cache_had(
    app: Flask, keys: dict[str, str], database_url: str
) -> None:
    """100,000 input tokens of which 60,000 were cached, and 20,000 of output: 60,000 count, which a
    bucket of 200,000 a minute does not get back while the test runs."""
    usage = Usage(100_000, 20_000, cached_input_tokens=60_000)
    call = begun(user="user:bob", key_id=None, started_at=datetime.now(UTC))
    just_now = finished(call, usage=usage)
    table.write(Database(database_url), [just_now])
    found = json.loads(run(app, "ledger", "restore", "--json").stdout)["limits"]
    (tokens,) = [each for each in found if each["unit"] == "tokens"]
    assert (tokens["identity"], tokens["limit"]) == ("user:bob", "tokens")
    assert 0 < tokens["usage"][1] <= 60_000


@pytest.mark.parametrize("ahead_s", [-300, 300])
def test_the_clocks_of_the_ledger_and_of_redis_may_differ(
    app: Flask,
    keys: dict[str, str],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: int,
) -> None:
    """A bucket counts what was used three seconds ago by the ledger's clock as used then."""
    monkeypatch.setattr(clock, "now_us", lambda: int((time.time() + ahead_s) * 1_000_000))
    began = datetime.now(UTC) + timedelta(seconds=ahead_s - 3)
    call = finished(
        begun(user="user:bob", key_id=None, started_at=began), usage=Usage(170_000, 20_000)
    )
    table.write(Database(database_url), [call])
    found = json.loads(run(app, "ledger", "restore", "--json").stdout)["limits"]
    (tokens,) = [each for each in found if each["unit"] == "tokens"]
    assert 0 < tokens["usage"][1] <= 180_000


def test_only_one_user_is_rebuilt(
    app: Flask, keys: dict[str, str], redis_client: redis.Redis
) -> None:
    """With their keys, and without the team, of whose other members nothing is known."""
    call(app, keys["alice"])
    call(app, keys["bob"])
    redis_client.flushall()
    output = run(app, "ledger", "restore", "--user", "alice", "--apply").output
    assert "user:bob" not in output
    assert "team:research" not in output
    assert left(app, keys["alice"])["key-usd-day"] < 2
    assert left(app, keys["bob"])["usd-month"] == 30


def test_dead_calls_count_what_was_settled(
    app: Flask, keys: dict[str, str], database_url: str
) -> None:
    """A call whose worker died is settled to its estimate, which a running one holds."""
    now = datetime.now(UTC)
    earlier = max(month_start(), now - timedelta(hours=2))  # one of this month
    dead = begun(user="user:bob", started_at=earlier, cost_micro_usd=7)
    running = begun(user="user:bob", started_at=now, cost_micro_usd=3400)
    table.write(Database(database_url), [dead, running])
    found = json.loads(run(app, "ledger", "restore", "--json").stdout)["limits"]
    months = [each["usage"][1] for each in found if each["limit"] == "usd-month"]
    assert months == [3407]


def test_memory_cannot_be_rebuilt(make_app: AppMaker) -> None:
    """The limits are in the memory of other processes."""
    assert "memory of each worker" in run(make_app(), "ledger", "restore", status=1).output


def age(database_url: str, by: timedelta) -> None:
    """As if the calls had begun earlier, but within the month."""
    with Database(database_url).writing() as connection:
        for row in connection.execute(CALLS.select()).mappings().all():
            earlier = max(month_start(), row["started_at"] - by)
            here = update(CALLS).where(CALLS.c.id == row["id"])
            connection.execute(here.values(started_at=earlier))


def test_the_log_and_the_check_offer_it(
    app: Flask,
    keys: dict[str, str],
    database_url: str,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only if the latest callers' budgets lack a call that was settled long ago."""
    call(app, keys["alice"])
    with app.app_context():
        assert not warn_if_lost()
        age(database_url, timedelta(seconds=15))
        assert not warn_if_lost()
        redis_client.flushall()
        with caplog.at_level(logging.ERROR):
            assert warn_if_lost()
    assert "chat ledger restore" in caplog.text
    checked = run(app, "ledger", "check", status=1)
    assert "chat ledger restore" in checked.output
    run(app, "ledger", "restore", "--apply")
    with app.app_context():
        assert not warn_if_lost()


def test_a_new_budget_is_no_loss(
    app: Flask, keys: dict[str, str], database_url: str, redis_client: redis.Redis
) -> None:
    """A budget that is new in the policy counts nothing yet; those beside it do."""
    call(app, keys["bob"])
    age(database_url, timedelta(seconds=15))
    (new,) = redis_client.scan_iter("*:usd-month:*bob*")
    redis_client.delete(new)
    with app.app_context():
        assert not warn_if_lost()


def test_a_worker_looks_once_and_after_an_outage(
    app: Flask,
    keys: dict[str, str],
    make_app: AppMaker,
    database_url: str,
    uri: str,
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At its first request, in a thread; and when the storage is back."""
    call(app, keys["alice"])
    age(database_url, timedelta(seconds=15))
    redis_client.flushall()
    worker = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_PROVIDER_TIMEOUT_S=5)
    events = services_of(worker).limiter._components.events
    with caplog.at_level(logging.ERROR):
        call(worker, keys["bob"], 2)
        eventually(lambda: caplog.text.count("Budgets start from zero") == 1)
        events.emit(StorageEvent(is_down=True, reason="", down_s=0.0))
        events.emit(StorageEvent(is_down=False, reason="", down_s=1.0))
        eventually(lambda: caplog.text.count("Budgets start from zero") == 2)
