"""Decisions while the storage is down: by the `on_failure` of limits, and what is handed back."""

import random
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Degradation, Verdict
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.engine import UNAVAILABLE, Marker, Workers
from ratelimit_ext.engine.last_verdicts import MOST_BUCKETS as MOST_KNOWN
from ratelimit_ext.engine.last_verdicts import MOST_NOTES, LastVerdicts, Remainder
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.outage import (
    BATCH,
    HANDED_ONCE_US,
    LONGEST_WAIT_US,
    WAIT_US,
    OutageEngine,
)
from ratelimit_ext.strategies.guards.block import new_block
from tests.clocks import Clock
from tests.strategies.world import DAY, HOUR, RATES

pytestmark = pytest.mark.usefixtures("clock")

LEASE = 120_000_000
DOLLARS = Limit(5_000_000, DAY, "fixed-window", unit="usd", on_failure="local")
SLOTS = Limit(4, 1_000_000, "concurrency", unit="calls")


def policy(limit: Limit) -> Degradation:
    return limit.on_failure or "local"  # type: ignore[return-value]


def outage_of(storage: Any, count: int = 1) -> OutageEngine:
    engine = OutageEngine(storage, policy, Workers(count))
    engine.is_deciding = True
    return engine


def left(engine: Any, limit: Limit, key: str = "bucket") -> int:
    remaining: int = engine.admit([Charge(limit, key, 0)], take=False).verdicts[0].remaining
    return remaining


def used_of(storage: MemoryEngine, limit: Limit, key: str = "ada") -> int:
    """What is used of a bucket without the calls in flight."""
    storage.hand_over(limit, key)
    return storage.admit([Charge(limit, key, 0)], take=False).used(0)


class Storage(MemoryEngine):
    """A storage that may be away, and may lose replies."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.loses_replies = 0
        self.lost_key = ""

    def admit(self, *words: Any, **more: Any) -> Decision:
        decision = super().admit(*words, **more)
        if more.get("take", True):
            self._lose_reply()
        return decision

    def settle(self, changes: Any, **more: Any) -> int:
        if self.is_away:
            raise StorageUnavailable("away")
        if self.lost_key in [change.charge.key for change in changes]:
            raise ShardUnavailable("a shard is away")
        applied = super().settle(changes, **more)
        self._lose_reply()
        return applied

    def _lose_reply(self) -> None:
        if self.loses_replies:
            self.loses_replies -= 1
            raise StorageUnavailable("the reply was lost")


# -- shares ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [7200, -7200])
@pytest.mark.parametrize("strategy", RATES)
def test_a_clock_that_is_set_in_an_outage_gives_nothing(
    strategy: str, jump_s: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows end when their time has passed, whatever the clock says."""
    limit = Limit(4, HOUR, strategy)
    outage = outage_of(Storage())
    assert [outage.admit([Charge(limit, "bucket")]).admitted for _ in range(5)].count(True) == 4
    monkeypatch.setattr(time, "time", lambda: clock.now_s + jump_s)
    assert not outage.admit([Charge(limit, "bucket")]).admitted
    assert not outage.is_handed_back
    clock.forward(2 * 3600)
    assert outage.admit([Charge(limit, "bucket")]).admitted


