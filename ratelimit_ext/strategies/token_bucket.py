"""Token bucket: bursts up to a capacity, refilled continuously.

The bucket is kept as what is missing from it: ``used + frac / period`` units at the instant ``at``,
which leaks away at ``pace / period``. Counting what is missing, and the fraction in units of
``1 / period``, makes every refill exact at any arrival pattern, lets a changed amount keep the
usage, and makes debt an ordinary number.

The pace is the amount of the latest decision. If the amount changes, the former pace holds until
the next decision, also for the key's time to live. That decision stores the new pace even if it
denies.

Not for: a promise of "never more than N in any minute" (up to burst + amount pass in one period;
use the sliding window).

>>> from ratelimit_ext.core.limit import Limit
>>> bucket, second, state = TokenBucket(), 1_000_000, None
>>> limit = bucket.parameters(Limit(30, 60_000_000, "token-bucket", burst=10), 0)
>>> for call in range(10):
...     allowed, _, state = bucket.check(state, 0, 1, limit)
...     state = bucket.take(state, 0, 1, limit)
>>> [bucket.check(state, instant, 1, limit)[0] for instant in (2 * second - 1, 2 * second)]
[False, True]
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeAlias

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.strategies.strategy import MOST_USED, SKEW_US, Answer, Snapshot, Strategy

State: TypeAlias = tuple[int, int, int, int]  # used, frac, at, pace
#: Amount, period in microseconds, burst.
Parameters: TypeAlias = tuple[int, ...]


class TokenBucket(Strategy):
    name = "token-bucket"
    code = "tb"
    options = ("burst", "wait")
    most = 2

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        return limit.amount or 1, limit.period_us, limit.capacity

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: units missing, the fraction in 1/period, microseconds until it leaks."""
        amount, period, burst = parameters
        used, frac, ahead, _ = _leaked(state, now_us, parameters)
        fits = frac <= (burst - used - cost) * period
        return fits, (used, frac, ahead), (used, frac, now_us + ahead, amount)

    def take(self, state: State, now_us: int, cost: int, parameters: Parameters) -> State:
        used, frac, at, pace = state
        return used + cost, frac, at, pace

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Until the bucket is full again: a fresh bucket is full.

        Floats as in Lua, to the digit; two units more cover the fraction and the error.
        """
        used, frac, at, pace = state
        if not used and not frac:
            return 0
        return math.ceil(at - now_us + float(used + 2) * parameters[1] / pace)

    def longest_wait_us(self, limit: Limit) -> int | None:
        """To fill it, with the costs of those who wait, unless it is overdrawn: by a call's real
        cost, or by what is charged late."""
        if limit.held or not limit.amount:
            return None
        fill_us = -(-limit.capacity * limit.period_us // limit.amount)
        return fill_us + (limit.wait or 0) + SKEW_US

    def usage(self, state: State, now_us: int, parameters: Parameters) -> int:
        used, frac, _, _ = _leaked(state, now_us, parameters)
        return used + (1 if frac else 0)

    def share(self, limit: Limit, units: int, workers: int) -> Limit:
        """The rate is divided by a longer period, as amounts are whole."""
        period_us = min(limit.period_us * workers, LONGEST_PERIOD_US)
        return replace(limit, burst=units, period_us=period_us)

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and (state[2] - now_us > SKEW_US or state[3] != parameters[0])

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State:
        """A refund fills the bucket at most; an extra charge may leave it in debt.

        The bucket does not know how old the refunded charge is: if it has leaked away meanwhile,
        the refund is a second one. The rate holds in the long run, the burst may not.
        """
        used, frac, ahead, pace = _leaked(state, now_us, parameters)
        if (used + delta, frac) <= (0, 0):
            return 0, 0, now_us, pace  # a full bucket is a fresh one
        return min(used + delta, MOST_USED), frac, now_us + ahead, pace

    def due(self, now_us: int, parameters: Parameters, missing: int, part: int, more: int) -> int:
        """When they have leaked away. Floats as in Lua, to the digit."""
        return now_us + more + math.ceil((float(missing) * parameters[1] + part) / parameters[0])

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, frac, ahead = snapshot
        period, burst = limit.period_us, limit.capacity
        missing = (used + cost) * period + frac
        remaining = (burst * period - missing) // period
        if missing <= 0:
            return remaining, 0, 0
        amount = limit.amount or 1
        remaining = max(remaining, 0)
        more = ahead - (((burst - remaining - 1) * period - missing) // amount)
        return remaining, ahead - (-missing // amount), more

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends when the excess over the burst has leaked away, to the microsecond."""
        limit, cost = charge.limit, charge.cost
        wait = 0
        if not allowed:
            used, frac, ahead = snapshot
            excess = (used + cost - limit.capacity) * limit.period_us + frac
            wait = ahead - (-excess // limit.amount) if excess > 0 else 0
        remaining, reset, more = self.left(limit, snapshot, now_us, cost if taken else 0)
        return Verdict(charge, allowed, remaining, wait, reset, 0, more_after_us=more)

    def later(self, verdict: Verdict, elapsed_us: int) -> Verdict:
        """The bucket refills in the meantime. The verdict leaves out a fraction of a unit."""
        limit = verdict.charge.limit
        refilled = verdict.remaining + elapsed_us * limit.amount // limit.period_us
        left = max(0, verdict.reset_after_us - elapsed_us)
        remaining = min(limit.capacity, refilled if left else refilled + 1)
        missing, whole = left * limit.amount, limit.period_us
        units = min(-(-missing // whole), limit.capacity)  # of which the last comes next
        more = -((units - 1) * whole - missing) // (limit.amount or 1) if left else 0
        return verdict._replace(remaining=remaining, reset_after_us=left, more_after_us=more)


def _leaked(state: State | None, now_us: int, parameters: Parameters) -> tuple[int, int, int, int]:
    """Return what is missing at ``now_us``, by how much the bucket is ahead of it, and its pace.

    An instant in the future leaks nothing; beyond the skew it is a clock set back, and is now.
    """
    amount, period, _ = parameters
    if state is None:
        return 0, 0, 0, amount
    used, frac, at, pace = state
    if now_us <= at:
        ahead = at - now_us
        return used, frac, ahead if ahead <= SKEW_US else 0, pace
    missing = used * period + frac - (now_us - at) * pace
    return (*divmod(missing, period), 0, pace) if missing > 0 else (0, 0, 0, amount)
