"""Concurrency: at most so many calls in flight.

A call takes a slot and gives it back when it is over. The slot is a hold
(:mod:`~ratelimit_ext.strategies.reservations`): where its worker dies, the lease ends and the
server itself takes the slot back.

Not for: a pace. Ten calls in flight may be ten a minute or a thousand.

>>> from ratelimit_ext.core.limit import Limit
>>> slots = parameters(Limit(2, 1_000_000, "concurrency", unit="calls"), 0)
>>> check(1, 0, 1, slots)[0], check(2, 0, 1, slots)[0]
(True, False)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Answer, Reading

CODE = "cc"

#: When a slot becomes free depends on the calls, not on the time: a client had better ask again
#: after this long than after the longest lease.
RETRY_US: Final = 1_000_000

State: TypeAlias = int  # calls in flight


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount, and the period for which the count is kept beside its holds."""
    return (limit.amount, limit.period_us)


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: calls in flight, 0, 0."""
    calls = state or 0
    return calls + cost <= parameters[0], Reading(calls, 0, 0), calls


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """So many calls more are in flight."""
    return state + cost


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """A period; the holds keep it for longer."""
    return parameters[1] if state else 0


def booked(state: State, now_us: int) -> int:
    """Slots are alike: nowhere in particular."""
    return 0


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Never: no instant is stored."""
    return False


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State:
    """A slot that is given back, or taken again."""
    return max(0, (state or 0) + delta)


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """See :data:`RETRY_US`."""
    calls = reading.x + (cost if taken else 0)
    return Answer(
        remaining=max(0, limit.amount - calls),
        retry_after_us=0 if reading.x + cost <= limit.amount else RETRY_US,
        reset_after_us=RETRY_US if calls else 0,
        receipt=0,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """What happened to the other calls is not known."""
    return answer
