"""Claims: calls in flight divide what a budget has left, by the storage's own count."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Claim, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine, held_calls
from tests.strategies.virtual_time import VirtualClient

#: For how long a hold is remembered after its lease, as in reservations.lua.
GRACE_US = 600_000_000

SECOND = 1_000_000
MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
LEASE = 120 * SECOND
START = 1_764_028_800 * SECOND  # a midnight, at the beginning of a day
MONTH_LEFT = 6 * DAY  # 25 November

BUDGETS = [
    Limit(1_000, DAY, "fixed-window", unit="usd", anchor="day"),
    Limit(1_000, DAY, "fixed-window", unit="usd"),
    Limit(1_000, DAY, "sliding-window", unit="usd"),
    Limit(1_000, DAY, "sliding-window-counter", unit="usd"),
    Limit(1_000, DAY, "token-bucket", unit="usd"),
    Limit(1_000, DAY, "session", unit="usd"),
]
DAILY = BUDGETS[0]
every_budget = pytest.mark.parametrize("limit", BUDGETS, ids=lambda limit: limit.strategy)


def claimed(
    engine: Engine,
    limit: Limit,
    id_: int,
    claim: tuple[int, int, int, int] = (10, 20, 5_000, 5_000),
    *,
    cost: int = 10,
    now_us: int = START,
    keeps: int = 0,
) -> Decision:
    charge = Charge(limit, "b", cost, claim=Claim(*claim))
    return engine.admit([charge], hold=Hold(id_, LEASE, keeps=keeps), now_us=now_us)


def parts(decision: Decision) -> list[tuple[int, int | None, int]]:
    """What each charge got, beside how many calls, and what remains."""
    return [(each.charge.cost, each.others, each.remaining) for each in decision.verdicts]


def settle(engine: Engine, decision: Decision, id_: int, actual: int, **more: Any) -> None:
    now_us = more.pop("now_us", START)
    changes = [Change.settle(v, Hold(id_, LEASE), actual, **more) for v in decision.verdicts]
    assert engine.settle(changes, now_us=now_us) == len(changes)


@every_budget
def test_calls_in_flight_divide_what_is_left(engine: Engine, limit: Limit) -> None:
    """The only call holds its estimate; the second half of the rest, the third a third of that."""
    got = [parts(claimed(engine, limit, id_))[0] for id_ in range(1, 5)]
    assert got == [(10, 0, 990), (495, 1, 495), (165, 2, 330), (82, 3, 248)]


def test_what_the_last_window_used_is_not_divided(engine: Engine) -> None:
    """Half a day later, half of it counts."""
    limit, noon = BUDGETS[3], START + DAY + DAY // 2
    assert engine.admit([Charge(limit, "b", 400)], now_us=START).admitted
    assert parts(claimed(engine, limit, 1, now_us=noon)) == [(10, 0, 790)]
    assert parts(claimed(engine, limit, 2, now_us=noon)) == [(395, 1, 395)]


@every_budget
def test_many_calls_hold_no_more_than_the_budget(engine: Engine, limit: Limit) -> None:
    """Also beyond the holds of one string; what is needed and no longer there is denied."""
    decisions = [claimed(engine, limit, id_, (1, 1, 5_000, 5_000), cost=1) for id_ in range(1, 99)]
    admitted = [decision for decision in decisions if decision.admitted]
    held = sum(decision.verdicts[0].charge.cost for decision in admitted)
    assert len(admitted) > 32
    assert 980 < held <= 1_000
    denied = {decision.denials[0].reason for decision in decisions if not decision.admitted}
    assert denied == {"budget-in-use"}


def test_no_more_is_held_than_a_call_can_cost(engine: Engine) -> None:
    """At most its longest answer; of a large budget that, else what is enough for most."""
    large = Limit(1_000_000, DAY, "fixed-window", unit="usd")
    claimed(engine, large, 1)
    assert parts(claimed(engine, large, 2, (10, 20, 300, 9_000)))[0][:2] == (9_000, 1)
    assert parts(claimed(engine, large, 3, (10, 20, 300, 90_000)))[0][0] == 990_990 // 64


def test_a_call_gets_what_it_needs(engine: Engine) -> None:
    """Even if that is more than an equal part; the only call holds up to half of a small budget for
    a cost that is unknown."""
    assert parts(claimed(engine, DAILY, 1, (800, 800, 800, 800)))[0] == (500, 0, 500)
    assert parts(claimed(engine, DAILY, 2, (10, 400, 450, 450)))[0] == (400, 1, 100)
    refused = claimed(engine, DAILY, 3, (10, 101, 450, 450))
    [denial] = refused.denials
    assert (denial.reason, denial.retry_after_us, denial.others) == ("budget-in-use", 2 * SECOND, 2)
    assert claimed(engine, DAILY, 4, (10, 100, 450, 450)).admitted


def test_a_spent_budget_is_not_in_use(engine: Engine) -> None:
    """If the calls in flight gave back all that they hold, and it were still not enough, the
    refusal is that of the limit, with its wait."""
    first = claimed(engine, DAILY, 1)
    settle(engine, first, 1, 985)
    claimed(engine, DAILY, 2)
    [denial] = claimed(engine, DAILY, 3, cost=16).denials
    assert (denial.reason, denial.retry_after_us) == ("limit", DAY)
    [denial] = claimed(engine, DAILY, 4, cost=15).denials
    assert (denial.reason, denial.retry_after_us) == ("budget-in-use", 2 * SECOND)


def test_what_is_over_is_not_in_flight(engine: Engine) -> None:
    """A settled call counts for nothing, and one whose lease ended for as long as it may still be
    settled."""
    first = claimed(engine, DAILY, 1)
    settle(engine, first, 1, 10)
    assert parts(claimed(engine, DAILY, 2))[0][1] == 0
    later = START + LEASE + 1
    assert parts(claimed(engine, DAILY, 3, now_us=later))[0][1] == 1
    # The second is forgotten by then, and the third, whose own lease began later, is not.
    assert parts(claimed(engine, DAILY, 4, now_us=START + LEASE + GRACE_US))[0][1] == 1


def test_a_call_of_a_killed_worker_costs_its_estimate(engine: Engine) -> None:
    """What it got beyond that goes back when its lease ends. Until then all that it holds is in
    use, and afterwards nothing of it."""
    decisions = [claimed(engine, DAILY, id_, cost=300, keeps=1) for id_ in (1, 2)]
    assert [parts(each)[0] for each in decisions] == [(300, 0, 700), (350, 1, 350)]
    assert [each.verdicts[0].charge.expected for each in decisions] == [300, 300]
    big = (800, 800, 800, 800)
    [denial] = claimed(engine, DAILY, 3, big, cost=800).denials
    assert denial.reason == "budget-in-use"
    [denial] = claimed(engine, DAILY, 4, big, cost=800, now_us=START + LEASE).denials
    assert denial.reason == "limit"
    assert parts(claimed(engine, DAILY, 5, now_us=START + LEASE))[0][2] == 400 - 133


@every_budget
def test_a_call_that_is_renewed_late_costs_what_it_cost(engine: Engine, limit: Limit) -> None:
    """Its lease ended, and its estimate counted as spent: in the same window that is corrected. A
    sliding window keeps what was charged at another instant."""
    calls = [claimed(engine, limit, id_, cost=300, keeps=1) for id_ in (1, 2)]
    late = START + LEASE + SECOND
    settle(engine, calls[0], 1, 0, now_us=late)
    renewal = Change.renew(calls[1].verdicts[0], Hold(2, LEASE), 30)
    assert engine.settle([renewal], now_us=late) == 1
    settle(engine, calls[1], 2, 40, now_us=late)
    used = 300 if limit.strategy == "sliding-window" else 39 + (limit.strategy != "token-bucket")
    assert parts(claimed(engine, limit, 3, cost=0, now_us=late))[0][2] == 1_000 - used


@pytest.mark.parametrize("limit", BUDGETS[1:3], ids=lambda limit: limit.strategy)
def test_a_call_gives_back_none_of_what_others_took(engine: Engine, limit: Limit) -> None:
    """Renewed in the next window, it has spent less than was charged in the one before."""
    limit = replace(limit, period_us=LEASE + MINUTE // 2)
    calls = [claimed(engine, limit, id_, cost=300, keeps=1) for id_ in (1, 2)]
    late = START + LEASE + MINUTE
    settle(engine, calls[0], 1, 0, now_us=late)
    assert engine.admit([Charge(limit, "b", 400)], now_us=late).admitted
    renewal = Change.renew(calls[1].verdicts[0], Hold(2, LEASE), 30)
    assert engine.settle([renewal], now_us=late) == 1
    assert parts(claimed(engine, limit, 3, cost=0, now_us=late + LEASE))[0][2] == 600


@pytest.mark.parametrize(
    ("limit", "lasts_us"),
    [
        (DAILY, DAY),
        (replace(DAILY, anchor="month"), MONTH_LEFT),
        (BUDGETS[1], DAY),
        (BUDGETS[2], DAY),
        (BUDGETS[5], DAY),
    ],
    ids=["day", "month", "period", "sliding", "session"],
)
def test_an_unseen_call_is_one_in_flight_until_its_window_ends(
    engine: Engine, limit: Limit, lasts_us: int
) -> None:
    """Several leave one mark. Until then no call may spend more than it holds."""
    for id_ in (1, 2):
        settle(engine, claimed(engine, limit, id_), id_, 10, unseen=True)
    for id_, now_us in ((3, START), (4, START + lasts_us - 1)):
        decision = claimed(engine, limit, id_, now_us=now_us)
        assert decision.verdicts[0].others == 1
        settle(engine, decision, id_, 0, now_us=now_us)
    after = claimed(engine, limit, 5, now_us=START + lasts_us)
    assert after.verdicts[0].others == 0


def test_a_marked_budget_says_that_it_is_spent(engine: Engine) -> None:
    """Nothing is in flight that could end: what cannot be bounded waits for the next window, and a
    call that what is left pays is served."""
    settle(engine, claimed(engine, DAILY, 1), 1, 10, unseen=True)
    [denial] = claimed(engine, DAILY, 2, (1_000, 1_000, 1_000, 1_000)).denials
    assert (denial.reason, denial.retry_after_us) == ("limit", DAY)
    assert parts(claimed(engine, DAILY, 3))[0] == (495, 1, 495)


def test_a_marked_budget_that_is_free_names_a_wait(engine: Engine) -> None:
    """A denial of a call that needs more than the budget does not say to retry at once."""
    bucket = replace(BUDGETS[4], amount=1_000)
    settle(engine, claimed(engine, bucket, 1), 1, 1, unseen=True)
    free = START + 100 * SECOND
    [denial] = claimed(engine, bucket, 2, (4_000,) * 4, cost=400, now_us=free).denials
    assert (denial.remaining, denial.reason) == (1_000, "limit")
    assert denial.retry_after_us == 2 * SECOND


def test_what_a_mark_denies_is_not_in_use(engine: Engine) -> None:
    """Beside a mark a call needs more than its cost, also if the calls in flight end."""
    settle(engine, claimed(engine, DAILY, 1), 1, 10, unseen=True)
    claimed(engine, DAILY, 2)
    [denial] = claimed(engine, DAILY, 3, (1_000,) * 4).denials
    assert (denial.reason, denial.others) == ("limit", 2)


def test_a_marked_budget_is_in_use_by_its_only_call(engine: Engine) -> None:
    """If the call gives back what it holds, the next one has what it needs."""
    settle(engine, claimed(engine, DAILY, 1), 1, 10, unseen=True)
    claimed(engine, DAILY, 2)
    [denial] = claimed(engine, DAILY, 3, (900,) * 4).denials
    assert (denial.reason, denial.others) == ("budget-in-use", 2)


def test_a_budget_in_use_may_refill_sooner(engine: Engine) -> None:
    """Then the wait is that of the limit: 5 units in 300 ms."""
    bucket = Limit(1_000, MINUTE, "token-bucket", unit="usd")
    claimed(engine, bucket, 1, cost=985)
    [denial] = claimed(engine, bucket, 2).denials
    assert (denial.reason, denial.retry_after_us) == ("budget-in-use", 300_000)


def test_a_part_of_a_unit_is_not_divided(engine: Engine) -> None:
    """Four of a bucket are left but for a seven-millionth of one: a call gets half of three. A
    microsecond later it is half of four."""
    bucket = Limit(3, 7 * SECOND, "token-bucket", burst=4, unit="usd")
    settle(engine, claimed(engine, bucket, 1, cost=1), 1, 1)
    now_us, claim = START + 2_333_333, (4, 1, 1, 1)
    answer = claimed(engine, bucket, 2, claim, cost=1, now_us=now_us)
    assert parts(answer) == [(1, 0, 2)]
    settle(engine, answer, 2, 0, now_us=now_us)
    assert parts(claimed(engine, bucket, 3, claim, cost=1, now_us=now_us + 1)) == [(2, 0, 2)]


def test_a_mark_is_no_call(redis_client: redis.Redis) -> None:
    """What operators see holds an estimate: calls, in the bucket's string and beside it."""
    server = RedisEngine(VirtualClient(redis_client), redis.RedisError)
    assert held_calls(redis_client, ["b"]) == [0]
    settle(server, claimed(server, DAILY, 1), 1, 10, unseen=True)
    assert held_calls(redis_client, ["b"]) == [0]
    for id_ in range(2, 22):
        claimed(server, DAILY, id_, (1, 1, 1, 1), cost=1)
    assert held_calls(redis_client, ["b"]) == [20]


