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
...     state, _ = take(state, 0, 1, bucket)
>>> check(state, 2 * second - 1, 1, bucket)[0], check(state, 2 * second, 1, bucket)[0]
(False, True)
"""

from __future__ import annotations

from typing import TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.protocol import Answer, Reading

CODE = "tb"

State: TypeAlias = tuple[int, int, int]  # used, frac, at


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount, period in microseconds, burst."""
    return (limit.amount, limit.period_us, limit.capacity)


def _leaked(state: State | None, now_us: int, amount: int, period: int) -> tuple[int, int]:
    """What is missing at ``now_us``. An instant in the future (a clock set back) leaks nothing."""
    if state is None:
        return 0, 0
    used, frac, at = state
    missing = used * period + frac - max(0, now_us - at) * amount
    return divmod(missing, period) if missing > 0 else (0, 0)


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: units missing, the fraction missing in 1/period, 0."""
    amount, period, burst = parameters
    used, frac = _leaked(state, now_us, amount, period)
    allowed = used + cost + (1 if frac else 0) <= burst
    return allowed, Reading(used, frac, 0), (used, frac, now_us)


def take(
    state: State, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[State, int]:
    """The bucket matters until it would be full again; one unit more covers the fraction."""
    amount, period, _ = parameters
    used, frac, _ = state
    return (used + cost, frac, now_us), -(-(used + cost + 1) * period // amount)


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> tuple[State, int] | None:
    """A refund fills the bucket at most to its brim; an extra charge may leave it in debt."""
    amount, period, _ = parameters
    used, frac = _leaked(state, now_us, amount, period)
    if used + delta < 0:
        return (0, 0, now_us), 0
    return take((used, frac, now_us), now_us, delta, parameters)


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends when the excess over the burst has leaked away, to the microsecond."""
    period = limit.period_us
    missing = reading.x * period + reading.y
    excess = missing - (limit.capacity - cost) * period
    if taken:
        missing += cost * period
    return Answer(
        remaining=max(0, (limit.capacity * period - missing) // period),
        retry_after_us=0 if excess <= 0 else -(-excess // limit.amount),
        reset_after_us=-(-missing // limit.amount),
        receipt=0,
    )
