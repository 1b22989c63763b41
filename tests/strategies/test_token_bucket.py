"""Token bucket: the burst at once, then the rate, to the microsecond."""

import random
from dataclasses import replace

import pytest
import redis

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.world import DAY, HOUR, MINUTE, SECOND, World


def test_a_burst_of_ten_then_one_every_two_seconds(world: World) -> None:
    """30/minute with a burst of 10: 10 at once, the 11th denied for 2 s, 10 s later 5 more."""
    limit = Limit(30, MINUTE, "token-bucket", burst=10)
    assert world.passed(limit, 10) == 10
    assert world.call(limit).retry_after_ms == 2000
    world.wait(10)
    assert world.passed(limit, 10) == 5


def test_the_burst_is_the_amount_unless_said(world: World) -> None:
    """30/minute alone holds 30; after a long rest not one more."""
    limit = Limit(30, MINUTE, "token-bucket")
    assert world.passed(limit, 40) == 30
    world.wait(3600)
    assert world.passed(limit, 40) == 30


@pytest.mark.parametrize("seed", range(5))
def test_no_arrival_pattern_loses_a_refill(world: World, seed: int) -> None:
    """90/minute admits 18 in the 12 s after its burst, however the calls are spread."""
    chance = random.Random(seed)
    limit = Limit(90, MINUTE, "token-bucket", burst=10)
    assert world.passed(limit, 20) == 10
    begin, end = world.now_us, world.now_us + 12_000_000
    admitted = 0
    for instant in sorted(chance.randint(begin, end) for _ in range(150)):
        world.now_us = instant
        admitted += world.call(limit).allowed
    world.now_us = end
    assert admitted + world.passed(limit, 5) == 18


def test_four_at_a_time_ten_a_second_is_no_open_door(world: World) -> None:
    """10/second with a burst of 4 admits 4 of 50 at once: the bucket outlives its refill."""
    assert world.passed(Limit(10, 1_000_000, "token-bucket", burst=4), 50) == 4


def test_fractions_of_a_rare_token_add_up(world: World) -> None:
    """One a day, looked at every hour: the next passes after the day, not a microsecond before."""
    limit = Limit(1, DAY, "token-bucket")
    world.call(limit)
    for _ in range(23):
        world.wait(3600)
        assert not world.call(limit).allowed
    world.wait(3600, us=-1)
    assert not world.call(limit).allowed
    world.wait(us=1)
    assert world.call(limit).allowed


def test_the_smallest_part_of_a_token_is_missing(world: World) -> None:
    """Three in seven seconds: after 2,333,333 µs a seven-millionth is missing, and none is left."""
    limit = Limit(3, 7 * SECOND, "token-bucket", burst=1)
    world.call(limit)
    world.wait(us=2_333_333)
    assert (world.left(limit), world.call(limit).retry_after_us) == (0, 1)
    world.wait(us=1)
    assert world.left(limit) == 1
    assert world.call(limit).allowed


def test_a_refund_never_overfills(world: World) -> None:
    """A refund after a long pause fills the bucket, and no more."""
    limit = Limit(60, MINUTE, "token-bucket", burst=10)
    verdict = world.call(limit, 10)
    world.wait(3600)
    world.settle(verdict, -10)
    assert world.passed(limit, 20) == 10


def test_a_bucket_that_is_full_again_is_dropped(world: World) -> None:
    """A full refund leaves nothing that a server would have to keep."""
    verdict = world.call(HOURLY, 7)
    assert world.settle(verdict, -7) == 1
    assert world.engine.clear(["bucket"]) == 0


def test_a_refund_forgives_no_part_of_a_unit(world: World) -> None:
    """Two of three in seven seconds: after a second and a refund of one, 4/7 are missing."""
    limit = Limit(3, 7 * SECOND, "token-bucket", burst=2)
    verdict = world.call(limit, 2)
    world.wait(1)
    assert world.settle(verdict, -1) == 1
    assert (world.left(limit), world.call(limit, 2).retry_after_us) == (1, 1_333_334)


def test_a_correction_by_a_clock_that_is_a_little_behind_frees_nothing_early(world: World) -> None:
    """Servers of a cluster may differ by less than a second: the bucket leaks from its own time."""
    limit = Limit(60, MINUTE, "token-bucket", burst=10)
    verdict = world.call(limit, 10)
    world.wait(-0.5)
    assert world.settle(verdict, -1) == 1
    world.wait(1.5)
    assert world.passed(limit, 5) == 2


HOURLY = Limit(1000, HOUR, "token-bucket", name="hourly")


@pytest.mark.parametrize(("amount", "left"), [(100, 72), (10, 0), (2000, 1972)])
def test_a_changed_amount_counts_the_past_at_the_pace_that_held(
    world: World, amount: int, left: int
) -> None:
    """1,000 an hour, used up and idle for 3,500 s: 27.8 are missing, whatever is allowed then."""
    world.call(HOURLY, 1000)
    world.wait(3500)
    assert world.left(HOURLY) == 972
    changed = replace(HOURLY, amount=amount)
    assert world.left(changed) == left
    world.wait(3.6 * 1000 / amount)  # one is refilled at the new pace
    assert world.left(changed) == left + (left > 0)


def test_a_denial_after_a_change_tells_the_exact_wait(world: World) -> None:
    """The first decision at another amount counts at that pace from then on, though it denies."""
    world.call(HOURLY, 1000)
    world.wait(2700)
    lowered = replace(HOURLY, amount=100)
    wait = world.call(lowered).retry_after_us
    assert wait == 151 * 36 * SECOND  # 250 are missing
    world.wait(us=wait - 1)
    assert not world.call(lowered).allowed
    world.wait(us=1)
    assert world.call(lowered).allowed


def test_a_malformed_bucket_counts_as_a_fresh_one(redis_client: redis.Redis) -> None:
    """A value of another length, such as one without a pace; a charge replaces it."""
    world = World(RedisEngine(redis_client, redis.RedisError))
    stored = b"".join(n.to_bytes(7, "little") for n in (40, 0, world.now_us - MINUTE))
    for limit in (replace(HOURLY, amount=600), replace(HOURLY, amount=600, unit="tokens")):
        redis_client.set("bucket", (b"\0" * 4 if limit.held else b"") + stored)
        assert world.left(limit) == 600
        assert world.call(limit).remaining == 599
        assert world.left(limit) == 599