def random_limits(chance: random.Random) -> Sequence[Limit]:
    """One to four budgets, of one kind each; a fair one with the share of a member beside it."""
    chosen = []
    for kind in chance.sample(range(len(BUDGETS) + 1), chance.randint(1, 4)):
        if kind < len(BUDGETS):
            amount = chance.choice((0, 7, 1_000, 10**6, 10**9))
            chosen.append(replace(BUDGETS[kind], amount=amount))
            continue
        fair = replace(DAILY, fair="user", pace=1_500, amount=chance.choice((1_000, 10**6)))
        chosen += [fair, fair.share()]
    return chosen


@pytest.mark.parametrize("seed", range(40))
def test_claims_have_one_outcome(redis_client: redis.Redis, seed: int) -> None:
    """Both engines agree to the digit on what is granted, denied, marked, renewed and returned."""
    chance = random.Random(seed)
    memory = MemoryEngine()
    server = RedisEngine(VirtualClient(redis_client), redis.RedisError)
    limits, now, open_calls = random_limits(chance), START, list[tuple[Decision, Hold]]()
    denied = 0
    for id_ in range(1, 160):
        now += chance.choice((0, 1, SECOND, MINUTE, LEASE, 20 * MINUTE, DAY // 5))
        cost = chance.choice((0, 1, 10, 400, 10**5))
        beside = cost * chance.choice((1, 2, 10))
        most = beside * chance.choice((1, 3, 100))
        claim = Claim(chance.choice((cost, beside)), beside, chance.choice((beside, most)), most)
        charges = [Charge(limit, f"b{n}", cost, claim=claim) for n, limit in enumerate(limits)]
        hold = Hold(id_, LEASE)
        decision = memory.admit(charges, hold=hold, now_us=now)
        assert decision == server.admit(charges, hold=hold, now_us=now)
        denied += not decision.admitted
        if decision.admitted:
            open_calls.append((decision, hold))
        while open_calls and chance.random() < 0.5:
            call, hold = open_calls.pop(chance.randrange(len(open_calls)))
            actual = chance.choice((0, 1, cost, most))
            change = chance.choice(("settle", "settle", "unseen", "renew", "release"))
            changes = [
                Change.renew(verdict, hold, actual)
                if change == "renew"
                else Change.release(verdict.charge, hold)
                if change == "release"
                else Change.settle(verdict, hold, actual, unseen=change == "unseen")
                for verdict in call.verdicts
            ]
            assert memory.settle(changes, now_us=now) == server.settle(changes, now_us=now)
            if change == "renew":
                open_calls.append((call, hold))
                break
    assert open_calls or denied
