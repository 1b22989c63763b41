"""Random histories of several buckets, played on every engine at once.

Each answer of an engine is that of the memory engine, to the digit, and of the models of
`tests.strategies.models`, which share no code with the engines. A bucket whose history a model does
not describe has none until it is emptied; then the engines are compared with each other alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT, MOST_MULTIPLE, Limit
from ratelimit_ext.engine.engine import Engine, Marker
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.strategies.guards.block import REASONS, new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from tests.strategies import models
from tests.strategies.virtual_time import OpenBuckets, VirtualClient
from tests.strategies.world import DAY, MINUTE, RATES, SECOND, START

MODELS = {
    "token-bucket": models.TokenBucket,
    "fixed-window": models.FixedWindow,
    "session": models.Session,
    "sliding-window": models.SlidingWindow,
    "sliding-window-counter": models.SlidingWindowCounter,
    "surge": models.Surge,
    "concurrency": models.Concurrency,
    "block": models.Block,
    "reported": models.Reported,
}
#: Where it is not stored when a call came: a clock set back does not part a refund from its charge.
TIMELESS = ("token-bucket", "concurrency")
LEASES = (SECOND, 120 * SECOND, 900 * SECOND)
MOST_ENTRIES = 250
#: The longest wait for a real server's clock.
LONGEST_REAL_US = 8000

#: How many histories were played, operations compared, and verdicts also predicted by a model.
counts: Counter[str] = Counter()


# -- what is drawn -----------------------------------------------------------------------------

ordinary_amounts = st.sampled_from((1, 2, 5, 10, 100, 1000))
ordinary_periods = st.sampled_from((SECOND, 7 * SECOND + 1, MINUTE, 60 * MINUTE))
amounts = st.one_of(
    ordinary_amounts,
    st.sampled_from((3, 30, 511, 65_537, 10_000_000, 999_999_937, MOST_AMOUNT)),
    st.integers(1, MOST_AMOUNT),
)
periods = st.one_of(
    ordinary_periods,
    st.sampled_from((DAY, 30 * DAY, 360 * DAY, LONGEST_PERIOD_US)),
    st.integers(1, 360 * DAY),
)


@st.composite
def any_limits(draw: st.DrawFn) -> Limit:
    """Limits of every strategy, of everyday and of extreme sizes."""
    strategy = draw(st.sampled_from((*RATES, *MODELS)))
    ordinary = draw(st.booleans())
    amount = draw(ordinary_amounts if ordinary else amounts)
    units = ["requests"] if strategy in ("block", "reported") else ["requests", "tokens"]
    anchored = strategy == "fixed-window" and draw(st.booleans())
    burst = None
    if strategy == "token-bucket":
        burst = draw(st.sampled_from((None, amount, min(3 * amount, MOST_AMOUNT))))
    if strategy == "concurrency":
        units, amount = ["calls"], min(amount, 10)
    return Limit(
        amount,
        DAY if anchored else draw(ordinary_periods if ordinary else periods),
        strategy,
        burst=burst,
        unit=draw(st.sampled_from(units)),
        mode=draw(st.sampled_from(("enforce", "enforce", "enforce", "shadow"))),
        anchor=draw(st.sampled_from(("day", "day", "month"))) if anchored else None,
        timezone=draw(st.sampled_from(("UTC", "Europe/Berlin", "America/Havana"))),
        multiple=draw(st.sampled_from((1, 3, MOST_MULTIPLE))) if strategy == "surge" else None,
    )


@st.composite
def brief_limits(draw: st.DrawFn) -> Limit:
    """Limits whose buckets expire within some milliseconds of the server's clock."""
    amount = draw(ordinary_amounts)
    strategy = draw(st.sampled_from(RATES))
    return Limit(
        amount,
        draw(st.sampled_from((1, 1000, 2000, 5001, 20_000, 60_000))),
        strategy,
        burst=draw(st.sampled_from((None, 3 * amount))) if strategy == "token-bucket" else None,
        mode=draw(st.sampled_from(("enforce", "enforce", "shadow"))),
    )


