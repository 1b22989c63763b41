"""One decision over all charges of a request: all are taken, or none."""

from dataclasses import replace

import pytest

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from tests.strategies.world import DAY, HOUR, MINUTE, RATES, World

WIDE = Limit(100, MINUTE, "token-bucket", name="wide")
HOURLY = Limit(3, HOUR, "sliding-window", name="hourly")
DAILY = Limit(2, DAY, "fixed-window", name="daily")
LAYERS = (Charge(WIDE, "wide"), Charge(HOURLY, "hourly"), Charge(DAILY, "daily"))


def test_a_denied_request_charges_nothing(world: World) -> None:
    """20 calls on 100/minute;3/hour;2/day: the day denies 18, and takes nothing from the others."""
    admitted = sum(world.request(*LAYERS).admitted for _ in range(20))
    assert admitted == 2
    assert world.left(WIDE, "wide") == 98
    assert world.left(HOURLY, "hourly") == 1


def test_a_denial_names_every_limit_that_denied(world: World) -> None:
    """Not only the first; the wait is the longest of theirs."""
    for _ in range(2):
        world.request(*LAYERS)
    world.call(HOURLY, key="hourly")
    decision = world.request(*LAYERS)
    assert [denial.charge.key for denial in decision.denials] == ["hourly", "daily"]
    assert decision.retry_after_ms == decision.verdicts[2].retry_after_ms == 86_400_000


def test_what_would_have_passed_reports_what_is_untouched(world: World) -> None:
    """`remaining` of a charge that was not taken is its uncharged remaining."""
    for _ in range(2):
        world.request(*LAYERS)
    decision = world.request(*LAYERS)
    assert not decision.admitted
    assert [verdict.remaining for verdict in decision.verdicts] == [98, 1, 0]
    assert [verdict.allowed for verdict in decision.verdicts] == [True, True, False]


def test_a_look_takes_nothing(world: World) -> None:
    """take=False answers for the cost and leaves everything as it was."""
    for _ in range(10):
        decision = world.request(*LAYERS, take=False)
        assert decision.admitted
        assert [verdict.remaining for verdict in decision.verdicts] == [100, 3, 2]


@pytest.mark.parametrize("strategy", RATES)
def test_what_has_to_fit_and_is_not_taken(world: World, strategy: str) -> None:
    """With `at_once` the whole cost decides, in one call with what is taken; its wait is exact."""
    limit, calls = Limit(4, MINUTE, strategy, name="limit"), Limit(9, DAY, name="calls")
    later, now = Charge(limit, "limit", 3, at_once=0), Charge(calls, "calls")
    for _ in range(3):
        decision = world.request(later, now)
        assert decision.admitted
        assert decision.verdicts[0].remaining == decision.left()[0][0] == 4
    world.settle(decision.verdicts[0]._replace(receipt=0), 2)
    decision = world.request(later, now)
    assert [verdict.allowed for verdict in decision.verdicts] == [False, True]
    assert world.left(calls, "calls") == 6
    wait_us = decision.verdicts[0].retry_after_us
    assert wait_us
    world.wait(us=wait_us - 1)
    assert not world.request(later, take=False).admitted
    world.wait(us=1)
    assert world.request(later, take=False).admitted


def test_what_is_taken_at_once_of_one_bucket(world: World) -> None:
    """Two charges of it have to fit together, and only the one is taken."""
    limit = Limit(5, MINUTE, "sliding-window")
    both = (Charge(limit, "bucket", 2), Charge(limit, "bucket", 3, at_once=0))
    assert world.request(*both).admitted
    assert world.left(limit, "bucket") == 3
    decision = world.request(*both)
    assert [verdict.charge.taken for verdict in decision.verdicts] == [2]
    assert not decision.admitted


def test_a_cost_of_0_that_is_taken_later_does_not_fit_an_overdrawn_bucket(world: World) -> None:
    """Any other cost of 0 is a look, which is never denied."""
    limit = Limit(2, MINUTE)
    world.call(limit, cost=2, key="bucket")
    later = Charge(limit, "bucket", 0, at_once=0)
    decision = world.request(later)
    assert decision.admitted
    world.settle(decision.verdicts[0]._replace(receipt=0), 1)
    assert not world.request(later).admitted
    assert world.request(Charge(limit, "bucket", 0)).admitted


