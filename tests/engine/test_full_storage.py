"""A full server (maxmemory, no eviction): known identities are served, new ones are refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold, new_hold
from ratelimit_ext.core.errors import StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.embedded.server import EmbeddedServer
from ratelimit_ext.engine.engine import Marker
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.guards.block import new_block
from tests import servers
from tests.strategies.world import DAY, HOUR, MINUTE

AT_ONCE = Limit(2, HOUR, "concurrency", name="at-once", unit="calls")
DAILY = Limit(3, DAY, "sliding-window", name="daily")
PACE = Limit(30, MINUTE, "token-bucket", name="pace")
MONEY = Limit(1_000, DAY, "fixed-window", name="money", unit="usd")
MODEL = Limit(1_000_000, MINUTE, "fixed-window", name="model")


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    with servers.standalone("--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture
def client(server: servers.Server) -> Iterator[redis.Redis]:
    with server.client() as client:
        client.config_set("maxmemory", 0)
        client.flushall()
        yield client


@pytest.fixture
def engine(client: redis.Redis) -> RedisEngine:
    return RedisEngine(client, redis.RedisError)


def fill(client: redis.Redis) -> None:
    """Fill the server's memory."""
    client.config_set("maxmemory", 1)


def charge(limit: Limit, identity: str, cost: int = 1) -> Charge:
    return Charge(limit, f"LIMITS:{limit.name}:{{{identity}}}", cost)


def call_of(user: str) -> list[Charge]:
    return [charge(PACE, user), charge(DAILY, user), charge(MODEL, "gpt")]


def invent(engine: RedisEngine, callers: int) -> None:
    for number in range(callers):
        engine.admit(call_of(f"invented-{number}"))


def test_an_unknown_identity_is_refused_and_not_counted(
    client: redis.Redis, engine: RedisEngine
) -> None:
    """StorageFull names the bucket, and nothing of the request is written."""
    fill(client)
    with pytest.raises(StorageFull) as caught:
        engine.admit(call_of("eve"))
    assert caught.value.key == "LIMITS:daily:{eve}"
    assert client.dbsize() == 0


def test_what_ends_in_a_microsecond_needs_memory_too(
    client: redis.Redis, engine: RedisEngine
) -> None:
    """It is no bucket to be dropped, after which a full server stores anything."""
    fill(client)
    with pytest.raises(StorageFull):
        engine.admit([charge(Limit(9, 1, "fixed-window", name="brief"), "eve"), *call_of("eve")])
    assert client.dbsize() == 0


def test_what_is_counted_goes_on(client: redis.Redis, engine: RedisEngine) -> None:
    """A known caller can use the remainder, and is then denied."""
    assert engine.admit(call_of("ada")).admitted
    fill(client)
    assert [engine.admit(call_of("ada")).admitted for _ in range(4)] == [True, True, False, False]


def test_short_lived_buckets_of_a_known_caller_come_back(
    client: redis.Redis, engine: RedisEngine
) -> None:
    """After a pause only the caller's day is still stored, which makes them known."""
    engine.admit(call_of("ada"))
    client.delete(charge(PACE, "ada").key, charge(MODEL, "gpt").key)
    fill(client)
    assert engine.admit(call_of("ada")).admitted
    assert client.exists(charge(PACE, "ada").key, charge(MODEL, "gpt").key) == 2


def test_a_short_lived_bucket_makes_nobody_known(client: redis.Redis, engine: RedisEngine) -> None:
    """Otherwise a route with a cheap limit would weaken one with an expensive limit."""
    fill(client)
    assert engine.admit([charge(PACE, "eve")]).admitted
    with pytest.raises(StorageFull):
        engine.admit(call_of("eve"))


def test_calls_in_flight_are_counted_and_make_nobody_known(
    client: redis.Redis, engine: RedisEngine
) -> None:
    """They expire soon: a known caller may call from a new address, under its limit."""
    engine.admit(call_of("ada"))
    fill(client)
    slot = charge(AT_ONCE, "10.0.0.1")
    calls = [engine.admit([slot, charge(DAILY, "ada")], hold=new_hold(HOUR)) for _ in range(3)]
    assert [call.admitted for call in calls] == [True, True, False]
    with pytest.raises(StorageFull):
        engine.admit([slot._replace(cost=0), charge(DAILY, "10.0.0.1")])


