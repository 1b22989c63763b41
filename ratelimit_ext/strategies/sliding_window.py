"""Sliding window: never more than the amount in any window of the period, wherever it begins.

A log with one entry per call, ``(instant, cost)``, whatever the cost. From ``EXACT`` entries on,
a call joins the newest entry if both lie in the same 1/511 of the period, and at ``MOST`` entries
the whole log is merged so, always into the later instant: room is then freed late by at most 0.2 %
of the period, too much is never admitted, and a bucket never grows beyond 6.2 kB. The Lua twin
keeps running sums in place of costs, for a binary search.

Not for: limits of millions of small calls where 0.2 % does not matter (the counter is smaller).

>>> from ratelimit_ext.core.limit import Limit
>>> window = SlidingWindow()
>>> two = window.parameters(Limit(2, 60_000_000, "sliding-window"), 0)
>>> log = (2, ((10, 1), (30_000_010, 1)))
>>> window.check(log, 60_000_009, 1, two)[0], window.check(log, 60_000_010, 1, two)[0]
(False, True)
"""

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.decision import Left, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Answer, Snapshot, Strategy

EXACT: Final = 256
MOST: Final = 512
MOST_TOTAL: Final = 2**40 - 1  # an entry's cost, and so a merged one's, has five bytes

Entry: TypeAlias = tuple[int, int]  # instant, cost
State: TypeAlias = tuple[int, tuple[Entry, ...]]  # the sum of the costs; entries, oldest first
Parameters: TypeAlias = tuple[int, ...]  # amount, period in microseconds


class SlidingWindow(Strategy):
    name = "sliding-window"
    code = "sw"
    #: Flask-Limiter's name for the exact log.
    aliases = ("moving-window",)

    def check(self, state: State | None, now_us: int, cost: int, parameters: Parameters) -> Answer:
        """Snapshot: units in the window, its newest instant (0: empty), and the instant that has to
        leave before the cost fits (0 if it never can). If it fits, the oldest (0: empty)."""
        amount, period = parameters
        total, entries = _now(state, now_us, period)
        leaver, excess = 0, total + cost - amount
        if excess <= 0:
            leaver = entries[0][0] if entries else 0
        elif cost <= amount:
            excess += not cost  # a look: until one unit fits
            for instant, leaving in entries:
                leaver, excess = instant, excess - leaving
                if excess <= 0:
                    break
        newest = entries[-1][0] if entries else 0
        return total + cost <= amount, (total, newest, leaver), (total, entries)

    def take(self, state: State, now_us: int, cost: int, parameters: Parameters) -> State:
        grain = -(-parameters[1] // (MOST - 1))
        total, entries = state
        if entries and _joins(entries, now_us, grain):
            entries = (*entries[:-1], (now_us, entries[-1][1] + cost))
        elif len(entries) >= MOST:
            entries = (*_merged(entries, grain), (now_us, cost))
        else:
            entries = (*entries, (now_us, cost))
        return total + cost, entries

    def lifetime(self, state: State, now_us: int, parameters: Parameters) -> int:
        """Until the newest entry leaves the window."""
        entries = state[1]
        return entries[-1][0] + parameters[1] - now_us if entries else 0

    def longest_wait_us(self, limit: Limit) -> int:
        return limit.period_us

    def usage(self, state: State, now_us: int, parameters: Parameters) -> int:
        return _now(state, now_us, parameters[1])[0]

    def filled(
        self, units: int, now_us: int, parameters: Parameters, reset_after_us: int, age_us: int
    ) -> State:
        """One call, at the instant of the verdict: none of them was later."""
        return units, ((now_us - age_us, units),)

    def credited(
        self, state: State | None, now_us: int, parameters: Parameters, units: int
    ) -> State | None:
        """Of its oldest entry."""
        return self.adjust(state, now_us, parameters, now_us - parameters[1] + 1, -units)

    def receipt(self, state: State, now_us: int) -> int:
        """Return the entry's instant."""
        return now_us

    def is_stale(self, state: State | None, now_us: int, parameters: Parameters) -> bool:
        return state is not None and bool(state[1]) and state[1][-1][0] > now_us

    def adjust(
        self, state: State | None, now_us: int, parameters: Parameters, receipt: int, delta: int
    ) -> State | None:
        """An entry that was merged is the next later one. An extra charge without an entry (it has
        left the window, or its call cost 0) is a call of now."""
        period = parameters[1]
        total, entries = _now(state, now_us, period)
        # A clock set back moved the entry to the present.
        since = min(receipt, now_us) if receipt > now_us - period else now_us + 1
        place = next((i for i, e in enumerate(entries) if e[0] >= since), None)
        if place is None:
            extra = min(delta, MOST_TOTAL - total)
            return self.take((total, entries), now_us, extra, parameters) if extra > 0 else None
        instant, cost = entries[place]
        real = min(max(0, cost + delta), MOST_TOTAL - total + cost)
        kept = ((instant, real),) if real else ()
        entries = (*entries[:place], *kept, *entries[place + 1 :])
        return total + real - cost, entries

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, newest, leaver = snapshot
        if cost:
            newest = now_us
        period = limit.period_us
        reset = newest + period - now_us if newest else 0
        more = leaver + period - now_us if leaver else reset
        return max(0, limit.amount - used - cost), reset, more

    def verdict(
        self, charge: Charge, snapshot: Snapshot, now_us: int, *, allowed: bool, taken: bool
    ) -> Verdict:
        """Waiting ends when the entry that makes room leaves the window."""
        limit, leaver = charge.limit, snapshot[2]
        wait = leaver + limit.period_us - now_us if leaver and not allowed else 0
        remaining, reset, more = self.left(limit, snapshot, now_us, charge.cost if taken else 0)
        return Verdict(charge, allowed, remaining, wait, reset, now_us, more_after_us=more)


def _now(state: State | None, now_us: int, period: int) -> State:
    """Return the log without what has left the window; instants in the future become now."""
    if state is None:
        return 0, ()
    total, log = state
    first = 0
    while first < len(log) and log[first][0] <= now_us - period:
        total -= log[first][1]
        first += 1
    entries = log[first:]
    if entries and entries[-1][0] > now_us:  # the clock was set back
        ahead = sum(cost for instant, cost in entries if instant > now_us)
        entries = (*(e for e in entries if e[0] <= now_us), (now_us, ahead))
    return total, entries


def _joins(entries: tuple[Entry, ...], now_us: int, grain: int) -> bool:
    newest = entries[-1][0]
    return newest == now_us or (len(entries) >= EXACT and newest // grain == now_us // grain)


def _merged(entries: tuple[Entry, ...], grain: int) -> tuple[Entry, ...]:
    merged: list[Entry] = []
    for instant, cost in entries:
        near = merged and merged[-1][0] // grain == instant // grain
        merged.append((instant, cost + merged.pop()[1] if near else cost))
    return tuple(merged)