def test_an_outage_begins_at_the_time_of_the_storage(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock here may be wrong: windows of the calendar are those of the storage."""
    storage = Storage()
    outage = outage_of(storage)
    outage.last.note((clock.now_s, storage.admit([Charge(DOLLARS, "bucket")])))
    at_us = int(clock.now_s * 1_000_000)
    monkeypatch.setattr(time, "time", lambda: clock.now_s + 7200)
    assert outage.admit([Charge(DOLLARS, "bucket")]).now_us == at_us
    wrong = outage_of(storage)
    assert wrong.admit([Charge(DOLLARS, "bucket")]).now_us == at_us + 7_200_000_000
    wrong.last.note((clock.now_s, storage.admit([Charge(DOLLARS, "bucket")], now_us=at_us)))
    wrong.admit([Charge(DOLLARS, "another")])
    assert wrong.admit([Charge(DOLLARS, "another")]).now_us == at_us


@pytest.mark.parametrize(("later_s", "set_by_s"), [(0.9, 0), (-0.9, 0), (1.1, 1.1), (-1.1, -1.1)])
def test_the_clock_of_an_outage_is_set_where_the_storage_differs_by_more_than_a_second(
    clock: Clock, later_s: float, set_by_s: float
) -> None:
    """A smaller difference is the time of a reply, by which the clock would go back and forth."""
    outage, began_us = outage_of(Storage()), int((clock.now_s + 3600) * 1_000_000)
    for ahead_s in (0.0, later_s):
        at_us = began_us + int(ahead_s * 1_000_000)
        known = outage.primary.admit([Charge(DOLLARS, f"{ahead_s}")], now_us=at_us)
        outage.last.note((clock.now_s, known))
        outage.admit([Charge(DOLLARS, f"{ahead_s}")])
    now_us = outage.admit([Charge(DOLLARS, "another")]).now_us
    assert now_us == began_us + int(set_by_s * 1_000_000)


def test_what_a_member_spends_in_an_outage_is_theirs_afterwards(clock: Clock) -> None:
    """A member's bucket begins empty, though the storage said what they had left: that is a part
    of the group's, which both buckets decide. So all that is spent here is charged to both."""
    team, storage = Limit(100, DAY, "fixed-window", name="team", fair=True), Storage()
    charges = [Charge(team, "t:{team}"), Charge(team.share(), "s:ada{team}")]
    outage = outage_of(storage)
    outage.last.note((clock.now_s, storage.admit(charges)))
    assert [outage.admit(charges).admitted for _ in range(3)] == [True] * 3
    assert outage.hand_back(storage, within_s=5)
    group, own = storage.admit(charges, take=False).verdicts
    assert (group.remaining, own.share and own.share.used) == (96, 4)


@pytest.mark.parametrize("amount", [1, 3, 10])
@pytest.mark.parametrize("strategy", RATES)
def test_all_workers_together_never_admit_more_than_the_amount(strategy: str, amount: int) -> None:
    """Of every strategy. Each has a fourth, rounded down."""
    limit = Limit(amount, DAY, strategy)
    workers = [outage_of(Storage(), 4) for _ in range(4)]
    decisions = [worker.admit([Charge(limit, "ada")]) for worker in workers for _ in range(12)]
    assert sum(decision.admitted for decision in decisions) == amount // 4 * 4
    assert {decision.degraded for decision in decisions} == {"local"}


def test_a_token_bucket_refills_at_its_share_of_the_rate(clock: Clock) -> None:
    """Four workers, four tokens in four hours: they admit 24 together in a day of use."""
    limit = Limit(4, DAY // 6, "token-bucket")
    workers = [outage_of(Storage(), 4) for _ in range(4)]
    charge = [Charge(limit, "ada")]
    assert sum(worker.admit(charge).admitted for worker in workers) == 4
    admitted = 0
    for _ in range(96):
        clock.forward(900)
        admitted += sum(worker.admit(charge).admitted for worker in workers)
    assert 20 <= admitted <= 24


def test_a_denial_by_a_share_states_no_longer_wait_than_an_outage_may_take() -> None:
    """The storage may know better by then."""
    worker = outage_of(Storage())
    charge = [Charge(Limit(1, DAY), "ada")]
    worker.admit(charge)
    (verdict,) = worker.admit(charge).verdicts
    assert (verdict.allowed, verdict.retry_after_us) == (False, LONGEST_WAIT_US)


# -- what was used before --------------------------------------------------------------------------


class Worker:
    """A worker in front of the storage, by its breaker and afterwards alone."""

    def __init__(self, storage: Storage, count: int = 2) -> None:
        self.storage = storage
        self.outage = outage_of(storage, count)
        self.breaker = Breaker(storage)  # type: ignore[arg-type]
        self.breaker.outage = self.outage

    def before(self, *charges: Charge, calls: int = 1, hold: Hold = NO_HOLD) -> list[Verdict]:
        """The verdicts of the last of some calls that the storage decides."""
        return [self.breaker.admit(charges, hold=hold) for _ in range(calls)][-1].verdicts

    def admits(self, *charges: Charge, calls: int = 20) -> int:
        return sum([self.outage.admit(charges).admitted for _ in range(calls)])


@pytest.mark.parametrize("strategy", RATES)
def test_who_has_used_up_the_amount_gets_nothing_more(strategy: str) -> None:
    """Both workers have denied the caller."""
    storage, charge = Storage(), Charge(Limit(10, DAY, strategy), "ada")
    workers = [Worker(storage, 2) for _ in range(2)]
    assert [w.before(charge, calls=11)[0].allowed for w in workers] == [False, False]
    assert [worker.admits(charge) for worker in workers] == [0, 0]


@pytest.mark.parametrize("unit", ["requests", "tokens"])
@pytest.mark.parametrize("used", range(11))
@pytest.mark.parametrize("strategy", RATES)
def test_all_workers_together_admit_what_was_left(strategy: str, used: int, unit: str) -> None:
    """Each has a third of it, rounded down, and the storage has all of it afterwards."""
    storage, limit = Storage(), Limit(10, DAY, strategy, unit=unit)
    charge = Charge(limit, "ada")
    workers = [Worker(storage, 3) for _ in range(3)]
    for number in range(used):
        workers[number % 3].before(charge)
    for worker in workers:
        worker.before(charge._replace(cost=0))
    together = (10 - used) // 3 * 3
    assert sum([worker.admits(charge) for worker in workers]) == together
    for worker in workers:
        assert worker.outage.hand_back(storage, within_s=9)
    assert used_of(storage, limit) == used + together


def test_a_look_at_what_is_too_small_to_be_divided_is_not_denied() -> None:
    """A call is, until the storage is back."""
    charge, worker = Charge(Limit(1, DAY), "ada"), outage_of(Storage(), 2)
    looks = charge._replace(cost=0)
    assert worker.admit([looks], take=False).verdicts[0].allowed
    assert worker.admit([charge._replace(meta=True)]).admitted  # it counts denials, and has none
    assert worker.admit([charge]).verdicts[0].retry_after_us == WAIT_US


def test_what_leaves_nothing_to_hand_back_wakes_nothing() -> None:
    """The storage decides again: a thread would find nothing to do, after each request."""
    woken: list[int] = []
    worker = OutageEngine(Storage(), policy, Workers(1), wake=lambda: woken.append(1))
    worker.admit([Charge(Limit(1, DAY), "ada", 0)], take=False)
    assert not woken
    [call] = worker.admit([Charge(Limit(1, DAY), "ada")]).verdicts
    assert woken
    assert worker.settle([Change.adjust(call, -1)]) == 1
    assert worker._store.run(lambda: worker._changes(-1)) == []


def test_only_shares_are_published() -> None:
    """Nothing of a limit that is open or closed then, or too small to be divided."""
    worker, limits = Worker(Storage(), 2), {"local": Limit(10, DAY), "small": Limit(1, DAY)}
    limits |= {how: Limit(10, DAY, on_failure=how) for how in ("open", "closed")}  # type: ignore[arg-type]
    for key, limit in limits.items():
        worker.before(Charge(limit, key))
    worker.outage.publish()
    store = worker.outage._store
    assert store.run(lambda: [*filter(store.bucket, limits)]) == ["local"]


def test_a_worker_that_has_not_decided_a_caller_gives_it_a_share() -> None:
    """And one that knew it at another amount."""
    storage, limit = Storage(), Limit(10, DAY, name="named")
    knows, does_not = Worker(storage), Worker(storage)
    knows.before(Charge(limit, "ada"), calls=10)
    assert does_not.admits(Charge(limit, "ada")) == 5
    assert knows.admits(Charge(replace(limit, amount=20), "ada")) == 10


@pytest.mark.parametrize(
    ("strategy", "after_s", "admitted"),
    [
        ("fixed-window", 59, 0),
        ("fixed-window", 60, 10),
        ("token-bucket", 12, 2),
        ("token-bucket", 60, 10),
        ("sliding-window", 59, 0),
        ("sliding-window", 60, 10),
        ("sliding-window-counter", 60, 0),
        ("sliding-window-counter", 90, 5),
        ("sliding-window-counter", 120, 10),
    ],
)
def test_a_bucket_is_free_again_when_the_storage_would_free_it(
    clock: Clock, strategy: str, after_s: float, admitted: int
) -> None:
    """The outage begins so long after it was used up."""
    worker, charge = Worker(Storage(), 1), Charge(Limit(10, 60_000_000, strategy), "ada")
    worker.before(charge, calls=11)
    clock.forward(after_s)
    assert worker.admits(charge) == admitted


def test_a_window_that_ends_in_the_outage_is_over_then(clock: Clock) -> None:
    """It is the storage's, not one that began with the outage."""
    worker, charge = Worker(Storage()), Charge(Limit(10, 60_000_000), "ada")
    worker.before(charge, calls=11)
    clock.forward(50)
    assert worker.admits(charge) == 0
    clock.forward(10)
    assert worker.admits(charge) == 5


@pytest.mark.parametrize(
    ("strategy", "after_s", "admitted"),
    [("fixed-window", 60, 10), ("sliding-window", 60, 10), ("sliding-window-counter", 60.001, 1)],
)
def test_what_was_used_before_counts_from_then(
    clock: Clock, strategy: str, after_s: float, admitted: int
) -> None:
    """And not from the caller's first request in the outage, after 50 s."""
    worker, charge = Worker(Storage(), 1), Charge(Limit(10, 60_000_000, strategy), "ada")
    worker.before(charge, calls=11)
    clock.forward(50)
    assert worker.admits(charge) == 0
    clock.forward(after_s - 50.001)
    assert worker.admits(charge) == 0
    clock.forward(0.001)
    assert worker.admits(charge) == admitted


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("strategy", RATES)
def test_a_bucket_frees_nothing_that_the_storage_would_not(
    clock: Clock, strategy: str, seed: int
) -> None:
    """Whatever was called before, and however long ago, at each instant of the outage."""
    chance = random.Random(f"{strategy} {seed}")
    worker, limit = Worker(Storage(), 1), Limit(20, 60_000_000, strategy)
    for _ in range(chance.randint(1, 30)):
        clock.forward(chance.choice((0, 1, 7, 40)))
        worker.before(Charge(limit, "ada", chance.choice((0, 1, 3, 9, 18))))
    for _ in range(15):
        clock.forward(chance.choice((0, 1, 7, 13)))
        assert left(worker.outage, limit, "ada") <= left(worker.storage, limit, "ada")
    clock.forward(120)
    assert left(worker.outage, limit, "ada") == 20


@pytest.mark.parametrize("strategy", RATES)
def test_a_caller_that_has_waited_as_long_as_its_denial_said_passes(
    clock: Clock, strategy: str
) -> None:
    """The storage went down meanwhile."""
    worker, charge = Worker(Storage(), 1), Charge(Limit(10, 60_000_000, strategy), "ada")
    for _ in range(10):
        worker.before(charge)
        clock.forward(0.5)
    (denial,) = worker.before(charge, calls=3)
    assert denial.retry_after_ms
    clock.forward(denial.retry_after_ms / 1000)
    assert worker.outage.admit([charge]).admitted


def test_what_was_settled_before_the_outage_is_known() -> None:
    """An estimate of all that was left, of which little was used, or more than all."""
    for actual, admitted in ((100, 9), (1200, 0)):
        worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
        verdicts = worker.before(Charge(limit, "ada", 1000), hold=Hold(7, LEASE))
        worker.breaker.settle([Change.settle(verdicts[0], Hold(7, LEASE), actual)])
        assert worker.admits(Charge(limit, "ada", 100)) == admitted


def test_a_settlement_that_changes_nothing_gives_nothing_back() -> None:
    """It is sent twice, or the storage never had the call."""
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
    (verdict,) = worker.before(Charge(limit, "ada", 400), hold=Hold(7, LEASE))
    worker.before(Charge(limit, "ada", 400), hold=Hold(8, LEASE))
    for hold in (7, 7, 9):
        worker.breaker.settle([Change.settle(verdict, Hold(hold, LEASE), 0)])
    assert worker.admits(Charge(limit, "ada", 100)) == 6


def test_a_settlement_that_the_verdict_may_include_gives_nothing_back() -> None:
    """It was sent before the decision, and its reply came after it."""
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
    (verdict,) = worker.before(Charge(limit, "ada", 400), hold=Hold(7, LEASE))
    sent_at, settlement = time.monotonic() - 1, Change.settle(verdict, Hold(7, LEASE), 0)
    worker.storage.settle([settlement])
    worker.before(Charge(limit, "ada", 400), hold=Hold(8, LEASE))
    worker.outage.last.note((sent_at, [settlement]))
    assert worker.admits(Charge(limit, "ada", 100)) == 6


def test_what_comes_back_to_an_overdrawn_bucket_is_left_out() -> None:
    """Its verdict does not say by how much."""
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
    (first,) = worker.before(Charge(limit, "ada", 400), hold=Hold(7, LEASE))
    (second,) = worker.before(Charge(limit, "ada", 400), hold=Hold(8, LEASE))
    worker.breaker.settle([Change.settle(first, Hold(7, LEASE), 2000)])
    worker.before(Charge(limit, "ada", 400))
    worker.breaker.settle([Change.settle(second, Hold(8, LEASE), 0)])
    assert worker.admits(Charge(limit, "ada", 100)) == 0


def test_debt_is_paid_off_at_the_rate_of_the_bucket(clock: Clock) -> None:
    """The verdict was from before the debt: by it, the bucket would be full again after 6 s."""
    worker, limit = Worker(Storage(), 1), Limit(10, 60_000_000, "token-bucket", unit="tokens")
    (verdict,) = worker.before(Charge(limit, "ada"), hold=Hold(7, LEASE))
    worker.breaker.settle([Change.settle(verdict, Hold(7, LEASE), 100)])
    clock.forward(7)
    assert worker.admits(Charge(limit, "ada")) == 0


def test_a_sliding_window_frees_a_large_estimate_alone(clock: Clock) -> None:
    """Its oldest call leaves, and the 39 units of the second stay."""
    worker, limit = Worker(Storage(), 1), Limit(100, 60_000_000, "sliding-window", unit="tokens")
    worker.before(Charge(limit, "ada", 1))
    clock.forward(10)
    worker.before(Charge(limit, "ada", 39))
    (verdict,) = worker.before(Charge(limit, "ada", 60), hold=Hold(7, LEASE))
    worker.breaker.settle([Change.settle(verdict, Hold(7, LEASE), 1)])
    clock.forward(50)
    assert worker.admits(Charge(limit, "ada"), calls=100) <= 60


def test_what_the_storage_left_later_replaces_what_is_remembered_here(clock: Clock) -> None:
    """A single request was decided here while a call held all the amount. That call was settled
    before the outage."""
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
    (verdict,) = worker.before(Charge(limit, "ada", 900), hold=Hold(7, LEASE))
    assert worker.admits(Charge(limit, "ada", 100), calls=2) == 1
    assert worker.outage.hand_back(worker.storage, within_s=9)
    clock.forward(1)
    worker.breaker.settle([Change.settle(verdict, Hold(7, LEASE), 100)])
    assert worker.before(Charge(limit, "ada", 0))[0].remaining == 800
    assert worker.admits(Charge(limit, "ada", 100)) == 8
    assert worker.outage.hand_back(worker.storage, within_s=9)
    assert left(worker.storage, limit, "ada") == 0


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("when", ["at once", "denied before", "denied in the outage"])
@pytest.mark.parametrize("strategy", RATES)
def test_a_call_that_held_the_whole_budget_frees_it_when_it_is_settled_in_the_outage(
    strategy: str, when: str, count: int
) -> None:
    """What its worker may give of it, also if it has denied the caller meanwhile. Afterwards the
    storage has the real costs, once."""
    storage, limit = Storage(), Limit(1000, DAY, strategy, unit="tokens")
    workers = [Worker(storage, count) for _ in range(count)]
    hold, charge = Hold(7, LEASE), Charge(limit, "ada", 100)
    (verdict,) = workers[0].before(Charge(limit, "ada", 1000), hold=hold)
    for worker in workers:
        worker.before(charge._replace(cost=100 if when == "denied before" else 0))
    if when == "denied in the outage":
        assert [worker.admits(charge) for worker in workers] == [0] * count
    settlement = Change.settle(verdict, hold, 100)
    workers[0].outage.credit(time.monotonic(), [settlement])
    assert workers[0].admits(charge) == 900 // count // 100
    assert [worker.admits(charge) for worker in workers[1:]] == [0] * (count - 1)
    assert storage.settle([settlement]) == 1
    for worker in workers:
        assert worker.outage.hand_back(storage, within_s=9)
    assert left(storage, limit, "ada") == 900 - 900 // count // 100 * 100


@pytest.mark.parametrize("begun", [True, False])
def test_a_settlement_of_the_outage_is_credited_once(begun: bool) -> None:
    """However often it is queued, and when the storage confirms it before the next outage."""
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
    hold, charge = Hold(7, LEASE), Charge(limit, "ada", 100)
    (verdict,) = worker.before(Charge(limit, "ada", 600), hold=hold)
    settlement = Change.settle(verdict, hold, 300)
    if begun:
        assert worker.admits(charge, calls=1) == 1
    for _ in range(3):
        worker.outage.credit(time.monotonic(), [settlement])
    assert worker.breaker.settle([settlement]) == 1
    assert worker.outage.hand_back(worker.storage, within_s=9)
    assert worker.admits(charge) == 7 - begun


def test_a_call_that_cost_more_than_it_held_leaves_less() -> None:
    """As in the storage, where its debt counts."""
    for actual, admitted in ((500, 5), (1200, 0)):
        worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
        charge, hold = Charge(limit, "ada", 100), Hold(7, LEASE)
        (verdict,) = worker.before(charge, hold=hold)
        assert left(worker.outage, limit, "ada") == 900
        worker.outage.credit(time.monotonic(), [Change.settle(verdict, hold, actual)])
        assert worker.admits(charge) == admitted


def test_a_refund_of_the_outage_comes_back() -> None:
    """Of a request that was counted and whose call failed."""
    worker, charge = Worker(Storage(), 1), Charge(Limit(10, DAY), "ada")
    (verdict,) = worker.before(charge, calls=10)
    assert worker.admits(charge) == 0
    worker.outage.credit(time.monotonic(), [Change.adjust(verdict, -1)])
    assert worker.admits(charge) == 1


def test_what_comes_back_in_the_outage_pays_debt_first() -> None:
    """Of 1,000, 2,400 are used: a look says 0, a denial says 0."""
    for cost in (0, 400):
        worker, limit = Worker(Storage(), 1), Limit(1000, DAY, unit="tokens")
        (first,) = worker.before(Charge(limit, "ada", 400), hold=Hold(7, LEASE))
        (second,) = worker.before(Charge(limit, "ada", 400), hold=Hold(8, LEASE))
        (third,) = worker.before(Charge(limit, "ada", 200), hold=Hold(9, LEASE))
        worker.storage.settle([Change.settle(first, Hold(7, LEASE), 800)])
        worker.before(Charge(limit, "ada", cost))
        assert left(worker.outage, limit, "ada") == 0
        worker.outage.credit(time.monotonic(), [Change.settle(second, Hold(8, LEASE), 0)])
        assert left(worker.outage, limit, "ada") == 0
        worker.outage.credit(time.monotonic(), [Change.settle(third, Hold(9, LEASE), 0)])
        assert left(worker.outage, limit, "ada") == 200


def test_what_the_worker_does_not_know_gives_nothing_back() -> None:
    """Another worker's call, one that was decided too long ago, one whose decision was lost, and
    one that the storage may have settled before it decided."""
    storage, limit = Storage(), Limit(1000, DAY, unit="tokens")
    worker, hold, charge = Worker(storage, 1), Hold(7, LEASE), Charge(limit, "ada", 100)
    call = Charge(limit, "ada", 600)
    (verdict,) = storage.admit([call], hold=hold).verdicts
    worker.outage.credit(time.monotonic(), [Change.settle(verdict, hold, 0)])
    assert left(worker.outage, limit, "ada") == 1000
    worker.before(charge)
    assert left(worker.outage, limit, "ada") == 300
    for number in range(MOST_NOTES):
        worker.before(Charge(limit, f"identity {number}"))
    worker.outage.credit(time.monotonic(), [Change.settle(verdict, hold, 0)])
    assert left(worker.outage, limit, "ada") == 300
    worker.before(charge)
    lost = Verdict(call, True, 0, 0, 0, None)
    worker.outage.credit(time.monotonic(), [Change.settle(lost, hold, 0)])
    worker.outage.credit(time.monotonic() - 1, [Change.settle(verdict, hold, 0)])
    assert left(worker.outage, limit, "ada") == 200


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("strategy", RATES)
def test_a_worker_admits_nothing_that_the_storage_would_not_while_calls_are_settled(
    clock: Clock, strategy: str, seed: int
) -> None:
    """Whatever was called before and is settled in the outage, at each instant of it."""
    chance = random.Random(f"{strategy} {seed}")
    worker, limit = Worker(Storage(), 1), Limit(100, 60_000_000, strategy, unit="tokens")
    running: list[tuple[Verdict, Hold]] = []
    for number in range(chance.randint(1, 9)):
        clock.forward(chance.choice((0, 1, 7, 40)))
        hold = Hold(number + 1, 10**9)
        (verdict,) = worker.before(Charge(limit, "ada", chance.choice((0, 1, 30, 90))), hold=hold)
        if verdict.allowed:
            running.append((verdict, hold))
    for _ in range(30):
        clock.forward(chance.choice((0, 0, 1, 7)))
        if running and chance.random() < 0.4:
            verdict, hold = running.pop(chance.randrange(len(running)))
            actual = chance.randint(0, verdict.charge.cost)
            settlement = Change.settle(verdict, hold, actual)
            worker.storage.settle([settlement])
            worker.outage.credit(time.monotonic(), [settlement])
        else:
            charge = Charge(limit, "ada", chance.choice((1, 5, 20)))
            if worker.outage.admit([charge]).admitted:
                assert worker.storage.admit([charge]).admitted


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("strategy", RATES)
def test_what_is_credited_is_not_handed_back(strategy: str, seed: int) -> None:
    """The storage is charged what the worker has admitted, and settles the calls itself."""
    chance = random.Random(f"{strategy} {seed}")
    worker, limit = Worker(Storage(), 1), Limit(1000, DAY, strategy, unit="tokens")
    holds = [Hold(number + 1, LEASE) for number in range(5)]
    calls = [worker.before(Charge(limit, "ada", 190), hold=hold)[0] for hold in holds]
    settlements = [
        Change.settle(verdict, hold, chance.choice((0, 30, 190, 250)))
        for verdict, hold in zip(calls, holds, strict=True)
    ]
    admitted = 0
    for settlement in settlements:
        admitted += worker.admits(Charge(limit, "ada", 7), calls=chance.randint(0, 50)) * 7
        worker.outage.credit(time.monotonic(), [settlement])
    assert worker.outage.hand_back(worker.storage, within_s=9)
    assert worker.storage.settle(settlements) == 5
    used = sum(settlement.numbers[1] for settlement in settlements) + admitted
    assert used_of(worker.storage, limit) == used


def test_calls_in_flight_that_the_storage_has_admitted_take_no_slot_of_the_worker() -> None:
    """They end in the storage, so it would be taken for the whole outage."""
    worker = Worker(Storage(), 1)
    for number in range(SLOTS.amount):
        worker.before(Charge(SLOTS, "ada"), hold=Hold(number + 1, LEASE))
    assert worker.outage.admit([Charge(SLOTS, "ada")], hold=Hold(9, LEASE)).admitted


@pytest.mark.parametrize("what", ["clear", "reset"])
def test_a_bucket_that_was_emptied_begins_full(what: str) -> None:
    """By an operator, in this worker."""
    worker, charge = Worker(Storage(), 1), Charge(Limit(10, DAY), "ada")
    worker.before(charge, calls=11)
    other = charge._replace(key="bob")
    worker.before(other, calls=11)
    getattr(worker.breaker, what)(["ada"] if what == "clear" else "a")
    assert worker.admits(charge) == 10
    assert worker.admits(other) == 0


def test_a_bucket_is_not_known_while_it_is_emptied() -> None:
    """A request of another thread that meets it waits."""
    last, limit = LastVerdicts(), Limit(1, DAY)
    last.note((0.0, Storage().admit([Charge(limit, "ada")])))
    found: list[Remainder | None] = []
    other = threading.Thread(target=lambda: found.append(last.take(limit, "ada")))

    def is_emptied(_: str) -> bool:
        other.start()
        other.join(0.2)
        return True

    last.forget(is_emptied)
    other.join()
    assert found == [None]


def test_the_latest_decisions_are_known() -> None:
    """However many there were."""
    worker, limit = Worker(Storage(), 1), Limit(1, DAY)
    for number in range(MOST_NOTES + 1):
        worker.before(Charge(limit, f"identity {number}"))
    assert worker.admits(Charge(limit, "identity 0")) == 1
    assert worker.admits(Charge(limit, "identity 1")) == 0


def test_the_latest_buckets_of_many_are_known() -> None:
    """Of requests with many limits each."""
    last, limit = LastVerdicts(), Limit(1, DAY)
    for number in range(1000):
        charges = [Charge(limit, f"{number} {place}") for place in range(10)]
        last.note((0.0, Storage().admit(charges)))
    first = 1000 - MOST_KNOWN // 10
    known = [last.take(limit, f"{number} 9") is not None for number in (0, first - 2, first, 999)]
    assert known == [False, False, True, True]


# -- the policies ----------------------------------------------------------------------------------


def test_open_passes_and_counts_nothing() -> None:
    """Its verdict shows the whole amount."""
    worker, limit = outage_of(Storage()), Limit(1, DAY, on_failure="open")
    decisions = [worker.admit([Charge(limit, "ada")]) for _ in range(3)]
    assert [decision.admitted for decision in decisions] == [True] * 3
    assert {decision.degraded for decision in decisions} == {"open"}
    assert worker.is_handed_back


def test_closed_denies_and_nothing_is_charged() -> None:
    """The other limits of the request are looked at, and keep what they had."""
    worker = outage_of(Storage())
    closed, local = Limit(5, DAY, name="closed", on_failure="closed"), Limit(5, DAY)
    decision = worker.admit([Charge(closed, "closed"), Charge(local, "bucket")])
    assert (decision.admitted, decision.degraded) == (False, "closed")
    (denial,) = decision.denials
    assert (denial.charge.limit, denial.reason) == (closed, UNAVAILABLE)
    assert denial.retry_after_us == WAIT_US
    assert left(worker, local) == 5
    assert worker.is_handed_back


def test_a_shadow_that_would_be_closed_denies_nothing() -> None:
    """Its verdict says that it would have."""
    worker = outage_of(Storage())
    decision = worker.admit([Charge(Limit(5, DAY, mode="shadow", on_failure="closed"), "bucket")])
    assert decision.admitted
    assert not decision.verdicts[0].allowed


def test_a_shadow_counts_what_it_would_count_if_it_were_enforced() -> None:
    """Denied requests take nothing from it, whichever limit denies, and hand nothing back."""
    worker, shadow = outage_of(Storage()), Limit(5, DAY, mode="shadow", name="shadow")
    calls = Limit(1, DAY, name="calls")
    for _ in range(3):
        worker.admit([Charge(calls, "calls"), Charge(shadow, "bucket")])
    assert left(worker, shadow) == 4
    closed = Charge(Limit(5, DAY, on_failure="closed"), "closed")
    assert not worker.admit([closed, Charge(shadow, "other")]).admitted
    assert left(worker, shadow, "other") == 5
    storage = Storage()
    assert worker.hand_back(storage, within_s=1)
    assert left(storage, shadow) == 4


def test_a_cost_above_the_share_waits_for_the_storage() -> None:
    """It is no cost that can never pass: 503 and not 400."""
    worker, limit = outage_of(Storage(), 2), Limit(10, DAY)
    verdicts = [worker.admit([Charge(limit, "ada", cost)]).verdicts[0] for cost in (6, 11)]
    assert [each.allowed for each in verdicts] == [False, False]
    assert [each.retry_after_us for each in verdicts] == [WAIT_US, None]
    assert verdicts[0].reason == UNAVAILABLE


def test_a_limit_on_denials_counts_those_of_its_limit() -> None:
    """Its triggers are positions, which change when a limit is open."""
    worker = outage_of(Storage())
    free, scarce = Limit(1, DAY, on_failure="open"), Limit(1, DAY, name="scarce")
    ban = Limit(1, DAY, name="ban")
    charges = [
        Charge(free, "free"),
        Charge(scarce, "scarce"),
        Charge(ban, "ban", meta=True, on_denial=(1,)),
    ]
    assert worker.admit(charges).admitted
    assert left(worker, ban, "ban") == 1
    assert not worker.admit(charges).admitted
    assert left(worker, ban, "ban") == 0


def test_a_guard_is_not_divided_and_not_handed_back() -> None:
    """A provider's pause that this worker sets holds in this worker."""
    worker = outage_of(Storage(), 4)
    guard = Limit(1, 1_000_000, "block")
    assert worker.admit([Charge(guard, "upstream")]).admitted
    worker.settle([new_block(Charge(guard, "upstream"), 10_000_000)])
    assert not worker.admit([Charge(guard, "upstream")]).admitted
    assert worker.is_handed_back


# -- the way back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", RATES)
def test_what_was_admitted_is_charged_to_the_storage_once(strategy: str) -> None:
    """Two workers, five calls; the storage then has the rest of the amount."""
    storage, limit = Storage(), Limit(10, DAY, strategy)
    workers = [outage_of(storage, 2) for _ in range(2)]
    charge = [Charge(limit, "bucket")]
    assert [worker.admit(charge).admitted for worker in (*workers, *workers, workers[0])] == [
        True
    ] * 5
    for worker in (*workers, *workers):
        worker.is_deciding = False
        assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit) == 5


@pytest.mark.parametrize("strategy", RATES)
def test_the_next_outage_gives_no_second_allowance(strategy: str) -> None:
    """A worker remembers what it has admitted, and hands back what came since."""
    storage, limit = Storage(), Limit(10, DAY, strategy)
    worker, charge = outage_of(storage, 2), [Charge(limit, "bucket")]
    admitted = []
    for _ in range(3):
        admitted.append(sum(worker.admit(charge).admitted for _ in range(3)))
        assert worker.hand_back(storage, within_s=9)
    assert admitted == [3, 2, 0]
    assert left(storage, limit) == 5


def test_what_no_longer_matters_is_not_charged(clock: Clock) -> None:
    """A window that is over, and what has leaked out of a bucket."""
    storage = Storage()
    worker = outage_of(storage)
    window, bucket = Limit(10, 60_000_000), Limit(60, 60_000_000, "token-bucket")
    worker.admit([Charge(window, "window", 4), Charge(bucket, "tokens", 50)])
    clock.forward(30)
    worker.admit([Charge(bucket, "tokens", 10)])
    clock.forward(31)
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, window, "window") == 10
    assert left(storage, bucket, "tokens") == 60
    worker.admit([Charge(bucket, "tokens", 40)])
    clock.forward(10)
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, bucket, "tokens") == 30


