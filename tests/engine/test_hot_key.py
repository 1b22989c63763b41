"""Never one too many and never one too few, with everyone on one key at once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import redis

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.engine.redis import RedisEngine
from tests.engine import hot_key


@pytest.mark.slow
def test_eight_processes_of_eight_threads_get_exactly_the_amount(
    redis_uri: str, redis_client: redis.Redis
) -> None:
    """320 calls on 200 for each strategy; and of two limits in one call the scarcer is exact,
    while the wider is charged for the admitted calls alone."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(hot_key.PROCESSES, mp_context=spawn) as pool:
        running = [pool.submit(hot_key.run, redis_uri) for _ in range(hot_key.PROCESSES)]
        counts = [future.result(timeout=120) for future in running]
    admitted = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert admitted == {**dict.fromkeys(hot_key.LIMITS, hot_key.AMOUNT), "both": 60}
    wide = hot_key.LIMITS["fixed-window"]
    engine = RedisEngine(redis_client, redis.RedisError)
    assert engine.admit([Charge(wide, "wide", 0)]).verdicts[0].remaining == hot_key.AMOUNT - 60