def test_no_charges_are_admitted(world: World) -> None:
    """A request that no limit concerns passes."""
    assert world.request().admitted
    assert world.request().verdicts == ()
    assert world.engine.settle([]) == 0


def test_a_shadow_counts_and_never_denies(world: World) -> None:
    """It is decided like any other, and counts what is admitted."""
    shadow = Limit(2, MINUTE, "fixed-window", mode="shadow")
    charges = (Charge(HOURLY, "hourly"), Charge(shadow, "shadow"))
    decisions = [world.request(*charges) for _ in range(5)]
    assert [decision.admitted for decision in decisions] == [True] * 3 + [False] * 2
    assert [decision.verdicts[1].remaining for decision in decisions] == [1, 0, 0, 0, 0]
    assert not decisions[-1].verdicts[1].allowed
    assert [d.charge.key for d in decisions[-1].denials] == ["hourly"]


@pytest.mark.parametrize("strategy", RATES)
def test_a_shadow_counts_what_it_would_count_if_it_were_enforced(
    world: World, strategy: str
) -> None:
    """60 a day beside 5 a minute, of ten calls a minute: in half an hour 150 are admitted. The
    shadow would deny the last 90, from the same call on as if it were enforced."""
    pace, daily = Limit(5, MINUTE, name="pace"), Limit(60, DAY, strategy, name="daily")
    if strategy == "token-bucket":
        daily = replace(daily, period_us=1000 * DAY)  # refills nothing meanwhile

    def denied(limit: Limit) -> list[int]:
        found = []
        for call in range(300):
            decision = world.request(Charge(pace, f"pace-{limit.mode}"), Charge(limit, limit.mode))
            if decision.verdicts[0].allowed and not decision.verdicts[1].allowed:
                found.append(call)
            world.wait(6)
        return found

    start = world.now_us
    in_shadow = denied(replace(daily, mode="shadow"))
    world.now_us = start
    assert in_shadow[0] == denied(daily)[0] == 120
    assert len(in_shadow) == 90


def test_a_shadow_beside_the_live_limit_leaves_it_in_force(world: World) -> None:
    """On one bucket as well: the tighter shadow never switches the enforced limit off."""
    live = Limit(3, MINUTE, name="calls")
    shadow = Limit(1, MINUTE, name="calls", mode="shadow")
    for _ in range(2):
        world.request(Charge(live, "calls"), Charge(shadow, "calls"))
    assert not world.request(Charge(live, "calls"), Charge(shadow, "calls")).admitted


def test_a_meta_charge_is_taken_by_a_denial_alone(world: World) -> None:
    """After two denials the third attempt is banned, even if the limit would admit it."""
    ban = Limit(2, HOUR, name="ban")
    charges = (Charge(Limit(1, MINUTE), "calls"), Charge(ban, "ban", meta=True))
    decision = world.request(*charges)
    assert decision.admitted
    assert [remaining for remaining, *_ in decision.left()] == [0, 2]
    assert world.left(ban, "ban") == 2
    assert not world.request(*charges).admitted
    assert not world.request(*charges).admitted
    assert world.left(ban, "ban") == 0
    world.wait(120)
    decision = world.request(*charges)
    assert [denial.charge.key for denial in decision.denials] == ["ban"]
    assert world.left(Limit(1, MINUTE), "calls") == 1
    world.wait(3600)
    assert world.request(*charges).admitted


def test_a_ban_does_not_lengthen_itself(world: World) -> None:
    """While it denies, it is not charged again."""
    ban = Limit(1, MINUTE, "sliding-window", name="ban")
    charges = (Charge(Limit(1, 1_000_000), "calls"), Charge(ban, "ban", meta=True))
    world.request(*charges)
    assert not world.request(*charges).admitted
    for _ in range(59):
        world.wait(1)
        assert not world.request(*charges).admitted
    world.wait(1)
    assert world.request(*charges).admitted


