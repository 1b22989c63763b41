"""Fixed window: an amount per window; the window opens at the first call, or by the calendar.

A refund goes to the window that was charged, and to no other. An extra charge goes to the window
that is open, and opens one if none is. An end further off than a window can be comes from a clock
that was set back, and becomes the end of a window that is opened now.

Not for: smoothing. Twice the amount can pass around the end of a window (use the sliding window).
It fits where a bill has the same windows.

>>> from ratelimit_ext.core.charge import Charge
>>> from ratelimit_ext.core.limit import Limit
>>> from ratelimit_ext.engine.memory import MemoryEngine
>>> engine, ten = MemoryEngine(), Limit(10, 60_000_000)
>>> [engine.admit([Charge(ten, "ada", cost)], now_us=1).admitted for cost in (7, 5, 3)]
[True, False, True]
"""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Final

from ratelimit_ext.core.decision import Left
from ratelimit_ext.core.limit import WEEK_DAYS, Limit
from ratelimit_ext.strategies.strategy import Snapshot, Strategy

#: The ends of the last, current and next window, by anchor, time zone and first day of the week.
_latest_ends: Final[dict[tuple[str, str, str], tuple[int, int, int]]] = {}


class FixedWindow(Strategy):
    name = "fixed-window"
    code = "fw"
    options = ("anchor",)
    frees_after_period = True

    def parameters(self, limit: Limit, now_us: int) -> tuple[int, ...]:
        """Amount, period, and three ends of the calendar's windows (0, 0, 0 without an anchor): of
        the last one, the current one and the next.

        Three, because the client's clock, which computes them, may differ from the deciding one.
        """
        if limit.anchor is None:
            return limit.amount, limit.period_us, 0, 0, 0
        calendar = limit.anchor, limit.timezone, limit.week_starts
        ends = _latest_ends.get(calendar)
        if ends is None or not ends[0] <= now_us < ends[1]:
            last, current = calendar_window(now_us, *calendar)
            ends = _latest_ends[calendar] = last, current, calendar_window(current, *calendar)[1]
        return limit.amount, limit.period_us, *ends

    def longest_wait_us(self, limit: Limit) -> int | None:
        return limit.period_us if limit.anchor is None else None  # months differ, and days do

    def left(self, limit: Limit, snapshot: Snapshot, now_us: int, cost: int) -> Left:
        used, end, _ = snapshot
        used += cost
        reset = end - now_us if used else 0
        return max(0, limit.amount - used), reset, reset

    def receipt(self, snapshot: Snapshot, now_us: int) -> int:
        return snapshot[1]


def zone_of(timezone: str) -> tzinfo:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - only calendar windows have a zone

    return ZoneInfo(timezone)


def calendar_window(
    instant_us: int, anchor: str, timezone: str, week_starts: str = "monday"
) -> tuple[int, int]:
    """Return when the day, week or month that holds the instant begins and ends in the time zone.

    >>> [instant // 86_400_000_000 for instant in calendar_window(0, "month", "UTC")]
    [0, 31]
    >>> [instant // 86_400_000_000 for instant in calendar_window(0, "week", "UTC")]  # a Thursday
    [-3, 4]
    """
    zone = zone_of(timezone)
    local = datetime.fromtimestamp(instant_us // 1_000_000, zone)
    begin = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if anchor == "day":
        end = begin + timedelta(days=1)
    elif anchor == "week":  # days by the clock on the wall: they may have 23 or 25 hours
        begin -= timedelta(days=(begin.weekday() - WEEK_DAYS.index(week_starts)) % 7)
        end = begin + timedelta(days=7)
    else:
        begin = begin.replace(day=1)
        end = (begin + timedelta(days=32)).replace(day=1)
    return int(begin.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000
