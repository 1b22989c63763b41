"""Holding: any strategy, with the estimates of calls that are not over yet.

What a call to a language model costs is known at its end. Its estimate is taken at admission and
noted as a *hold*: who took it, how much, and until when. Settling replaces the estimate by the real
cost, once: the hold is gone, and a second settlement finds nothing. Where nobody settles, because
the worker died, the lease ends, and whoever looks next gives back what was not spent. The hold
itself is remembered for ten more minutes, so that a worker that was only slow still settles.

A call whose lease was over and that is settled all the same is charged what it cost: nothing is
forgiven, and nothing is charged twice.
"""

# ruff: noqa: FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.protocol import Answer, Reading, Strategy

GRACE_US: Final = 600_000_000
#: The largest cost that a hold has room for: 6 bytes. No call costs that; what says so is cut off.
MOST_HELD: Final = 2**48 - 1


class Record(NamedTuple):
    """A call in flight: ``amount`` is charged for it, of which ``spent`` is known to be real."""

    id: int
    deadline: int
    receipt: int
    amount: int
    spent: int


State: TypeAlias = tuple[tuple[Record, ...], Any]  # holds; the strategy's own state


class Holding:
    """A strategy over another. Its parameters are the other's, the hold's id, and its lease."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._kept_periods = getattr(strategy, "KEPT_PERIODS", 2)
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

    def take(
        self, state: State, now_us: int, cost: int, parameters: tuple[int, ...]
    ) -> tuple[State, int]:
        """The strategy's, with a hold where there is a lease."""
        *own, hold, lease = parameters
        records, inner = state
        receipt = self._strategy.booked(inner, now_us)
        taken = self._strategy.take(inner, now_us, cost, tuple(own))
        assert taken is not None, "what keeps nothing is not held"
        inner, ttl = taken
        if cost and lease:
            records = (*records, Record(hold, now_us + lease, receipt, cost, 0))
        return (records, inner), max(ttl, _ttl(records, now_us))

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
    ) -> tuple[State, int] | None:
        """The strategy's."""
        records, inner = self._expired(state, now_us, parameters)
        adjusted = self._strategy.adjust(inner, now_us, receipt, delta, parameters[:-2])
        if adjusted is None:
            return None
        return self._kept(records, adjusted[0] if adjusted[1] > 0 else None, now_us, parameters)

    def settle(
        self, state: State | None, now_us: int, hold: int, actual: int, parameters: tuple[int, ...]
    ) -> tuple[State, int] | None:
        """The call of this hold is over, and cost so much; ``None`` where there is no such hold."""
        records, inner = self._expired(state, now_us, parameters)
        record = next((record for record in records if record.id == hold), None)
        if record is None:
            return None
        delta = min(actual, MOST_HELD) - record.amount
        inner = self._adjusted(inner, now_us, record.receipt, delta, parameters)
        remaining = tuple(other for other in records if other is not record)
        return self._kept(remaining, inner, now_us, parameters)

    def renew(
        self, state: State | None, now_us: int, hold: int, so_far: int, parameters: tuple[int, ...]
    ) -> tuple[State, int] | None:
        """The call of this hold goes on, and has cost so much; its lease begins anew."""
        records, inner = self._expired(state, now_us, parameters)
        record = next((record for record in records if record.id == hold), None)
        if record is None:
            return None
        spent = min(max(record.spent, so_far), MOST_HELD)
        if spent > record.amount:
            inner = self._adjusted(inner, now_us, record.receipt, spent - record.amount, parameters)
        renewed = Record(
            hold, now_us + parameters[-1], record.receipt, max(record.amount, spent), spent
        )
        records = tuple(renewed if other is record else other for other in records)
        return self._kept(records, inner, now_us, parameters)

    def answer(self, limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
        """The strategy's."""
        return self._strategy.answer(limit, now_us, cost, taken, reading)

    def later(self, limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
        """The strategy's."""
        return self._strategy.later(limit, cost, answer, elapsed_us)

    def _expired(self, state: State | None, now_us: int, parameters: tuple[int, ...]) -> State:
        """Give back what the leases that are over still held; forget those over long ago."""
        if state is None:
            return (), None
        records, inner = state
        kept: list[Record] = []
        for record in records:
            over = record.deadline <= now_us
            if over and record.amount > record.spent:
                unspent = record.spent - record.amount
                inner = self._adjusted(inner, now_us, record.receipt, unspent, parameters)
            if record.deadline + GRACE_US > now_us:
                known = min(record.amount, record.spent) if over else record.amount
                kept.append(record._replace(amount=known))
        return tuple(kept), inner

    def _adjusted(
        self, inner: Any, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
    ) -> Any:
        if not delta:
            return inner
        adjusted = self._strategy.adjust(inner, now_us, receipt, delta, parameters[:-2])
        return inner if adjusted is None else adjusted[0]

    def _kept(
        self, records: tuple[Record, ...], inner: Any, now_us: int, parameters: tuple[int, ...]
    ) -> tuple[State, int]:
        ttl = self._kept_periods * parameters[1] if inner is not None else 0
        return (records, inner), max(_ttl(records, now_us), ttl)


def _ttl(records: tuple[Record, ...], now_us: int) -> int:
    return max((record.deadline + GRACE_US for record in records), default=0) - now_us
