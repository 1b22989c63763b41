"""Holding: any strategy, with the estimates of calls that are not over yet.

What a call to a language model costs is known at its end. Its estimate is taken at admission and
noted as a *hold*: who took it, how much, and until when. Settling replaces the estimate by the real
cost, once: the hold is gone, and a second settlement finds nothing. If the call is not settled in
time, because its worker died, the lease ends and the next access to the bucket gives back what was
not spent, as of the instant at which the lease ended. The hold itself is remembered for ten more
minutes, so that a slow worker can still settle, or renew: that takes the unspent part again.

A refund goes to the window that the hold was charged to, or nowhere if that is over. What a call
cost beyond its hold is carried into the window that is open when it settles.
"""

# ruff: noqa: FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Answer, Reading, Strategy

GRACE_US: Final = 600_000_000
#: The largest cost that a hold has room for: 6 bytes. No call costs that; what says so is cut off.
MOST_HELD: Final = 2**48 - 1


class Record(NamedTuple):
    """A call in flight: ``amount`` is charged for it, of which ``spent`` is known to be real;
    ``final`` was charged to an earlier window and is not refundable."""

    id: int
    deadline: int
    receipt: int
    amount: int
    spent: int
    final: int = 0


State: TypeAlias = tuple[tuple[Record, ...], Any]  # holds; the strategy's own state


class Holding:
    """A strategy over another. Its parameters are the other's, the hold's id, and its lease."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.CODE = f"h{strategy.CODE}"

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """The strategy's own; the engine adds the hold."""
        return self._strategy.parameters(limit, now_us)

    def check(
        self, state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
    ) -> tuple[bool, Reading, State]:
        """The strategy's answer after what is over was given back."""
        records, inner = self._expired(state, now_us, parameters)
        fits, reading, present = self._strategy.check(inner, now_us, cost, parameters[:-2])
        return fits, reading, (records, present)

    def take(self, state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
        """The strategy's, with a hold where there is a lease."""
        *own, hold, lease = parameters
        records, inner = state
        receipt = self._strategy.booked(inner, now_us)
        inner = self._strategy.take(inner, now_us, cost, tuple(own))
        if cost and lease:
            records = (*records, Record(hold, now_us + lease, receipt, cost, 0))
        return records, inner

    def note(self, state: State | None, now_us: int, parameters: tuple[int, ...]) -> State:
        """The hold of a call whose estimate is 0: it was charged nowhere, and settles what it
        really costs."""
        *_, hold, lease = parameters
        records, inner = self._expired(state, now_us, parameters)
        return (*records, Record(hold, now_us + lease, 0, 0, 0)), inner

    def lifetime(self, state: State, now_us: int, parameters: tuple[int, ...]) -> int:
        """The strategy's, and until the last hold is forgotten."""
        records, inner = state
        last = max((record.deadline + GRACE_US for record in records), default=now_us) - now_us
        own = 0 if inner is None else self._strategy.lifetime(inner, now_us, parameters[:-2])
        return max(own, last)

    def booked(self, state: State, now_us: int) -> int:
        """The strategy's."""
        return self._strategy.booked(state[1], now_us)

    def rewound(self, state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
        """The strategy's."""
        return self._strategy.rewound(state[1] if state else None, now_us, parameters[:-2])

    def adjust(
        self,
        state: State | None,
        now_us: int,
        receipt: int,
        delta: int,
        parameters: tuple[int, ...],
    ) -> State | None:
        """The strategy's."""
        records, inner = self._expired(state, now_us, parameters)
        inner = self._strategy.adjust(inner, now_us, receipt, delta, parameters[:-2])
        return None if inner is None else (records, inner)

    def settle(
        self, state: State | None, now_us: int, hold: int, actual: int, parameters: tuple[int, ...]
    ) -> State | None:
        """The call of this hold is over, and cost so much; ``None`` where there is no such hold."""
        records, inner = self._expired(state, now_us, parameters)
        record = next((record for record in records if record.id == hold), None)
        if record is None:
            return None
        delta = max(min(actual, MOST_HELD), record.final) - record.amount
        inner = self._adjusted(inner, now_us, record.receipt, delta, parameters)
        return tuple(other for other in records if other is not record), inner

    def renew(
        self, state: State | None, now_us: int, cost: int, so_far: int, parameters: tuple[int, ...]
    ) -> State | None:
        """The call of this hold goes on, and has cost so much; its lease begins anew.

        If the lease was over, what was given back of the cost is taken again, from the present
        window: it denies nobody, and may overdraw.
        """
        own, (hold, lease) = parameters[:-2], parameters[-2:]
        records, inner = self._expired(state, now_us, parameters)
        record = next((record for record in records if record.id == hold), None)
        if record is None:
            return None
        spent = min(max(record.spent, so_far), MOST_HELD)
        amount = max(record.amount, spent, min(cost, MOST_HELD))
        receipt, final = record.receipt, record.final
        if record.deadline <= now_us and amount > record.amount:
            receipt = self._strategy.booked(self._strategy.check(inner, now_us, 0, own)[2], now_us)
            final = record.amount
        inner = self._adjusted(inner, now_us, receipt, amount - record.amount, parameters)
        renewed = Record(hold, now_us + lease, receipt, amount, spent, final)
        return tuple(renewed if other is record else other for other in records), inner

    def answer(self, limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
        """The strategy's."""
        return self._strategy.answer(limit, now_us, cost, taken, reading)

    def later(self, limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
        """The strategy's."""
        return self._strategy.later(limit, cost, answer, elapsed_us)

    def _expired(self, state: State | None, now_us: int, parameters: tuple[int, ...]) -> State:
        """Give back what the leases that are over still held; forget those over long ago.

        What is over by then stays charged to its window, as if it were spent: it is not known
        when the next access comes, so each lease is decided as of its own end.
        """
        if state is None:
            return (), None
        records, inner = state
        over = [r for r in records if r.deadline <= now_us and r.amount > r.spent]
        closed: dict[Record, Record] = {}
        for record in sorted(over, key=lambda record: record.deadline):
            unspent = record.amount - record.spent
            adjusted = self._strategy.adjust(
                inner, record.deadline, record.receipt, -unspent, parameters[:-2]
            )
            if adjusted is None:
                closed[record] = record._replace(spent=record.amount)
            else:
                # What was given back whole is charged nowhere.
                receipt = record.receipt if record.spent else 0
                closed[record] = record._replace(receipt=receipt, amount=record.spent)
                inner = adjusted
        kept = (closed.get(r, r) for r in records if r.deadline + GRACE_US > now_us)
        return tuple(kept), inner

    def _adjusted(
        self, inner: Any, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
    ) -> Any:
        if not delta:
            return inner
        adjusted = self._strategy.adjust(inner, now_us, receipt, delta, parameters[:-2])
        return inner if adjusted is None else adjusted
