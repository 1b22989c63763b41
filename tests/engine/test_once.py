"""Changes that are sent again after a lost reply are applied once."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.cluster import ClusterEngine
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.engine import Engine, Marker
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.engine.verdicts import UNREADABLE
from tests.strategies.virtual_time import OpenBuckets, VirtualClient, VirtualNodes
from tests.strategies.world import DAY, MINUTE, SECOND, START, World

LIMIT = Limit(100, 30 * DAY, "sliding-window")
SLOTS = Limit(5, MINUTE, "concurrency", unit="calls")
KEY = "LIMITS:1:once:{user}:1"
MARKER = Marker(KEY, DAY)


def cluster_of(client: redis.Redis, _: object) -> ClusterEngine:
    nodes: Any = VirtualNodes(VirtualClient(client))
    return ClusterEngine(nodes)


@pytest.fixture(params=[False, True], ids=["plain", "remembering"])
def sender(request: pytest.FixtureRequest, world: World) -> World:
    """Each engine, alone and behind the denial cache."""
    if request.param:
        world.engine = DenialCache(world.engine)
    return world


def test_a_correction_sent_twice_is_applied_once(sender: World) -> None:
    """The second call returns 0 and gives back nothing more."""
    one, two = sender.call(LIMIT, 30), sender.call(LIMIT, 30, "other")
    changes = [Change.adjust(one, -10), Change.adjust(two, 20)]
    assert sender.engine.settle(changes, once=MARKER, now_us=sender.now_us) == 2
    sender.wait(60)
    assert sender.engine.settle(changes, once=MARKER, now_us=sender.now_us) == 0
    assert (sender.left(LIMIT), sender.left(LIMIT, "other")) == (80, 50)


def test_two_markers_are_two_corrections(sender: World) -> None:
    """The marker, not the change, identifies a sending."""
    verdict = sender.call(LIMIT, 30)
    for number in range(2):
        changes, once = [Change.adjust(verdict, -10)], Marker(f"{KEY}{number}", DAY)
        assert sender.engine.settle(changes, once=once, now_us=sender.now_us) == 1
    assert sender.left(LIMIT) == 90


def test_without_a_marker_every_call_counts(sender: World) -> None:
    """Plain corrections are as they were."""
    verdict = sender.call(LIMIT, 30)
    for _ in range(2):
        assert sender.engine.settle([Change.adjust(verdict, -10)], now_us=sender.now_us) == 1
    assert sender.left(LIMIT) == 90


def test_all_kinds_of_changes_are_applied_once(sender: World) -> None:
    """A settlement beside a correction, as one request sends them."""
    hold = Hold(7, MINUTE)
    charges = [Charge(LIMIT, "bucket", 30), Charge(SLOTS, "slots", 1)]
    verdicts = sender.engine.admit(charges, hold=hold, now_us=sender.now_us).verdicts
    changes = [Change.adjust(verdicts[0], -30), Change.settle(verdicts[1], hold, 0)]
    replies = [sender.engine.settle(changes, once=MARKER, now_us=sender.now_us) for _ in range(3)]
    assert replies == [2, 0, 0]
    assert (sender.left(LIMIT), sender.left(SLOTS, "slots")) == (100, 5)


@pytest.mark.parametrize("for_us", [DAY, MINUTE])
def test_the_marker_lives_for_its_time(sender: World, for_us: int) -> None:
    """Until then nothing is applied again, and each call restarts its time: they may be sent
    for as long as a shard is down. Afterwards the marker is gone."""
    verdict = sender.call(LIMIT, 30)

    def settled() -> int:
        return sender.engine.settle(
            [Change.adjust(verdict, -10)], once=Marker(KEY, for_us), now_us=sender.now_us
        )

    assert settled() == 1
    for _ in range(2):
        sender.wait(us=for_us - SECOND)
        assert settled() == 0
    sender.wait(us=for_us + 1000)  # a key lives a millisecond longer
    assert settled() == 1


def test_a_marker_that_is_sent_again_lives_as_long_from_then_on() -> None:
    """Also if its time is no whole number of milliseconds."""
    kept, expiries = OpenBuckets(), []
    change = Change.adjust(Verdict(Charge(LIMIT, "bucket", 0), True, 0, 0, 0, 0), 4)
    for _ in range(2):
        MemoryEngine(lambda: kept).settle([change], once=Marker(KEY, MINUTE + 1), now_us=START)
        expiries.append(kept.expiry_us(KEY))
    assert expiries[0] == expiries[1]


@pytest.mark.parametrize("once", [None, MARKER])
@pytest.mark.parametrize("engine_of", [RedisEngine, cluster_of])
def test_an_unreadable_bucket_loses_its_own_change_only(
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    engine_of: Callable[..., Engine],
    once: Marker | None,
) -> None:
    """The others of the call are applied. What is lost is in the log, and is not sent again."""
    engine = engine_of(redis_client, redis.RedisError)
    limit = Limit(10, DAY, unit="tokens")
    charges = [Charge(limit, f"{name}{{user}}", 0) for name in ("one", "broken", "other")]
    redis_client.set("broken{user}", b"\x01" * 20)  # a hold that is cut off
    changes = [Change.adjust(Verdict(charge, True, 0, 0, 0, 0), 4) for charge in charges]
    assert engine.settle(changes, once=once, now_us=START) == 2
    readable = [charges[0], charges[2]]
    verdicts = engine.admit(readable, take=False, now_us=START).verdicts
    assert [verdict.remaining for verdict in verdicts] == [6, 6]
    (record,) = caplog.records
    lost = (charges[1].key, "adjust", (0, 4))
    assert (record.msg, record.args) == (UNREADABLE, lost)


def test_no_changes_need_no_marker(redis_client: redis.Redis) -> None:
    """A cost of 0 stores nothing."""
    assert RedisEngine(redis_client, redis.RedisError).settle([], once=MARKER) == 0
    assert redis_client.exists(KEY) == 0


def test_a_marker_costs_no_round_trip_and_always_expires(redis_client: redis.Redis) -> None:
    """One EVALSHA either way; one SET more with a marker, and none without."""
    engine = RedisEngine(redis_client, redis.RedisError)
    verdict = engine.admit([Charge(LIMIT, "bucket", 30)]).verdicts[0]
    engine.settle([Change.adjust(verdict, -1)])
    for once, keys, writes in [(None, 1, 1), (MARKER, 2, 2)]:
        redis_client.config_resetstat()
        assert engine.settle([Change.adjust(verdict, -1)], once=once) == 1
        statistics = redis_client.info("commandstats")
        assert statistics["cmdstat_evalsha"]["calls"] == 1
        assert statistics["cmdstat_mget"]["calls"] == 1
        assert statistics["cmdstat_set"]["calls"] == writes
        assert redis_client.dbsize() == keys
    assert DAY // 1000 - 10_000 < redis_client.pttl(KEY) <= DAY // 1000 + 1