def has_model(limit: Limit) -> bool:
    """Whether its model knows what is cut off, forgotten or rounded at these sizes."""
    if limit.anchor == "month" or (limit.anchor and limit.timezone != "UTC"):
        return False
    # Of shorter surges the model does not know what a clock set back changes.
    least_us = MINUTE if limit.strategy == "surge" else 1
    return limit.amount <= 10**9 and least_us <= limit.period_us <= 360 * DAY


shares = st.one_of(
    st.sampled_from((0.0, 0.001, 0.1, 1 / 3, 0.5, 0.999, 1.0, 1.001, 2.0)), st.floats(0, 1.2)
)
places = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
earlier = st.lists(st.integers(0, 15), min_size=1, max_size=3).map(tuple)


def fits(own: models.Rule, charge: Charge, now: int) -> bool:
    """Whether the charge fits by its model. A cost of 0 always does, unless it is charged later."""
    limit, cost = charge.limit, charge.cost
    if charge.at_once is None:
        return own.fits(limit, now, cost)
    return own.used(limit, now) + cost <= limit.capacity


def taken_of(decision: Decision) -> list[bool]:
    """Which charges are taken, by the contract: all that are enforced, and each shadow that fits,
    or none; a meta that fits, if no meta denies and what it waits for was denied."""
    verdicts = decision.verdicts
    assert decision.admitted == all(v.allowed for v in verdicts if v.enforced)
    banned = any(denial.charge.meta for denial in decision.denials)
    taken = []
    for verdict in verdicts:
        charge = verdict.charge
        if charge.meta:
            awaited = [verdicts[place] for place in charge.on_denial] or verdicts
            wanted = not (decision.admitted or banned or all(v.allowed for v in awaited))
            taken.append(wanted and verdict.allowed)
        else:
            taken.append(decision.admitted and verdict.allowed)
    return taken


# -- what is played on -------------------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """An engine on a real server; ``virtual`` is its client, if it is in virtual time."""

    engine: Engine
    client: redis.Redis
    virtual: VirtualClient | None = None

    def flush(self) -> None:
        (self.virtual.flush if self.virtual else self.client.flushdb)()


@dataclass
class Bucket:
    """A limit, and what its bucket should contain, if a model describes it."""

    limit: Limit
    model: models.Bucket | None = None

    def renew(self) -> None:
        """It is empty."""
        known = has_model(self.limit)
        self.model = models.Bucket(MODELS[self.limit.strategy]()) if known else None


@dataclass
class Taken:
    """A verdict, and whether its model knows which call it was. It may be corrected if final."""

    verdict: Verdict
    hold: Hold
    number: int
    is_final: bool
    at: int
    is_known: bool = True


@dataclass
class Denied:
    charges: list[Charge]
    decision: Decision
    now: int


