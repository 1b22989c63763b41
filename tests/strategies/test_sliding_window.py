"""Sliding window: never more than the amount in any window, wherever it begins."""

import random

import pytest
import redis

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.virtual_time import OpenBuckets, VirtualClient
from tests.strategies.world import DAY, MINUTE, SECOND, World

ENTRY_BYTES = 12
MOST_ENTRIES = 512


def fullest_window(calls: list[tuple[int, int]], period: int) -> int:
    """The largest sum of costs in any window of the period, by brute force."""
    return max(
        sum(cost for instant, cost in calls[first:] if instant < begin + period)
        for first, (begin, _) in enumerate(calls)
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_short_log_is_exact(world: World, seed: int) -> None:
    """Below 256 entries it admits what a list of all calls would, neither more nor less."""
    chance = random.Random(seed)
    amount, period = chance.choice(((5, SECOND), (50, MINUTE), (1000, DAY)))
    limit = Limit(amount, period, "sliding-window")
    calls: list[tuple[int, int]] = []
    for _ in range(400):
        world.now_us += chance.choice(
            (0, 1, period // 1500, period // 100, period // 10, period // 2)
        )
        cost = chance.choice((1, 1, 2, max(1, amount // 4)))
        live = sum(c for instant, c in calls if instant > world.now_us - period)
        allowed = world.call(limit, cost).allowed
        assert allowed == (live + cost <= amount)
        if allowed:
            calls.append((world.now_us, cost))
    assert fullest_window(calls, period) <= amount


def test_a_short_log_lets_each_call_leave_by_itself(world: World) -> None:
    """Three calls a millisecond apart free their room a millisecond apart."""
    limit = Limit(3, MINUTE, "sliding-window")
    for _ in range(3):
        world.call(limit)
        world.wait(0.001)
    world.wait(60 - 0.003)
    assert world.passed(limit, 3) == 1
    world.wait(0.001)
    assert world.passed(limit, 3) == 1


@pytest.mark.parametrize("seed", range(2))
def test_a_merged_log_is_late_by_two_per_mille_and_never_early(world: World, seed: int) -> None:
    """With thousands of calls no window holds too many, and room comes 1/511 late at most."""
    chance = random.Random(seed)
    amount, period = 900, MINUTE
    limit = Limit(amount, period, "sliding-window")
    grain = -(-period // 511)
    calls: list[tuple[int, int]] = []
    for _ in range(2500):
        world.now_us += chance.choice((0, 1000, period // 3000, period // 900, period // 500))
        late = sum(c for instant, c in calls if instant > world.now_us - period - grain)
        allowed = world.call(limit).allowed
        assert allowed or late + 1 > amount
        if allowed:
            calls.append((world.now_us, 1))
    assert len(calls) > 1500
    assert fullest_window(calls, period) <= amount


def test_no_double_amount_around_a_boundary(world: World) -> None:
    """10 at the end of a minute and 10 at the beginning of the next are denied."""
    limit = Limit(10, MINUTE, "sliding-window")
    assert world.passed(limit, 10) == 10
    world.wait(59.5)
    assert world.passed(limit, 10) == 0
    world.wait(0.5)
    assert world.passed(limit, 11) == 10


@pytest.mark.parametrize("cost", [1, 1500, 40_000_000])
def test_an_entry_takes_at_most_16_bytes(redis_client: redis.Redis, cost: int) -> None:
    """One entry a call, whatever it costs, at most 512 of them: 20,000 calls take 8 kB."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    limit = Limit(10**12, DAY, "sliding-window")
    bare = redis_client.set("bare00", "") and redis_client.memory_usage("bare00")
    largest = 0
    for calls in range(1, 1401):
        world.now_us += DAY // 1000
        world.call(limit, cost)
        if calls in (1, 2, 20, 100, 255, 256, 257, 511, 512, 513, 1000, 1400):
            entries, rest = divmod(redis_client.strlen("bucket"), ENTRY_BYTES)
            assert rest in (1, 1 + 5)  # the width, and the base
            assert entries == calls if calls <= 256 else entries <= MOST_ENTRIES
            used = redis_client.memory_usage("bucket") - bare
            assert used <= 16 * (entries + 1)
            largest = max(largest, entries)
    assert largest > 500


def test_a_log_begins_without_a_base(redis_client: redis.Redis) -> None:
    """Also after all its calls have left: an entry of 8 bytes and the width."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    for _ in range(2):
        world.call(Limit(10, MINUTE, "sliding-window"))
        assert redis_client.strlen("bucket") == 9
        world.wait(60)


def test_an_entry_stays_as_it_was_written(redis_client: redis.Redis) -> None:
    """Also when those before it have left: no call pays for writing the others anew."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    limit = Limit(10, MINUTE, "sliding-window")
    logs = list[bytes]()
    for _ in range(4):
        world.call(limit)
        logs.append(redis_client.get("bucket"))
        world.wait(25)
    [second] = [log[8:16] for log in logs[1:2]]
    assert [log.count(second) for log in logs] == [0, 1, 1, 1]
    assert not logs[3].startswith(logs[0][:8])


def test_every_instant_of_a_full_period_fits(redis_client: redis.Redis) -> None:
    """A call in each 1/511 of the period, at the worst alignment, still makes 512 entries."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    period = 511 * 1000
    limit = Limit(10**6, period, "sliding-window")
    world.now_us -= world.now_us % 1000
    for call in range(1600):
        world.now_us += 1000 if call % 2 else 999
        world.now_us += 1 - call % 2
        world.call(limit)
        assert redis_client.strlen("bucket") <= 5 + MOST_ENTRIES * ENTRY_BYTES


def test_a_log_widens_with_what_it_counts(redis_client: redis.Redis) -> None:
    """Amounts and corrections beyond the width of the sums rewrite the log, and lose no unit."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    verdicts, spent = [], 0
    for width, amount in enumerate((200, 60_000, 10**7, 4 * 10**9, 10**12), 1):
        limit = Limit(amount, DAY, "sliding-window", name="log")
        for cost in (1, amount // 3):
            world.wait(1)
            verdicts.append(world.call(limit, cost))
            spent += cost
            assert verdicts[-1].remaining == amount - spent
        assert redis_client.strlen("bucket") == len(verdicts) * (7 + width) + 1
    world.settle(verdicts[0], 5)
    world.settle(verdicts[3], -60_000 // 3)
    assert world.left(limit) == 10**12 - spent - 5 + 60_000 // 3
    world.wait(us=DAY - 8 * SECOND)  # the first two have left
    assert world.left(limit) == 10**12 - spent + 1 + 200 // 3 + 60_000 // 3


def test_a_correction_widens_a_log(redis_client: redis.Redis) -> None:
    """A call of one unit that really cost a million; what follows stays."""
    world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    limit = Limit(200, DAY, "sliding-window")
    first = world.call(limit)
    world.wait(1)
    world.passed(limit, 3)
    world.settle(first, 10**6)
    assert not world.call(limit).allowed
    world.wait(us=DAY - SECOND)
    assert world.left(limit) == 200 - 3


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_sum_fits_its_bytes(world: World, bits: int, more: int) -> None:
    """One that needs a byte more is not stored as nothing."""
    limit = Limit(2**bits + more, MINUTE, "sliding-window")
    assert world.call(limit, limit.amount).allowed
    assert world.left(limit) == 0
    assert not world.call(limit).allowed


def test_a_malformed_log_counts_as_an_empty_one() -> None:
    """A byte too many behind an entry of now."""
    kept = OpenBuckets()
    world = World(MemoryEngine(lambda: kept))
    log = world.now_us.to_bytes(7, "little") + b"\x05\x00\x01"
    limit = Limit(10, MINUTE, "sliding-window")
    assert world.call(limit).remaining == 9
    kept._world["values"]["bucket"] = log.decode("latin-1")
    assert world.call(limit).remaining == 9
