"""Provider quota: an allowance that the provider keeps and reports.

A provider limits us, and its answers say how much is left of that. Each report brings amount,
period and what is used; between reports the bucket refills evenly, and every call that is admitted
takes its cost, so that those which the provider has not seen yet count as well. Of both counts the
larger holds. Before the first report, and an hour after the last, nothing is known and everything
passes.

A call whose cost is above the whole amount passes when the bucket is full: the provider decides.

The bucket is kept as the instant at which it will be full (a "theoretical arrival time"), after the
GCRA of ATM Forum TM 4.0; a unit's refill is rounded up to a microsecond.

Not for: limits of your own. It enforces what was reported, and nothing otherwise.

>>> quota = Quota()
>>> state = quota.report(None, 0, (), 60, 58, 60_000_000)
>>> quota.check(state, 0, 2, ())[:2]
(True, (0, 2, 58000000))
>>> quota.check(state, 0, 3, ())[:2]
(False, (1000000, 2, 58000000))
"""

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import SKEW_US, Answer, Snapshot, Strategy

#: For how long a report is believed that no other follows.
KNOWN_US: Final = 3_600_000_000

State: TypeAlias = tuple[int, int, int, int]  # full, at, amount, period
Parameters: TypeAlias = tuple[int, ...]  # none: all is in the state


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
    visible = False
    denial_reason = "overloaded"
    reserves = False
    external = True
    cacheable = False
    changes = ("adjust", "report")
    idle = MOST_AMOUNT

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        return ()

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: the wait, what is left in units, the time until the bucket is full."""
        if state is None:
            return True, (0, MOST_AMOUNT, 0), None
        state = _now(state, now_us)
        full, _, amount, period = state
        missing = full - now_us
        wait = max(0, missing + _refill_us(cost, amount, period) - period)
        left = max(0, period - missing) * amount // period
        return not wait, (wait, left, missing), state

    def take(
        self, state: State | None, now_us: int, cost: int, parameters: Parameters
    ) -> State | None:
        """The bucket is full that much later. Of an allowance that is unknown nothing is kept."""
        if state is None:
            return None
        full, at, amount, period = state
        return full + _refill_us(cost, amount, period), at, amount, period

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Until the bucket is full, and for as long as a report is believed."""
        full, at, _, _ = state
        return max(full, at + KNOWN_US) - now_us

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[1] - now_us > SKEW_US

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State | None:
        """A refund fills the bucket at most; an extra charge may overdraw it by one period."""
        if state is None:
            return None
        full, at, amount, period = _now(state, now_us)
        change = _refill_us(abs(delta), amount, period)
        full = max(now_us, full - change) if delta < 0 else min(now_us + 2 * period, full + change)
        return full, at, amount, period

    def report(
        self,
        state: State | None,
        now_us: int,
        parameters: Parameters,
        amount: int,
        used: int,
        period: int,
    ) -> State:
        full = now_us + _refill_us(used, amount, period)
        if state is not None:
            own, _, last_amount, last_period = _now(state, now_us)
            if (amount, period) != (last_amount, last_period):
                units = -(-(own - now_us) * last_amount // last_period)
                own = now_us + _refill_us(units, amount, period)
            full = max(full, own)
        return full, now_us, amount, period

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """No receipt before the first report: such a charge went nowhere."""
        wait, left, missing = snapshot
        remaining = max(0, left - (charge.cost if taken else 0))
        receipt = None if left == MOST_AMOUNT else 0
        wait = 0 if allowed else wait
        return Verdict(charge, allowed, remaining, wait, missing, receipt, self.denial_reason)


def _now(state: State, now_us: int) -> State:
    """Return the bucket now; ``full`` moves back with a clock that was set back."""
    full, at, amount, period = state
    if at - now_us > SKEW_US:
        full, at = full - (at - now_us), now_us
    return max(full, now_us), max(at, now_us), amount, period


def _refill_us(units: int, amount: int, period: int) -> int:
    """Return how long it takes until so many units are back, at most all of them."""
    return -(-min(units, amount) * period // amount)
