"""Reported: an allowance that somebody else keeps, and tells about.

A provider limits us, and its answers say how much is left of that. Each report brings amount,
period and what is used; between reports the bucket refills evenly, and every call that is admitted
takes its cost, so that those which the provider has not seen yet count as well. Of both counts the
larger holds. Before the first report, and an hour after the last, nothing is known and everything
passes.

A call whose cost is above the whole amount passes when the bucket is full: whether it is refused is
for the one whose limit it is.

The bucket is kept as the instant at which it will be full (a "theoretical arrival time"), after the
GCRA of ATM Forum TM 4.0; a unit's refill is rounded up to a microsecond.

Not for: limits of your own. It enforces what it was told, and nothing otherwise.

>>> state = report(None, 0, 60, 58, (60_000_000,))
>>> check(state, 0, 2, ())[:2]
(True, Reading(x=0, y=2, z=58000000))
>>> check(state, 0, 3, ())[:2]
(False, Reading(x=1000000, y=2, z=58000000))
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.strategies.strategy import Answer, Reading

CODE = "rp"

#: For how long a report is believed that nothing follows.
KNOWN_US: Final = 3_600_000_000

#: See token_bucket.py.
SKEW_US: Final = 1_000_000

State: TypeAlias = tuple[int, int, int, int]  # full, at, amount, period


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """None: all is in the state."""
    return ()


def _present(state: State, now_us: int) -> State:
    """The bucket now; ``full`` moves back with a clock that was set back."""
    full, at, amount, period = state
    if at - now_us > SKEW_US:
        full, at = full - (at - now_us), now_us
    return max(full, now_us), max(at, now_us), amount, period


def _refill_us(units: int, amount: int, period: int) -> int:
    """How long so many units take to come back; more than all of them take no longer."""
    return -(-min(units, amount) * period // amount)


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State | None]:
    """Reading: the wait, what is left in units, the time until the bucket is full."""
    if state is None:
        return True, Reading(0, MOST_AMOUNT, 0), None
    state = _present(state, now_us)
    full, _, amount, period = state
    missing = full - now_us
    wait = max(0, missing + _refill_us(cost, amount, period) - period)
    left = max(0, period - missing) * amount // period
    return not wait, Reading(wait, left, missing), state


def take(state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]) -> State | None:
    """The bucket is full that much later. Of an allowance that is unknown nothing is kept."""
    if state is None:
        return None
    full, at, amount, period = state
    return full + _refill_us(cost, amount, period), at, amount, period


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the bucket is full, and for as long as a report is believed."""
    full, at, _, _ = state
    return max(full, at + KNOWN_US) - now_us


def booked(state: State | None, now_us: int) -> int:
    """A bucket is one: nowhere in particular."""
    return 0


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether it was touched later than clocks may differ."""
    return state is not None and state[1] - now_us > SKEW_US


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State | None:
    """A refund fills the bucket at most; an extra charge may overdraw it by one period."""
    if state is None:
        return None
    full, at, amount, period = _present(state, now_us)
    change = _refill_us(abs(delta), amount, period)
    full = max(now_us, full - change) if delta < 0 else min(now_us + 2 * period, full + change)
    return full, at, amount, period


def report(
    state: State | None, now_us: int, amount: int, used: int, parameters: tuple[int, ...]
) -> State:
    """The keeper says that of ``amount`` per period (the one parameter) so much is used now."""
    (period,) = parameters
    full = now_us + _refill_us(used, amount, period)
    if state is not None:
        own, _, last_amount, last_period = _present(state, now_us)
        if (amount, period) != (last_amount, last_period):
            units = -(-(own - now_us) * last_amount // last_period)
            own = now_us + _refill_us(units, amount, period)
        full = max(full, own)
    return full, now_us, amount, period


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """As read, less the cost where it was taken. The receipt is 0 where nothing was known: such a
    charge went nowhere, and there is nothing to correct."""
    return Answer(
        remaining=max(0, reading.y - (cost if taken else 0)),
        retry_after_us=reading.x,
        reset_after_us=reading.z,
        receipt=0 if reading.y == MOST_AMOUNT else 1,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """How fast it refills is the keeper's affair; what was left is left at least."""
    return answer._replace(reset_after_us=max(0, answer.reset_after_us - elapsed_us))
