"""What a block promises, on every engine."""

import pytest

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.guards.block import REASONS
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
    assert world.block(SWITCH, 3600, reason="overloaded") == 0
    world.wait(2)
    assert world.call(SWITCH).reason == "blocked"
    assert world.block(SWITCH, 7200, reason="closed") == 1
    assert world.call(SWITCH).reason == "closed"


@pytest.mark.parametrize("back", [0.3, 1, 5, 3700])
def test_a_clock_set_back_makes_no_block_longer(world: World, back: float) -> None:
    """The rest of a block is what it was, but for the second by which clocks may differ."""
    world.block(SWITCH, 10, reason="overloaded")
    world.wait(-back)
    wait_us = world.call(SWITCH).retry_after_us
    assert wait_us
    assert wait_us <= 11 * SECOND
    world.wait(us=wait_us)
    assert world.call(SWITCH).allowed
