"""`limiter.operators.restore`: a limit counts again what its storage has lost."""

import random
from collections.abc import Sequence

import pytest
import redis

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.records.restoration import RestoredUsage, Use, restore
from tests.strategies.virtual_time import VirtualClient

SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
#: 2025-11-24 16:00:00 UTC
START = 1_764_000_000 * SECOND
LIMITS = [
    Limit(1000, HOUR, "fixed-window", unit="usd"),
    Limit(1000, 30 * DAY, "fixed-window", unit="usd", anchor="month"),
    Limit(1000, DAY, "fixed-window", unit="usd", anchor="day", timezone="Europe/Berlin"),
    Limit(1000, HOUR, "sliding-window", unit="usd"),
    Limit(1000, HOUR, "sliding-window-counter", unit="usd"),
    Limit(1000, HOUR, "token-bucket", unit="tokens"),
]
every_limit = pytest.mark.parametrize("limit", LIMITS, ids=str)


class Clock:
    """An engine in virtual time: `restore` asks it for its own clock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now_us = START

    def admit(self, charges: Sequence[Charge], **words: object) -> object:
        return self.engine.admit(charges, **{"now_us": self.now_us, **words})  # type: ignore[arg-type]

    def settle(self, changes: Sequence[object], **words: object) -> int:
        return self.engine.settle(changes, **{"now_us": self.now_us, **words})  # type: ignore[arg-type]

    def remaining(self, limit: Limit, later_us: int = 0) -> int:
        """What a look finds."""
        at_us = self.now_us + later_us
        return self.engine.admit([Charge(limit, "b", 0)], now_us=at_us).verdicts[0].remaining


def call(clock: Clock, limit: Limit, uses: Sequence[Use]) -> None:
    """Charge calls when they are made."""
    for at_us, units in uses:
        clock.engine.admit([Charge(limit, "b", units)], now_us=at_us)


def restored(
    clock: Clock, limit: Limit, uses: Sequence[Use], *, apply: bool = True
) -> RestoredUsage:
    from_now = [(at_us - clock.now_us, units) for at_us, units in uses]
    return restore(clock, Charge(limit, "b"), from_now, apply=apply)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "redis"])
def clock(request: pytest.FixtureRequest) -> Clock:
    """Each engine, in virtual time."""
    if request.param == "memory":
        return Clock(MemoryEngine())
    client = request.getfixturevalue("redis_client")
    return Clock(RedisEngine(VirtualClient(client), redis.RedisError))


def uses_until(now_us: int, seed: int) -> list[Use]:
    """Some calls of the last three hours, with pauses, that fit into each limit."""
    chance = random.Random(seed)
    instants = sorted(now_us - chance.randrange(1, 3 * HOUR) for _ in range(chance.randrange(30)))
    return [(at_us, chance.randrange(1, 20)) for at_us in instants]


@every_limit
@pytest.mark.parametrize("seed", range(8))
def test_a_lost_limit_is_what_it_was(clock: Clock, limit: Limit, seed: int) -> None:
    """It counts the same, and frees it at the same time, as if it had not been lost."""
    uses = uses_until(START, seed)
    call(clock, limit, uses)
    later = [step * HOUR // 4 for step in range(10)]
    before = [clock.remaining(limit, each) for each in later]
    clock.engine.clear(["b"])
    missing = restored(clock, limit, uses).missing
    assert missing == 1000 - before[0]
    assert [clock.remaining(limit, each) for each in later] == before


@every_limit
def test_a_dry_run_changes_nothing(clock: Clock, limit: Limit) -> None:
    """It says what is missing; and after the real one, a second changes nothing."""
    uses = [(START - 10 * SECOND, 300), (START - 5 * SECOND, 200)]
    dry = restored(clock, limit, uses, apply=False)
    assert clock.remaining(limit) == 1000
    assert restored(clock, limit, uses) == dry
    left = clock.remaining(limit)
    assert left <= 505
    assert restored(clock, limit, uses).missing == 0
    assert clock.remaining(limit) == left


@every_limit
def test_calls_since_the_loss_count_once(clock: Clock, limit: Limit) -> None:
    """The record has them too. What is missing is charged now: it never admits too much, and is
    free again within a period, or with the calendar's."""
    uses = [(START - 20 * SECOND, 300), (START - 10 * SECOND, 200), (START - SECOND, 100)]
    never_lost = Clock(MemoryEngine())
    call(never_lost, limit, uses)
    call(clock, limit, uses[2:])
    restored(clock, limit, uses)
    assert clock.remaining(limit) == never_lost.remaining(limit)
    assert restored(clock, limit, uses).missing == 0
    for later in range(0, limit.period_us, limit.period_us // 7):
        assert clock.remaining(limit, later) <= never_lost.remaining(limit, later)
    periods = 2 if limit.traits.name == "sliding-window-counter" else 1
    assert clock.remaining(limit, periods * limit.period_us) == 1000


@every_limit
def test_a_limit_that_counts_more_is_left_alone(clock: Clock, limit: Limit) -> None:
    """The record may lack calls."""
    call(clock, limit, [(START, 600)])
    assert restored(clock, limit, [(START, 300)]).missing == 0
    assert clock.remaining(limit) == 400


@every_limit
def test_an_exhausted_limit_stays_so(clock: Clock, limit: Limit) -> None:
    """Also what was used beyond the amount comes back, once."""
    uses = [(START, 900), (START, 900)]
    for _ in range(3):
        restored(clock, limit, uses)
        assert clock.remaining(limit) == 0
    if limit.traits.name == "token-bucket":
        assert clock.remaining(limit, HOUR) == 200


@every_limit
@pytest.mark.parametrize("given_back", [100, 300, 900])
def test_what_was_given_back_is_not_charged(clock: Clock, limit: Limit, given_back: int) -> None:
    """The limit counts what is left of its uses, at least 0; calls after that count as usual."""
    uses = [(START - 2, 300), (START - 1, -given_back)]
    left = max(0, 300 - given_back)
    assert restored(clock, limit, uses) == (0, left, left)
    assert clock.remaining(limit) == 1000 - left
    restored(clock, limit, [*uses, (START, 50)])
    assert clock.remaining(limit) == 950 - left


def test_nothing_is_charged_if_all_was_given_back(clock: Clock) -> None:
    """Also where the strategy rounds what it gives back."""
    limit = Limit(1000, HOUR, "sliding-window-counter", unit="usd")
    assert restored(clock, limit, [(START - HOUR, 10), (START, -10)]) == (0, 0, 0)
    assert clock.remaining(limit) == 1000


def test_many_uses_are_joined(clock: Clock) -> None:
    """A sliding window frees 20,000 calls late by at most a 256th of its period."""
    limit = Limit(100_000, HOUR, "sliding-window", unit="usd")
    uses = [(START - HOUR + 1 + number * HOUR // 20_000, 1) for number in range(20_000)]
    assert restored(clock, limit, uses).missing == 20_000
    for later in range(0, HOUR, HOUR // 16):
        exact = 80_000 + sum(at_us <= START + later - HOUR for at_us, _ in uses)
        assert exact - 20_000 // 250 <= clock.remaining(limit, later) <= exact


@every_limit
def test_a_use_in_the_future_is_one_of_now(clock: Clock, limit: Limit) -> None:
    """Clocks of workers differ."""
    restored(clock, limit, [(START + 50 * SECOND, 300)])
    assert clock.remaining(limit) == 700


def test_what_was_given_back_in_the_future_is_given_back(clock: Clock) -> None:
    """In the order of the record, although all of it counts now."""
    uses = [(START + 50 * SECOND, 300), (START + 60 * SECOND, -100)]
    assert restored(clock, LIMITS[1], uses) == (0, 200, 200)
