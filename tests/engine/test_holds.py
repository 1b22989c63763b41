"""Estimates that are held: reserve, settle, renew, and the end of a lease."""

from __future__ import annotations

import random
from typing import Any

import pytest
import redis

from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.protocol import Change, Engine, Renewal, Settlement
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.holding import GRACE_US
from tests.strategies.virtual_time import VirtualClient

SECOND = 1_000_000
MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
LEASE = 120 * SECOND
START = 1_764_000_000 * SECOND

TOKENS = [
    Limit(1000, MINUTE, "token-bucket", unit="tokens"),
    Limit(1000, DAY, "sliding-window", unit="tokens"),
    Limit(1000, DAY, "sliding-window-counter", unit="tokens"),
    Limit(1000, DAY, "fixed-window", unit="usd"),
]
SLOTS = Limit(2, SECOND, "concurrency", unit="calls")
SURGE = Limit(200, MINUTE, "surge", unit="usd", multiple=3)


@pytest.fixture(params=["memory", "redis"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine, in virtual time."""
    if request.param == "memory":
        return MemoryEngine()
    client: Any = request.getfixturevalue("redis_client")
    return RedisEngine(VirtualClient(client), redis.RedisError)


def left(engine: Engine, limit: Limit, now_us: int = START) -> int:
    """What a look finds."""
    return engine.admit([Charge(limit, "b", 0)], now_us=now_us).verdicts[0].remaining


def reserved(engine: Engine, limit: Limit, cost: int, hold: Hold, now_us: int = START) -> Decision:
    """Reserve an estimate."""
    return engine.admit([Charge(limit, "b", cost)], hold=hold, now_us=now_us)


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
@pytest.mark.parametrize(("actual", "remaining"), [(0, 1000), (100, 900), (400, 600), (900, 100)])
def test_the_real_cost_replaces_the_estimate(
    engine: Engine, limit: Limit, actual: int, remaining: int
) -> None:
    """Less, the same or more than was estimated; and a second settlement changes nothing."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    assert verdict.remaining == 600
    assert engine.settle([Settlement(verdict, hold, actual)], now_us=START) == 1
    assert engine.settle([Settlement(verdict, hold, actual)], now_us=START) == 0
    assert left(engine, limit) == remaining


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_debt_is_carried(engine: Engine, limit: Limit) -> None:
    """A call that cost more than all there was leaves nothing, and the next one waits longer."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    engine.settle([Settlement(verdict, hold, 3000)], now_us=START)
    assert left(engine, limit) == 0
    denied = reserved(engine, limit, 1, Hold(8, LEASE))
    assert not denied.admitted
    if limit.strategy == "token-bucket":
        assert denied.retry_after_ms == (2000 + 1) * 60


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_what_a_dead_worker_held_goes_back(engine: Engine, limit: Limit) -> None:
    """Within the lease it is held; afterwards only what was known to be spent is."""
    silent, streaming = Hold(7, LEASE), Hold(8, LEASE)
    reserved(engine, limit, 300, silent)
    verdict = reserved(engine, limit, 300, streaming).verdicts[0]
    engine.settle([Renewal(verdict, streaming, 100)], now_us=START)
    before, after = START + LEASE - 1, START + LEASE
    if limit.strategy != "token-bucket":
        assert left(engine, limit, before) == 400
        assert left(engine, limit, after) == 900
    else:
        assert left(engine, limit, after) == 1000  # refilled meanwhile, and never above the brim


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_slow_worker_still_settles(engine: Engine, limit: Limit) -> None:
    """After its lease what it spent is charged, once; long after, nobody knows it any more."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    late = START + LEASE + SECOND
    assert left(engine, limit, late) == 1000
    assert engine.settle([Settlement(verdict, hold, 250)], now_us=late) == 1
    assert left(engine, limit, late) == 750
    forgotten = reserved(engine, limit, 100, hold, late).verdicts[0]
    long_after = late + LEASE + GRACE_US
    assert engine.settle([Settlement(forgotten, hold, 90)], now_us=long_after) == 0


def test_a_renewed_lease_goes_on(engine: Engine) -> None:
    """A stream that says it lives keeps its slot, however long it takes."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, SLOTS, 1, hold).verdicts[0]
    for minute in range(1, 20):
        now = START + minute * MINUTE
        assert engine.settle([Renewal(verdict, hold, 0)], now_us=now) == 1
        assert left(engine, SLOTS, now) == 1
    assert left(engine, SLOTS, now + LEASE - 1) == 1
    assert left(engine, SLOTS, now + LEASE) == 2


def test_slots_are_taken_and_given_back(engine: Engine) -> None:
    """Two in flight, not three; and the third when one of them is over."""
    holds = [Hold(i, LEASE) for i in (1, 2, 3)]
    first, second, third = (reserved(engine, SLOTS, 1, hold) for hold in holds)
    assert first.admitted
    assert second.admitted
    assert not third.admitted
    engine.settle([Settlement(first.verdicts[0], holds[0], 0)], now_us=START)
    assert reserved(engine, SLOTS, 1, holds[2]).admitted


def test_tokens_of_a_dead_worker_are_not_given_back_twice(engine: Engine) -> None:
    """Whoever looks first gives back; later looks and charges find it done."""
    limit = TOKENS[3]
    reserved(engine, limit, 400, Hold(7, LEASE))
    late = START + LEASE
    for call in range(5):
        assert reserved(engine, limit, 10, Hold(100 + call, LEASE), late).admitted
    assert left(engine, limit, late) == 950


def test_no_more_commands_however_many_are_held(redis_client: redis.Redis) -> None:
    """One EVALSHA to admit five limits in four units, and one to settle them."""
    engine = RedisEngine(redis_client, redis.RedisError)
    charges = [Charge(limit, f"b{i}", 1) for i, limit in enumerate([*TOKENS, SLOTS])]
    hold = Hold(7, LEASE)
    for _ in range(2):  # the first time the server has to learn the scripts
        redis_client.config_resetstat()
        verdicts = engine.admit(charges, hold=hold).verdicts
        engine.settle([Settlement(verdict, hold, 1) for verdict in verdicts])
    statistics = redis_client.info("commandstats")
    assert statistics["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_eval" not in statistics


def test_what_is_usual_is_what_was_spent(engine: Engine) -> None:
    """Not what was estimated: four minutes of 300 that were held at 900 make 900 the most, and
    nobody who settles late loses his past."""
    for minute in range(4):
        now = START + minute * (MINUTE + SECOND)
        hold = Hold(minute + 1, LEASE)
        verdict = reserved(engine, SURGE, 900, hold, now).verdicts[0]
        engine.settle([Settlement(verdict, hold, 300)], now_us=now + SECOND)
    later = START + 2 * DAY // 24
    assert reserved(engine, SURGE, 600, Hold(8, LEASE), later).admitted
    assert left(engine, SURGE, later) == 300
    assert not reserved(engine, SURGE, 301, Hold(9, LEASE), later).admitted


@pytest.mark.parametrize("seed", range(6))
def test_lua_and_the_reference_agree(redis_client: redis.Redis, seed: int) -> None:
    """Random histories of admissions, settlements, renewals and dead workers, to the digit."""
    chance = random.Random(seed)
    lua: Engine = RedisEngine(VirtualClient(redis_client), redis.RedisError)
    reference: Engine = MemoryEngine()
    limits = [*TOKENS, SLOTS, SURGE, Limit(10**9 - 63, 30 * DAY, "token-bucket", unit="usd")]
    now, known = START, list[tuple[Any, Hold]]()
    for _ in range(400):
        now += chance.choice([0, 1, 1000, SECOND, 7 * SECOND, LEASE, GRACE_US + LEASE])
        hold = Hold(chance.getrandbits(48), chance.choice([SECOND, LEASE]))
        charges = [
            Charge(limit, f"b{i}", 1 if limit is SLOTS else chance.choice([0, 1, 50, 300]))
            for i, limit in enumerate(limits)
            if chance.random() < 0.5
        ]
        decisions = [e.admit(charges, hold=hold, now_us=now) for e in (lua, reference)]
        if charges:
            assert decisions[0] == decisions[1]
        if decisions[0].admitted:
            known += [(verdict, hold) for verdict in decisions[0].verdicts]
        changes = list[Change]()
        for verdict, held in chance.sample(known, min(3, len(known))):
            amount = 0 if verdict.charge.limit is SLOTS else chance.choice([0, 1, 80, 900])
            kind = chance.choice([Settlement, Renewal])
            changes.append(kind(verdict, held, amount))
        assert lua.settle(changes, now_us=now) == reference.settle(changes, now_us=now)
        known = known[-40:]


@pytest.mark.parametrize("cost", [2**40, 2**48 - 1, 2**48, 2**48 + 5, 2**60, 10**40])
@pytest.mark.parametrize("limit", [*TOKENS, SURGE], ids=lambda limit: limit.strategy)
def test_a_cost_that_nothing_has_room_for_is_cut_off(
    redis_client: redis.Redis, limit: Limit, cost: int
) -> None:
    """By both engines at the same amount, whether it is told on the way or at the end."""
    memory = MemoryEngine()
    server = RedisEngine(VirtualClient(redis_client), redis.RedisError)  # type: ignore[arg-type]
    told = []
    for engine in (memory, server):
        hold, other = Hold(7, LEASE), Hold(8, LEASE)
        verdict = reserved(engine, limit, 100, hold).verdicts[0]
        engine.settle([Renewal(verdict, hold, cost)], now_us=START)
        renewed = engine.admit([Charge(limit, "b", 1)], now_us=START).verdicts[0]
        engine.settle([Settlement(verdict, hold, 50)], now_us=START)
        settled = left(engine, limit)
        verdict = reserved(engine, limit, 1, other, START + 2).verdicts[0]
        engine.settle([Settlement(verdict, other, cost)], now_us=START + 2)
        last = engine.admit([Charge(limit, "b", 1)], now_us=START + 3).verdicts[0]
        told.append((renewed[1:], settled, verdict[1:], last[1:]))
    assert told[0] == told[1]
    admitted = limit.strategy == "surge"  # one without a past knows nothing unusual
    assert (told[0][0][0], told[0][3][0]) == (admitted, admitted)
