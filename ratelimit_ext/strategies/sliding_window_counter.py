"""Sliding window counter: two fixed windows, the earlier one weighted by how much still overlaps.

Not for: an exact promise. It assumes that the earlier window's calls were spread evenly, so it may
admit or deny a little too much at any instant; it costs one small string whatever the traffic.

>>> from ratelimit_ext.core.limit import Limit
>>> counter = SlidingWindowCounter()
>>> ten = counter.parameters(Limit(10, 60_000_000), 0)
>>> [counter.check((0, 0, 10), 90_000_000, cost, ten)[0] for cost in (5, 6)]
[True, False]
"""

from __future__ import annotations

from typing import TypeAlias

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Snapshot, Strategy

State: TypeAlias = tuple[int, int, int]  # start, previous, current
Parameters: TypeAlias = tuple[int, ...]  # amount, period in microseconds


class SlidingWindowCounter(Strategy):
    name = "sliding-window-counter"
    code = "sc"

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: the current window's start, units in the previous window and the current."""
        amount, period = parameters
        now = _now(state, now_us, period)
        return _weighted(*now, now_us, period) + cost <= amount, now, now

    def take(self, state: State, now_us: int, cost: int, parameters: Parameters) -> State:
        start, previous, current = state
        return start, previous, current + cost

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Until the end of the window that follows the current one."""
        return state[0] + 2 * parameters[1] - now_us

    def longest_wait_us(self, limit: Limit) -> int:
        return 2 * limit.period_us

    def usage(self, state: State, now_us: int, parameters: Parameters) -> int:
        period = parameters[1]
        return _weighted(*_now(state, now_us, period), now_us, period)

    def filled(
        self, units: int, now_us: int, parameters: Parameters, reset_after_us: int, age_us: int
    ) -> State:
        """All in the current window if some must be, or else one unit there and the rest before: so
        they slide out evenly from now on, and no distribution is slower at any time."""
        period = parameters[1]
        if not units:
            return now_us, 0, 0
        if reset_after_us > period:
            return now_us + reset_after_us - 2 * period + _overlap(0, units, period), 0, units
        overlap = max(1, reset_after_us - 1)
        return now_us + overlap - period, (units * period - 1) // overlap, 1

    def credited(
        self, state: State | None, now_us: int, parameters: Parameters, units: int
    ) -> State:
        """Of the previous window if it has calls, or else of the current one. Units used are
        rounded in the previous one, so it gives back one less."""
        period = parameters[1]
        start, previous, current = _now(state, now_us, period)
        if not previous:
            return start, 0, max(0, current - units)
        less = (units - 1) * period // (start + period - now_us)
        return start, max(0, previous - less), current

    def receipt(self, state: State, now_us: int) -> int:
        """Return the window's start."""
        return state[0]

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and state[0] > now_us

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State | None:
        """A refund goes to the window that was charged, if it is the current or the previous one.
        An extra charge always goes to the current one."""
        period = parameters[1]
        start, previous, current = _now(state, now_us, period)
        if delta > 0 or receipt == start:
            current = min(MOST_USED, max(0, current + delta))
        elif receipt == start - period:
            previous = max(0, previous + delta)
        else:
            return None
        return start, previous, current

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends when enough of the previous window has slid out, or of the current one
        later."""
        limit, cost = charge.limit, charge.cost
        wait = 0 if allowed else _wait(limit, snapshot, now_us, cost)
        remaining, reset, more = self.left(limit, snapshot, now_us, cost if taken else 0)
        return Verdict(charge, allowed, remaining, wait, reset, snapshot[0], more_after_us=more)

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        start, previous, current = snapshot
        current += cost
        period = limit.period_us
        used = _weighted(start, previous, current, now_us, period)
        remaining, end = max(0, limit.amount - used), start + period
        if current:
            reset = end + period - _overlap(0, current, period) - now_us
        elif used:
            reset = end - _overlap(0, previous, period) - now_us
        else:
            return remaining, 0, 0
        return remaining, reset, _wait(limit, (start, previous, current), now_us, remaining + 1)

    def later(self, verdict: Verdict, elapsed_us: int) -> Verdict:
        """With what is used spread over the windows as :meth:`filled` says."""
        limit, reset_us = verdict.charge.limit, verdict.reset_after_us
        parameters = limit.amount, limit.period_us
        state = self.filled(limit.amount - verdict.remaining, 0, parameters, reset_us, 0)
        remaining = limit.amount - self.usage(state, elapsed_us, parameters)
        left = max(0, reset_us - elapsed_us)
        more = verdict.left[2] - elapsed_us
        return verdict._replace(
            remaining=remaining, reset_after_us=left, more_after_us=more if more > 0 else left
        )


def _now(state: State | None, now_us: int, period: int) -> State:
    """Return the windows at ``now_us``. A start in the future (a clock set back) becomes now."""
    if state is None or now_us >= state[0] + 2 * period:
        return now_us, 0, 0
    start, previous, current = state
    if now_us >= start + period:
        return start + period, current, 0
    return min(start, now_us), previous, current


def _weighted(start: int, previous: int, current: int, now_us: int, period: int) -> int:
    return previous * (start + period - now_us) // period + current


def _wait(limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> int:
    start, previous, current = snapshot
    amount, period = limit.amount, limit.period_us
    end = start + period
    if current + cost <= amount:
        return end - _overlap(amount - cost - current, previous, period) - now_us
    return end + period - _overlap(amount - cost, current, period) - now_us


def _overlap(room: int, units: int, period: int) -> int:
    """Return the longest overlap in microseconds at which ``units`` weigh at most ``room``."""
    return min(period, ((room + 1) * period - 1) // units) if units else period
