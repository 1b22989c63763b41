"""Sliding window: never more than the amount in any window of the period, wherever it begins.

A log with one entry per call, ``(instant, cost)``, whatever the cost. From ``EXACT`` entries on,
a call joins the newest entry if both lie in the same 1/511 of the period, and at ``MOST`` entries
the whole log is merged so, always into the later instant: room is then freed late by at most 0.2 %
of the period, too much is never admitted, and a bucket never grows beyond 6.2 kB. The Lua twin
keeps running sums in place of costs, which it can search by halves.

Not for: limits of millions of small calls where 0.2 % of nothing matters (the counter is smaller).

>>> from ratelimit_ext.core.limit import Limit
>>> window = parameters(Limit(2, 60_000_000, "sliding-window"), 0)
>>> log = (2, ((10, 1), (30_000_010, 1)))
>>> check(log, 60_000_009, 1, window)[0], check(log, 60_000_010, 1, window)[0]
(False, True)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import Answer, Reading

CODE = "sw"
EXACT: Final = 256
MOST: Final = 512
MOST_TOTAL: Final = 2**40 - 1  # an entry's cost, and so a merged one's, has five bytes

Entry: TypeAlias = tuple[int, int]  # instant, cost
State: TypeAlias = tuple[int, tuple[Entry, ...]]  # the sum of the costs; entries, oldest first


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount and period in microseconds."""
    return (limit.amount, limit.period_us)


def _grain(period: int) -> int:
    return -(-period // (MOST - 1))


def _present(state: State | None, now_us: int, period: int) -> State:
    """The log without what has left the window; instants in the future become the present."""
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


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: units in the window, its oldest instant (0: empty), and the instant that has to
    leave before the cost fits (0 where it fits, or where it never can)."""
    amount, period = parameters
    total, entries = _present(state, now_us, period)
    leaver, excess = 0, total + cost - amount
    if excess > 0 and cost <= amount:
        for instant, leaving in entries:
            leaver, excess = instant, excess - leaving
            if excess <= 0:
                break
    oldest = entries[0][0] if entries else 0
    return total + cost <= amount, Reading(total, oldest, leaver), (total, entries)


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """One entry more, or a larger one."""
    period = parameters[1]
    grain = _grain(period)
    total, entries = state
    if entries and _joins(entries, now_us, grain):
        entries = (*entries[:-1], (now_us, entries[-1][1] + cost))
    elif len(entries) >= MOST:
        entries = (*_merged(entries, grain), (now_us, cost))
    else:
        entries = (*entries, (now_us, cost))
    return total + cost, entries


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the newest entry leaves the window."""
    entries = state[1]
    return entries[-1][0] + parameters[1] - now_us if entries else 0


def booked(state: State, now_us: int) -> int:
    """At the present instant."""
    return now_us


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether the newest entry lies in the future."""
    return state is not None and bool(state[1]) and state[1][-1][0] > now_us


def _joins(entries: tuple[Entry, ...], now_us: int, grain: int) -> bool:
    newest = entries[-1][0]
    return newest == now_us or (len(entries) >= EXACT and newest // grain == now_us // grain)


def _merged(entries: tuple[Entry, ...], grain: int) -> tuple[Entry, ...]:
    merged: list[Entry] = []
    for instant, cost in entries:
        near = merged and merged[-1][0] // grain == instant // grain
        merged.append((instant, cost + merged.pop()[1] if near else cost))
    return tuple(merged)


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State | None:
    """The receipt is the entry's instant; an entry that was merged is the next later one.

    An extra charge without an entry (it has left the window, or a look made none) is a call of now.
    """
    period = parameters[1]
    total, entries = _present(state, now_us, period)
    # A clock set back moved the entry to the present.
    since = min(receipt, now_us) if receipt > now_us - period else now_us + 1
    place = next((i for i, e in enumerate(entries) if e[0] >= since), None)
    if place is None:
        extra = min(delta, MOST_TOTAL - total)
        return take((total, entries), now_us, extra, parameters) if extra > 0 else None
    instant, cost = entries[place]
    real = min(max(0, cost + delta), MOST_TOTAL - total + cost)
    kept = ((instant, real),) if real else ()
    entries = (*entries[:place], *kept, *entries[place + 1 :])
    return total + real - cost, entries


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends when the entry that makes room leaves the window."""
    used, oldest, leaver = reading
    if taken:
        used, oldest = used + cost, oldest or (now_us if cost else 0)
    return Answer(
        remaining=max(0, limit.amount - used),
        retry_after_us=leaver + limit.period_us - now_us if leaver else 0,
        reset_after_us=oldest + limit.period_us - now_us if oldest else 0,
        receipt=now_us,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """The oldest call may have left; only where it was this one is it known what that frees."""
    left = max(0, answer.reset_after_us - elapsed_us)
    alone = answer.remaining + cost >= limit.amount
    remaining = answer.remaining if left or not alone else limit.amount
    return answer._replace(remaining=remaining, reset_after_us=left)
