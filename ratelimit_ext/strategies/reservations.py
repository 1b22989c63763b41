"""Reservations: any strategy, with the estimates of calls that are not over yet.

The cost of a call to a language model is known at its end. Its estimate is taken at admission and
noted as a *hold*: its id, how much, and until when. Settling replaces the estimate by the real
cost, once: the hold is gone, and a second settlement finds nothing. If the call is not settled in
time, because its worker died, the lease ends and the next access to the bucket gives back what was
not spent, as of the instant at which the lease ended. The hold itself is remembered for ten more
minutes, so that a slow worker can still settle, or renew: that takes the unspent part again.

A request may reach the storage after its worker gave it up and released its hold. The release
leaves an expired hold of nothing, and an admission under an id that is known holds nothing.

A budget's calls *claim* a part of what it has left (:class:`~ratelimit_ext.core.charge.Claim`), and
hold what they get, so that those in flight together spend no more than the budget. The only call
in flight may spend all that is left, and holds less. If that one may have been billed unseen, its
settlement leaves a *mark*: until the charge no longer matters, every call is one beside others.

A refund goes to the window that the hold was charged to, or nowhere if that is over. What a call
cost beyond its hold is carried into the window that is open when it settles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import LARGE, Charge, Hold
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US, Answer, Strategy, lua

GRACE_US: Final = 600_000_000
#: How much later than its release an admission may arrive. The network gives up earlier what a
#: closed connection has sent.
LATE_US: Final = 120_000_000
#: The largest cost that a hold has room for: 6 bytes. Larger ones are cut off.
MOST_HELD: Final = 2**48 - 1
#: Later than any instant.
NEVER_US: Final = 2**56 - 1

#: The id of the hold of nothing that marks a bucket.
MARK: Final = 0

#: The changes of holds.
VERBS: Final = ("settle", "release", "renew", "resume")


class Record(NamedTuple):
    """A call in flight: ``amount`` is charged for it, of which ``spent`` is known to be real;
    ``final`` was charged to an earlier window and is not refundable."""

    id: int
    deadline: int
    receipt: int
    amount: int
    spent: int
    final: int = 0

    @property
    def change(self) -> int:
        """When its lease ends, or it is forgotten."""
        return self.deadline if self.amount > self.spent else self.deadline + GRACE_US


_NO_RECORDS: Final[Mapping[int, Record]] = {}


class State(NamedTuple):
    """Holds by their ids, and the strategy's own state. A team's budget may have thousands of
    holds, so they are examined one by one only when a lease ends."""

    records: Mapping[int, Record] = _NO_RECORDS
    #: An instant before which no hold changes.
    change: int = NEVER_US
    #: The latest deadline that any of them had, or 0.
    latest: int = 0
    inner: Any = None

    def put(self, record: Record) -> State:
        """Add the hold, or replace the one of its id."""
        return State(
            {**self.records, record.id: record},
            min(self.change, record.deadline),
            max(self.latest if self.records else 0, record.deadline),
            self.inner,
        )


FRESH: Final = State()
Parameters: TypeAlias = tuple[tuple[int, ...], Hold]  # the strategy's own; the hold
Checked: TypeAlias = tuple[State, Any]  # and the strategy's own state as of now


class Reservations(Strategy):
    """A strategy over another. It keeps more, and answers the same: these are the strategy's."""

    parameters = left = verdict = later = share = cast(Any, None)

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        for same in ("parameters", "left", "verdict", "later", "share"):
            setattr(self, same, getattr(strategy, same))
        self.name = strategy.name
        self.code = f"h{strategy.code}"
        self.changes = (*strategy.changes, *VERBS)

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Return the strategy's answer, after expired leases gave back what they held."""
        state = state or FRESH
        if now_us >= state.change:
            state = self._expired(state, now_us, parameters)
        fits, snapshot, now = self._strategy.check(state.inner, now_us, cost, parameters[0])
        return fits, snapshot, (state, now)

    def claimed(
        self, state: State | None, now_us: int, charge: Charge, parameters: Parameters
    ) -> tuple[Answer, tuple[int, int]]:
        assert charge.claim is not None
        (alone, beside, usual, most), cost = charge.claim, charge.cost
        state = state or FRESH
        if now_us >= state.change:
            state = self._expired(state, now_us, parameters)
        others = len(state.records)
        need = beside if others else cost
        answer = fits, snapshot, _ = self.check(state, now_us, need, parameters)
        if not cost:  # of a free model
            return answer, (0, others)
        if not fits:
            # Without the others it needs its cost, unless there is a mark.
            held = sum(each.amount - each.spent for each in state.records.values())
            marks = MARK in state.records
            need = (need if marks else cost) - held
            would_fit = others > marks and self.check(state, now_us, need, parameters)[0]
            return answer, (-1 if would_fit else 0, others)
        left = self.left(charge.limit, snapshot, now_us, 0)[0]
        if others:
            part = min(most, max(usual, left // LARGE), left // (others + 1))
            return answer, (max(beside, part), others)
        return answer, (max(cost, min(alone, left // 2)), others)

    def take(self, checked: Checked, now_us: int, cost: int, parameters: Parameters) -> State:
        """Return the strategy's, with a hold if there is a lease; nothing if it was released
        before."""
        (state, now), (own, hold) = checked, parameters
        holds = cost and hold.lease_us
        if holds and hold.id in state.records:
            return state
        taken = state._replace(inner=self._strategy.take(now, now_us, cost, own))
        if not holds:
            return taken
        receipt = self._strategy.receipt(now, now_us)
        return taken.put(Record(hold.id, now_us + hold.lease_us, receipt, cost, 0))

    def reserve(self, state: State | None, now_us: int, parameters: Parameters) -> State | None:
        hold = parameters[1]
        if not hold.lease_us:
            return None
        state = self._expired(state, now_us, parameters)
        if hold.id in state.records:
            return None
        return state.put(Record(hold.id, now_us + hold.lease_us, 0, 0, 0))

    def usage(self, state: State, now_us: int, parameters: Parameters) -> int:
        if state.inner is None:
            return 0
        return self._strategy.usage(state.inner, now_us, parameters[0])

    def filled(
        self, units: int, now_us: int, parameters: Parameters, reset_after_us: int, age_us: int
    ) -> State:
        own = self._strategy.filled(units, now_us, parameters[0], reset_after_us, age_us)
        return State(inner=own)

    def credited(
        self, state: State | None, now_us: int, parameters: Parameters, units: int
    ) -> State:
        state = self._expired(state, now_us, parameters)
        inner = self._strategy.credited(state.inner, now_us, parameters[0], units)
        return state._replace(inner=inner)

    def without_holds(
        self, state: State, now_us: int, parameters: Parameters
    ) -> tuple[State, Sequence[tuple[Hold, int, int]]]:
        """A hold whose lease is over has no lease left, so that only a settlement can reach it."""
        state = self._expired(state, now_us, parameters)
        inner, holds = state.inner, []
        for record in sorted(state.records.values(), key=lambda each: (each.receipt, each.id)):
            inner = self._adjusted(inner, now_us, parameters, record.receipt, -record.amount)
            hold = Hold(record.id, max(1, record.deadline - now_us))
            holds.append((hold, record.amount, record.spent))
        return State(inner=inner), holds

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Return the strategy's, and until the last hold is forgotten."""
        inner = state.inner
        own = 0 if inner is None else self._strategy.lifetime(inner, now_us, parameters[0])
        return max(own, state.latest + GRACE_US - now_us) if state.records else own

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return self._strategy.is_stale(state and state.inner, now_us, parameters[0])

    def apply(
        self, change: Change, state: State | None, now_us: int, parameters: Parameters
    ) -> State | None:
        """The strategy's own changes apply to its part of the state."""
        if change.verb not in self._strategy.changes:
            own: State | None
            own = getattr(self, change.verb)(state, now_us, parameters, *change.numbers)
            return own
        state = self._expired(state, now_us, parameters)
        inner = self._strategy.apply(change, state.inner, now_us, parameters[0])
        return None if inner is None else state._replace(inner=inner)

    def settle(
        self,
        state: State | None,
        now_us: int,
        parameters: Parameters,
        hold_id: int,
        actual: int,
        unseen: int = 0,
    ) -> State | None:
        """The call is over, and its cost is known; ``None`` if there is no such hold. Unseen: it
        may be billed more."""
        state = state or FRESH
        if now_us >= state.change:
            state = self._expired(state, now_us, parameters)
        records = dict(state.records)
        record = records.pop(hold_id, None)
        if record is None:
            return None
        delta = max(min(actual, MOST_HELD), record.final) - record.amount
        inner = self._adjusted(state.inner, now_us, parameters, record.receipt, delta)
        state = state._replace(records=records, inner=inner)
        if not unseen or inner is None or MARK in records:
            return state
        lasts_us = self._strategy.marked_us(inner, now_us, parameters[0])
        until_us = now_us + min(lasts_us, LONGEST_LIFETIME_US)
        return state.put(Record(MARK, max(0, until_us - GRACE_US), 0, 0, 0))

    def release(
        self, state: State | None, now_us: int, parameters: Parameters, hold_id: int
    ) -> State | None:
        """The lease ends now, also if the hold is yet to come; ``None`` if it is over."""
        state = self._expired(state, now_us, parameters)
        records = dict(state.records)
        record = records.pop(hold_id, None)
        if record is None:
            return state.put(Record(hold_id, now_us + LATE_US - GRACE_US, 0, 0, 0))
        if record.deadline <= now_us:
            return None
        ended = state._replace(records=records).put(record._replace(deadline=now_us))
        return self._expired(ended, now_us, parameters)

    def renew(
        self, state: State | None, now_us: int, parameters: Parameters, cost: int, so_far: int
    ) -> State | None:
        """The call goes on, with its cost so far; its lease is renewed.

        If the lease had expired, what was given back of the cost is taken again, from the current
        window: that denies nothing, and may overdraw.
        """
        own, hold = parameters
        state = self._expired(state, now_us, parameters)
        record, inner = state.records.get(hold.id), state.inner
        if record is None:
            return None
        spent = min(max(record.spent, so_far), MOST_HELD)
        amount = max(record.amount, spent, min(cost, MOST_HELD))
        receipt, final = record.receipt, record.final
        if record.deadline <= now_us and amount > record.amount:
            now = self._strategy.check(inner, now_us, 0, own)[2]
            receipt, final = self._strategy.receipt(now, now_us), record.amount
        inner = self._adjusted(inner, now_us, parameters, receipt, amount - record.amount)
        renewed = Record(hold.id, now_us + hold.lease_us, receipt, amount, spent, final)
        return state._replace(inner=inner).put(renewed)

    def resume(
        self,
        state: State | None,
        now_us: int,
        parameters: Parameters,
        amount: int,
        spent: int,
    ) -> State | None:
        """A call in flight that another engine has admitted: it holds ``amount`` from now on, and
        has spent a part of it. Denies nothing, and may overdraw; ``None`` if its hold is known."""
        own, hold = parameters
        state = self._expired(state, now_us, parameters)
        records = dict(state.records)
        released = records.pop(hold.id, None)
        if released is not None and (released.amount or released.deadline > now_us):
            return None
        state = state._replace(records=records)
        now = self._strategy.check(state.inner, now_us, 0, own)[2]
        receipt, amount = self._strategy.receipt(now, now_us), min(amount, MOST_HELD)
        inner = self._adjusted(state.inner, now_us, parameters, receipt, amount)
        record = Record(hold.id, now_us + hold.lease_us, receipt, amount, min(spent, amount))
        return state._replace(inner=inner).put(record)

    def fragments(self) -> tuple[str, ...]:
        own = lua(Path(__file__).with_suffix(".lua"))
        line = f"strategies.{self.code} = strategies.reservations(strategies.{self._strategy.code})"
        return (*self._strategy.fragments(), f"do\n{own}end\n", line)

    def _expired(self, state: State | None, now_us: int, parameters: Parameters) -> State:
        """Give back what expired leases still held; forget those that expired long ago.

        Each lease is decided as of its own end, as the next access may come at any time: if its
        window was over by then, the charge stays, as if it were spent.
        """
        state = state or FRESH
        if now_us < state.change:
            return state
        records, latest, inner = state.records.values(), state.latest, state.inner
        over = [r for r in records if r.deadline <= now_us and r.amount > r.spent]
        closed: dict[Record, Record] = {}
        for record in sorted(over, key=lambda record: (record.deadline, record.id)):
            unspent = record.amount - record.spent
            adjusted = self._strategy.adjust(
                inner, record.deadline, parameters[0], record.receipt, -unspent
            )
            if adjusted is None:
                closed[record] = record._replace(spent=record.amount)
            else:
                # A full refund is charged nowhere.
                receipt = record.receipt if record.spent else 0
                closed[record] = record._replace(receipt=receipt, amount=record.spent)
                inner = adjusted
        kept = {r.id: closed.get(r, r) for r in records if r.deadline + GRACE_US > now_us}
        change = min((record.change for record in kept.values()), default=NEVER_US)
        return State(kept, change, latest, inner)

    def _adjusted(
        self, inner: Any, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> Any:
        if not delta:
            return inner
        adjusted = self._strategy.adjust(inner, now_us, parameters[0], receipt, delta)
        return inner if adjusted is None else adjusted
