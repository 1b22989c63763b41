"""Sliding window: never more than the amount in any window of the period, wherever it begins.

A log with one entry per call, ``(instant, cost)``, whatever the cost. From 256 entries on, a
call joins the newest entry if both lie in the same 1/511 of the period, and at 512 entries the
whole log is merged so, always into the later instant: room is then freed late by at most 0.2 % of
the period, too much is never admitted, and a bucket never grows beyond 6.2 kB. Running sums are
stored in place of costs, for a binary search.

A correction of an entry that was merged goes to the next later one. An extra charge without an
entry (it has left the window, or its call cost 0) is a call of now. Entries in the future come from
a clock that was set back, and are of now.

Not for: limits of millions of small calls where 0.2 % does not matter (the counter is smaller).

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> engine, two = MemoryEngine(), Limit(2, 60_000_000, "sliding-window")
>>> instants = 10, 30_000_010, 60_000_009, 60_000_010
>>> [engine.admit([Charge(two, "ada")], now_us=instant).admitted for instant in instants]
[True, True, False, True]
"""

from __future__ import annotations

from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Snapshot, Strategy


class SlidingWindow(Strategy):
    name = "sliding-window"
    code = "sw"
    #: Flask-Limiter's name for the exact log.
    aliases = ("moving-window",)
    frees_after_period = True

    def longest_wait_us(self, limit: Limit) -> int:
        return limit.period_us

    def credit(self, limit: Limit, snapshot: Snapshot, now_us: int, units: int) -> tuple[int, int]:
        """Of its oldest entry."""
        return now_us - limit.period_us + 1, -units

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, newest, leaver = snapshot
        if cost:
            newest = now_us
        period = limit.period_us
        reset = newest + period - now_us if newest else 0
        more = leaver + period - now_us if leaver else reset
        return max(0, limit.amount - used - cost), reset, more

    def wait_us(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
        """Waiting ends when the entry that makes room leaves the window."""
        return snapshot[2] + limit.period_us - now_us if snapshot[2] else 0

    def receipt(self, snapshot: Snapshot, now_us: int) -> int:
        return now_us
