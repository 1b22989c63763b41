"""Sliding window counter: two numbers, and what they can and cannot promise."""

import pytest

from ratelimit_ext.core.limit import Limit
from tests.strategies.world import MINUTE, World


def test_the_previous_window_weighs_what_still_overlaps(world: World) -> None:
    """Half a window on, half of what the previous one took is free again."""
    limit = Limit(10, MINUTE, "sliding-window-counter")
    assert world.passed(limit, 10) == 10
    world.wait(60)
    assert world.passed(limit, 10) == 0
    world.wait(30)
    assert world.passed(limit, 10) == 5


@pytest.mark.parametrize(("after_s", "before"), [(60, 5 // 2), (120, 0)])
def test_the_next_window_begins_as_the_last_one_ends(
    world: World, after_s: int, before: int
) -> None:
    """5 that are taken then all count half a minute later, beside half of those before."""
    limit = Limit(10, MINUTE, "sliding-window-counter")
    assert world.passed(limit, 5) == 5
    world.wait(after_s)
    assert world.passed(limit, 5) == 5
    world.wait(30)
    assert world.left(limit) == 10 - before - 5


def test_a_steady_stream_passes_at_its_rate(world: World) -> None:
    """One every 6 s on 10 a minute is never denied, hour after hour."""
    limit = Limit(10, MINUTE, "sliding-window-counter")
    for _ in range(600):
        assert world.call(limit).allowed
        world.wait(6.6)


def test_what_is_given_back_of_the_previous_window_weighs_nothing(world: World) -> None:
    """A call that began in it gives back half, then more than the rest, which gives no more."""
    limit = Limit(10, MINUTE, "sliding-window-counter")
    first = world.call(limit, 10)
    world.wait(60)
    assert world.settle(first, -5) == 1
    assert world.left(limit) == 5
    assert world.settle(first, -9) == 1
    assert world.left(limit) == 10
    assert world.passed(limit, 12) == 10
    world.wait(60)
    assert world.settle(first, -1) == 0


def test_two_windows_later_all_is_forgotten(world: World) -> None:
    """Usage of two windows ago weighs nothing."""
    limit = Limit(10, MINUTE, "sliding-window-counter")
    world.passed(limit, 10)
    world.wait(120)
    assert world.passed(limit, 20) == 10


def test_its_weakness_is_as_documented(world: World) -> None:
    """It assumes that the previous calls were spread evenly, and releases late ones too soon.

    10 at second 59 and 5 at second 90 are 15 within a minute on a limit of 10.
    """
    limit = Limit(10, MINUTE, "sliding-window-counter")
    world.call(limit, 0)
    opening = world.call(limit, 1)
    world.settle(opening, -1)
    world.wait(59)
    assert world.passed(limit, 10) == 10
    world.wait(31)
    assert world.passed(limit, 10) == 5
