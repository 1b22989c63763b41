"""Windows of the calendar end by the server's clock, however wrong that of a worker is."""

import time

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Claim, PreparedCharges
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import Arguments
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.fixed_window import calendar_window
from tests.strategies.world import DAY, HOUR, SECOND, START

DAILY = Limit(5, DAY, anchor="day")
MONTHLY = Limit(5, 30 * DAY, anchor="month", timezone="Europe/Berlin")

by_any = pytest.mark.parametrize("limit", [DAILY, MONTHLY], ids=["day", "month"])


class Worker:
    """An engine whose machine's clock is wrong."""

    def __init__(
        self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, wrong_by_us: int = 0
    ) -> None:
        self.engine = RedisEngine(client, redis.RedisError)
        self._monkeypatch = monkeypatch
        self._wrong_by_us = wrong_by_us

    def call(self, limit: Limit, cost: int = 1) -> tuple[bool, int]:
        """Whether a call passes, and when its window ends."""
        wrong_us = time.time_ns() // 1000 + self._wrong_by_us
        self._monkeypatch.setattr("ratelimit_ext.core.clock.now_us", lambda: wrong_us)
        decision = self.engine.admit([Charge(limit, "b", cost)])
        return decision.admitted, decision.now_us + decision.verdicts[0].reset_after_us


def end_of(client: redis.Redis, limit: Limit) -> int:
    """When the present window ends, by the server's clock."""
    seconds, microseconds = client.time()
    now = seconds * SECOND + microseconds
    begin, end = calendar_window(now, limit.anchor or "", limit.timezone)
    assert begin <= now < end
    return end


def expiry_us(client: redis.Redis) -> int:
    """When the bucket is dropped."""
    return int(client.execute_command("PEXPIRETIME", "b")) * 1000


@pytest.fixture(
    params=[days * DAY for days in (-400, -40, -2, -1, 1, 2, 40)], ids=lambda us: us // DAY
)
def worker(
    request: pytest.FixtureRequest, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Worker:
    """A worker whose clock is wrong by some days."""
    return Worker(redis_client, monkeypatch, request.param)


@by_any
def test_a_wrong_clock_admits_the_amount(worker: Worker, limit: Limit) -> None:
    """Alone, from its first call on: no window is over before it begins."""
    assert [worker.call(limit)[0] for _ in range(7)] == [True] * 5 + [False] * 2


def test_charges_that_come_again_have_the_windows_of_their_time() -> None:
    """What an engine has prepared of them is not made again, and not kept into another window."""
    arguments, charges = Arguments(), PreparedCharges([Charge(Limit(2, DAY, anchor="day"), "{a}")])
    noon = 20_000 * DAY + 12 * HOUR
    _, words, _ = arguments.admission(charges, noon)
    assert arguments.admission(charges, noon + SECOND)[1] is words
    assert Arguments().admission(charges, noon)[1] is not words
    later = arguments.admission(charges, noon + DAY)[1]
    assert str(20_002 * DAY) in words
    assert str(20_003 * DAY) not in words
    assert str(20_003 * DAY) in later


def test_requests_that_differ_in_their_costs_have_the_same_words() -> None:
    """So a server decodes them once: costs, claims, holds and identities are arguments apart."""
    arguments, limit = Arguments(), Limit(1000, DAY, "fixed-window", unit="usd")
    charge = Charge(limit, "b{ann}", 5)
    claimed = charge._replace(claim=Claim(5, 5, 6, 7))
    one = arguments.admission([claimed, charge._replace(at_once=0), charge], START)
    other = arguments.admission(
        [
            Charge(limit, "b{bob}", 8, claim=Claim(8, 9, 10, 11)),
            charge._replace(at_once=3, cost=4),
            charge._replace(cost=2000),
        ],
        START,
    )
    assert one[1] == other[1]
    assert (one[2], other[2]) == ("[5,5,5,6,7,5,0,5]", "[8,8,9,10,11,4,3,1001]")


@by_any
def test_a_wrong_clock_is_corrected_by_the_first_reply(
    worker: Worker, redis_client: redis.Redis, limit: Limit
) -> None:
    """From the second call on it has the windows of the server's calendar."""
    worker.call(limit)
    redis_client.flushdb()
    assert worker.call(limit) == (True, end_of(redis_client, limit))
    assert abs(expiry_us(redis_client) - end_of(redis_client, limit)) < SECOND


@pytest.mark.parametrize("wrong_by_us", [-2 * DAY, -DAY, -DAY + HOUR, DAY - HOUR, DAY])
def test_a_clock_that_is_wrong_by_a_day_has_the_right_window_at_once(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, wrong_by_us: int
) -> None:
    """Even its first call, before it has seen the server's clock, opens today's window."""
    worker = Worker(redis_client, monkeypatch, wrong_by_us)
    assert worker.call(DAILY) == (True, end_of(redis_client, DAILY))


@by_any
def test_workers_with_wrong_clocks_share_the_amount(
    worker: Worker, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, limit: Limit
) -> None:
    """A wrong clock makes no window longer or shorter for other workers."""
    worker.call(Limit(1, DAY), 0)  # it has seen the server's clock
    right = Worker(redis_client, monkeypatch)
    passed = sum(each.call(limit)[0] for _ in range(5) for each in (worker, right))
    assert passed == 5
    assert right.call(limit) == worker.call(limit) == (False, end_of(redis_client, limit))


def test_a_debt_is_carried_into_the_servers_window(
    worker: Worker, redis_client: redis.Redis
) -> None:
    """A correction opens no window in the past."""
    charge = Charge(DAILY, "b", 1)
    worker.call(Limit(1, DAY), 0)
    verdict = worker.engine.admit([charge]).verdicts[0]
    redis_client.flushdb()
    assert worker.engine.settle([Change.adjust(verdict, 5)]) == 1
    assert worker.call(DAILY) == (False, end_of(redis_client, DAILY))