def test_a_lost_reply_charges_nothing_twice() -> None:
    """The same batch is sent again, under its marker."""
    storage, limit = Storage(), Limit(10, DAY)
    worker = outage_of(storage)
    worker.admit([Charge(limit, "bucket", 4)])
    storage.loses_replies = 1
    with pytest.raises(StorageUnavailable):
        worker.hand_back(storage, within_s=9)
    assert not worker.is_handed_back
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit) == 6


def test_many_buckets_are_handed_back_in_parts() -> None:
    """What is left after the time is sent next time."""
    storage, limit = Storage(), Limit(10, DAY)
    worker = outage_of(storage)
    for number in range(250):
        worker.admit([Charge(limit, f"b{number}")])
    assert not worker.hand_back(storage, within_s=0)
    assert worker.hand_back(storage, within_s=9)
    assert {left(storage, limit, f"b{number}") for number in range(250)} == {9}


def test_a_call_in_flight_is_settled_in_the_storage() -> None:
    """Its estimate and its slot are held there, under its hold; it costs what it really cost."""
    storage = Storage()
    worker, hold = outage_of(storage, 2), Hold(7, LEASE)
    charges = [Charge(DOLLARS, "usd", 1_000_000), Charge(SLOTS, "slots")]
    verdicts = worker.admit(charges, hold=hold).verdicts
    worker.is_deciding = False
    assert worker.hand_back(storage, within_s=9)
    assert (left(storage, DOLLARS, "usd"), left(storage, SLOTS, "slots")) == (4_000_000, 3)
    settled = [Change.settle(verdicts[0], hold, 123_456), Change.settle(verdicts[1], hold, 0)]
    assert worker.settle(settled) == 2
    assert (left(storage, DOLLARS, "usd"), left(storage, SLOTS, "slots")) == (4_876_544, 4)
    assert worker.is_handed_back


