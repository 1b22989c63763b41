"""What is kept for a class of traffic: the three guarantees, for each strategy on each engine.

The reference is the same strategy beside it: with all of the amount, and with what a class is kept.
"""

import time
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.last_verdicts import LastVerdicts
from ratelimit_ext.engine.memory import MemoryEngine
from tests.strategies.world import DAY, MINUTE, RATES, SECOND, World

KEEP: Final = (("interactive", 40), ("normal", 20))
CLASSES: Final = ("interactive", "normal", "batch")
#: Classes, costs, and seconds that pass before each call.
TRACES: Final = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.integers(1, 25), st.sampled_from((0, 0, 0, 1, 7, 61))),
    min_size=1,
    max_size=60,
)


def shared(strategy: str, units: int = 100, **more: Any) -> Limit:
    """100 a minute; fixed windows are days, as those of the calendar begin for all at once."""
    if strategy == "fixed-window":
        return Limit(units, DAY, strategy, anchor="day", **more)
    return Limit(units, MINUTE, strategy, **more)


def private(strategy: str, units: int) -> Limit:
    """What a class is kept, for itself alone: a bucket has the whole rate."""
    return shared(strategy, burst=units) if strategy == "token-bucket" else shared(strategy, units)


@pytest.mark.parametrize("strategy", RATES)
@pytest.mark.parametrize(("name", "kept"), KEEP)
@given(trace=TRACES)
@settings(max_examples=200, deadline=None)
def test_guarantees(strategy: str, name: str, kept: int, trace: list[tuple[str, int, int]]) -> None:
    """1. Whatever is admitted would be without classes: the limit is never exceeded. 2. As long as
    what a class and those above it ask for fits what this class is kept, no lower class makes it
    wait. In memory alone: a class is a smaller amount, so no engine knows of it."""
    world, limit = World(MemoryEngine()), shared(strategy, keep=KEEP)
    for each, cost, seconds in trace:
        world.wait(seconds * limit.period_us / MINUTE)
        is_kept = CLASSES.index(each) <= CLASSES.index(name)
        if is_kept and not world.call(private(strategy, kept), cost, "kept").allowed:
            continue
        admitted = world.call(limit.of_class(each), cost).allowed
        assert admitted or not is_kept
        if admitted:
            assert world.call(shared(strategy), cost, "without classes").allowed


@pytest.mark.parametrize("strategy", RATES)
def test_a_lower_class_alone(world: World, strategy: str) -> None:
    """3. It gets all of a window but what is kept, and the whole rate of a bucket."""
    batch = shared(strategy, keep=KEEP).of_class("batch")
    assert world.passed(batch, 50) == 40
    assert world.call(batch).reset_after_us > 0
    if strategy != "token-bucket":
        return
    passed = 0
    for _ in range(600):
        world.wait(1)
        passed += world.passed(batch, 3)
    assert passed == 100 * 10


@pytest.mark.parametrize("strategy", RATES)
def test_the_wait_is_exact(world: World, strategy: str) -> None:
    """Of a lower class it is that of the smaller amount: denied a microsecond before its end."""
    batch, interactive = (
        shared(strategy, keep=KEEP).of_class("batch"),
        shared(strategy, keep=KEEP).of_class("interactive"),
    )
    assert world.passed(interactive, 70) == 70
    wait_us = world.call(batch).retry_after_us
    assert wait_us is not None
    world.wait(us=wait_us - 1)
    assert not world.look(batch).allowed
    world.wait(us=1)
    assert world.look(batch).allowed


def test_calls_in_flight(world: World) -> None:
    """Two of five slots are kept."""
    limit = Limit(5, SECOND, "concurrency", unit="calls", keep=(("interactive", 2),))
    assert world.passed(limit.of_class("batch"), 5) == 3
    assert world.passed(limit.of_class("interactive"), 5) == 2
    assert world.call(limit.of_class("batch")).remaining == 0


def test_one_bucket_and_the_same_words(world: World) -> None:
    """A class has no bucket of its own, and the highest one decides as if there were no classes."""
    limit = shared("token-bucket", keep=KEEP)
    charges = [Charge(limit.of_class(name), "bucket") for name in CLASSES]
    assert charges[0].limit.words() == shared("token-bucket").words()
    assert [world.request(charge).verdicts[0].remaining for charge in charges] == [99, 58, 37]


@pytest.mark.parametrize("first", CLASSES)
def test_an_outage_knows_what_was_used(first: str) -> None:
    """By the last verdict, whatever class had it: all share one bucket. A class of which the others
    have more than it may use has less than nothing, or the next class would get that again."""
    last, limit = LastVerdicts(), shared("sliding-window", keep=KEEP)
    world = World(MemoryEngine())
    assert world.passed(limit.of_class("interactive"), 50) == 50
    left = dict(zip(CLASSES, (50, 10, -10), strict=True))
    for name in CLASSES:
        last.note((time.monotonic(), world.request(Charge(limit.of_class(first), "bucket", 0))))
        rest = last.take(limit.of_class(name), "bucket")
        assert rest is not None
        assert rest.remaining == left[name]
