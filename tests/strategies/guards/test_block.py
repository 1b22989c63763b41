"""What a block promises, on every engine."""

from __future__ import annotations

import pytest

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.guards.block import RAMP_US, REASONS
from tests.strategies.world import SECOND, World

SWITCH = Limit(1, SECOND, "block")


def test_nobody_is_blocked_who_was_not(world: World) -> None:
    """Without a block everything passes, at any rate."""
    assert world.passed(SWITCH, 1000) == 1000


@pytest.mark.parametrize("reason", REASONS)
def test_a_block_ends_when_it_says(world: World, reason: str) -> None:
    """To the microsecond, and until then every answer tells the reason."""
    assert world.block(SWITCH, 10, reason=reason) == 1
    denied = world.call(SWITCH)
    assert (denied.allowed, denied.remaining, denied.reason) == (False, 0, reason)
    assert denied.retry_after_us == 10 * SECOND
    world.wait(10, us=-1)
    assert world.call(SWITCH).retry_after_us == 1
    world.wait(us=1)
    assert world.passed(SWITCH, 1000) == 1000


def test_a_block_concerns_its_identity_alone(world: World) -> None:
    """Calls of another identity pass."""
    world.block(SWITCH, 10, key="a")
    assert not world.call(SWITCH, key="a").allowed
    assert world.call(SWITCH, key="b").allowed


def test_a_block_can_be_lifted(world: World) -> None:
    """A cleared bucket is open at once."""
    world.block(SWITCH, 3600)
    world.engine.clear(["bucket"])
    assert world.call(SWITCH).allowed


def test_a_shorter_block_never_ends_a_longer_one(world: World) -> None:
    """A cool-down of a second leaves an operator's hour as it is, and its reason."""
    world.block(SWITCH, 3600)
    assert world.block(SWITCH, 1, reason="overloaded") == 0
    world.wait(2)
    assert world.call(SWITCH).reason == "blocked"
    assert world.block(SWITCH, 7200, reason="closed") == 1
    assert world.call(SWITCH).reason == "closed"


def test_a_ramp_lets_twice_as_many_through_each_second(world: World) -> None:
    """1, 3, 7, 15, 31, 63 in all; a denial names the exact wait until the next may pass."""
    world.block(SWITCH, 10, reason="overloaded", ramped=True)
    world.wait(10)
    through = 0
    for allowed in (1, 3, 7, 15, 31, 63):
        through += world.passed(SWITCH, 100)
        assert through == allowed
        wait_us = world.call(SWITCH).retry_after_us
        assert wait_us == SECOND
        world.wait(us=wait_us - 1)
        assert not world.look(SWITCH).allowed
        world.wait(us=1)
    assert world.passed(SWITCH, 1000) == 1000


def test_a_ramp_that_nobody_climbs_is_over_all_the_same(world: World) -> None:
    """It opens by time, also without calls."""
    world.block(SWITCH, 10, reason="overloaded", ramped=True)
    world.now_us += 10 * SECOND + RAMP_US
    assert world.passed(SWITCH, 1000) == 1000


def test_what_fails_again_on_its_ramp_waits_longer(world: World) -> None:
    """1 s, 2 s, 4 s, up to half a minute; after the ramp it starts over."""
    growing = {"reason": "overloaded", "ramped": True, "grows": True}
    waits = []
    for _ in range(8):
        world.block(SWITCH, 1, **growing)
        wait_us = world.look(SWITCH).retry_after_us
        assert wait_us
        waits.append(wait_us // SECOND)
        world.wait(us=wait_us)
        assert world.call(SWITCH).allowed
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    world.now_us += RAMP_US
    world.block(SWITCH, 1, **growing)
    assert world.look(SWITCH).retry_after_us == SECOND


def test_a_wait_that_was_named_does_not_grow(world: World) -> None:
    """Without `grows` the length is kept."""
    for _ in range(4):
        world.block(SWITCH, 1, reason="overloaded", ramped=True)
        assert world.look(SWITCH).retry_after_us == SECOND
        world.wait(1.5)


@pytest.mark.parametrize("back", [0.3, 1, 5, 3700])
def test_a_clock_set_back_makes_no_block_longer(world: World, back: float) -> None:
    """The rest of a block is what it was, but for the second by which clocks may differ."""
    world.block(SWITCH, 10, reason="overloaded", ramped=True)
    world.wait(-back)
    wait_us = world.call(SWITCH).retry_after_us
    assert wait_us
    assert wait_us <= 11 * SECOND
    world.wait(us=wait_us)
    assert world.call(SWITCH).allowed


def test_those_who_fail_together_close_it_once(world: World) -> None:
    """Eight concurrent calls fail once each: that is one pause, and it grows with a call that fails
    when it has ended."""
    growing = {"reason": "overloaded", "ramped": True, "grows": True}
    for _ in range(8):
        world.block(SWITCH, 1, **growing)
        world.wait(us=4000)
    assert world.call(SWITCH).retry_after_us <= SECOND
    world.wait(1)
    world.block(SWITCH, 1, **growing)
    world.block(SWITCH, 1, **growing)
    assert world.call(SWITCH).retry_after_us == 2 * SECOND


@pytest.mark.parametrize(("cost", "after"), [(1, 0), (2, 1), (3, 1), (63, 5), (64, 6), (100, 6)])
def test_a_call_that_counts_for_several_waits_for_its_step(
    world: World, cost: int, after: int
) -> None:
    """The wait that is named before the end of a block is that of this cost, and no shorter."""
    world.block(SWITCH, 10, reason="overloaded", ramped=True)
    denied = world.call(SWITCH, cost)
    assert denied.retry_after_us == (10 + after) * SECOND
    world.wait(10 + after, us=-1)
    assert not world.call(SWITCH, cost).allowed
    world.wait(us=1)
    assert world.call(SWITCH, cost).allowed
