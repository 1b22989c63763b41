"""What earlier releases have left is read: limits, what operators changed, accounts and calls, the
file of an outage, waiting settlements, and policies.

There is a folder for each release. Before the first one, it is the state of this revision.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from chatapp.accounts.admin_keys import AdminKeys
from chatapp.accounts.api_key import parse
from chatapp.accounts.store import Accounts
from chatapp.database import backup, migration
from chatapp.database.connection import Database
from chatapp.ledger.reports import Reports
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.outage_store import outage_path
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.settlements.queue import SettlementQueue
from tests.chatapp.conftest import AppMaker
from tests.clocks import Clock
from tests.promise import state
from tests.promise.state import LIMITS, START, Past
from tests.servers import Server

RELEASES = sorted(path.parent.name for path in state.HERE.glob("*/state.json"))
every_release = pytest.mark.parametrize("release", RELEASES)


def facts(release: str) -> Any:
    return json.loads((state.HERE / release / "state.json").read_text())


def test_there_is_a_release() -> None:
    """Of which the state is kept: that of the version in pyproject.toml, or of those before."""
    assert RELEASES


@every_release
@pytest.mark.parametrize("name", LIMITS)
def test_buckets_are_read(redis_client: redis.Redis, release: str, name: str) -> None:
    """For a day, each cost gets the answer that the release itself gave."""
    recorded = facts(release)
    state.load(redis_client, recorded["stored"])
    past = Past(RedisEngine(redis_client, redis.RedisError))
    assert past.answers(name) == recorded["answers"][name]


@every_release
def test_all_of_the_storage_is_known(redis_client: redis.Redis, release: str) -> None:
    """This version stores the same, so a worker of the release beside it reads it, too."""
    Past(RedisEngine(redis_client, redis.RedisError)).make()
    stored, recorded = state.dump(redis_client), facts(release)["stored"]
    assert stored.keys() <= recorded.keys()
    assert {key: each["value"] for key, each in stored.items()} == {
        key: recorded[key]["value"] for key in stored
    }


@every_release
def test_what_operators_changed_is_read(
    redis_server: Server, redis_client: redis.Redis, release: str
) -> None:
    """An override and its reason, and a block."""
    state.load(redis_client, facts(release)["stored"])
    app, limiter = state.application(redis_server.uri)
    with app.app_context():
        [override] = limiter.operators.overrides()
        assert (override.identity, override.amount) == ("ann", "3/hour")
        assert [(each.limit, each.identity) for each in limiter.operators.blocks()] == [
            ("switch", "eve")
        ]
        [entry] = limiter.operators.log()
        assert (entry.by, entry.reason) == ("olga", "a trade fair")
    client = app.test_client()
    asked = [client.get("/", headers={"X-Key": key}).status_code for key in ("ann", "ann", "ann")]
    assert asked == [200] * 3
    assert client.get("/", headers={"X-Key": "eve"}).status_code == 403


@every_release
def test_waiting_settlements_are_sent(tmp_path: Path, release: str) -> None:
    """And the slot of a call whose process has ended is free."""
    (tmp_path / "left.journal").write_bytes(
        b"".join(
            line.encode() + bytes(-len(line.encode()) % 4096) for line in facts(release)["journal"]
        )
    )
    engine = MemoryEngine(now_us=lambda: START + state.SECOND)
    past, clock = Past(engine), Clock()
    past.admit("fixed-window", 3)
    past.admit("slots", 1, 0, state.Hold(1, state.LEASE))
    queue = SettlementQueue(
        clock=lambda: clock.now_s, epoch=lambda: START / state.SECOND, in_background=False
    )
    queue.keep(engine, state.Journal(tmp_path, state.STORAGE))
    queue.take_over()
    assert queue.send_waiting() == 0
    [window] = past.admit("fixed-window", 0, 1).verdicts
    [slots] = past.admit("slots", 0, 1).verdicts
    assert (window.remaining, slots.remaining) == (9, 60)
    assert [*tmp_path.iterdir()] == []


@every_release
def test_decisions_of_an_outage_are_handed_back(tmp_path: Path, release: str) -> None:
    """A worker of this version goes on where one of the release has stopped."""
    recorded = facts(release)["outage"]
    file = outage_path(tmp_path, state.STORAGE)
    words = file.name.split("-", 1)[1]
    file = file.with_name(f"outage{recorded['format']}-{words}")
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((state.HERE / release / "outage.sql").read_text())
        ahead_us = recorded["now_us"] + state.SECOND - time.monotonic() * state.SECOND
        connection.execute("UPDATE facts SET value = ? WHERE name = 'ahead us'", [ahead_us])
        connection.commit()
    storage = MemoryEngine(now_us=lambda: recorded["now_us"] + state.MINUTE)
    with state.outage(outage_path(tmp_path, state.STORAGE), storage) as worker:
        assert not worker.is_handed_back
        [verdict] = worker.admit([Charge(state.OUTAGE, "outage:{ada}")]).verdicts
        left = state.OUTAGE.amount - state.DURING - 1
        assert verdict.remaining == left
        assert worker.hand_back(storage, within_s=10)
    [verdict] = storage.admit([Charge(state.OUTAGE, "outage:{ada}", 0)], take=False).verdicts
    assert verdict.remaining == left


@pytest.fixture
def left(tmp_path: Path, release: str) -> Path:
    """The database of the release."""
    file = tmp_path / "left.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((state.HERE / release / "chatapp.sql").read_text())
    return file


def assert_all_is_there(database: Database, keys: dict[str, str]) -> None:
    accounts = Accounts(database)
    presented, operator = parse(keys["alice"]), keys["hr"].split("-")
    assert presented is not None
    found = accounts.find(presented.public_id)
    assert found is not None
    key, user = found
    assert presented.has_secret(key.secret_sha256)
    assert (user.name, user.plan, user.team_name) == ("alice", "pro", "research")
    assert (dict(key.limits), list(key.models)) == ({"key-usd-day": "2 usd/day"}, ["gpt-*"])
    assert [(each.name, dict(each.limits)) for each in accounts.teams()] == [
        ("research", {"team-usd-month": "100 usd/month"})
    ]
    [admin] = AdminKeys(database).all()
    assert (admin.public_id, admin.name, list(admin.scopes)) == (operator[2], "hr", ["read"])
    calls = [*Reports(database).calls()]
    assert [(each["user"], each["cost_micro_usd"], each["status"]) for each in calls] != []
    assert {each["user"]: each["cost_micro_usd"] for each in calls} == {
        "user:alice": 1485,
        "user:bob": 3400,
    }


@every_release
def test_a_database_is_upgraded(left: Path, release: str) -> None:
    """Keys open it, and users, teams, amounts and calls are as they were."""
    database = Database(f"sqlite:///{left}")
    migration.upgrade(database)
    assert migration.revision(database) == migration.HEAD
    assert_all_is_there(database, facts(release)["keys"])
    database.close()


@every_release
def test_a_backup_is_restored(left: Path, release: str, tmp_path: Path) -> None:
    """Into a database of this version, which is kept."""
    database = Database(f"sqlite:///{tmp_path / 'chatapp.db'}")
    migration.upgrade(database)
    assert backup.restore(database, left).exists()
    assert_all_is_there(database, facts(release)["keys"])
    database.close()


@every_release
def test_policies_and_files_are_valid(
    make_app: AppMaker, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chatapp starts with the policy and the providers that the release came with."""
    folder = state.HERE / release
    app = make_app(
        RATELIMIT_POLICY_FILE=str(folder / "policy.toml"),
        CHATAPP_PROVIDERS_FILE=str(folder / "providers.toml"),
    )
    assert app.test_cli_runner().invoke(args=["ratelimit", "check"]).exit_code == 0
