"""Estimates that are held: reserve, settle, renew, and the end of a lease."""

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.key import bucket_key, bucket_prefix
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import composed
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.reservations import Reservations
from tests import servers
from tests.strategies.virtual_time import VirtualClient

SECOND = 1_000_000
MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
LEASE = 120 * SECOND
#: As in reservations.lua: for how long a hold is remembered after its lease, and how much later
#: than its release an admission may arrive.
GRACE_US, LATE_US = 600 * SECOND, 120 * SECOND
START = 1_764_000_000 * SECOND

TOKENS = [
    Limit(1000, MINUTE, "token-bucket", unit="tokens"),
    Limit(1000, DAY, "sliding-window", unit="tokens"),
    Limit(1000, DAY, "sliding-window-counter", unit="tokens"),
    Limit(1000, DAY, "fixed-window", unit="usd"),
]
SLOTS = Limit(2, SECOND, "concurrency", unit="calls")
SURGE = Limit(200, MINUTE, "surge", unit="usd", multiple=3)


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
    assert engine.settle([Change.settle(verdict, hold, actual)], now_us=START) == 1
    assert engine.settle([Change.settle(verdict, hold, actual)], now_us=START) == 0
    assert left(engine, limit) == remaining


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_debt_is_carried(engine: Engine, limit: Limit) -> None:
    """A call that cost more than the remainder leaves nothing, and the next one waits longer."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    engine.settle([Change.settle(verdict, hold, 3000)], now_us=START)
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
    engine.settle([Change.renew(verdict, streaming, 100)], now_us=START)
    before, after = START + LEASE - 1, START + LEASE
    if limit.strategy != "token-bucket":
        assert left(engine, limit, before) == 400
        assert left(engine, limit, after) == 900
    else:
        assert left(engine, limit, after) == 1000  # refilled meanwhile, and never above the brim


@pytest.mark.parametrize("ended", ["released", "expired"])
@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_hold_that_keeps_its_estimate_costs_that(
    engine: Engine, limit: Limit, ended: str
) -> None:
    """When it is released or its lease ends: a call of a killed worker was made. A renewal knows
    better, also less, unless it says nothing; a slow worker still settles."""
    holds = [Hold(id_, LEASE, keeps=1) for id_ in (1, 2, 3, 4)]
    verdicts = [reserved(engine, limit, 200, hold).verdicts[0] for hold in holds]
    renewals = [
        Change.renew(verdict, hold, spent)
        for verdict, hold, spent in zip(verdicts[1:], holds[1:], (30, 250, None), strict=True)
    ]
    assert engine.settle(renewals, now_us=START) == 3
    assert left(engine, limit) == 1000 - 200 - 200 - 250 - 200
    now = START + LEASE
    if ended == "released":
        now = START + SECOND
        releases = [Change.release(verdicts[0].charge, hold) for hold in holds]
        engine.settle(releases, now_us=now)
    assert left(engine, limit, now) == 1000 - 200 - 30 - 250 - 200
    slow = Change.settle(verdicts[0], holds[0], 90)
    assert [engine.settle([slow], now_us=now) for _ in range(2)] == [1, 0]
    assert left(engine, limit, now) == 1000 - 90 - 30 - 250 - 200


@pytest.mark.parametrize("ended", ["", "released", "expired"])
@pytest.mark.parametrize("limit", [*TOKENS[1:], SLOTS], ids=lambda limit: limit.strategy)
def test_a_call_that_never_was_keeps_nothing(engine: Engine, limit: Limit, ended: str) -> None:
    """Its reply was lost: all of it goes back, also if its lease has ended meanwhile, as in a long
    outage, or if another process has released it. A slot goes back in any case."""
    now = START + LEASE if ended == "expired" else START
    hold, other = Hold(1, LEASE, keeps=1), Hold(2, 2 * LEASE, keeps=1)
    verdict = reserved(engine, limit, 1, hold).verdicts[0]
    reserved(engine, limit, 1, other)
    if ended == "released":
        assert engine.settle([Change.release(verdict.charge, hold)], now_us=now) == 1
    undone = Change.release(verdict.charge, hold, undone=True)
    is_free = bool(ended) and limit is SLOTS
    assert [engine.settle([undone], now_us=now) for _ in range(2)] == [0 if is_free else 1, 0]
    assert left(engine, limit, now) == limit.amount - 1
    stays = 0 if limit is SLOTS else 1
    assert left(engine, limit, START + 2 * LEASE) == limit.amount - stays


@pytest.mark.parametrize("others", [0, 20])
def test_an_undone_call_gives_back_what_can_be_given_back(engine: Engine, others: int) -> None:
    """Not what it took in a window that is over, nor in an earlier one than its renewal; then there
    is nothing to do. With many others in flight, its hold lies beside the string."""
    limit = replace(TOKENS[3], period_us=2 * LEASE)
    crowd(engine, limit, others)
    over, renewed = Hold(700, LEASE, keeps=1), Hold(701, LEASE, keeps=1)
    verdicts = [reserved(engine, limit, 100, hold).verdicts[0] for hold in (over, renewed)]
    now = START + 2 * LEASE
    late = reserved(engine, limit, 300, Hold(702, LEASE, keeps=1), now).verdicts[0]
    renewal = Change.renew(late._replace(charge=Charge(limit, "b", 150)), renewed, None)
    assert engine.settle([renewal], now_us=now) == 1
    assert left(engine, limit, now) == 1000 - 300 - 50
    undone = [
        Change.release(verdict.charge, hold, undone=True)
        for verdict, hold in zip(verdicts, (over, renewed), strict=True)
    ]
    assert [engine.settle([change], now_us=now) for change in undone] == [0, 1]
    assert [engine.settle([change], now_us=now) for change in undone] == [0, 0]
    assert left(engine, limit, now) == 1000 - 300


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_slow_worker_still_settles(engine: Engine, limit: Limit) -> None:
    """After its lease a call is still settled, once; ten minutes later it is forgotten."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    late = START + LEASE + SECOND
    assert left(engine, limit, late) == 1000
    assert engine.settle([Change.settle(verdict, hold, 250)], now_us=late) == 1
    assert left(engine, limit, late) == 750
    forgotten = reserved(engine, limit, 100, hold, late).verdicts[0]
    long_after = late + LEASE + GRACE_US
    assert engine.settle([Change.settle(forgotten, hold, 90)], now_us=long_after) == 0


