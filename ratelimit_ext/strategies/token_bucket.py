"""Token bucket: bursts up to a capacity, refilled continuously.

The bucket is kept as what is missing from it: ``used + frac / period`` units at the instant ``at``,
which leaks away at ``pace / period``. Counting what is missing, and the fraction in units of
``1 / period``, makes every refill exact at any arrival pattern, lets a changed amount keep the
usage, and makes debt an ordinary number.

The pace is the amount of the latest decision. If the amount changes, the former pace holds until
the next decision, also for the key's time to live. That decision stores the new pace even if it
denies.

A refund fills the bucket at most; an extra charge may leave it in debt. The bucket does not know
how old a refunded charge is: if it has leaked away meanwhile, the refund is a second one. The rate
holds in the long run, the burst may not.

Not for: a promise of "never more than N in any minute" (up to burst + amount pass in one period;
use the sliding window).

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> limit, engine = Limit(30, 60_000_000, "token-bucket", burst=10), MemoryEngine()
>>> sum(engine.admit([Charge(limit, "ada")], now_us=0).admitted for _ in range(20))
10
>>> [engine.admit([Charge(limit, "ada")], now_us=at).admitted for at in (1_999_999, 2_000_000)]
[False, True]
"""

from __future__ import annotations

from dataclasses import replace

from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import LONGEST_PERIOD_US, Limit
from ratelimit_ext.strategies.strategy import SKEW_US, Snapshot, Strategy


class TokenBucket(Strategy):
    name = "token-bucket"
    code = "tb"
    options = ("burst", "wait")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        return limit.amount or 1, limit.period_us, limit.capacity

    def longest_wait_us(self, limit: Limit) -> int | None:
        """To fill it, with the costs of those who wait, unless it is overdrawn: by a call's real
        cost, or by what is charged late."""
        if limit.held or not limit.amount:
            return None
        fill_us = -(-limit.capacity * limit.period_us // limit.amount)
        return fill_us + (limit.wait or 0) + SKEW_US

    def share(self, limit: Limit, units: int, workers: int) -> Limit:
        """The rate is divided by a longer period, because amounts are whole."""
        period_us = min(limit.period_us * workers, LONGEST_PERIOD_US)
        return replace(limit, burst=units, period_us=period_us)

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

    def wait_us(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
        """Waiting ends when the excess over the burst has leaked away, to the microsecond."""
        used, frac, ahead = snapshot
        excess = (used + cost - limit.capacity) * limit.period_us + frac
        return ahead - (-excess // limit.amount) if excess > 0 else 0

    def later(self, verdict: Verdict, elapsed_us: int) -> Left:
        """The bucket refills in the meantime. The verdict leaves out a fraction of a unit."""
        limit = verdict.charge.limit
        refilled = verdict.remaining + elapsed_us * limit.amount // limit.period_us
        left = max(0, verdict.reset_after_us - elapsed_us)
        remaining = min(limit.capacity, refilled if left else refilled + 1)
        missing, whole = left * limit.amount, limit.period_us
        units = min(-(-missing // whole), limit.capacity)  # of which the last comes next
        more = -((units - 1) * whole - missing) // (limit.amount or 1) if left else 0
        return remaining, left, more