@pytest.mark.parametrize("lease", [0, HOUR], ids=["spent", "held"])
@pytest.mark.parametrize("estimate", [100, 0])
def test_a_budget_makes_its_caller_known(
    client: redis.Redis, engine: RedisEngine, estimate: int, lease: int
) -> None:
    """By what is spent of it, with or without a call in flight. One that is in flight is enough."""
    engine.admit([charge(MONEY, "ada", estimate)], hold=Hold(7, lease))
    fill(client)
    if estimate or lease:
        assert engine.admit([charge(DAILY, "ada"), charge(MONEY, "ada", 0)]).admitted
    else:
        with pytest.raises(StorageFull):
            engine.admit([charge(DAILY, "ada"), charge(MONEY, "ada", 0)])


def test_a_bucket_of_everybody_is_known(client: redis.Redis, engine: RedisEngine) -> None:
    """A new day starts for a shared limit, also on a full server."""
    fill(client)
    assert engine.admit([charge(DAILY, "*")]).admitted


def test_a_shadow_refuses_nobody(client: redis.Redis, engine: RedisEngine) -> None:
    """A shadow limit is not counted then."""
    fill(client)
    watched = charge(replace(DAILY, mode="shadow"), "eve")
    assert engine.admit([charge(PACE, "eve"), watched]).admitted
    assert client.exists(watched.key) == 0


def test_a_denial_and_a_look_need_no_memory(client: redis.Redis, engine: RedisEngine) -> None:
    """Both read; neither is an outage."""
    for _ in range(3):
        engine.admit([charge(DAILY, "ada")])
    fill(client)
    assert not engine.admit([charge(DAILY, "ada")]).admitted
    assert engine.admit([charge(DAILY, "eve")], take=False).admitted


def test_a_large_log_is_continued(client: redis.Redis, engine: RedisEngine) -> None:
    """It is changed in place; an unknown caller beside it is refused all the same."""
    shared = charge(Limit(10**6, MINUTE, "sliding-window", name="shared"), "gpt")
    for call in range(600):
        engine.admit([shared], now_us=1_800_000_000_000_000 + call * MINUTE // 610)
    now_us = 1_800_000_000_000_000 + 599 * MINUTE // 610 + 1
    engine.admit([charge(DAILY, "ada")], now_us=now_us)
    fill(client)
    before = engine.admit([shared], take=False, now_us=now_us).verdicts[0].remaining
    with pytest.raises(StorageFull):
        engine.admit([shared, charge(DAILY, "eve")], now_us=now_us)
    both = engine.admit([shared, charge(DAILY, "ada")], now_us=now_us)
    assert [verdict.remaining for verdict in both.verdicts] == [before - 1, 1]


def test_calls_that_are_under_way_are_settled(client: redis.Redis, engine: RedisEngine) -> None:
    """Renewal, settlement, correction with its marker, block: all are written."""
    hold: Hold = new_hold(MINUTE)
    verdict = engine.admit([charge(MONEY, "ada", 100)], hold=hold).verdicts[0]
    paid = engine.admit([charge(DAILY, "ada")]).verdicts[0]
    fill(client)
    assert engine.settle([Change.renew(verdict, hold, 50)]) == 1
    assert engine.settle([Change.settle(verdict, hold, 70)]) == 1
    once = Marker("LIMITS:once:{ada}", MINUTE)
    assert engine.settle([Change.adjust(paid, -1)], once=once) == 1
    assert engine.settle([Change.adjust(paid, -1)], once=once) == 0
    block = Charge(Limit(1, MINUTE, "block", name="stop"), "LIMITS:stop:{ada}")
    assert engine.settle([new_block(block, MINUTE, "closed")]) == 1
    assert engine.admit([charge(MONEY, "ada", 0)]).verdicts[0].remaining == 930


def test_invented_callers_fill_the_embedded_server_and_reset_nobody(tmp_path: Path) -> None:
    """With the real bound: an exhausted caller stays exhausted, and a known one is served."""
    embedded = EmbeddedServer(tmp_path, maxmemory_mb=2)
    embedded.start()
    try:
        with redis.Redis(unix_socket_path=str(embedded.socket_path)) as client:
            engine = RedisEngine(client, redis.RedisError)
            for _ in range(3):
                assert engine.admit(call_of("spent")).admitted
            assert engine.admit(call_of("ada")).admitted
            with pytest.raises(StorageFull):
                invent(engine, 50_000)
            assert not engine.admit(call_of("spent")).admitted
            assert engine.admit(call_of("ada")).admitted
            assert client.info("stats")["evicted_keys"] == 0
    finally:
        embedded.stop()