class History(RuleBasedStateMachine):
    """One history, of limits that are drawn from ``limits``. It is in virtual time, or by the clock
    of the server of a single storage."""

    #: Whether a denied request leaves every bucket as it was; else what it took is given back.
    leaves_no_trace = True

    def __init__(
        self, storages: Mapping[str, Storage], limits: st.SearchStrategy[Limit] | None = None
    ) -> None:
        super().__init__()
        self.storages = storages
        self.drawn_limits = any_limits() if limits is None else limits
        self.kept = OpenBuckets()
        self.memory = MemoryEngine(lambda: self.kept)
        self.is_virtual = all(storage.virtual for storage in storages.values())
        self.buckets: dict[str, Bucket] = {}
        self.taken: list[Taken] = []
        self.denied: Denied | None = None
        self.numbers = 0
        self.now = START if self.is_virtual else 0
        for storage in storages.values():
            storage.flush()
        counts["histories"] += 1

    @initialize(data=st.data())
    def define_limits(self, data: st.DataObject) -> None:
        limits = data.draw(st.lists(self.drawn_limits, min_size=1, max_size=4), label="limits")
        for place, limit in enumerate(limits):
            self.buckets[f"b{place}"] = Bucket(limit)
            self.buckets[f"b{place}"].renew()

    # -- every engine ----------------------------------------------------------------------

    def everywhere(self, operation: Callable[[Engine], Any], keys: Sequence[str]) -> Any:
        """The answer of all engines."""
        counts["operations"] += 1
        self.denied = None
        answer = operation(self.memory)
        for name, storage in self.storages.items():
            other = operation(storage.engine)
            assert other == answer, f"{name}: {other}"
        self.same_expiry(keys)
        return answer

    def same_expiry(self, keys: Sequence[str]) -> None:
        """Every bucket has a time to live; in virtual time, to the digit."""
        if not self.leaves_no_trace:
            return
        for name, storage in self.storages.items():
            for key in keys:
                if storage.virtual:
                    found = storage.virtual.expiry_us.get(key)
                    assert found == self.kept.expiry_us(key), (name, key, found)
                else:
                    assert storage.client.pttl(key) != -1, (name, key)

    def bucket(self, place: int) -> tuple[str, Bucket]:
        name = f"b{place % len(self.buckets)}"
        return name, self.buckets[name]

    # -- requests --------------------------------------------------------------------------

    @rule(
        chosen=places,
        share=shares,
        unit=st.integers(0, 3),
        lease=st.sampled_from((0, 0, 1, *LEASES)),
        part=st.sampled_from(("", "", "", "meta", "meta of the first", "look")),
    )
    def request(
        self, chosen: tuple[int, ...], share: float, unit: int, lease: int, part: str
    ) -> None:
        charges = self.charges(chosen, share, unit, part)
        hold = self.new_hold(charges, lease)
        self.decide(charges, hold=hold, take=part != "look")

    @rule(
        place=st.integers(0, 3),
        share=st.sampled_from((0.0, 0.05, 0.1, 0.3)),
        lease=st.sampled_from((0, *LEASES, *LEASES)),
    )
    def call(self, place: int, share: float, lease: int) -> None:
        """A call of one bucket, most of which fit."""
        charges = self.charges((place,), share, 1, "")
        self.decide(charges, hold=self.new_hold(charges, lease))

    @rule(
        place=st.integers(0, 3),
        calls=st.integers(2, 24),
        share=st.floats(0, 0.1),
        lease=st.sampled_from((0, LEASES[1])),
    )
    def burst(self, place: int, calls: int, share: float, lease: int) -> None:
        """Calls of one bucket in a row."""
        gap = int(min(self.bucket(place)[1].limit.period_us, DAY) * share)
        for _ in range(calls):
            charges = self.charges((place,), 0, 1, "")
            self.decide(charges, hold=self.new_hold(charges, lease))
            self.now += gap * self.is_virtual

    @precondition(lambda self: self.is_virtual)
    @rule(chosen=places, share=shares, unit=st.integers(0, 3), late=st.integers(1, 3))
    def charge_late(self, chosen: tuple[int, ...], share: float, unit: int, late: int) -> None:
        """What only had to fit is taken later, at another cost."""
        charges = [
            charge._replace(at_once=0)
            if (place + late) % 3 and charge.limit.strategy in RATES and not charge.limit.held
            else charge
            for place, charge in enumerate(self.charges(chosen, share, unit, ""))
        ]
        decision = self.decide(charges, hold=self.new_hold(charges, 0))
        if not decision.admitted:
            return
        changes: list[Change] = []
        for verdict in decision.verdicts:
            limit, key, cost = verdict.charge[:3]
            if verdict.charge.at_once is not None and verdict.allowed:
                delta = cost - verdict.charge.taken + late
                changes.append(Change.adjust(verdict._replace(receipt=0), delta))
                if model := self.model(key):
                    self.numbers += 1
                    model.rule.take(limit, self.now, self.numbers, delta)
        self.change(changes, [True] * len(changes))

    def charges(self, chosen: Sequence[int], share: float, unit: int, part: str) -> list[Charge]:
        """Of these buckets; one that comes twice is charged twice."""
        charges = []
        for position, place in enumerate(chosen):
            name, bucket = self.bucket(place)
            limit = bucket.limit
            cost = int(min(limit.capacity, 3 * limit.amount) * share) + unit
            if limit.strategy == "concurrency":
                cost = 1
            if limit.traits.guard:
                cost = min(cost, limit.capacity // 4)  # a charge never exceeds it
            is_last = position == len(chosen) - 1 and position > 0
            is_meta = is_last and part.startswith("meta")
            if is_meta and any(charge.key == name for charge in charges):
                continue
            triggers = (0,) if is_meta and part == "meta of the first" else ()
            charges.append(Charge(limit, name, cost, meta=is_meta, on_denial=triggers))
        return charges

    def new_hold(self, charges: Sequence[Charge], lease: int) -> Hold:
        """A slot always has a hold (`Admission._held`), so that it is only settled, to 0."""
        self.numbers += 1
        if any(charge.limit.strategy == "concurrency" for charge in charges):
            lease = lease or LEASES[0]
        return Hold(self.numbers, lease) if lease else NO_HOLD

    def decide(self, charges: list[Charge], *, hold: Hold = NO_HOLD, take: bool = True) -> Decision:
        """One request everywhere, judged by the models."""
        keys = list(dict.fromkeys(charge.key for charge in charges))
        number = self.numbers
        decision = self.answer(charges, keys, take=take, hold=hold)
        for verdict, left in zip(decision.verdicts, decision.left(), strict=True):
            assert not verdict.enforced or left == verdict.left
        booked = self.judge(decision, hold, number, take=take)
        if take:
            self.taken += [
                Taken(verdict, hold, number, verdict.charge.key in booked, self.now)
                for verdict, is_taken in zip(decision.verdicts, taken_of(decision), strict=True)
                if (is_taken and verdict.charge.cost) or self.leaves_no_trace
            ]
        if take and not decision.admitted:
            self.denied = Denied(charges, decision, self.now)
            self.costs_nothing(charges, decision)
        return decision

    def answer(self, charges: list[Charge], keys: list[str], *, take: bool, hold: Hold) -> Decision:
        """That of every engine. By the clock of a server, its answer names the instant."""
        if not self.is_virtual:
            counts["operations"] += 1
            self.denied = None
            (storage,) = self.storages.values()
            decision = storage.engine.admit(charges, take=take, hold=hold)
            self.now = decision.now_us
            assert decision == self.memory.admit(charges, take=take, hold=hold, now_us=self.now)
            self.same_expiry(keys)
            return decision
        return self.everywhere(
            lambda engine: engine.admit(charges, take=take, hold=hold, now_us=self.now), keys
        )

    def costs_nothing(self, charges: list[Charge], decision: Decision) -> None:
        """A denied request, made again, finds every enforced limit as before."""
        again = self.memory.admit(charges, take=False, now_us=self.now)
        for one, other in zip(decision.verdicts, again.verdicts, strict=True):
            if one.enforced and not one.charge.meta:
                assert one == other

    def judge(self, decision: Decision, hold: Hold, number: int, *, take: bool) -> set[str]:
        """Whether the models would have answered the same. Returns the buckets that were charged
        and are not held, of which a model knows."""
        rules: dict[str, models.Rule] = {}
        for verdict in decision.verdicts:
            limit, key, cost = verdict.charge[:3]
            assert verdict.remaining >= 0
            assert (verdict.retry_after_us == 0) == verdict.allowed
            assert verdict.retry_after_us is not None or cost > limit.capacity
            if model := self.model(key, limit):
                rules[key] = model.rule if take else deepcopy(model.rule)
                rules[key].rewind(limit, self.now)
                assert verdict.allowed == fits(rules[key], verdict.charge, self.now)
                self.same_wait(rules[key], verdict)
        booked = set()
        for verdict, is_taken in zip(decision.verdicts, taken_of(decision), strict=True):
            charge, limit = verdict.charge, verdict.charge.limit
            if (own := rules.get(charge.key)) is None:
                continue
            left = own.left(limit, self.now)
            if take and is_taken:
                self.book(charge, hold, number, admitted=decision.admitted)
                if charge.taken and not (limit.held and hold.lease_us):
                    booked.add(charge.key)
                if not charge.meta:
                    left = own.left(limit, self.now)
            if left != models.UNKNOWN:
                assert 0 <= verdict.remaining - left <= own.rounded
            counts["verdicts"] += 1
        return booked

    def book(self, charge: Charge, hold: Hold, number: int, *, admitted: bool) -> None:
        limit, key, cost = charge.limit, charge.key, charge.taken
        model = self.buckets[key].model
        assert model is not None
        if cost:
            model.rule.take(limit, self.now, number, cost)
        if limit.held and hold.lease_us and (cost or admitted):
            model.calls[number] = models.Call(cost, self.now + hold.lease_us, cost)

    def same_wait(self, own: models.Rule, verdict: Verdict) -> None:
        """Without other calls the wait is enough, and one microsecond less is not."""
        charge, wait = verdict.charge, verdict.retry_after_us
        if wait and charge.limit.strategy != "concurrency":
            assert fits(own, charge, self.now + wait)
            assert not fits(own, charge, self.now + wait - 1)

    @precondition(lambda self: self.is_virtual and self.denied and self.denied.now == self.now)
    @rule()
    def wait_for_its_turn(self) -> None:
        """The wait of a denied request is exact: without holds, which may end earlier, the request
        is denied one microsecond before, and passes then."""
        assert self.denied is not None
        charges, decision = self.denied.charges, self.denied.decision
        waits = [verdict.retry_after_us for verdict in decision.denials]
        wait = max((wait for wait in waits if wait is not None), default=0)
        if None in waits or not 1 < wait <= 30 * DAY:
            return
        is_alone = not any(charge.limit.held for charge in charges)
        self.now += wait - 1
        assert not (self.decide(charges, take=False).admitted and is_alone)
        self.now += 1
        hold = self.new_hold(charges, 0)
        assert self.decide(charges, hold=hold).admitted or not is_alone

    # -- changes ---------------------------------------------------------------------------

    def change(
        self, changes: Sequence[Change], expected: Sequence[bool] | None, once: Marker | None = None
    ) -> None:
        """Changes of buckets everywhere, and how many of them should have mattered, if known."""
        applied = self.everywhere(
            lambda engine: engine.settle(changes, once=once, now_us=self.now),
            [*(change.charge.key for change in changes), *([once.key] if once and changes else [])],
        )
        assert expected is None or applied == sum(expected)
        counts["verdicts"] += expected is not None

    def corrections(
        self, chosen: tuple[int, ...], share: float, unit: int, *, more: bool
    ) -> tuple[list[Change], list[bool] | None]:
        changes: list[Change] = []
        expected: list[bool | None] = []
        for taken in self.chosen(chosen, self.taken):
            verdict = self.by_now(taken.verdict)
            limit, key, cost = verdict.charge[:3]
            delta = int(limit.amount * share) + unit if more else -min(int(cost * share) + 1, cost)
            changes.append(Change.adjust(verdict, delta))
            model = self.model(key)
            if not (taken.is_final and taken.is_known and delta):
                model = self.buckets[key].model = None
            taken.is_final = False
            expected.append(model and model.correct(limit, self.now, taken.number, delta))
        return changes, self.all_known(expected)

    @precondition(lambda self: self.is_virtual and self.taken)
    @rule(chosen=earlier, share=shares, unit=st.integers(1, 3), more=st.booleans())
    def correct(self, chosen: tuple[int, ...], share: float, unit: int, more: bool) -> None:
        """Charges that are final were too high, or too low."""
        self.change(*self.corrections(chosen, share, unit, more=more))

    def settlements(
        self, chosen: tuple[int, ...], share: float, unit: int
    ) -> tuple[list[Change], list[bool] | None]:
        changes: list[Change] = []
        expected: list[bool | None] = []
        for taken in self.chosen(chosen, self.holds()):
            verdict = self.by_now(taken.verdict)
            limit, key, cost = verdict.charge[:3]
            actual = 0 if limit.strategy == "concurrency" else int(cost * share) + unit
            changes.append(Change.settle(verdict, taken.hold, actual))
            model = self.model(key)
            expected.append(model and model.settle(limit, self.now, taken.hold.id, actual))
        return changes, self.all_known(expected)

    @precondition(lambda self: self.holds())
    @rule(chosen=earlier, share=shares, unit=st.integers(0, 2))
    def settle(self, chosen: tuple[int, ...], share: float, unit: int) -> None:
        """Calls are over; some a second time, which changes nothing."""
        self.change(*self.settlements(chosen, share, unit))

    @precondition(lambda self: self.holds())
    @rule(chosen=earlier, share=shares, unit=st.integers(0, 2))
    def renew(self, chosen: tuple[int, ...], share: float, unit: int) -> None:
        """Calls go on."""
        changes: list[Change] = []
        expected: list[bool | None] = []
        for taken in self.chosen(chosen, self.holds()):
            verdict, hold = self.by_now(taken.verdict), taken.hold
            limit, key, cost = verdict.charge[:3]
            spent = 0 if limit.strategy == "concurrency" else int(cost * share) + unit
            changes.append(Change.renew(verdict, hold, spent))
            model = self.model(key)
            expected.append(model and model.renew(limit, self.now, hold.id, spent, hold.lease_us))
        self.change(changes, self.all_known(expected))

    @precondition(lambda self: self.is_virtual and self.holds())
    @rule(
        shares=st.tuples(shares, shares, shares),
        steps=st.lists(st.sampled_from(("renew", "outlast")), min_size=1, max_size=4),
    )
    def end_late(self, shares: tuple[float, float, float], steps: list[str]) -> None:
        """The latest call is renewed, outlives its lease, or both, before it is settled."""
        first, second, last = shares
        for step in steps:
            if step == "renew":
                self.renew((0,), first, 0)
                first = second
            else:
                self.outlast((0,), 0, grace=False)
        self.settle((0,), last, 0)

    @precondition(
        lambda self: any(b.limit.strategy in ("block", "reported") for b in self.buckets.values())
    )
    @rule(place=st.integers(0, 3), share=shares, kind=st.integers(0, 15))
    def protect(self, place: int, share: float, kind: int) -> None:
        """A block begins, or a provider reports."""
        key, bucket = self.bucket(place)
        limit, rule = bucket.limit, bucket.model and bucket.model.rule
        charge = Charge(limit, key)
        if limit.strategy == "block":
            for_us = int(min(limit.period_us, DAY) * share) + 1
            changed = rule and rule.block(self.now, for_us)
            block = new_block(charge, for_us, REASONS[kind % 4])
            self.change([block], self.all_known([changed]))
        if limit.strategy == "reported":
            amount, period = (
                (1, 60, 1000, limit.amount)[kind % 4],
                (SECOND, limit.period_us)[kind // 8],
            )
            used = min(amount, int(amount * share))
            if rule:
                rule.report(self.now, amount, used, period)
            self.change(
                [quota_report(charge, amount, used, period)], self.all_known([rule and True])
            )

    @rule(place=st.integers(0, 3), amount=amounts, times=st.integers(1, 3))
    def change_limit(self, place: int, amount: int, times: int) -> None:
        """Another amount keeps the usage."""
        self.denied = None
        _, bucket = self.bucket(place)
        limit = bucket.limit
        if limit.strategy == "concurrency":
            amount = min(amount, 10)
        changed: dict[str, Any] = {"amount": amount}
        if limit.burst is not None:
            changed["burst"] = min(MOST_AMOUNT, amount * times)
        bucket.limit = replace(limit, **changed)
        if not has_model(bucket.limit):
            bucket.model = None

    # -- time and trouble ------------------------------------------------------------------

    @rule(
        place=st.integers(0, 3),
        share=st.one_of(shares, st.sampled_from((3.0, 96.0))),
        unit=st.integers(-2, 2),
        of=st.sampled_from(("period", "unit", "lease", "expiry")),
    )
    def advance(self, place: int, share: float, unit: int, of: str) -> None:
        """Time passes, also until a bucket expires or is long gone."""
        key, bucket = self.bucket(place)
        limit = bucket.limit
        whole = {
            "period": min(limit.period_us, 30 * DAY),
            "unit": limit.period_us // limit.amount,
            "lease": LEASES[1] if share < 1 else models.GRACE,
            "expiry": max(0, (self.kept.expiry_us(key) or 0) - self.now),
        }[of]
        gap = min(max(0, int(whole * share) + unit), 900 * DAY)
        if self.is_virtual:
            self.now += gap
        else:
            (storage,) = self.storages.values()
            storage.client.execute_command("DEBUG", "SLEEP", min(gap, LONGEST_REAL_US) / SECOND)

    @precondition(lambda self: self.is_virtual and self.holds())
    @rule(place=earlier, unit=st.integers(-1, 1), grace=st.booleans())
    def outlast(self, place: tuple[int, ...], unit: int, grace: bool) -> None:
        """Time passes until the lease of a call ends, or until its hold is forgotten."""
        holds = self.holds()
        taken = holds[-1 - place[0] % len(holds)]
        end = taken.at + taken.hold.lease_us + models.GRACE * grace + unit
        self.now = max(self.now, end)

    @precondition(lambda self: self.is_virtual)
    @rule(
        back=st.one_of(
            st.sampled_from((1, SECOND // 3, SECOND, SECOND + 1, 5 * MINUTE, DAY)),
            st.integers(1, 2 * SECOND),
        )
    )
    def set_back(self, back: int) -> None:
        """The clock is set back. The models know no window that was charged before, and no lease
        that ends twice; a call of each bucket is made at once."""
        for key, bucket in self.buckets.items():
            limit, model = bucket.limit, self.model(key)
            timeless = limit.strategy in TIMELESS
            if model and not model.calls and not model.rule.matters(limit, self.now):
                self.empty([key])  # it has expired, or will within a moment
            elif model and (
                (limit.held and not timeless)
                or any(self.now - back < instant <= self.now for instant in model.boundaries())
            ):
                bucket.model = None
            for taken in self.taken:
                if taken.verdict.charge.key == key and not timeless:
                    taken.is_known = False
        self.now -= back
        for place in range(len(self.buckets)):
            charges = self.charges((place,), 0, 1, "")
            self.decide(charges, hold=self.new_hold(charges, 0))

    @rule(
        chosen=places,
        what=st.sampled_from(("functions", "scripts", "unblock", "unblock", "reset", "restart")),
    )
    def operate(self, chosen: tuple[int, ...], what: str) -> None:
        """FUNCTION FLUSH or SCRIPT FLUSH, after which calls are served as before; buckets are
        emptied by their names, or all; or the server restarts empty."""
        if what == "unblock":
            self.empty([self.bucket(place)[0] for place in chosen])
        for storage in self.storages.values():
            if what == "functions":
                storage.client.function_flush()
            if what == "scripts":
                storage.client.script_flush()
            if what == "reset":
                storage.engine.reset("b")
                assert storage.client.keys("b*") == []
            if what == "restart":
                storage.flush()
        if what in ("reset", "restart"):
            self.memory.reset("b" if what == "reset" else "")
            self.forgotten(list(self.buckets))

    def empty(self, keys: list[str]) -> None:
        keys = list(dict.fromkeys(keys))
        if self.is_virtual:  # what has expired is not counted
            looks = [Charge(self.buckets[key].limit, key, 0) for key in keys]
            self.answer(looks, keys, take=False, hold=NO_HOLD)
        counted = {
            engine.clear(keys)
            for engine in (self.memory, *(s.engine for s in self.storages.values()))
        }
        assert len(counted) == 1 or not (self.is_virtual and self.leaves_no_trace)
        self.forgotten(keys)

    def forgotten(self, keys: list[str]) -> None:
        self.denied = None
        for key in keys:
            self.buckets[key].renew()
            for storage in self.storages.values():
                if storage.virtual:
                    storage.virtual.expiry_us.pop(key, None)
        for taken in self.taken:
            taken.is_known = taken.is_known and taken.verdict.charge.key not in keys

    @precondition(lambda self: self.is_virtual)
    @rule(chosen=places, share=shares, is_lost=st.booleans())
    def outage_of_a_request(self, chosen: tuple[int, ...], share: float, is_lost: bool) -> None:
        """The storage refuses, which charges nothing; or it charges, and its reply is lost."""
        self.denied = None  # it may have to wait longer now
        charges = self.charges(chosen, share, 1, "")
        hold = self.new_hold(charges, LEASES[0])
        self.during_outage(
            lambda engine: engine.admit(charges, hold=hold, now_us=self.now), is_lost=is_lost
        )
        if is_lost:
            decision = self.memory.admit(charges, hold=hold, now_us=self.now)
            self.judge(decision, hold, self.numbers, take=True)
        self.same_expiry([charge.key for charge in charges])

    @precondition(lambda self: self.is_virtual and self.taken)
    @rule(chosen=earlier, share=shares, is_lost=st.booleans(), held=st.booleans())
    def outage_of_a_settlement(
        self, chosen: tuple[int, ...], share: float, is_lost: bool, held: bool
    ) -> None:
        """What was refused or got lost is sent again, and is applied once."""
        if held:
            changes, expected = self.settlements(chosen, share, 1)
        else:
            changes, expected = self.corrections(chosen, share, 1, more=True)
        self.numbers += 1
        once = Marker(f"m{self.numbers}", DAY)
        self.during_outage(
            lambda engine: engine.settle(changes, once=once, now_us=self.now), is_lost=is_lost
        )
        if is_lost:
            applied = self.memory.settle(changes, once=once, now_us=self.now)
            assert expected is None or applied == sum(expected)
            expected = []
        self.change(changes, expected, once)

    def during_outage(self, operation: Callable[[Engine], Any], *, is_lost: bool) -> None:
        for storage in self.storages.values():
            assert storage.virtual is not None
            storage.virtual.outage = "lost" if is_lost else "refused"
            try:
                operation(storage.engine)
            except StorageUnavailable:
                pass
            finally:
                storage.virtual.outage = ""

    # -- the models ------------------------------------------------------------------------

    def chosen(self, places: tuple[int, ...], of: list[Taken]) -> list[Taken]:
        return [of[-1 - place] for place in places if place < len(of)]

    def holds(self) -> list[Taken]:
        """The calls that were reserved."""
        return [
            each for each in self.taken if each.hold.lease_us and each.verdict.charge.limit.held
        ]

    def model(self, key: str, limit: Limit | None = None) -> models.Bucket | None:
        """Of the bucket, as of now. A sliding window merges entries above 256, a model never."""
        bucket = self.buckets[key]
        if bucket.model and len(getattr(bucket.model.rule, "entries", ())) > MOST_ENTRIES:
            bucket.model = None
        if bucket.model:
            bucket.model.advance(limit or bucket.limit, self.now)
        return bucket.model

    def by_now(self, verdict: Verdict) -> Verdict:
        """The verdict with the limit as it is now."""
        limit = self.buckets[verdict.charge.key].limit
        return verdict._replace(charge=verdict.charge._replace(limit=limit))

    @staticmethod
    def all_known(expected: Sequence[Any]) -> list[bool] | None:
        return None if any(each is None for each in expected) else [bool(e) for e in expected]