def test_a_call_that_ends_in_the_outage_is_settled_here() -> None:
    """The storage is charged its real cost, and no slot."""
    storage = Storage()
    worker, hold = outage_of(storage, 2), Hold(7, LEASE)
    charges = [Charge(DOLLARS, "usd", 1_000_000), Charge(SLOTS, "slots")]
    verdicts = worker.admit(charges, hold=hold).verdicts
    settled = [Change.settle(verdicts[0], hold, 123_456), Change.settle(verdicts[1], hold, 0)]
    assert worker.settle(settled) == 2
    assert left(worker, SLOTS, "slots") == 2
    assert worker.hand_back(storage, within_s=9)
    assert (left(storage, DOLLARS, "usd"), left(storage, SLOTS, "slots")) == (4_876_544, 4)


def test_a_cost_above_the_estimate_is_handed_back_whole() -> None:
    """Debt above the share, and above the amount."""
    storage = Storage()
    worker, hold = outage_of(storage, 2), Hold(7, LEASE)
    (verdict,) = worker.admit([Charge(DOLLARS, "usd", 1_000_000)], hold=hold).verdicts
    worker.settle([Change.settle(verdict, hold, 6_000_000)])
    assert worker.hand_back(storage, within_s=9)
    credit = Change.adjust(verdict._replace(receipt=_receipt(storage)), -2_000_000)
    storage.settle([credit])
    assert left(storage, DOLLARS, "usd") == 1_000_000


