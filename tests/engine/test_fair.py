"""A budget that the members of a group share: the guarantees, on each engine, and both engines'
answers to the digit.

The oracle counts on its own: what each member has taken in the open window, and how many there are.
"""

import math
from collections import Counter
from datetime import datetime
from fractions import Fraction
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies.fair_window import FIRST, MOST_MEMBERS
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import DAY, HOUR, MINUTE, SECOND, World

AMOUNT: Final = 100
#: Members, costs, and which part of the window passes before each call, in percent.
TRACES: Final = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 12), st.sampled_from((0, 0, 0, 0, 1, 3, 40))),
    min_size=1,
    max_size=80,
)
KINDS: Final[dict[str, dict[str, Any]]] = {
    "minute": {"period_us": MINUTE},
    "steep": {"period_us": MINUTE, "pace": 1500},
    "day": {"period_us": DAY, "anchor": "day"},
    "hours": {"period_us": DAY, "anchor": "day", "hours": "8-18", "timezone": "Europe/Berlin"},
}
#: Windows of several days, whose line the oracle does not know.
LONG: Final[dict[str, dict[str, Any]]] = {
    "week": {"period_us": 7 * DAY, "anchor": "week", "hours": "0-24", "week_starts": "sunday"},
    "month": {
        "period_us": 30 * DAY,
        "anchor": "month",
        "pace": 1250,
        "hours": "22-24",
        "timezone": "America/New_York",
    },
}


def shared(**more: Any) -> Limit:
    return Limit(**{"amount": AMOUNT, "period_us": MINUTE, "name": "team", "fair": True} | more)


def charges(limit: Limit, member: str, cost: int = 1) -> tuple[Charge, Charge]:
    """The group's, and the member's right after it."""
    return Charge(limit, "b:{team}", cost), Charge(limit.share(), f"s:{member}{{team}}", cost)


def call(world: World, limit: Limit, member: str, cost: int = 1, **how: Any) -> Decision:
    return world.request(*charges(limit, member, cost), **how)


def passed(world: World, limit: Limit, member: str, most: int = AMOUNT) -> int:
    """How many calls of the member pass now, one after the other."""
    return next((n for n in range(most) if not call(world, limit, member).admitted), most)


class Oracle:
    """What the guarantees say of the window that ends then."""

    def __init__(self, last: int) -> None:
        self.used: Counter[str] = Counter()
        self.last = last

    @property
    def spent(self) -> int:
        return self.used.total()

    def share_of(self, member: str, passed: Fraction) -> int:
        expected = self.last or math.ceil(FIRST * (1 - passed))
        return AMOUNT // max(len({*self.used, member}), expected)


