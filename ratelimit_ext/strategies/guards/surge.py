"""Surge: a multiple of what the identity itself usually uses.

A breaker against runaways: a loop that spends in an hour what its key spends in a day is stopped
long before a month's budget is, without an amount for each key. What is usual is the mean of the
windows in which anything was used (eight of them, later ones weighing as much as those before), so
that nights and weekends do not make a morning look like an attack.

Without a past everything passes: the first three windows, and whatever stays within the amount of
the limit. A window counts at most double towards what is usual (or the amount, if that is more), so
that a runaway does not become usual in a few hours. One call always passes: the first of a window.

An identity's past is kept for 400 periods after its last window, of hours that is two weeks and a
long weekend; the beginning of a past for 96, and an invented caller has no more. A refund goes to
the window that was charged. If that is over, what a call used beyond its estimate goes to the
current one.

Not for: a budget. It follows its caller, slowly.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> surge, engine = Limit(5, 3_600_000_000, "surge", multiple=10), MemoryEngine()
>>> def passes(cost, hour):
...     return engine.admit([Charge(surge, "ada", cost)], now_us=hour * 3_600_000_000).admitted
>>> [passes(10, hour) for hour in range(8)]
[True, True, True, True, True, True, True, True]
>>> passes(99, 8), passes(2, 8), passes(1, 8)
(True, False, True)
"""

from __future__ import annotations

from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import MOST_USED, Snapshot, Strategy


class Surge(Strategy):
    name = "surge"
    code = "sg"
    form = Form(
        r"{rate} \s+ or \s+ (?P<multiple>[0-9]+) \s* x \s+ usual",
        text="{rate} or {multiple} x usual",
        example="1 usd/hour or 20 x usual",
        keyword="usual",
    )
    options = ("multiple",)
    guard = True
    denial_reason = "abnormal-usage"
    changes = ("adjust", "unblock")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        assert limit.multiple is not None
        return limit.amount, limit.period_us, limit.multiple

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, end, most = snapshot
        if most == MOST_USED:
            most = limit.amount  # without a past: at least
        return max(0, most - used - cost), end - now_us, end - now_us

    def receipt(self, snapshot: Snapshot, now_us: int) -> int:
        return snapshot[1]
