"""Fixed window: an amount per window; the window opens at the first call, or by the calendar.

Not for: smoothing. Twice the amount can pass around the end of a window (use the sliding window);
it is the right one where a bill has the same windows.

>>> from ratelimit_ext.core.limit import Limit
>>> window = parameters(Limit(10, 60_000_000), 0)
>>> check((7, 60_000_000), 1, 5, window)[0], check((7, 60_000_000), 1, 3, window)[0]
(False, True)
"""

# ruff: noqa: ARG001, FBT001 - one signature for all strategies, called by the engines alone

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeAlias
from zoneinfo import ZoneInfo

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.strategy import MOST_USED, Answer, Reading

CODE = "fw"

State: TypeAlias = tuple[int, int]  # used, end


def parameters(limit: Limit, now_us: int) -> tuple[int, ...]:
    """Amount, period, and three ends of the calendar's windows (0, 0, 0 without an anchor): of the
    last one, the present one and the next.

    Three, because they are computed by the client's clock, which may differ from the deciding one.
    """
    if limit.anchor is None:
        return (limit.amount, limit.period_us, 0, 0, 0)
    last, present = calendar_window(now_us, limit.anchor, limit.timezone)
    _, following = calendar_window(present, limit.anchor, limit.timezone)
    return (limit.amount, limit.period_us, last, present, following)


def calendar_window(instant_us: int, anchor: str, timezone: str) -> tuple[int, int]:
    """When the day or month that holds the instant begins and ends in the time zone.

    >>> [instant // 86_400_000_000 for instant in calendar_window(0, "month", "UTC")]
    [0, 31]
    """
    zone = ZoneInfo(timezone)
    local = datetime.fromtimestamp(instant_us // 1_000_000, zone)
    begin = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if anchor == "day":
        end = begin + timedelta(days=1)
    else:
        begin = begin.replace(day=1)
        end = (begin + timedelta(days=32)).replace(day=1)
    return int(begin.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000


def _end(now_us: int, period: int, *calendar: int) -> int:
    """When a window that is opened now ends: always in the future, whatever clock has computed the
    calendar."""
    if not calendar[0]:
        return now_us + period
    for end in calendar:
        if now_us < end:
            return end
    return end + ((now_us - end) // period + 1) * period


def check(
    state: State | None, now_us: int, cost: int, parameters: tuple[int, ...]
) -> tuple[bool, Reading, State]:
    """Reading: units used, the window's end, 0."""
    used, end = 0, _end(now_us, *parameters[1:])
    if state is not None and state[1] > now_us:
        # An end further off than a window can be is a clock set back.
        used, end = state[0], min(state[1], end)
    return used + cost <= parameters[0], Reading(used, end, 0), (used, end)


def take(state: State, now_us: int, cost: int, parameters: tuple[int, ...]) -> State:
    """The window is opened, if it was not."""
    used, end = state
    return used + cost, end


def lifetime(state: State, now_us: int, parameters: tuple[int, ...]) -> int:
    """Until the window ends."""
    return state[1] - now_us


def booked(state: State, now_us: int) -> int:
    """In the window with this end."""
    return state[1]


def rewound(state: State | None, now_us: int, parameters: tuple[int, ...]) -> bool:
    """Whether the window ends later than one that is opened now."""
    return state is not None and state[1] > _end(now_us, *parameters[1:])


def adjust(
    state: State | None, now_us: int, receipt: int, delta: int, parameters: tuple[int, ...]
) -> State | None:
    """The receipt is the end of the window that was charged; a refund goes to no other.

    An extra charge goes to the window that is open, and opens one if none is.
    """
    used, end = state if state is not None and state[1] > now_us else (0, 0)
    if delta <= 0 and (not end or end != receipt):
        return None
    return min(MOST_USED, max(0, used + delta)), end or _end(now_us, *parameters[1:])


def answer(limit: Limit, now_us: int, cost: int, taken: bool, reading: Reading) -> Answer:
    """Waiting ends with the window."""
    used = reading.x + (cost if taken else 0)
    left = reading.y - now_us
    return Answer(
        remaining=max(0, limit.amount - used),
        retry_after_us=0 if reading.x + cost <= limit.amount else left,
        reset_after_us=left,
        receipt=reading.y,
    )


def later(limit: Limit, cost: int, answer: Answer, elapsed_us: int) -> Answer:
    """The window may have ended."""
    left = max(0, answer.reset_after_us - elapsed_us)
    remaining = answer.remaining if left else limit.amount
    return answer._replace(remaining=remaining, reset_after_us=left)