@pytest.mark.parametrize("kind", KINDS)
@given(trace=TRACES)
@settings(max_examples=60, deadline=None)
def test_guarantees(kind: str, trace: list[tuple[str, int, int]]) -> None:
    """1. Never above the amount. 2. Members above their share do not push the group beyond the
    line. 3. A member below its share is refused only when the whole budget is gone. 4. Below the
    line all may spend."""
    world, limit = World(MemoryEngine()), shared(**KINDS[kind])
    oracle, end = Oracle(0), 0
    for member, cost, percent in trace:
        world.wait(us=limit.period_us * percent // 100)
        if world.now_us >= end:
            oracle = Oracle(len(oracle.used) if world.now_us < end + limit.period_us else 0)
        decision = call(world, limit, member, cost)
        group, own = decision.verdicts
        end = group.receipt or 0
        begin = end - limit.period_us
        passed, line = expected_line(limit, begin, world.now_us)
        fits = oracle.used[member] + cost <= oracle.share_of(member, passed)
        after = oracle.spent + cost
        opens = limit.anchor is None and not oracle.spent
        assert group.allowed == (after <= AMOUNT)
        assert own.allowed == (after <= line or fits or opens)
        assert own.share is not None
        if decision.admitted:
            oracle.used[member] += cost
            assert own.share[:2] == (oracle.used[member], oracle.share_of(member, passed))
            assert own.share.ahead == oracle.spent - line
            assert (own.share.until_us > 0) == (own.share.ahead > 0)
        oracle.used += Counter()  # those that took nothing are no members


def expected_line(limit: Limit, begin: int, now_us: int) -> tuple[Fraction, int]:
    """Which part of the window has passed, and what the line has reached."""
    passed, whole = now_us - begin, limit.period_us
    if limit.hours:
        at = datetime.fromtimestamp(now_us / 1e6, ZoneInfo(limit.timezone))
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        passed = now_us - int(midnight.timestamp()) * 1_000_000 - 8 * HOUR
        whole = 10 * HOUR
    passed = min(whole, max(0, passed))
    line = min(AMOUNT, AMOUNT * passed // (whole * 1000 // limit.pace))
    return Fraction(passed, whole), line


@given(trace=TRACES, kind=st.sampled_from([*KINDS, *LONG]), held=st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_both_engines_agree(
    redis_client: redis.Redis, trace: list[tuple[str, int, int]], kind: str, held: bool
) -> None:
    """To the digit, with estimates, settlements, refunds, renewals and leases that end."""
    redis_client.flushdb()
    worlds = (
        World(MemoryEngine()),
        World(RedisEngine(VirtualClient(redis_client), redis.RedisError)),
    )
    limit = shared(**(KINDS | LONG)[kind], unit="tokens" if held else "requests")
    taken: list[list[Decision]] = []
    for number, (member, cost, percent) in enumerate(trace):
        hold = Hold(number + 1, HOUR) if held else NO_HOLD
        answers = []
        for world in worlds:
            world.wait(us=limit.period_us * percent // 100)
            own = charges(limit, member, cost)
            answers.append(world.engine.admit(own, hold=hold, now_us=world.now_us))
        assert answers[0] == answers[1]
        if answers[0].admitted:
            taken.append(answers)
        if taken and number % 3 == 2:
            earlier, real = taken.pop(0), cost * 2 - 3
            for world, decision in zip(worlds, earlier, strict=True):
                changes = [
                    Change.settle(each, Hold(number, HOUR), max(0, real))
                    if held
                    else Change.adjust(each, real)
                    for each in decision.verdicts
                ]
                world.engine.settle(changes, now_us=world.now_us)


#: At the end, the budget is used up while the share of the last member is not.
USED_UP: Final = [*[("a", 1, 0)] * 4, ("b", 1, 0), *[("b", 12, 0)] * 2, ("b", 12, 40)]
USED_UP += [*[("b", 12, 0)] * 2, ("a", 12, 0), ("c", 12, 0), ("d", 12, 0)]


@given(trace=TRACES, kind=st.sampled_from([*KINDS, *LONG]))
@example(trace=USED_UP, kind="day")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_shadow_decides_as_if_it_were_enforced(
    redis_client: redis.Redis, trace: list[tuple[str, int, int]], kind: str
) -> None:
    """On both engines, to the digit; it denies nothing, and a call that it would deny takes nothing
    of it: neither of the group's nor of the member's."""
    redis_client.flushdb()
    enforced = World(MemoryEngine())
    shadows = (
        World(MemoryEngine()),
        World(RedisEngine(VirtualClient(redis_client), redis.RedisError)),
    )
    words = (KINDS | LONG)[kind]
    for member, cost, percent in trace:
        for world in (enforced, *shadows):
            world.wait(us=shared(**words).period_us * percent // 100)
        expected = call(enforced, shared(**words), member, cost)
        tried = [call(world, shared(mode="shadow", **words), member, cost) for world in shadows]
        assert tried[0] == tried[1]
        assert tried[0].admitted
        fits = [[each.allowed for each in found.verdicts] for found in (expected, tried[0])]
        assert all(fits[0]) == all(fits[1])
        left = [
            call(world, shared(**words), member, 0, take=False) for world in (enforced, *shadows)
        ]
        assert [each.remaining for each in left[0].verdicts] == [
            each.remaining for each in left[1].verdicts
        ]
        assert left[1] == left[2]


@pytest.mark.parametrize("kind", KINDS | LONG)
def test_the_wait_is_exact(world: World, kind: str) -> None:
    """A microsecond earlier is too early: until the line is reached; a call that costs more than
    what is left waits for the next window, and one that costs all for fewer members."""
    limit = shared(**(KINDS | LONG)[kind])
    world.wait(us=limit.period_us // 7)
    for member, cost in (("a", 1), ("a", 30), ("a", 5), ("b", 5), ("a", AMOUNT), ("a", 1)):
        passed(world, limit, "b")
        passed(world, limit, "a")
        denied = call(world, limit, member, cost, take=False)
        wait_us = max(each.retry_after_us or 0 for each in denied.verdicts)
        assert wait_us > 0
        world.wait(us=wait_us - 1)
        assert not call(world, limit, member, cost, take=False).admitted
        world.wait(us=1)
        assert call(world, limit, member, cost, take=False).admitted


def test_a_loop_leaves_the_others_their_shares(world: World) -> None:
    """The first one takes a twentieth ahead of the line in the first window, and then what
    the number of members allows."""
    limit = shared()
    assert passed(world, limit, "loop") == AMOUNT // FIRST
    assert [passed(world, limit, f"user {n}") for n in range(4)] == [AMOUNT // FIRST] * 4
    world.wait(60)
    assert passed(world, limit, "loop") == AMOUNT // 5
    assert [passed(world, limit, f"user {n}") for n in range(4)] == [AMOUNT // 5] * 4


def test_nothing_is_wasted(world: World) -> None:
    """A member alone gets all of it, as fast as the line rises."""
    limit, total = shared(pace=1500), 0
    for _ in range(60):
        total += passed(world, limit, "loop")
        world.wait(us=MINUTE // 60 - 1)
    assert total == AMOUNT


def test_a_refund_and_a_debt(world: World) -> None:
    """Both are the member's and the group's."""
    limit = shared(amount=1000)
    decision = call(world, limit, "a", 50)
    assert not call(world, limit, "a").admitted
    changes = [Change.adjust(each, -30) for each in decision.verdicts]
    assert world.engine.settle(changes, now_us=world.now_us) == 2
    group, refunded = call(world, limit, "a", 0, take=False).verdicts
    assert refunded.share is not None
    assert (group.remaining, refunded.share.used, refunded.remaining) == (980, 20, 30)
    changes = [Change.adjust(each, 900) for each in decision.verdicts]
    world.engine.settle(changes, now_us=world.now_us)
    assert call(world, limit, "a", 0, take=False).verdicts[1].remaining == 0
    assert passed(world, limit, "b") == 50
    changes = [Change.adjust(each, -10_000) for each in decision.verdicts]
    world.engine.settle(changes, now_us=world.now_us)
    group, refunded = call(world, limit, "a", 0, take=False).verdicts
    assert (group.remaining, refunded.share and refunded.share.used) == (1000, 0)


def test_an_emptied_budget_begins_afresh(world: World) -> None:
    """An operator empties the group's bucket alone: its members begin afresh with it."""
    limit = shared(**KINDS["day"])
    world.wait(us=-(world.now_us % DAY))
    assert passed(world, limit, "a") == AMOUNT // FIRST
    world.engine.clear(["b:{team}"])
    world.wait(us=1)
    assert passed(world, limit, "a") == AMOUNT // FIRST


def test_a_limit_becomes_fair_and_back(world: World) -> None:
    """What is used stays used."""
    limit, plain = shared(), shared(fair=False)
    assert world.passed(plain, 30, key="b:{team}") == 30
    assert call(world, limit, "a").verdicts[0].remaining == AMOUNT - 31
    assert world.left(plain, "b:{team}") == AMOUNT - 31
    assert call(world, limit, "a").verdicts[0].remaining == AMOUNT - 32


@pytest.mark.parametrize("engine", ["memory", "redis"])
def test_invented_members_need_no_more_memory(engine: str, redis_client: redis.Redis) -> None:
    """Beyond the largest number they have no share and no bucket."""
    world = World(MemoryEngine())
    if engine == "redis":
        world = World(RedisEngine(VirtualClient(redis_client), redis.RedisError))
    limit = shared(amount=10**9)
    for number in range(MOST_MEMBERS + 50):
        call(world, limit, str(number))
    last = call(world, limit, "last", take=False).verdicts[1].share
    assert last is not None
    assert last.members == MOST_MEMBERS + 1
    world.wait(1)
    assert call(world, limit, "last").admitted  # by the line
    assert not call(world, limit, "last", 10**9 // 59).admitted
    kept: Any = world.engine
    names = len(kept._buckets().named("")) if engine == "memory" else redis_client.dbsize()
    assert names == MOST_MEMBERS + 1


def test_a_day_without_its_hours(world: World) -> None:
    """The clocks skip them once a year: then the whole day counts."""
    words = {**KINDS["day"], "timezone": "Europe/Berlin", "hours": "2-3"}
    world.now_us = int(datetime(2027, 3, 28, 12, tzinfo=ZoneInfo("UTC")).timestamp()) * SECOND
    assert passed(world, shared(**words), "a") == AMOUNT * 13 // 23


def test_only_windows_can_be_fair() -> None:
    """A token bucket has no elapsed part."""
    with pytest.raises(ConfigurationError, match="fair needs windows that begin and end"):
        shared(strategy="token-bucket")


@pytest.mark.parametrize("is_open", [False, True])
def test_a_correction_belongs_to_its_window(world: World, *, is_open: bool) -> None:
    """A refund credits no window but its own. Debt is charged to the one that is open, or opens
    one."""
    limit = shared()
    group, _ = call(world, limit, "ada", 10).verdicts
    world.wait(61)
    if is_open:
        assert call(world, limit, "bob", 5).admitted
    used = 5 if is_open else 0
    for delta, more in ((-10, 0), (-1, 0), (0, 0), (1, 1)):
        world.settle(group, delta)
        assert call(world, limit, "bob", 0, take=False).used(0) == used + more, delta