def _receipt(storage: Storage) -> int | None:
    (verdict,) = storage.admit([Charge(DOLLARS, "usd", 0)], hold=NO_HOLD).verdicts
    return verdict.receipt


def test_a_settlement_waits_while_its_call_is_handed_back() -> None:
    """Otherwise it would reach the storage before the hold. The settlement queue sends it again."""
    storage = Storage()
    worker, hold = outage_of(storage), Hold(7, LEASE)
    (verdict,) = worker.admit([Charge(DOLLARS, "usd", 1_000_000)], hold=hold).verdicts
    storage.is_away = True
    with pytest.raises(StorageUnavailable):
        worker.hand_back(storage, within_s=9)
    storage.is_away = False
    with pytest.raises(StorageUnavailable, match="handed back"):
        worker.settle([Change.settle(verdict, hold, 5)])
    assert worker.hand_back(storage, within_s=9)
    assert worker.settle([Change.settle(verdict, hold, 5)]) == 1
    assert left(storage, DOLLARS, "usd") == 4_999_995


def test_a_refund_goes_where_the_charge_is() -> None:
    """Here until it is handed back, then to the storage."""
    storage, limit = Storage(), Limit(10, DAY, "fixed-window", anchor="day")
    worker = outage_of(storage)
    first, second = [worker.admit([Charge(limit, "bucket", 2)]).verdicts[0] for _ in range(2)]
    assert worker.settle([Change.adjust(first, -2)]) == 1
    assert left(worker, limit) == 8
    worker.is_deciding = False
    assert worker.hand_back(storage, within_s=9)
    assert worker.settle([Change.adjust(second, -2)]) == 1
    assert left(storage, limit) == 10


