"""What a surge limit promises, on every engine."""

import pytest

from ratelimit_ext.core.limit import Limit
from tests.strategies.world import DAY, HOUR, World

LIMIT = Limit(5, HOUR, "surge", multiple=10)


def hours(world: World, *used: int) -> None:
    """Use this amount in each of these hours."""
    for units in used:
        if units:
            world.call(LIMIT, units)
        world.now_us += HOUR


def test_nobody_is_stopped_without_a_past(world: World) -> None:
    """The first three windows pass at any usage: only budgets limit a new caller."""
    for _ in range(3):
        assert world.passed(LIMIT, 1000, cost=7) == 1000
        world.now_us += HOUR
    assert world.passed(LIMIT, 10, cost=10**6) == 1


def test_a_multiple_of_the_usual_passes_and_no_more(world: World) -> None:
    """10 an hour is usual: 100 pass within one, and the next waits for its end."""
    hours(world, 10, 10, 10, 10)
    assert world.passed(LIMIT, 100) == 100
    denied = world.call(LIMIT)
    assert (denied.allowed, denied.retry_after_us) == (False, HOUR)
    world.wait(1800)
    assert world.look(LIMIT).retry_after_us == HOUR // 2
    world.wait(1800)
    assert world.call(LIMIT).allowed


def test_what_stays_within_the_amount_is_never_abnormal(world: World) -> None:
    """A caller with almost no usage may use the amount of the limit."""
    hours(world, 1, 0, 1, 0, 1)
    small = Limit(25, HOUR, "surge", multiple=10)
    assert world.passed(small, 100) == 25


def test_idle_windows_are_not_part_of_the_usual(world: World) -> None:
    """After nights and weekends a morning is what mornings are."""
    for _ in range(4):
        hours(world, 20)
        world.now_us += 3 * DAY
    assert world.passed(LIMIT, 500) == 200


def test_a_runaway_does_not_become_usual_in_a_day(world: World) -> None:
    """A caller that always uses the maximum: a window counts at most double."""
    hours(world, *[10] * 8)
    first = world.passed(LIMIT, 10**4)
    world.now_us += HOUR
    second = world.passed(LIMIT, 10**4)
    assert (first, second) == (100, 110)


def test_growth_that_lasts_becomes_usual(world: World) -> None:
    """Five times as much, every hour, becomes usual within a week."""
    hours(world, *[10] * 8)
    hours(world, *[50] * 24 * 7)
    assert world.passed(LIMIT, 10**4) >= 400


def test_one_call_always_passes(world: World) -> None:
    """A single call that is dearer than ten usual hours passes at the beginning of a window, so
    that the reported wait is always long enough."""
    hours(world, *[1] * 8)
    assert world.call(LIMIT, 1).allowed
    assert world.call(LIMIT, 1000).retry_after_us == HOUR
    world.now_us += HOUR
    assert world.call(LIMIT, 1000).allowed


def test_a_correction_belongs_to_its_window(world: World) -> None:
    """A refund lowers the window that was charged; one that is over is not touched, and what was
    used beyond an estimate is used now."""
    hours(world, *[10] * 8)
    verdict = world.call(LIMIT, 100)
    assert not world.call(LIMIT).allowed
    assert world.settle(verdict, -60) == 1
    assert world.passed(LIMIT, 100) == 60
    world.now_us += HOUR
    assert world.settle(verdict, -10) == 0
    assert world.settle(verdict, 30) == 1
    assert world.passed(LIMIT, 200) == 110 - 30


@pytest.mark.parametrize("back", [5, 3700, 3 * 86_400])
def test_a_clock_set_back_stops_nobody_for_longer_than_a_window(world: World, back: int) -> None:
    """The window ends at the latest a period from now."""
    hours(world, *[10] * 8)
    world.passed(LIMIT, 100)
    world.wait(-back)
    wait_us = world.call(LIMIT).retry_after_us
    assert wait_us
    assert wait_us <= HOUR
