"""Sliding window counter: two fixed windows, the earlier one weighted by how much still overlaps.

A refund goes to the window that was charged, if it is the current or the previous one. An extra
charge always goes to the current one.

Not for: an exact promise. It assumes that the earlier window's calls were spread evenly, so it may
admit or deny a little too much at any instant; it costs one small string whatever the traffic.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> engine, ten = MemoryEngine(), Limit(10, 60_000_000, "sliding-window-counter")
>>> calls = (10, 0), (6, 90_000_000), (5, 90_000_000)
>>> [engine.admit([Charge(ten, "ada", cost)], now_us=at).admitted for cost, at in calls]
[True, False, True]
"""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Snapshot, Strategy


class SlidingWindowCounter(Strategy):
    name = "sliding-window-counter"
    code = "sc"

    def longest_wait_us(self, limit: Limit) -> int:
        return 2 * limit.period_us

    def calls(
        self, limit: Limit, units: int, now_us: int, reset_after_us: int
    ) -> Sequence[tuple[int, int]]:
        """Return a call of the current window if all must be there, or else one unit there and the
        rest before: so they slide out evenly from now on, and no distribution is slower."""
        period = limit.period_us
        if not units:
            return []
        if reset_after_us > period:
            start = now_us + reset_after_us - 2 * period + _overlap(0, units, period)
            return [(start, units)]
        overlap = max(1, reset_after_us - 1)
        start = now_us + overlap - period
        return [(start - period, (units * period - 1) // overlap), (start, 1)]

    def credit(self, limit: Limit, snapshot: Snapshot, now_us: int, units: int) -> tuple[int, int]:
        """Of the previous window if it has calls, or else of the current one. Units used are
        rounded in the previous one, so it gives back one less."""
        start, previous, _ = snapshot
        if not previous:
            return start, -units
        period = limit.period_us
        return start - period, -((units - 1) * period // (start + period - now_us))

    def wait_us(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
        """Waiting ends when enough of the previous window has slid out, or of the current one
        later."""
        start, previous, current = snapshot
        amount, period = limit.amount, limit.period_us
        end = start + period
        if current + cost <= amount:
            return end - _overlap(amount - cost - current, previous, period) - now_us
        return end + period - _overlap(amount - cost, current, period) - now_us

    def receipt(self, snapshot: Snapshot, now_us: int) -> int:
        return snapshot[0]

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        start, previous, current = snapshot
        current += cost
        period = limit.period_us
        end = start + period
        used = previous * (end - now_us) // period + current
        remaining = max(0, limit.amount - used)
        if current:
            reset = end + period - _overlap(0, current, period) - now_us
        elif used:
            reset = end - _overlap(0, previous, period) - now_us
        else:
            return remaining, 0, 0
        more = self.wait_us(limit, (start, previous, current), now_us, remaining + 1)
        return remaining, reset, more

    def later(self, verdict: Verdict, elapsed_us: int) -> Left:
        """With what is used spread over the windows as :meth:`calls` says."""
        limit, reset_us = verdict.charge.limit, verdict.reset_after_us
        period, remaining = limit.period_us, limit.amount
        for begin, units in self.calls(limit, remaining - verdict.remaining, 0, reset_us):
            overlap = min(period, max(0, begin + 2 * period - elapsed_us))
            remaining -= units * overlap // period
        left = max(0, reset_us - elapsed_us)
        more = verdict.left[2] - elapsed_us
        return remaining, left, more if more > 0 else left


def _overlap(room: int, units: int, period: int) -> int:
    """Return the longest overlap in microseconds at which ``units`` weigh at most ``room``."""
    return min(period, ((room + 1) * period - 1) // units) if units else period