def test_a_ban_that_denies_feeds_no_other_ban(world: World) -> None:
    """A denial by a ban does not count towards the next one."""
    short, long = Limit(1, HOUR, name="short"), Limit(3, DAY, name="long")
    charges = (
        Charge(Limit(1, HOUR), "calls"),
        Charge(short, "short", meta=True),
        Charge(long, "long", meta=True),
    )
    assert [world.request(*charges).admitted for _ in range(9)] == [True] + [False] * 8
    assert world.left(long, "long") == 2


def test_a_meta_charge_hears_of_its_own_denials(world: World) -> None:
    """`on_denial` names the charges whose denial takes it; another's does not."""
    first, second = Limit(1, HOUR, name="first"), Limit(2, HOUR, name="second")
    ban = Limit(9, HOUR, name="ban")
    charges = (
        Charge(first, "first"),
        Charge(second, "second"),
        Charge(ban, "ban", meta=True, on_denial=(1,)),
    )
    world.request(*charges)
    world.request(*charges)
    assert world.left(ban, "ban") == 9
    world.call(second, key="second")
    world.request(*charges)
    assert world.left(ban, "ban") == 8


def test_a_meta_in_shadow_counts_and_bans_nobody(world: World) -> None:
    """A ban in shadow is counted, and denies nothing."""
    ban = Limit(1, HOUR, name="ban", mode="shadow")
    charges = (Charge(Limit(1, MINUTE), "calls"), Charge(ban, "ban", meta=True))
    assert [world.request(*charges).admitted for _ in range(4)] == [True, False, False, False]
    assert world.left(ban, "ban") == 0
    world.wait(60)
    decision = world.request(*charges)
    assert decision.admitted
    assert not decision.verdicts[1].allowed


def test_the_same_bucket_twice_is_charged_for_both(world: World) -> None:
    """Two charges of 3 on 10 are 6: neither is lost, and together they must fit."""
    limit = Limit(10, MINUTE)
    twice = (Charge(limit, "bucket", 3), Charge(limit, "bucket", 3))
    assert world.request(*twice).admitted
    assert world.left(limit) == 4
    assert not world.request(*twice).admitted
    assert world.left(limit) == 4


def test_positions_survive_the_same_bucket_twice(world: World) -> None:
    """The trigger of a meta charge is still the same bucket when two before it were merged."""
    limit, other, ban = Limit(4, HOUR), Limit(2, HOUR, name="other"), Limit(9, HOUR, name="ban")
    charges = (
        Charge(limit, "bucket"),
        Charge(limit, "bucket"),
        Charge(other, "other"),
        Charge(ban, "ban", meta=True, on_denial=(2,)),
    )
    world.request(*charges)
    world.request(*charges)
    assert world.left(ban, "ban") == 9
    world.request(*charges)
    assert world.left(ban, "ban") == 8


def test_two_definitions_of_one_bucket_are_held_to_the_tighter(world: World) -> None:
    """If a limit was changed between two definitions, both costs count against the smaller."""
    limit = Limit(10, MINUTE, name="calls")
    tight = replace(limit, amount=4)
    charges = (Charge(limit, "bucket"), Charge(tight, "bucket"))
    assert [world.request(*charges).admitted for _ in range(4)] == [True, True, False, False]


def test_corrections_of_one_bucket_are_all_applied(world: World) -> None:
    """Two refunds on one bucket in one settlement both count."""
    limit = Limit(10, MINUTE)
    one, two = world.call(limit, 4), world.call(limit, 4)
    settled = world.engine.settle(
        [Change.adjust(one, -2), Change.adjust(two, -1)], now_us=world.now_us
    )
    assert settled == 2
    assert world.left(limit) == 5


def test_receipts_lead_back_to_what_was_charged(world: World) -> None:
    """Every verdict of an admitted request can be corrected, whatever its strategy."""
    decision = world.request(*LAYERS)
    world.wait(1)
    for verdict in decision.verdicts:
        assert world.settle(verdict, -1) == 1
    assert world.left(HOURLY, "hourly") == 3
    assert world.left(DAILY, "daily") == 2
