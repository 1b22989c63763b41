"""When a budget will be used up, at the pace of the last four weeks, and how sure that is.

The pace is the average of each hour of the week; of each hour of the day before there are two
weeks. The rest of the window is replayed with days drawn from those, each for the same day of the
week, and drawn twice, because so few days say little about their average.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, cycle, islice
from typing import Final, NamedTuple

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
WEEK: Final = 7
#: The days of a pace. The ledger is read a week further back, to tell newcomers from others.
MOST_DAYS: Final = 4 * WEEK
READ: Final = timedelta(days=MOST_DAYS + WEEK)
#: The least days since the first spending and with spending; the former by the days that remain.
LEAST_DAYS: Final = 3
LEAST_SHARE: Final = 0.25
#: Spending has stopped after so many days without it on which it is usual.
IDLE_DAYS: Final = 2
SATURDAY: Final = 5
REPLAYS: Final = 100
TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class Budget(NamedTuple):
    """In micro-dollars; ``used`` includes what running calls hold, and counts as far as spent."""

    amount: int
    used: int
    since: datetime
    resets_at: datetime


@dataclass(frozen=True, slots=True)
class Forecast:
    """``used_up_at`` is the hour in which the budget will be used up; None if it will last.
    ``sure`` is the share of replays in which it is used up before its window ends. ``spent`` is
    what was spent in the window, in micro-dollars."""

    used_up_at: datetime | None
    sure: float
    spent: int

    @property
    def sentence(self) -> str:
        if self.used_up_at is None:
            return f"At this pace it lasts ({round(100 - 100 * self.sure)} % sure)."
        when = f"{self.used_up_at:%A, %Y-%m-%d, at %H:%M} UTC"
        return f"At this pace it is used up on {when} ({round(100 * self.sure)} % sure)."

    def as_json(self) -> dict[str, object]:
        return {"used_up_at": self.used_up_at and f"{self.used_up_at:{TIME}}", "sure": self.sure}


def forecast(costs: Mapping[datetime, int], budget: Budget, *, now: datetime) -> Forecast | None:
    """Return what becomes of a budget, by the costs of the hours of the time READ; None if there is
    too little data, if nothing was spent in this window, if spending has stopped, or if it is used
    up."""
    amount, used, since, resets_at = budget
    total = sum(cost for hour, cost in costs.items() if hour >= since)
    spent = min(used, total)
    first = min((hour for hour, cost in costs.items() if cost > 0), default=now)
    begin = now.replace(minute=0, second=0, microsecond=0) + HOUR
    known_days = min(MOST_DAYS, (begin - first) // DAY)
    days = [
        [costs.get(begin - back * DAY + hour * HOUR, 0) for hour in range(24)]
        for back in range(known_days, 0, -1)
    ]
    has_stopped = _has_stopped([any(day) for day in days], begin)
    if known_days > WEEK:
        known_days -= known_days % WEEK  # as many Sundays as Mondays
        days = days[-known_days:]
    ahead, hours = divmod((resets_at - begin) // HOUR, 24)
    least = max(LEAST_DAYS, LEAST_SHARE * ahead)
    is_known = known_days >= least and sum(map(any, days)) >= LEAST_DAYS
    if not is_known or has_stopped or ahead < 0 or not 0 < spent < amount:
        return None
    # A budget of some endpoints, say, has had a share of the costs, and gets it of those to come.
    left = (amount - spent) * total / spent
    # What may happen on each day of the week to come, the first of which begins now.
    step = WEEK if known_days >= 2 * WEEK else 1
    alike = [days[(known_days + day) % step :: step] for day in range(WEEK)]
    profile = [sum(hour) / len(days) for days in alike for hour in zip(*days, strict=True)]
    pace = accumulate(islice(cycle(profile), ahead * 24 + hours))
    at = next((begin + hour * HOUR for hour, cost in enumerate(pace) if cost >= left), None)
    return Forecast(at, _sure(alike, left, ahead, hours), spent)


def _has_stopped(spent: Sequence[bool], end: datetime) -> bool:
    """Return whether nothing was spent on the last IDLE_DAYS on which it is usual, or in a week.
    ``spent`` says so of each day before ``end``. A day is usual if at least half of the same days
    of other weeks had spending; before there are any, if it is no weekend."""
    idle = 0
    for back in range(1, min(WEEK, len(spent)) + 1):
        if spent[-back]:
            return False
        alike = spent[-back - WEEK :: -WEEK] if back + WEEK <= len(spent) else ()
        is_workday = (end - back * DAY + DAY / 2).weekday() < SATURDAY
        idle += 2 * sum(alike) >= len(alike) if alike else is_workday
        if idle == IDLE_DAYS:
            return True
    return True


def _sure(alike: list[list[list[int]]], left: float, ahead: int, hours: int) -> float:
    """Return the share of replays that use up what is left in these days and hours."""
    draws = random.Random(0)  # noqa: S311 - the same costs have the same forecast
    times = [len(range(day, ahead, WEEK)) for day in range(WEEK)]
    pools = [([sum(day) for day in days], n) for days, n in zip(alike, times, strict=True)]
    pools.append(([sum(day[:hours]) for day in alike[ahead % WEEK]], 1))
    usual = sum(n * sum(days) / len(days) for days, n in pools)
    # Few days differ less from their own average than from that of all days.
    wider: float = (len(alike[0]) / (len(alike[0]) - 1)) ** 0.5
    replays = [
        sum(sum(draws.choices(draws.choices(days, k=len(days)), k=n)) for days, n in pools)
        for _ in range(REPLAYS)
    ]
    return sum(usual + (cost - usual) * wider >= left for cost in replays) / REPLAYS
