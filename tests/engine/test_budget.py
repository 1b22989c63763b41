"""A budget under load: what concurrent calls may spend together."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine

DAY = 86_400_000_000
LEASE = 120_000_000
BUDGET = 1_000_000  # a dollar in micro-dollars
# The errors of the calls in flight nearly cancel out: 100 of 500 calls, each a fifth off.
ESTIMATE = 2_000
STREAMS = 100


class Account:
    """What has really been spent, kept beside the limit."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spent = 0
        self.dearest_excess = 0


@pytest.mark.parametrize("strategy", ["fixed-window", "sliding-window"])
@pytest.mark.parametrize(
    ("dearest", "tolerance"), [(3.0, None), (1.2, 0.02)], ids=["3 × the estimate", "calibrated"]
)
def test_a_crowd_cannot_overspend(
    redis_client: redis.Redis, strategy: str, dearest: float, tolerance: float | None
) -> None:
    """100 streams at once on a dollar: no more than the budget and what the calls in flight cost
    over their estimates; with estimates that are nearly right, within 2 %."""
    engine = RedisEngine(redis_client, redis.RedisError)
    limit = Limit(BUDGET, DAY, strategy, unit="usd")
    account, begin = Account(), threading.Barrier(STREAMS)

    def stream(number: int) -> None:
        chance = random.Random(number)
        begin.wait()
        while True:
            hold = Hold(chance.getrandbits(48), LEASE)
            decision = engine.admit([Charge(limit, "budget", ESTIMATE)], hold=hold)
            if not decision.admitted:
                return
            # Calibrated: right on average, a fifth off either way.
            low = 0.0 if tolerance is None else 2 - dearest
            real = int(ESTIMATE * chance.uniform(low, dearest))
            with account.lock:
                account.spent += real
                account.dearest_excess = max(account.dearest_excess, real - ESTIMATE)
            assert engine.settle([Change.settle(decision.verdicts[0], hold, real)]) == 1

    with ThreadPoolExecutor(STREAMS) as crowd:
        list(crowd.map(stream, range(STREAMS)))
    over = account.spent - BUDGET
    assert over <= account.dearest_excess * STREAMS
    if tolerance is not None:
        assert over <= BUDGET * tolerance
    # No call was refused while a call still fitted: what is left is less than one estimate.
    assert BUDGET - account.spent < ESTIMATE
    look = engine.admit([Charge(limit, "budget", 0)], take=False).verdicts[0]
    assert look.remaining == max(0, -over)


def test_debt_is_repaid_before_the_next_call(redis_client: redis.Redis) -> None:
    """A bucket that was overdrawn by half a dollar waits exactly until that is refilled."""
    engine = RedisEngine(redis_client, redis.RedisError)
    limit = Limit(BUDGET, DAY, "token-bucket", unit="usd")
    now = 1_764_000_000_000_000
    hold = Hold(1, LEASE)
    verdict = engine.admit([Charge(limit, "b", ESTIMATE)], hold=hold, now_us=now).verdicts[0]
    engine.settle([Change.settle(verdict, hold, BUDGET + 500_000)], now_us=now)
    denied = engine.admit([Charge(limit, "b", ESTIMATE)], hold=hold, now_us=now)
    wait_ms = denied.retry_after_ms
    assert wait_ms == (500_000 + ESTIMATE) * DAY // BUDGET // 1000
    again = Charge(limit, "b", ESTIMATE)
    assert not engine.admit([again], take=False, now_us=now + (wait_ms - 1) * 1000).admitted
    assert engine.admit([again], hold=hold, now_us=now + wait_ms * 1000).admitted
