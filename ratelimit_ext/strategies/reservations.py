"""Reservations: any strategy, with the estimates of calls that are not over yet.

The cost of a call to a language model is known at its end. Its estimate is taken at admission and
noted as a *hold*: its id, how much, and until when. Settling replaces the estimate by the real
cost, once: the hold is gone, and a second settlement finds nothing. If the call is not settled in
time, because its worker died, the lease ends and the next access to the bucket gives back what was
not spent, as of the instant at which the lease ended. The hold itself is remembered for ten more
minutes, so that a slow worker can still settle, or renew: that takes the unspent part again.

A request may reach the storage after its worker gave it up and released its hold. The release
leaves an expired hold of nothing, and an admission under an id that is known holds nothing.

A refund goes to the window that the hold was charged to, or nowhere if that is over. What a call
cost beyond its hold is carried into the window that is open when it settles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Snapshot, Strategy, lua

GRACE_US: Final = 600_000_000
#: How much later than its release an admission may arrive. The network gives up earlier what a
#: closed connection has sent.
LATE_US: Final = 120_000_000
#: The largest cost that a hold has room for: 6 bytes. Larger ones are cut off.
MOST_HELD: Final = 2**48 - 1
#: Later than any instant.
NEVER_US: Final = 2**56 - 1


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


class State(NamedTuple):
    """Holds, and the strategy's own state. A team's budget may have thousands of holds, so they are
    examined one by one only when a lease ends."""

    records: tuple[Record, ...] = ()
    #: An instant before which no hold changes.
    change: int = NEVER_US
    #: The latest deadline that any of them had, or 0.
    latest: int = 0
    inner: Any = None

    def add(self, record: Record) -> State:
        return State(
            (*self.records, record),
            min(self.change, record.change),
            max(self.latest if self.records else 0, record.deadline),
            self.inner,
        )

    def without(self, place: int) -> State:
        return self._replace(records=self.records[:place] + self.records[place + 1 :])

    def find(self, hold_id: int) -> int | None:
        """Return where the hold of this id is."""
        for place, record in enumerate(self.records):
            if record[0] == hold_id:
                return place
        return None


Parameters: TypeAlias = tuple[tuple[int, ...], Hold]  # the strategy's own; the hold
Checked: TypeAlias = tuple[State, Any]  # and the strategy's own state as of now


class Reservations(Strategy):
    """A strategy over another."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.name = strategy.name
        self.code = f"h{strategy.code}"
        self.changes = (*strategy.changes, "settle", "release", "renew", "resume")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """Return the strategy's own; the engine adds the hold."""
        return self._strategy.parameters(limit, now_us)

    def check(
        self, state: State | None, now_us: int, cost: int, parameters: Parameters
    ) -> tuple[bool, Snapshot, Checked]:
        """Return the strategy's answer, after expired leases gave back what they held."""
        state = self._expired(state, now_us, parameters)
        fits, snapshot, now = self._strategy.check(state.inner, now_us, cost, parameters[0])
        return fits, snapshot, (state, now)

    def take(self, checked: Checked, now_us: int, cost: int, parameters: Parameters) -> State:
        """Return the strategy's, with a hold if there is a lease; nothing if it was released
        before."""
        (state, now), (own, hold) = checked, parameters
        holds = cost and hold.lease_us
        if holds and state.find(hold.id) is not None:
            return state
        taken = state._replace(inner=self._strategy.take(now, now_us, cost, own))
        if not holds:
            return taken
        receipt = self._strategy.receipt(now, now_us)
        return taken.add(Record(hold.id, now_us + hold.lease_us, receipt, cost, 0))

    def reserve(self, state: State | None, now_us: int, parameters: Parameters) -> State | None:
        hold = parameters[1]
        if not hold.lease_us:
            return None
        state = self._expired(state, now_us, parameters)
        if state.find(hold.id) is not None:
            return None
        return state.add(Record(hold.id, now_us + hold.lease_us, 0, 0, 0))

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

    def share(self, limit: Limit, units: int, workers: int) -> Limit:
        return self._strategy.share(limit, units, workers)

    def without_holds(
        self, state: State, now_us: int, parameters: Parameters
    ) -> tuple[State, Sequence[tuple[Hold, int, int]]]:
        """A hold whose lease is over has no lease left, so that only a settlement can reach it."""
        state = self._expired(state, now_us, parameters)
        inner, holds = state.inner, []
        for record in state.records:
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
            return cast(State | None, super().apply(change, state, now_us, parameters))
        state = self._expired(state, now_us, parameters)
        inner = self._strategy.apply(change, state.inner, now_us, parameters[0])
        return None if inner is None else state._replace(inner=inner)

    def settle(
        self, state: State | None, now_us: int, parameters: Parameters, hold_id: int, actual: int
    ) -> State | None:
        """The call is over, and its cost is known; ``None`` if there is no such hold."""
        state = self._expired(state, now_us, parameters)
        place = state.find(hold_id)
        if place is None:
            return None
        record = state.records[place]
        delta = max(min(actual, MOST_HELD), record.final) - record.amount
        inner = self._adjusted(state.inner, now_us, parameters, record.receipt, delta)
        return state.without(place)._replace(inner=inner)

    def release(
        self, state: State | None, now_us: int, parameters: Parameters, hold_id: int
    ) -> State | None:
        """The lease ends now, also if the hold is yet to come; ``None`` if it is over."""
        state = self._expired(state, now_us, parameters)
        place = state.find(hold_id)
        if place is None:
            return state.add(Record(hold_id, now_us + LATE_US - GRACE_US, 0, 0, 0))
        record = state.records[place]
        if record.deadline <= now_us:
            return None
        ended = state.without(place).add(record._replace(deadline=now_us))
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
        place = state.find(hold.id)
        if place is None:
            return None
        records, inner, record = state.records, state.inner, state.records[place]
        spent = min(max(record.spent, so_far), MOST_HELD)
        amount = max(record.amount, spent, min(cost, MOST_HELD))
        receipt, final = record.receipt, record.final
        if record.deadline <= now_us and amount > record.amount:
            now = self._strategy.check(inner, now_us, 0, own)[2]
            receipt, final = self._strategy.receipt(now, now_us), record.amount
        inner = self._adjusted(inner, now_us, parameters, receipt, amount - record.amount)
        renewed = Record(hold.id, now_us + hold.lease_us, receipt, amount, spent, final)
        return State(
            (*records[:place], renewed, *records[place + 1 :]),
            min(state.change, renewed.change),
            max(state.latest, renewed.deadline),
            inner,
        )

    def resume(
        self, state: State | None, now_us: int, parameters: Parameters, amount: int, spent: int
    ) -> State | None:
        """A call in flight that another engine has admitted: it holds ``amount`` from now on, and
        has spent a part of it. Denies nothing, and may overdraw; ``None`` if its hold is known."""
        own, hold = parameters
        state = self._expired(state, now_us, parameters)
        place = state.find(hold.id)
        if place is not None:
            record = state.records[place]
            if record.amount or record.deadline > now_us:
                return None
            state = state.without(place)  # released before
        now = self._strategy.check(state.inner, now_us, 0, own)[2]
        receipt, amount = self._strategy.receipt(now, now_us), min(amount, MOST_HELD)
        inner = self._adjusted(state.inner, now_us, parameters, receipt, amount)
        record = Record(hold.id, now_us + hold.lease_us, receipt, amount, min(spent, amount))
        return state._replace(inner=inner).add(record)

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> tuple[int, int]:
        return self._strategy.left(limit, snapshot, now_us, cost)

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        return self._strategy.verdict(charge, snapshot, now_us, allowed=allowed, taken=taken)

    def later(self, verdict: Verdict, elapsed_us: int) -> Verdict:
        return self._strategy.later(verdict, elapsed_us)

    def fragments(self) -> tuple[str, ...]:
        own = lua(Path(__file__).with_suffix(".lua"))
        line = f"strategies.{self.code} = strategies.reservations(strategies.{self._strategy.code})"
        return (*self._strategy.fragments(), f"do\n{own}end\n", line)

    def _expired(self, state: State | None, now_us: int, parameters: Parameters) -> State:
        """Give back what expired leases still held; forget those that expired long ago.

        Each lease is decided as of its own end, as the next access may come at any time: if its
        window was over by then, the charge stays, as if it were spent.
        """
        if state is None:
            return State()
        if now_us < state.change:
            return state
        records, _, latest, inner = state
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
        kept = tuple(closed.get(r, r) for r in records if r.deadline + GRACE_US > now_us)
        change = min((record.change for record in kept), default=NEVER_US)
        return State(kept, change, latest, inner)

    def _adjusted(
        self, inner: Any, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> Any:
        if not delta:
            return inner
        adjusted = self._strategy.adjust(inner, now_us, parameters[0], receipt, delta)
        return inner if adjusted is None else adjusted