def test_while_all_workers_return_an_admission_waits_for_the_storage() -> None:
    """It is charged there at once; if the storage is away again, the worker decides."""
    storage, limit = Storage(), Limit(10, DAY)
    worker = outage_of(storage)
    worker.goes_on.clear()
    assert worker.admit([Charge(limit, "bucket")]).degraded == ""
    assert left(storage, limit) == 9
    worker.goes_on.set()
    assert worker.admit([Charge(limit, "bucket")]).degraded == "local"
    assert left(storage, limit) == 9


def test_an_admission_that_waits_sees_what_was_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten, four were admitted in the outage: it is the fifth, and not the first."""
    storage, charge = Storage(), Charge(Limit(10, DAY), "bucket")
    worker = outage_of(storage)
    assert worker.admit([charge._replace(cost=4)]).admitted
    worker.goes_on.clear()
    returns = lambda _: worker.hand_back(storage, within_s=9)  # noqa: E731
    monkeypatch.setattr(worker.goes_on, "wait", returns)
    assert worker.admit([charge]).verdicts[0].remaining == 5


def test_a_call_is_held_once_if_the_storage_fails_while_workers_return() -> None:
    """Its reply was lost, so the worker decides, under the same hold: the storage's own is released
    before the call is handed back, or when it is over."""
    storage = Storage()
    worker = outage_of(storage)
    charges = [Charge(DOLLARS, "usd", 500), Charge(SLOTS, "slots")]
    for is_over in (True, False):
        hold = Hold(7 + is_over, LEASE)
        storage.loses_replies = 1
        worker.goes_on.clear()
        calls = worker.admit(charges, hold=hold).verdicts
        worker.goes_on.set()
        settlements = [Change.settle(calls[0], hold, 30), Change.settle(calls[1], hold, 0)]
        assert left(storage, SLOTS, "slots") == SLOTS.amount - 1
        if is_over:
            assert worker.settle(settlements) == 2
        assert worker.hand_back(storage, within_s=9)
        if not is_over:
            assert left(storage, SLOTS, "slots") == SLOTS.amount - 1
            assert worker.settle(settlements) == 2
        assert left(storage, SLOTS, "slots") == SLOTS.amount
    assert left(storage, DOLLARS, "usd") == DOLLARS.amount - 60


@pytest.mark.parametrize("late_s", [0, KEPT_AFTER_LEASE_S - 1])
def test_a_call_without_a_reply_is_charged_once_after_a_long_outage(
    clock: Clock, late_s: float
) -> None:
    """Its hold keeps its estimate after the lease, and the storage remembers it for longer."""
    storage = Storage()
    worker, hold = outage_of(storage), Hold(7, LEASE, keeps=1)
    storage.loses_replies = 1
    worker.goes_on.clear()
    (call,) = worker.admit([Charge(DOLLARS, "usd", 500)], hold=hold).verdicts
    worker.goes_on.set()
    assert worker.settle([Change.settle(call, hold, 30)]) == 1
    clock.forward(LEASE / 1_000_000 + late_s)
    assert left(storage, DOLLARS, "usd") == DOLLARS.amount - 500
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, DOLLARS, "usd") == DOLLARS.amount - 30


def test_a_forked_child_hands_back_nothing_of_its_parent() -> None:
    """The parent does."""
    storage, limit = Storage(), Limit(10, DAY)
    worker = outage_of(storage)
    worker.admit([Charge(limit, "bucket")])
    worker.forget()
    assert worker.is_handed_back
    assert left(worker, limit) == 10


def test_a_share_of_a_token_bucket_keeps_its_burst_whole() -> None:
    """Burst and rate are both divided."""
    limit = replace(Limit(100, DAY, "token-bucket"), burst=10)
    workers = [outage_of(Storage(), 3) for _ in range(3)]
    admitted = [w.admit([Charge(limit, "ada")]).admitted for w in workers for _ in range(10)]
    assert sum(admitted) == 9


def test_a_shard_that_is_down_keeps_back_only_its_own() -> None:
    """What belongs to other shards is charged, and calls in flight there are settled."""
    storage, limit = Storage(), Limit(10, DAY, unit="tokens")
    worker = outage_of(storage)
    for number in range(2 * BATCH):  # so that there are batches without the bucket of the shard
        worker.admit([Charge(limit, f"b{number}", 2)], hold=Hold(number + 1, LEASE))
    storage.lost_key = "b0"
    assert not worker.hand_back(storage, within_s=9)
    assert left(storage, limit, f"b{2 * BATCH - 1}") == 8
    verdict = storage.admit([Charge(limit, f"b{2 * BATCH - 1}", 0)], take=False).verdicts[0]
    assert worker.settle([Change.settle(verdict, Hold(2 * BATCH, LEASE), 5)]) == 1
    worker.admit([Charge(limit, "new", 2)])
    assert not worker.hand_back(storage, within_s=9)
    assert left(storage, limit, "new") == 8
    storage.lost_key = ""
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit, "b0") == 8


def test_a_few_buckets_at_a_time_are_taken_out_of_the_workers_memory() -> None:
    """Requests wait for it. A call whose buckets are on both sides is settled on both."""
    storage, many = Storage(), 3 * BATCH
    worker, hold = outage_of(storage), Hold(7, LEASE)
    charges = [Charge(DOLLARS, f"usd{number}", 500) for number in range(many)]
    call = worker.admit(charges, hold=hold)
    storage.is_away = True
    with pytest.raises(StorageUnavailable):
        worker.hand_back(storage, within_s=9)

    def is_moving(verdict: Verdict) -> bool:
        try:
            return worker.settle([Change.settle(verdict, hold, 20)]) != 1
        except StorageUnavailable:
            return True

    moving = [verdict for verdict in call.verdicts if is_moving(verdict)]
    assert len(moving) == BATCH
    assert {left(worker, DOLLARS, each.charge.key) for each in moving} == {DOLLARS.amount - 500}
    storage.is_away = False
    assert worker.hand_back(storage, within_s=9)
    assert worker.settle([Change.settle(each, hold, 20) for each in moving]) == BATCH
    assert worker.hand_back(storage, within_s=9)
    assert {left(storage, DOLLARS, each.key) for each in charges} == {DOLLARS.amount - 20}


@pytest.mark.parametrize("strategy", ["concurrency", *RATES])
def test_a_call_on_its_way_to_the_storage_counts_until_it_is_there(
    strategy: str, clock: Clock
) -> None:
    """Also if the storage goes away in between, for long. What the call has taken was free again,
    in each outage that began like that."""
    limit = SLOTS if strategy == "concurrency" else Limit(4, DAY, strategy, unit="tokens")
    storage, charge, hold = Storage(), Charge(limit, "ada"), Hold(7, LEASE)
    worker = outage_of(storage)
    (call,) = worker.admit([charge], hold=hold).verdicts
    storage.is_away = True
    with pytest.raises(StorageUnavailable):
        worker.hand_back(storage, within_s=9)
    admitted = [worker.admit([charge], hold=Hold(8 + n, LEASE)).admitted for n in range(4)]
    assert admitted == [True, True, True, False]
    storage.is_away = False
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit, "ada") == 0
    assert left(worker, limit, "ada") == (4 if limit.traits.ends_with_calls else 0)
    assert worker.settle([Change.settle(call, hold, 0)]) == 1
    assert left(storage, limit, "ada") == 1


def test_a_request_that_waits_needs_another_hold_after_a_lost_reply() -> None:
    """It asks the storage again, where the former one is released: it would start without a slot.
    Any other is decided here, once."""
    storage = Storage()
    worker, charge = outage_of(storage), Charge(SLOTS, "ada")
    worker.goes_on.clear()
    storage.loses_replies = 2
    with pytest.raises(StorageUnavailable) as failure:
        worker.admit([charge], hold=Hold(7, LEASE, 0))
    assert failure.value.may_have_charged
    assert worker.admit([charge], hold=Hold(8, LEASE)).admitted


@pytest.mark.parametrize("strategy", RATES)
def test_what_is_decided_beside_a_call_on_its_way_is_charged(strategy: str, clock: Clock) -> None:
    """While one shard stays away, its buckets are handed back again and again. What such a call has
    taken counts once: it does not make up for what others take meanwhile."""
    limit = Limit(9, DAY, strategy, unit="tokens")
    storage, worker = Storage(), outage_of(Storage())
    storage.lost_key, hold = "ada", Hold(7, LEASE)
    (call,) = worker.admit([Charge(limit, "ada", 4)], hold=hold).verdicts
    for other in (8, 9):
        assert not worker.hand_back(storage, within_s=9)
        (quick,) = worker.admit([Charge(limit, "ada", 2)], hold=Hold(other, LEASE)).verdicts
        assert worker.settle([Change.settle(quick, Hold(other, LEASE), 2)]) == 1
    assert left(worker, limit, "ada") == 1
    storage.lost_key = ""
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit, "ada") == 1
    assert storage.settle([Change.settle(call, hold, 3)]) == 1
    assert left(storage, limit, "ada") == 2


def test_markers_do_not_pile_up_in_the_storage(clock: Clock) -> None:
    """A storage that is always slow gets some of them a second."""
    storage, limit = Storage(), Limit(10, DAY)
    worker = outage_of(storage)
    (verdict,) = worker.admit([Charge(limit, "bucket")]).verdicts
    correction = Change.adjust(verdict, 1)
    assert worker.hand_back(storage, within_s=9)
    (key,) = storage._buckets().named("bucket:once:")
    clock.forward(HANDED_ONCE_US / 1_000_000 + 0.001)
    assert storage.settle([correction], once=Marker(key, DAY)) == 1
