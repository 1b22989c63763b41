"""Surge: a multiple of what the identity itself usually uses.

A breaker against runaways: a loop that spends in an hour what its key spends in a day is stopped
long before a month's budget is, and nobody had to guess an amount for each key. What is usual is
the mean of the windows in which anything was used (eight of them, later ones weighing as much as
those before), so that nights and weekends do not make a morning look like an attack.

Nobody is stopped without a past: the first three windows, and whatever stays within the amount of
the limit, always pass. A window counts at most double towards what is usual (or the amount, if
that is more), so that a runaway does not become usual in a few hours. One call always passes: the
first of a window.

Not for: a budget. It follows its caller, slowly.

>>> from ratelimit_ext.core.limit import Limit
>>> hour = parameters(Limit(5, 3_600_000_000, "surge", multiple=10), 0)
>>> usually_10 = (99, 3_600_000_000, 10, 8)
>>> check(usually_10, 0, 1, hour)[0], check(usually_10, 0, 2, hour)[0]
(True, False)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from typing import Final, TypeAlias

from ratelimit_ext.core.limit import MOST_AMOUNT, Limit
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Reading

CODE = "sg"

#: How many windows make a past, and of how many what is usual is the mean.
PAST: Final = 3
MEAN_OF: Final = 8

#: For how many periods after its last window an identity's past is kept, and the beginning of one:
#: of hours, two weeks and a long weekend. An invented caller has no more than a beginning.
KEPT_PERIODS: Final = 400
BEGINNING_PERIODS: Final = 96

State: TypeAlias = tuple[int, int, int, int]  # used, end, usual, windows


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount, period in microseconds, multiple."""
    assert limit.multiple is not None
    return (limit.amount, limit.period_us, limit.multiple)


def _present(state: State | None, now_us: int, amount: int, period: int) -> State:
    """The window that is open now; one that is over becomes part of what is usual."""
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


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: units used, the window's end, what the window may hold."""
    amount, period, multiple = parameters
    used, end, usual, windows = _present(state, now_us, amount, period)
    most = max(amount, multiple * usual) if windows >= PAST else MOST_USED
    fits = not used or used + cost <= most
    end = end or now_us + period
    return fits, Reading(used, end, most), (used, end, usual, windows)


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """The window is opened, if it was not."""
    used, end, usual, windows = state
    return used + cost, end, usual, windows


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """The past matters for long after its last window; a window without one until it ends."""
    used, end, _, windows = state
    if not (used or windows):
        return end - now_us
    kept = KEPT_PERIODS if windows >= PAST else BEGINNING_PERIODS
    return end - now_us + kept * parameters[1]


def booked(state: State, now_us: int) -> int:
    """In the window with this end."""
    return state[1]


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether the window ends later than one that is opened now."""
    return state is not None and state[1] > now_us + parameters[1]


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State | None:
    """A refund goes to the window that was charged, and to no other; what a call used beyond its
    estimate belongs to the present, if that window is over."""
    amount, period, _ = parameters
    used, end, usual, windows = _present(state, now_us, amount, period)
    if delta <= 0 and end != receipt:
        return None
    end = end or now_us + period
    return min(MOST_USED, max(0, used + delta)), end, usual, windows


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends with the window."""
    used = reading.x + (cost if taken else 0)
    left = reading.y - now_us
    most = limit.amount if reading.z == MOST_USED else reading.z  # without a past: at least
    return Answer(
        remaining=max(0, most - used),
        retry_after_us=0 if not reading.x or reading.x + cost <= reading.z else left,
        reset_after_us=left,
        receipt=reading.y,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """What is usual after the window's end is not known here."""
    return answer._replace(reset_after_us=max(0, answer.reset_after_us - elapsed_us))
