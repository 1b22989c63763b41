"""What random histories (tests/engine/test_histories.py) seldom reach: memory and a server agree to
the digit at the largest logs and numbers."""

import random
from typing import Any

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import DAY, SECOND, START


@pytest.mark.parametrize("seed", range(3))
def test_a_log_at_its_largest_has_one_outcome(redis_client: redis.Redis, seed: int) -> None:
    """Merging, expiry and correction in the middle of 512 entries, in memory and on a server. A log
    grows no further."""
    chance = random.Random(seed)
    period = chance.choice((60 * SECOND, DAY, 360 * DAY))
    limit = Limit(400_000, period, "sliding-window")
    memory = MemoryEngine()
    server = RedisEngine(VirtualClient(redis_client), redis.RedisError)
    now, longest, taken = START, 0, []
    for call in range(2000):
        now += chance.choice((0, 1, period // 3000, period // 700, period // 511))
        charge = Charge(limit, "b", chance.choice((1, 1, 1, 50, 1000, 200_000)))
        take = chance.random() < 0.95
        decision = memory.admit([charge], take=take, now_us=now)
        assert decision == server.admit([charge], take=take, now_us=now)
        taken += decision.verdicts if take else ()
        if chance.random() < 0.1:
            verdict = chance.choice(taken[-600:])
            change = Change.adjust(verdict, chance.randint(-verdict.charge.cost, 30))
            assert memory.settle([change], now_us=now) == server.settle([change], now_us=now)
        if call > 1200 and chance.random() < 0.01:
            now += chance.choice((-1, -SECOND, -period // 9, period // 2))
        longest = max(longest, redis_client.strlen("b"))
    assert 480 * 10 < longest <= 512 * 10 + 4  # the amount fits 3 bytes


def test_the_product_of_the_largest_numbers_is_exact(redis_client: redis.Redis) -> None:
    """The prelude's a * b / m is exact to 2^53, where a double alone is not."""
    from importlib.resources import files

    prelude = (files("ratelimit_ext.engine") / "prelude.lua").read_text("utf-8")
    script = (
        prelude
        + """
    begin('[]')
    local quotient, rest = multiply_divide(tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
    return {string.format('%.0f', quotient), string.format('%.0f', rest)}
    """
    )
    chance = random.Random(1)
    for _ in range(2000):
        divisor = chance.randint(1, 2 ** chance.randint(1, 48))
        one = chance.randint(0, 2 ** chance.randint(1, 53) - 1)
        other = chance.randint(0, 2 ** chance.randint(1, 53) - 1)
        if one * other // divisor >= 2**53:
            other = min(other, divisor)
        reply: Any = redis_client.eval(script, 0, one, other, divisor)
        assert tuple(map(int, reply)) == divmod(one * other, divisor)