@pytest.mark.parametrize("ended", ["released", "expired"])
def test_what_is_settled_late_is_charged_then(engine: Engine, ended: str) -> None:
    """All of it had gone back: it stays in the window from its settlement on, and not from that of
    another call after its admission."""
    limit, hold = TOKENS[1], Hold(7, LEASE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    assert engine.admit([Charge(limit, "b", 100)], now_us=START + SECOND).admitted
    if ended == "released":
        release = Change.release(verdict.charge, hold)
        assert engine.settle([release], now_us=START + SECOND) == 1
    late = START + LEASE + SECOND
    assert engine.settle([Change.settle(verdict, hold, 250)], now_us=late) == 1
    assert left(engine, limit, START + SECOND + DAY) == 750
    assert left(engine, limit, late + DAY) == 1000


def test_a_slot_without_a_hold_is_taken(engine: Engine) -> None:
    """By an engine that is used without reservations: for the period of the limit."""
    assert engine.admit([Charge(SLOTS, "b", 1)], now_us=START).admitted
    assert left(engine, SLOTS, START + SECOND - 1) == 1


def test_a_renewed_lease_goes_on(engine: Engine) -> None:
    """A stream that renews its lease keeps its slot, however long it takes."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, SLOTS, 1, hold).verdicts[0]
    for minute in range(1, 20):
        now = START + minute * MINUTE
        assert engine.settle([Change.renew(verdict, hold, 0)], now_us=now) == 1
        assert left(engine, SLOTS, now) == 1
    assert left(engine, SLOTS, now + LEASE - 1) == 1
    assert left(engine, SLOTS, now + LEASE) == 2


def test_slots_are_taken_and_given_back(engine: Engine) -> None:
    """Two in flight, not three; the third passes when one of them is over."""
    holds = [Hold(i, LEASE) for i in (1, 2, 3)]
    first, second, third = (reserved(engine, SLOTS, 1, hold) for hold in holds)
    assert first.admitted
    assert second.admitted
    assert not third.admitted
    engine.settle([Change.settle(first.verdicts[0], holds[0], 0)], now_us=START)
    third = reserved(engine, SLOTS, 1, holds[2])
    assert third.admitted
    for each, hold in ((second, holds[1]), (third, holds[2])):
        engine.settle([Change.settle(each.verdicts[0], hold, 0)], now_us=START)
    assert engine.clear(["b"]) == 0  # nothing is stored without calls


@pytest.mark.parametrize("limit", [*TOKENS, SLOTS], ids=lambda limit: limit.strategy)
@pytest.mark.parametrize("cost", [0, 1])
@pytest.mark.parametrize("others", [0, 20])
def test_an_admission_that_arrives_after_its_release_holds_nothing(
    engine: Engine, limit: Limit, cost: int, others: int
) -> None:
    """Its worker gave it up and would never settle it. Releasing it again changes nothing, and
    an id that was never released is admitted as ever."""
    limit = replace(limit, amount=1000)
    crowd(engine, limit, others)
    hold, charge = Hold(700, LEASE), Charge(limit, "b", cost)
    assert engine.settle([Change.release(charge, hold)], now_us=START) == 1
    assert engine.settle([Change.release(charge, hold)], now_us=START) == 0
    late = START + LATE_US - 1
    for now_us in (START, late):
        before = left(engine, limit, now_us)
        reserved(engine, limit, cost, hold, now_us)
        assert left(engine, limit, now_us) == before
        unknown = Change.settle(Verdict(charge, True, 0, 0, 0, None), Hold(701, LEASE), 0)
        assert engine.settle([unknown], now_us=now_us) == 0
    before = left(engine, limit, late)
    reserved(engine, limit, 1, Hold(702, LEASE), late)
    assert left(engine, limit, late) == before - 1


def test_the_shortest_lease_is_a_hold(engine: Engine) -> None:
    """A call that holds something for a microsecond can be settled until its hold is forgotten."""
    hold = Hold(700, 1)
    (verdict,) = reserved(engine, TOKENS[0], 200, hold).verdicts
    assert engine.settle([Change.settle(verdict, hold, 90)], now_us=START + SECOND) == 1


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_a_settlement_that_is_sent_again_after_a_release_is_charged_once(
    engine: Engine, limit: Limit
) -> None:
    """A killed worker had sent it, and has left it beside the call in its journal. The release left
    an empty hold, and the settlement was charged to that a second time."""
    hold = Hold(700, LEASE, keeps=1)
    (verdict,) = reserved(engine, limit, 200, hold).verdicts
    settlement = Change.settle(verdict, hold, 90)
    assert engine.settle([settlement], now_us=START) == 1
    assert engine.settle([Change.release(verdict.charge, hold)], now_us=START) == 1
    assert engine.settle([settlement], now_us=START) == 0
    assert left(engine, limit, START) == limit.capacity - 90


@pytest.mark.parametrize("limit", [*TOKENS, SLOTS], ids=lambda limit: limit.strategy)
def test_a_release_forgets_what_it_has_seen(redis_client: redis.Redis, limit: Limit) -> None:
    """Two minutes later the storage has nothing of a call that never came."""
    engine = RedisEngine(redis_client, redis.RedisError)
    engine.settle([Change.release(Charge(limit, "b", 1), Hold(7, LEASE))])
    assert LATE_US // 1000 - 5000 < redis_client.pttl("b") <= LATE_US // 1000 + 1


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_release_gives_back_what_is_not_known_to_be_spent(engine: Engine, limit: Limit) -> None:
    """As the end of the lease would, and at once; after the lease there is nothing to give back."""
    hold, other = Hold(7, LEASE), Hold(8, LEASE)
    verdict = reserved(engine, limit, 300, hold).verdicts[0]
    reserved(engine, limit, 300, other)
    engine.settle([Change.renew(verdict, hold, 100)], now_us=START)
    assert engine.settle([Change.release(verdict.charge, hold)], now_us=START) == 1
    assert left(engine, limit) == 600
    assert engine.settle([Change.release(verdict.charge, other)], now_us=START + LEASE) == 0
    assert left(engine, limit, START + LEASE) == 900
    slow = Change.settle(verdict, hold, 250)
    assert engine.settle([slow], now_us=START + LEASE) == 1
    assert left(engine, limit, START + LEASE) == 750


def test_many_releases_before_their_admissions(engine: Engine) -> None:
    """More than a bucket's string has room for."""
    limit = MANY[1]
    crowd(engine, limit, 20)
    holds = [Hold(1000 + number, LEASE) for number in range(300)]
    engine.settle([Change.release(Charge(limit, "b", 1), hold) for hold in holds], now_us=START)
    for hold in holds:
        reserved(engine, limit, 1, hold)
    assert left(engine, limit) == limit.amount - 20


def test_tokens_of_a_dead_worker_are_not_given_back_twice(engine: Engine) -> None:
    """The first access refunds an expired lease, once."""
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
        engine.settle([Change.settle(verdict, hold, 1) for verdict in verdicts])
    statistics = redis_client.info("commandstats")
    assert statistics["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_eval" not in statistics


def crowd(engine: Engine, limit: Limit, calls: int) -> list[tuple[Verdict, Hold]]:
    """So many calls in flight on one bucket."""
    holds = [Hold(number + 1, LEASE) for number in range(calls)]
    return [(reserved(engine, limit, 1, hold).verdicts[0], hold) for hold in holds]


MANY = [
    Limit(10**6, DAY, "fixed-window", unit="usd"),
    Limit(10**6, SECOND, "concurrency", unit="calls"),
]
many = pytest.mark.parametrize("limit", MANY, ids=lambda limit: limit.strategy)


@many
def test_a_call_costs_the_same_beside_a_thousand(redis_client: redis.Redis, limit: Limit) -> None:
    """Admission, renewal and settlement: so many commands in the script, so many bytes."""
    engine = RedisEngine(redis_client, redis.RedisError)
    for verdict, hold in crowd(engine, limit, 30)[:2]:  # the server knows the scripts
        engine.settle([Change.renew(verdict, hold, 0)], now_us=START)
        engine.settle([Change.settle(verdict, hold, 0)], now_us=START)
    crowd(engine, limit, 1000)
    assert redis_client.strlen("b") <= 700
    last = Hold(2000, LEASE)

    def commands(call: Callable[[], object]) -> tuple[dict[str, int], int]:
        redis_client.config_resetstat()
        call()
        stats = redis_client.info("commandstats")
        names = ("mget", "set", "get", "zadd", "zrem", "zrangebyscore", "pexpire", "del", "exists")
        counts = {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names}
        return {name: count for name, count in counts.items() if count}, len(stats)

    def admit() -> None:
        verdicts.extend(reserved(engine, limit, 1, last).verdicts)

    verdicts: list[Verdict] = []
    always = {"mget": 1, "set": 1, "pexpire": 1}
    assert commands(admit)[0] == always | {"zadd": 1}
    renewal, settlement = Change.renew(verdicts[0], last, 0), Change.settle(verdicts[0], last, 0)
    found = always | {"zrangebyscore": 1, "zrem": 1}
    assert commands(lambda: engine.settle([renewal], now_us=START))[0] == found | {"zadd": 1}
    assert commands(lambda: engine.settle([settlement], now_us=START))[0] == found


@many
def test_a_crowd_comes_and_goes(engine: Engine, limit: Limit) -> None:
    """Forty calls, settled in any order, and the leases of those that are not."""
    calls = crowd(engine, limit, 40)
    random.Random(1).shuffle(calls)
    for verdict, hold in calls[:30]:
        assert engine.settle([Change.settle(verdict, hold, 0)], now_us=START) == 1
        assert engine.settle([Change.settle(verdict, hold, 0)], now_us=START) == 0
    assert left(engine, limit) == limit.amount - 10
    assert left(engine, limit, START + LEASE - 1) == limit.amount - 10
    late = START + LEASE + GRACE_US - 1
    assert left(engine, limit, late) == limit.amount
    for number, (verdict, hold) in enumerate(calls[30:]):
        now_us = late + number // 5  # half of them are forgotten by then
        assert engine.settle([Change.settle(verdict, hold, 0)], now_us=now_us) == 1 - number // 5


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_a_call_of_another_engine_goes_on(engine: Engine, limit: Limit) -> None:
    """It holds its amount from then on, once, also if that overdraws; it settles its real cost."""
    call, other = Hold(1, LEASE), Hold(2, LEASE)
    charge = Charge(limit, "b", 700)
    resumed = [Change.resume(charge, hold, 700, 50) for hold in (call, other, call)]
    assert engine.settle(resumed, now_us=START) == 2
    assert left(engine, limit) == 0
    verdict = Verdict(charge, True, 0, 0, 0, None)
    assert engine.settle([Change.settle(verdict, other, 100)], now_us=START) == 1
    assert left(engine, limit) == 200
    assert engine.settle([Change.settle(verdict, call, 300)], now_us=START) == 1
    assert left(engine, limit) == 600


@pytest.mark.parametrize(("undone", "expected"), [(False, 950), (True, 300)])
@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_a_call_that_ended_before_it_is_handed_over(
    engine: Engine, limit: Limit, *, undone: bool, expected: int
) -> None:
    """That of a dead worker costs what it has spent. One that was undone here goes on elsewhere."""
    charge, call = Charge(limit, "b", 700), Hold(1, LEASE)
    for change in (
        Change.release(charge, call, undone=undone),
        Change.resume(charge, call, 700, 50),
    ):
        assert engine.settle([change], now_us=START) == 1
    assert left(engine, limit) == expected


@many
def test_a_dropped_bucket_leaves_nothing(redis_client: redis.Redis, limit: Limit) -> None:
    """By clear or by reset, with its many holds; it counts once."""
    engine = RedisEngine(redis_client, redis.RedisError)
    for drop in (lambda: engine.clear(["b"]), lambda: engine.reset("b")):
        crowd(engine, limit, 40)
        assert redis_client.dbsize() == 2
        assert 0 <= redis_client.pttl("b") - redis_client.pttl("b:holds") <= 50
        assert drop() == 1
        assert redis_client.dbsize() == 0


def test_holds_of_a_dropped_bucket_are_not_found_again(redis_client: redis.Redis) -> None:
    """Only the string is gone: the set of the next crowd begins empty."""
    engine = RedisEngine(redis_client, redis.RedisError)
    old = crowd(engine, MANY[0], 40)
    redis_client.delete("b")
    holds = [Hold(number + 100, LEASE) for number in range(20)]
    for hold in holds:
        reserved(engine, MANY[0], 1, hold)
    assert engine.settle([Change.settle(*call, 0) for call in old], now_us=START) == 0
    assert redis_client.zcard("b:holds") == 2 * 4


@many
def test_a_lost_set_locks_nobody_out(redis_client: redis.Redis, limit: Limit) -> None:
    """The server evicted the set alone: charges stay, as after a late settlement, and calls in
    flight do not."""
    engine = RedisEngine(redis_client, redis.RedisError)
    crowd(engine, limit, 40)
    redis_client.delete("b:holds")
    after = START + LEASE
    kept = 40 - 16 if limit.strategy == "fixed-window" else 0
    assert left(engine, limit, after) == limit.amount - kept
    assert reserved(engine, limit, 1, Hold(100, LEASE), after).admitted
    assert left(engine, limit, after) == limit.amount - kept - 1


def test_calls_beside_a_lost_set_keep_their_slots(redis_client: redis.Redis) -> None:
    """Those in the string run on, and give back their own slots alone."""
    engine = RedisEngine(redis_client, redis.RedisError)
    calls = crowd(engine, MANY[1], 40)[:16]
    renewals = [Change.renew(*call, 0) for call in calls]
    after = START + LEASE
    assert engine.settle(renewals, now_us=after - 1) == 16
    redis_client.delete("b:holds")
    assert left(engine, MANY[1], after) == MANY[1].amount - 16
    reserved(engine, MANY[1], 1, Hold(100, LEASE), after)
    engine.settle([Change.settle(*call, 0) for call in calls], now_us=after)
    assert left(engine, MANY[1], after) == MANY[1].amount - 1


def test_a_crowd_on_a_cluster() -> None:
    """The set lies in its bucket's slot, for any identity, and under the prefix of an ACL user."""
    with servers.cluster() as cluster:
        for node in cluster.nodes:
            with node.client() as client:
                rules = ["reset", "on", ">secret", "~LIMITS:*", "+@all"]
                client.execute_command("ACL SETUSER", "limiter", *rules)
        storage = storage_from_string(cluster.uri, username="limiter", password="secret")
        engine = RedisEngine(storage.get_connection(), storage.base_exceptions)  # type: ignore[attr-defined]
        shared = bucket_prefix("LIMITS", "fw", MANY[0], "chat")
        for identity in ("", "user", "{}", "*"):
            charge = Charge(MANY[0], bucket_key(shared, identity))
            holds = [Hold(number + 1, LEASE) for number in range(30)]
            verdicts = [engine.admit([charge], hold=hold).verdicts[0] for hold in holds]
            ends = [Change.settle(v, hold, 0) for v, hold in zip(verdicts, holds, strict=True)]
            assert sum(engine.settle([end]) for end in ends) == 30
            assert engine.clear([charge.key]) == 1


def test_what_is_usual_is_what_was_spent(engine: Engine) -> None:
    """Not what was estimated: four minutes of 300 that were held at 900 make 900 the most, and
    late settlements keep their past."""
    for minute in range(4):
        now = START + minute * (MINUTE + SECOND)
        hold = Hold(minute + 1, LEASE)
        verdict = reserved(engine, SURGE, 900, hold, now).verdicts[0]
        engine.settle([Change.settle(verdict, hold, 300)], now_us=now + SECOND)
    later = START + 2 * DAY // 24
    assert reserved(engine, SURGE, 600, Hold(8, LEASE), later).admitted
    assert left(engine, SURGE, later) == 300
    assert not reserved(engine, SURGE, 301, Hold(9, LEASE), later).admitted


@contextmanager
def holds_in_the_string(most: int) -> Iterator[None]:
    """With so many holds in the string at most; the others are in the sorted set."""
    whole, some = Reservations.fragments, f"local INLINE = {most}"
    composed.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Reservations,
            "fragments",
            lambda self: tuple(re.sub(r"local INLINE = \d+", some, part) for part in whole(self)),
        )
        yield
    composed.cache_clear()


def history(engine: Engine, seed: int) -> list[object]:
    """The answers in a random history of admissions, settlements, renewals and dead workers."""
    chance, answers = random.Random(seed), list[object]()
    limits = [*TOKENS, SLOTS, SURGE, Limit(10**9 - 63, 30 * DAY, "token-bucket", unit="usd")]
    now, known, released = START, list[tuple[Any, Hold]](), list[Hold]()
    for _ in range(400):
        now += chance.choice([0, 1, 1000, SECOND, 7 * SECOND, LEASE, GRACE_US + LEASE])
        hold = Hold(
            chance.getrandbits(48), chance.choice([SECOND, LEASE]), keeps=chance.choice([0, 1])
        )
        if released and chance.random() < 0.5:
            hold = released.pop()
        charges = [
            Charge(limit, f"b{i}", 1 if limit is SLOTS else chance.choice([0, 1, 50, 300]))
            for i, limit in enumerate(limits)
            if chance.random() < 0.5
        ]
        decision = engine.admit(charges, hold=hold, now_us=now)
        answers.append(decision.verdicts)
        if decision.admitted:
            known += [(verdict, hold) for verdict in decision.verdicts]
        changes = list[Change]()
        for verdict, held in chance.sample(known, min(3, len(known))):
            amount = 0 if verdict.charge.limit is SLOTS else chance.choice([0, 1, 80, 900])
            kind: Any = chance.choice([Change.settle, Change.renew, Change.release, None])
            if kind == Change.release:
                early, undone = Hold(chance.getrandbits(48), LEASE), chance.random() < 0.5
                released.append(early)
                changes += [
                    Change.release(verdict.charge, each, undone=undone) for each in (held, early)
                ]
                continue
            if kind is not None:
                changes.append(kind(verdict, held, amount))
                continue
            resumed = chance.choice([held, Hold(chance.getrandbits(48), LEASE)])
            spent = chance.choice([0, 40])
            changes.append(Change.resume(verdict.charge, resumed, amount, spent))
            known.append((verdict, resumed))
        answers.append(engine.settle(changes, now_us=now))
        known, released = known[-40:], released[-4:]
    return answers


@pytest.mark.parametrize("most", [16, 2, 0])
@pytest.mark.parametrize("seed", range(6))
def test_where_a_hold_lies_changes_no_answer(
    redis_client: redis.Redis, seed: int, most: int
) -> None:
    """Some in the sorted set or all, in memory or on a server: as if all were in the string."""
    with holds_in_the_string(255):
        answers = history(MemoryEngine(), seed)
    server: Any = VirtualClient(redis_client)
    with holds_in_the_string(most):
        assert history(MemoryEngine(), seed) == answers
        assert history(RedisEngine(server, redis.RedisError), seed) == answers


@pytest.mark.parametrize("cost", [2**40, 2**48 - 1, 2**48, 2**48 + 5, 2**60, 10**40])
@pytest.mark.parametrize("limit", [*TOKENS, SURGE], ids=lambda limit: limit.strategy)
def test_a_cost_that_nothing_has_room_for_is_cut_off(
    redis_client: redis.Redis, limit: Limit, cost: int
) -> None:
    """Both engines cut it at the same amount, in renewals and in settlements."""
    memory = MemoryEngine()
    server = RedisEngine(VirtualClient(redis_client), redis.RedisError)  # type: ignore[arg-type]
    seen = []
    for engine in (memory, server):
        hold, other = Hold(7, LEASE), Hold(8, LEASE)
        verdict = reserved(engine, limit, 100, hold).verdicts[0]
        engine.settle([Change.renew(verdict, hold, cost)], now_us=START)
        renewed = engine.admit([Charge(limit, "b", 1)], now_us=START).verdicts[0]
        engine.settle([Change.settle(verdict, hold, 50)], now_us=START)
        settled = left(engine, limit)
        verdict = reserved(engine, limit, 1, other, START + 2).verdicts[0]
        engine.settle([Change.settle(verdict, other, cost)], now_us=START + 2)
        last = engine.admit([Charge(limit, "b", 1)], now_us=START + 3).verdicts[0]
        seen.append((renewed[1:], settled, verdict[1:], last[1:]))
    assert seen[0] == seen[1]
    admitted = limit.strategy == "surge"  # one without a past knows nothing unusual
    assert (seen[0][0][0], seen[0][3][0]) == (admitted, admitted)


BURST = Limit(100, SECOND, "token-bucket", burst=1000, unit="tokens")


@pytest.mark.parametrize("renewed", [False, True])
def test_no_expiry_forgives_a_token_bucket(engine: Engine, renewed: bool) -> None:
    """1,000 at once and 100 a second are 1,660 in 6.6 s, with pauses longer than two periods."""
    passed = 0
    for call in range(4 * 100):
        now, hold = START + call // 100 * 2_200_000, Hold(call + 1, LEASE)
        decision = reserved(engine, BURST, 20, hold, now)
        if decision.admitted:
            passed += 20
            verdict = decision.verdicts[0]
            if renewed:
                engine.settle([Change.renew(verdict, hold, 20)], now_us=now)
            engine.settle([Change.settle(verdict, hold, 20)], now_us=now)
    assert passed == 1660


def test_a_bill_is_remembered_until_it_is_refilled(engine: Engine) -> None:
    """900,000 on 100,000 a minute are 540 s, and not two periods."""
    limit, hold = Limit(100_000, MINUTE, "token-bucket", unit="tokens"), Hold(7, SECOND)
    verdict = reserved(engine, limit, 1000, hold).verdicts[0]
    engine.settle([Change.settle(verdict, hold, 900_000)], now_us=START)
    for seconds in (120, 480, 539):
        left_then = max(0, 100_000 - 900_000 + seconds * 100_000 // 60)
        assert left(engine, limit, START + seconds * SECOND) == left_then
    assert left(engine, limit, START + 540 * SECOND) == 100_000


@pytest.mark.parametrize("limit", [*TOKENS, SURGE], ids=lambda limit: limit.strategy)
def test_an_estimate_of_nothing_is_settled(engine: Engine, limit: Limit) -> None:
    """The real cost of an admitted call is charged, once, though its estimate was 0."""
    hold = Hold(7, LEASE)
    verdict = reserved(engine, limit, 0, hold).verdicts[0]
    before = left(engine, limit)
    assert engine.settle([Change.settle(verdict, hold, 150)], now_us=START) == 1
    assert engine.settle([Change.settle(verdict, hold, 150)], now_us=START) == 0
    assert left(engine, limit) == before - 150


@pytest.mark.parametrize("limit", TOKENS, ids=lambda limit: limit.strategy)
def test_an_estimate_of_nothing_opens_nothing(redis_client: redis.Redis, limit: Limit) -> None:
    """Looks, calls without a lease and denied requests leave no hold."""
    engine = RedisEngine(VirtualClient(redis_client), redis.RedisError)
    charge, hold = Charge(limit, "b", 0), Hold(7, LEASE)
    engine.admit([charge], take=False, hold=hold, now_us=START)
    engine.admit([charge], now_us=START)
    never = Charge(Limit(1, MINUTE), "other", 2)
    assert not engine.admit([charge, never], hold=hold, now_us=START).admitted
    assert redis_client.exists("b") == 0
    reserved(engine, limit, 0, hold)
    assert redis_client.exists("b") == 1


@pytest.mark.parametrize("limit", TOKENS[2:], ids=lambda limit: limit.strategy)
@pytest.mark.parametrize("opened", [False, True])
def test_what_a_call_cost_beyond_its_hold_is_carried(
    engine: Engine, limit: Limit, opened: bool
) -> None:
    """Its window is over: the held part stays there, the excess is charged to the one that is open
    when the call settles, which it opens if none is."""
    hold, later = Hold(7, 5 * DAY), START + 3 * DAY
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    if opened:
        reserved(engine, limit, 100, Hold(8, 5 * DAY), later)
    assert engine.settle([Change.settle(verdict, hold, 1150)], now_us=later) == 1
    assert left(engine, limit, later) == 250 - 100 * opened
    assert reserved(engine, limit, 251, Hold(9, LEASE), later).admitted is False


def test_what_has_left_the_log_is_carried_as_a_call_of_now(engine: Engine) -> None:
    """The same of the sliding window: its entry has left, the excess is an entry of the present."""
    limit, hold, later = TOKENS[1], Hold(7, 5 * DAY), START + 3 * DAY
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    assert engine.settle([Change.settle(verdict, hold, 1150)], now_us=later) == 1
    assert [left(engine, limit, later + wait) for wait in (0, DAY - 1, DAY)] == [250, 250, 1000]


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
@pytest.mark.parametrize("actual", [0, 399, 400])
def test_a_refund_is_never_carried(engine: Engine, limit: Limit, actual: int) -> None:
    """The window is over: the unused part credits no other."""
    hold, later = Hold(7, 5 * DAY), START + 3 * DAY
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    reserved(engine, limit, 600, Hold(8, 5 * DAY), later)
    assert engine.settle([Change.settle(verdict, hold, actual)], now_us=later) == 1
    assert left(engine, limit, later) == 400


@pytest.mark.parametrize("looked", [False, True], ids=["unseen", "seen"])
@pytest.mark.parametrize("ended", ["before", "after"])
def test_a_hold_goes_back_as_of_the_end_of_its_lease(
    engine: Engine, looked: bool, ended: str
) -> None:
    """With or without an access in between: a lease that ends after the window leaves the
    estimate there, and only the excess is carried; one that ends before has given it back."""
    limit = Limit(1000, 60 * MINUTE, "fixed-window", unit="usd")
    lease = 59 * MINUTE if ended == "before" else 61 * MINUTE
    hold, later = Hold(7, lease), START + 62 * MINUTE
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    if looked:
        assert left(engine, limit, START + 59 * MINUTE) == (1000 if ended == "before" else 600)
        reserved(engine, limit, 1, Hold(8, LEASE), START + 59 * MINUTE + 1)
    assert engine.settle([Change.settle(verdict, hold, 500)], now_us=later) == 1
    assert left(engine, limit, later) == (500 if ended == "before" else 900)


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_renewal_takes_a_lapsed_hold_again(engine: Engine, limit: Limit) -> None:
    """The estimate, or what was spent if that is more; a new deadline; and still settled once."""
    for key, spent, held in (("a", 100, 400), ("b", 700, 700)):
        hold, charge = Hold(7, LEASE), Charge(limit, key, 400)

        def left_at(now_us: int, key: str = key) -> int:
            look = engine.admit([Charge(limit, key, 0)], now_us=now_us)
            return look.verdicts[0].remaining

        verdict = engine.admit([charge], hold=hold, now_us=START).verdicts[0]
        late = START + LEASE + MINUTE
        assert left_at(late) == 1000
        assert engine.settle([Change.renew(verdict, hold, spent)], now_us=late) == 1
        assert left_at(late + LEASE - 1) == 1000 - held
        assert left_at(late + LEASE) == 1000 - spent
        later = late + LEASE + MINUTE
        assert engine.settle([Change.renew(verdict, hold, 0)], now_us=later) == 1
        assert left_at(later) == 1000 - held
        assert engine.settle([Change.settle(verdict, hold, 300)], now_us=later) == 1
        assert left_at(later) == 700
        assert engine.settle([Change.settle(verdict, hold, 300)], now_us=later) == 0


def test_a_renewal_takes_a_lapsed_slot_again(engine: Engine) -> None:
    """Without denying: the slot may be taken by then, and both are counted."""
    first, second, third = (Hold(i, LEASE) for i in (1, 2, 3))
    verdict = reserved(engine, SLOTS, 1, first).verdicts[0]
    late = START + LEASE
    assert left(engine, SLOTS, late) == 2
    for hold in (second, third):
        assert reserved(engine, SLOTS, 1, hold, late).admitted
    assert engine.settle([Change.renew(verdict, first, 0)], now_us=late) == 1
    engine.settle([Change.settle(verdict, second, 0)], now_us=late)
    assert not reserved(engine, SLOTS, 1, Hold(4, LEASE), late).admitted
    engine.settle([Change.settle(verdict, first, 0)], now_us=late)
    assert left(engine, SLOTS, late) == 1


def test_a_lapsed_hold_is_taken_from_the_present_window(engine: Engine) -> None:
    """Its own is over, and what it had spent stays there; a refund goes to the present one."""
    limit, hold = Limit(1000, 60 * MINUTE, "fixed-window", unit="usd"), Hold(7, 55 * MINUTE)
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    engine.settle([Change.renew(verdict, hold, 100)], now_us=START + SECOND)
    assert left(engine, limit, START + 56 * MINUTE) == 900
    late = START + 61 * MINUTE
    assert engine.settle([Change.renew(verdict, hold, 100)], now_us=late) == 1
    assert left(engine, limit, late) == 700
    assert engine.settle([Change.settle(verdict, hold, 250)], now_us=late) == 1
    assert left(engine, limit, late) == 850


@pytest.mark.parametrize("limit", TOKENS[1:], ids=lambda limit: limit.strategy)
def test_a_refund_takes_nothing_from_others(engine: Engine, limit: Limit) -> None:
    """A call that said 900 after its lease, and cost 0: what was charged before stays where it was,
    and others of the same instant keep theirs."""
    hold, late = Hold(7, 2 * DAY + 2 * LEASE), START + 2 * DAY + 3 * LEASE
    verdict = reserved(engine, limit, 400, hold).verdicts[0]
    reserved(engine, limit, 90, Hold(8, DAY), late)
    assert engine.settle([Change.renew(verdict, hold, 900)], now_us=late) == 1
    assert left(engine, limit, late) == 1000 - 90 - 500
    assert engine.settle([Change.settle(verdict, hold, 0)], now_us=late) == 1
    assert left(engine, limit, late) == 1000 - 90


def test_a_hold_of_nothing_keeps_a_clock_that_was_set_back(engine: Engine) -> None:
    """A full wait begins once, at the first call after the change, though it costs nothing."""
    limit, hold = Limit(2, MINUTE, "token-bucket", unit="tokens"), Hold(7, LEASE)
    reserved(engine, limit, 2, Hold(6, LEASE))
    earlier = START - 60 * MINUTE
    reserved(engine, limit, 0, hold, earlier)
    assert left(engine, limit, earlier + 30 * SECOND) == 1


SHADOW = Limit(1000, DAY, "fixed-window", unit="tokens", mode="shadow")


def test_a_denied_request_leaves_no_shadow_hold(engine: Engine) -> None:
    """A denied request is never settled: a hold of its shadow would last until the lease ends."""
    empty = Charge(Limit(1, DAY), "full", 2)
    held = Charge(SHADOW, "b", 400)
    slot = Charge(Limit(2, SECOND, "concurrency", unit="calls", mode="shadow"), "s", 1)
    counted = Charge(Limit(10, DAY, mode="shadow"), "c", 1)
    decision = engine.admit([empty, held, slot, counted], hold=Hold(7, LEASE), now_us=START)
    assert not decision.admitted
    assert [verdict.remaining for verdict in decision.verdicts[1:]] == [1000, 2, 10]
    for charge, remaining in ((held, 1000), (slot, 2), (counted, 10)):
        look = engine.admit([charge._replace(cost=0)], now_us=START).verdicts[0]
        assert look.remaining == remaining
    admitted = engine.admit([held, slot, counted], hold=Hold(8, LEASE), now_us=START)
    assert [verdict.remaining for verdict in admitted.verdicts] == [600, 1, 9]
