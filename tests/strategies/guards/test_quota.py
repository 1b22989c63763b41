"""What a provider quota promises, on every engine."""

import random

import pytest

from ratelimit_ext.core.limit import Limit
from tests.strategies.world import DAY, HOUR, MINUTE, SECOND, World

TOKENS = Limit(1, MINUTE, "reported", unit="tokens")


def test_nothing_is_denied_before_the_first_report(world: World) -> None:
    """Without a report there is no limit."""
    assert all(world.call(TOKENS, 10**9).allowed for _ in range(100))


def test_what_is_left_is_what_was_reported(world: World) -> None:
    """Refilled evenly since then, and the wait is exact."""
    world.report(TOKENS, 600, 590, MINUTE)
    assert world.left(TOKENS) == 10
    assert world.call(TOKENS, 10).allowed
    denied = world.call(TOKENS, 20)
    assert denied.retry_after_us == 2 * SECOND
    world.wait(2, us=-1)
    assert not world.look(TOKENS, 20).allowed
    world.wait(us=1)
    assert world.call(TOKENS, 20).allowed


@pytest.mark.parametrize(("ours", "reported", "left"), [(400, 100, 200), (100, 550, 50)])
def test_a_later_report(world: World, ours: int, reported: int, left: int) -> None:
    """One that is older than our calls does not give them back; what other users of the quota have
    used is not available."""
    world.report(TOKENS, 600, 0, MINUTE)
    assert world.call(TOKENS, ours).allowed
    world.report(TOKENS, 600, reported, MINUTE)
    assert world.left(TOKENS) == left


@pytest.mark.parametrize(("amount", "left"), [(1200, 800), (500, 100), (300, 0)])
def test_another_amount_keeps_what_is_used(world: World, amount: int, left: int) -> None:
    """A raised tier, a lowered one: 400 are used of either."""
    world.report(TOKENS, 600, 400, MINUTE)
    world.report(TOKENS, amount, 0, MINUTE)
    assert world.left(TOKENS) == left


@pytest.mark.parametrize("back_s", [0.5, 2, 3600])
def test_a_clock_set_back_makes_no_wait_longer(world: World, back_s: float) -> None:
    """But for the second by which clocks may differ."""
    world.report(TOKENS, 600, 590, MINUTE)
    world.wait(-back_s)
    wait_us = world.look(TOKENS, 20).retry_after_us
    assert wait_us is not None
    assert SECOND <= wait_us <= 2 * SECOND


def test_what_is_used_of_another_amount_is_rounded_up(world: World) -> None:
    """In the units of the amount before, and of the new one: of seven and of 700."""
    world.report(TOKENS, 7, 3, MINUTE)
    world.report(TOKENS, 700, 0, MINUTE)
    assert 700 - 3 - 2 <= world.left(TOKENS) < 700 - 3


def test_a_call_above_the_whole_amount_waits_for_a_full_bucket(world: World) -> None:
    """A cost above the whole quota is never a permanent denial: the provider decides."""
    world.report(TOKENS, 600, 60, MINUTE)
    assert world.call(TOKENS, 5000).retry_after_us == 6 * SECOND
    world.wait(6)
    assert world.call(TOKENS, 5000).allowed
    assert world.left(TOKENS) == 0


def test_a_correction_gives_back_and_charges(world: World) -> None:
    """What a call really used, within a full bucket and a debt of one period."""
    world.report(TOKENS, 600, 0, MINUTE)
    verdict = world.call(TOKENS, 500)
    assert world.settle(verdict, -200) == 1
    assert world.left(TOKENS) == 300
    assert world.settle(verdict, 400) == 1
    assert world.left(TOKENS) == 0
    for _ in range(10):
        world.settle(verdict, 10**30)
    wait_us = world.look(TOKENS, 1).retry_after_us
    assert wait_us is not None
    assert wait_us <= 2 * MINUTE
    for _ in range(2):
        world.settle(verdict, -(10**30))
    assert world.left(TOKENS) == 600


def test_a_report_is_forgotten_after_an_hour(world: World) -> None:
    """A report expires after an hour, and a millisecond of the server's."""
    world.report(TOKENS, 60, 60, MINUTE)
    world.now_us += HOUR + 1000
    assert world.passed(TOKENS, 100) == 100


@pytest.mark.parametrize("seed", range(3))
def test_the_pace_is_the_keepers(world: World, seed: int) -> None:
    """However calls come, no more pass than amount and refill allow, and no refill is lost."""
    chance = random.Random(seed)
    amount, period = chance.choice(((90, MINUTE), (10_000, DAY), (30_000_000, MINUTE)))
    world.report(TOKENS, amount, amount, period)
    begun, taken = world.now_us, 0
    cost = max(1, amount // 100)
    while world.now_us - begun < period:
        world.now_us += chance.randint(1, period // 200)
        if world.call(TOKENS, cost).allowed:
            taken += cost
    refilled = (world.now_us - begun) * amount // period
    assert refilled - 2 * cost <= taken <= refilled
