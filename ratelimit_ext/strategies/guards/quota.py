"""Provider quota: an allowance that the provider keeps and reports.

A provider limits us, and its answers say how much is left of that. Each report brings amount,
period and what is used; between reports the bucket refills evenly, and every call that is admitted
takes its cost, so that those which the provider has not seen yet count as well. Of both counts the
larger holds. Before the first report, and an hour after the last, nothing is known and everything
passes.

A call whose cost is above the whole amount passes when the bucket is full: the provider decides.

The bucket is kept as the instant at which it will be full (a "theoretical arrival time"), after the
GCRA of ATM Forum TM 4.0; a unit's refill is rounded up to a microsecond.

A refund fills the bucket at most; an extra charge may overdraw it by one period.

Not for: limits of your own. It enforces what was reported, and nothing otherwise.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> quota, engine = Limit(10**12, 60_000_000, "reported"), MemoryEngine()
>>> engine.settle([quota_report(Charge(quota, "model"), 60, 58, 60_000_000)], now_us=0)
1
>>> [engine.admit([Charge(quota, "model", cost)], now_us=0).admitted for cost in (3, 2)]
[False, True]
"""

from __future__ import annotations

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import Snapshot, Strategy


def quota_report(charge: Charge, amount: int, used: int, period_us: int) -> Change:
    """Return the provider's report that of ``amount`` units per period ``used`` are used now."""
    return Change(charge, NO_HOLD, "report", (amount, used, period_us))


class Quota(Strategy):
    name = "reported"
    code = "rp"
    form = Form(
        r"as \s+ reported",
        text="as reported",
        example="as reported",
        keyword="reported",
        amount=MOST_AMOUNT,
        period="minute",
    )
    units = ("requests", "tokens", "input_tokens", "output_tokens")
    guard = True
    denial_reason = "overloaded"
    external = True
    changes = ("adjust", "report")

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        return ()

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        _, left, missing = snapshot
        return max(0, left - cost), missing, missing

    def wait_us(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
        return snapshot[0]

    def receipt(self, snapshot: Snapshot, now_us: int) -> int | None:
        """Return no receipt before the first report: such a charge went nowhere."""
        return None if snapshot[1] == MOST_AMOUNT else 0
