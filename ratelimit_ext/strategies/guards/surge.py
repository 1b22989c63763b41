"""Surge: a multiple of what the identity itself usually uses.

A breaker against runaways: a loop that spends in an hour what its key spends in a day is stopped
long before a month's budget is, without an amount for each key. What is usual is the mean of the
windows in which anything was used (eight of them, later ones weighing as much as those before), so
that nights and weekends do not make a morning look like an attack.

Without a past everything passes: the first three windows, and whatever stays within the amount of
the limit. A window counts at most double towards what is usual (or the amount, if that is more), so
that a runaway does not become usual in a few hours. One call always passes: the first of a window.

Not for: a budget. It follows its caller, slowly.

>>> from ratelimit_ext.core.limit import Limit
>>> surge = Surge()
>>> hour = surge.parameters(Limit(5, 3_600_000_000, "surge", multiple=10), 0)
>>> usually_10 = (99, 3_600_000_000, 10, 8)
>>> surge.check(usually_10, 0, 1, hour)[0], surge.check(usually_10, 0, 2, hour)[0]
(True, False)
"""

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.core.traits import Form
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Snapshot, Strategy

#: How many windows make a past, and of how many what is usual is the mean.
PAST: Final = 3
MEAN_OF: Final = 8

#: For how many periods after its last window an identity's past is kept, and the beginning of one:
#: of hours, two weeks and a long weekend. An invented caller has no more than a beginning.
KEPT_PERIODS: Final = 400
BEGINNING_PERIODS: Final = 96

State: TypeAlias = tuple[int, int, int, int]  # used, end, usual, windows
Parameters: TypeAlias = tuple[int, ...]  # amount, period in microseconds, multiple


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
    visible = False
    denial_reason = "abnormal-usage"
    cacheable = False
    changes = ("adjust", "unblock")

    def parameters(self, limit: Limit, now_us: int) -> Parameters:
        assert limit.multiple is not None
        return limit.amount, limit.period_us, limit.multiple

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: units used, the window's end, what the window may hold."""
        amount, period, multiple = parameters
        used, end, usual, windows = _now(state, now_us, amount, period)
        most = max(amount, multiple * usual) if windows >= PAST else MOST_USED
        fits = not used or used + cost <= most
        end = end or now_us + period
        return fits, (used, end, most), (used, end, usual, windows)

    def take(self, state: State, now_us: int, cost: int, parameters: Parameters) -> State:
        used, end, usual, windows = state
        return used + cost, end, usual, windows

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """The past matters for long after its last window; a window without one until it ends."""
        used, end, _, windows = state
        if not (used or windows):
            return end - now_us
        kept = KEPT_PERIODS if windows >= PAST else BEGINNING_PERIODS
        return end - now_us + kept * parameters[1]

    def receipt(self, state: State, now_us: int) -> int:
        """Return the window's end."""
        return state[1]

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[1] > now_us + parameters[1]

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State | None:
        """A refund goes to the window that was charged, and to no other. If that window is over,
        what a call used beyond its estimate goes to the current one."""
        amount, period, _ = parameters
        used, end, usual, windows = _now(state, now_us, amount, period)
        if delta <= 0 and end != receipt:
            return None
        end = end or now_us + period
        return min(MOST_USED, max(0, used + delta)), end, usual, windows

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends with the window."""
        used, end, most = snapshot
        if most == MOST_USED:
            most = charge.limit.amount  # without a past: at least
        remaining = most - used - (charge.cost if taken else 0)
        left, reason = end - now_us, self.denial_reason
        wait = 0 if allowed else left
        return Verdict(charge, allowed, max(0, remaining), wait, left, end, reason)


def _now(state: State | None, now_us: int, amount: int, period: int) -> State:
    """Return the window that is open now; one that is over becomes part of what is usual."""
    if state is None:
        return 0, 0, 0, 0
    used, end, usual, windows = state
    if end > now_us:
        # An end further off than a window can be is a clock set back.
        return used, min(end, now_us + period), usual, windows
    if used:
        counted = min(used, max(2 * usual, amount), MOST_AMOUNT) if windows >= PAST else used
        windows = min(windows + 1, MEAN_OF)
        usual += (min(counted, MOST_AMOUNT) - usual) // windows
    return 0, 0, usual, windows
