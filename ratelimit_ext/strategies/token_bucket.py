"""Token bucket: bursts up to a capacity, refilled continuously.

The bucket is kept as what is missing from it: ``used + frac / period`` units at the instant ``at``,
which leaks away at ``amount / period``. Counting what is missing, and the fraction in units of
``1 / period``, makes every refill exact at any arrival pattern, lets a changed amount keep the
usage, and makes debt an ordinary number.

Not for: a promise of "never more than N in any minute" (up to burst + amount pass in one period;
use the sliding window).

>>> from ratelimit_ext.core.limit import Limit
>>> bucket = parameters(Limit(30, 60_000_000, "token-bucket", burst=10), 0)
>>> state, second = None, 1_000_000
>>> for call in range(10):
...     allowed, _, state = check(state, 0, 1, bucket)
...     state = take(state, 0, 1, bucket)
>>> check(state, 2 * second - 1, 1, bucket)[0], check(state, 2 * second, 1, bucket)[0]
(False, True)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

import math
from typing import Final, TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Reading

CODE = "tb"

#: How far the clocks of those who share a bucket may differ. Within it time never runs backwards
#: for a bucket; were it to follow each clock, every change of clocks would refill the difference.
SKEW_US: Final = 1_000_000

State: TypeAlias = tuple[int, int, int]  # used, frac, at


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount, period in microseconds, burst."""
    return (limit.amount, limit.period_us, limit.capacity)


def _leaked(state: State | None, now_us: int, amount: int, period: int) -> tuple[int, int, int]:
    """What is missing at ``now_us``, and by how much the bucket is ahead of it.

    An instant in the future leaks nothing; beyond the skew it is a clock set back, and is now.
    """
    if state is None:
        return 0, 0, 0
    used, frac, at = state
    if now_us <= at:
        ahead = at - now_us
        return used, frac, ahead if ahead <= SKEW_US else 0
    missing = used * period + frac - (now_us - at) * amount
    return (*divmod(missing, period), 0) if missing > 0 else (0, 0, 0)


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: units missing, the fraction missing in 1/period, microseconds until it leaks."""
    amount, period, burst = parameters
    used, frac, ahead = _leaked(state, now_us, amount, period)
    allowed = used + cost + (1 if frac else 0) <= burst
    return allowed, Reading(used, frac, ahead), (used, frac, now_us + ahead)


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """The cost is missing, too."""
    used, frac, at = state
    return used + cost, frac, at


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the bucket is full again: a fresh bucket is full.

    Floats as in Lua, to the digit; two units more cover the fraction and the error.
    """
    amount, period, _ = parameters
    used, frac, at = state
    if not used and not frac:
        return 0
    return math.ceil(at - now_us + float(used + 2) * period / amount)


def booked(state: State, now_us: int) -> int:
    """A bucket is one: nowhere in particular."""
    return 0


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether the bucket is ahead by more than clocks may differ."""
    return state is not None and state[2] - now_us > SKEW_US


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State:
    """A refund fills the bucket at most to its brim; an extra charge may leave it in debt."""
    amount, period, _ = parameters
    used, frac, ahead = _leaked(state, now_us, amount, period)
    if (used + delta, frac) <= (0, 0):
        return 0, 0, now_us  # a full bucket is a fresh one
    change = min(delta, MOST_USED - used)
    return take((used, frac, now_us + ahead), now_us, change, parameters)


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends when the excess over the burst has leaked away, to the microsecond."""
    period = limit.period_us
    missing = reading.x * period + reading.y
    excess = missing - (limit.capacity - cost) * period
    if taken:
        missing += cost * period
    return Answer(
        remaining=max(0, (limit.capacity * period - missing) // period),
        retry_after_us=0 if excess <= 0 else reading.z - (-excess // limit.amount),
        reset_after_us=0 if missing <= 0 else reading.z - (-missing // limit.amount),
        receipt=0,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """The bucket refills in the meantime."""
    refilled = answer.remaining + elapsed_us * limit.amount // limit.period_us
    left = max(0, answer.reset_after_us - elapsed_us)
    remaining = min(limit.capacity, refilled) if left else limit.capacity
    return answer._replace(remaining=remaining, reset_after_us=left)
