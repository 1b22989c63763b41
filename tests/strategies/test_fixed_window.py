"""Fixed window: opened by the first call, or by the calendar."""

import random
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.strategies.fixed_window import FixedWindow, calendar_window
from tests.strategies.world import DAY, MINUTE, SECOND, World

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # summer begins at midnight: that day has no 00:00
    "America/Sao_Paulo",  # summer ended at midnight: the hour before came twice
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Pacific/Apia",  # crossed the date line: no 30 December 2011
)


def instant_us(text: str, zone: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND


def test_the_window_opens_with_the_first_call(world: World) -> None:
    """Its minute is counted from that call, and all of it comes back at once."""
    limit = Limit(3, MINUTE, "fixed-window")
    assert world.passed(limit, 5) == 3
    world.wait(59.999)
    assert world.passed(limit, 5) == 0
    world.wait(0.001)
    assert world.passed(limit, 5) == 3


@pytest.mark.parametrize("strategy", ["fixed-window", "session"])
def test_a_correction_of_nothing_opens_no_window(world: World, strategy: str) -> None:
    """It comes when the window of its call is over, or is of an unknown one. The next window begins
    with the next call."""
    limit = Limit(1, MINUTE, strategy)
    first = world.call(limit)
    world.wait(61)
    assert world.settle(first, 0) == 0
    assert world.settle(first._replace(receipt=None), -1) == 0
    world.wait(30)
    assert world.call(limit).allowed
    assert world.call(limit).retry_after_us == MINUTE


def test_its_weakness_is_as_documented(world: World) -> None:
    """Twice the amount passes around the end of a window."""
    limit = Limit(10, MINUTE, "fixed-window")
    world.call(limit)
    world.wait(59.9)
    assert world.passed(limit, 10) == 9
    world.wait(0.2)
    assert world.passed(limit, 11) == 10


@pytest.mark.parametrize(
    ("anchor", "zone", "now", "end"),
    [
        ("day", "UTC", "2027-01-31T23:59:59", "2027-02-01T00:00:00"),
        ("day", "Europe/Berlin", "2027-03-28T00:30:00", "2027-03-29T00:00:00"),
        ("day", "Europe/Berlin", "2027-10-31T00:30:00", "2027-11-01T00:00:00"),
        ("day", "America/Havana", "2024-03-09T12:00:00", "2024-03-10T01:00:00"),
        ("day", "Pacific/Apia", "2011-12-29T12:00:00", "2011-12-31T00:00:00"),
        ("month", "UTC", "2027-01-31T23:59:59", "2027-02-01T00:00:00"),
        ("month", "UTC", "2028-02-29T12:00:00", "2028-03-01T00:00:00"),
        ("month", "UTC", "2027-12-01T00:00:00", "2028-01-01T00:00:00"),
        ("month", "America/New_York", "2027-03-05T00:00:00", "2027-04-01T00:00:00"),
        ("month", "Asia/Kathmandu", "2027-04-30T23:59:59", "2027-05-01T00:00:00"),
    ],
)
def test_the_calendar_ends_a_window(
    world: World, anchor: str, zone: str, now: str, end: str
) -> None:
    """An amount that is used up in the last second of a day or month is back with the next."""
    world.now_us = instant_us(now, zone)
    limit = Limit(2, DAY, "fixed-window", anchor=anchor, timezone=zone)
    assert world.passed(limit, 3) == 2
    denied = world.call(limit)
    assert world.now_us + denied.retry_after_us == instant_us(end, zone)
    world.now_us = instant_us(end, zone) - 1000
    assert world.passed(limit, 3) == 0
    world.wait(us=1000)
    assert world.passed(limit, 3) == 2


@pytest.mark.parametrize(
    ("zone", "starts", "now", "begin", "end"),
    [
        ("UTC", "monday", "2026-11-29T23:59:59", "2026-11-23", "2026-11-30"),
        ("UTC", "sunday", "2026-11-29T00:00:00", "2026-11-29", "2026-12-06"),
        ("UTC", "saturday", "2026-11-29T00:00:00", "2026-11-28", "2026-12-05"),
        # The ISO year 2026 has 53 weeks, and its last one ends in 2027.
        ("UTC", "monday", "2027-01-01T12:00:00", "2026-12-28", "2027-01-04"),
        ("UTC", "monday", "2024-12-31T12:00:00", "2024-12-30", "2025-01-06"),
        # The clocks change: 167 hours, 169 hours, and half an hour.
        ("Europe/Berlin", "monday", "2027-03-28T23:59:59", "2027-03-22", "2027-03-29"),
        ("Europe/Berlin", "sunday", "2027-03-28T01:00:00", "2027-03-28", "2027-04-04"),
        ("Europe/Berlin", "monday", "2027-10-31T23:59:59", "2027-10-25", "2027-11-01"),
        ("America/New_York", "sunday", "2027-03-14T12:00:00", "2027-03-14", "2027-03-21"),
        ("America/New_York", "sunday", "2027-11-13T12:00:00", "2027-11-07", "2027-11-14"),
        ("Australia/Lord_Howe", "monday", "2027-04-04T12:00:00", "2027-03-29", "2027-04-05"),
        ("America/Havana", "sunday", "2024-03-10T12:00:00", "2024-03-10T01:00", "2024-03-17"),
        ("Pacific/Apia", "friday", "2012-01-05T12:00:00", "2011-12-31", "2012-01-06"),
    ],
)
def test_a_week_has_its_own_first_day_and_length(
    world: World, zone: str, starts: str, now: str, begin: str, end: str
) -> None:
    """Also when the clocks change in it, and when it is in two years."""
    ends = instant_us(end, zone)
    window = calendar_window(instant_us(now, zone), "week", zone, starts)
    assert window == (instant_us(begin, zone), ends)
    limit = Limit(1, 7 * DAY, anchor="week", timezone=zone, week_starts=starts)
    world.now_us = instant_us(now, zone)
    assert world.call(limit).allowed
    denied = world.call(limit)
    assert (denied.allowed, world.now_us + denied.retry_after_us) == (False, ends)
    world.now_us = ends
    assert world.passed(limit, 2) == 1


@pytest.mark.parametrize(
    ("hours", "now"), [(23, "2027-03-28"), (25, "2027-10-31"), (24, "2027-05-01")]
)
def test_a_day_of_summer_time_has_its_own_length(world: World, hours: int, now: str) -> None:
    """In Berlin the day on which the clocks change lasts 23 or 25 hours."""
    world.now_us = instant_us(f"{now}T00:00:00", "Europe/Berlin")
    limit = Limit(1, DAY, "fixed-window", anchor="day", timezone="Europe/Berlin")
    world.call(limit)
    assert world.call(limit).retry_after_ms == hours * 3_600_000


def test_each_month_ends_with_its_last_day(world: World) -> None:
    """A process that serves for months does not decide by the windows of its first one."""
    limit = Limit(2, 30 * DAY, "fixed-window", anchor="month")
    for month in range(1, 12):
        world.now_us = instant_us(f"2027-{month:02}-15T12:00:00", "UTC")
        assert world.passed(limit, 3) == 2
        end = world.now_us + world.call(limit).retry_after_us
        assert end == instant_us(f"2027-{month + 1:02}-01T00:00:00", "UTC")


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("anchor", ["day", "week", "month"])
def test_a_window_is_one_date_of_the_calendar(anchor: str, zone: str) -> None:
    """For any instant since 1990: the last second before the end has its date, the end has not."""
    chance = random.Random(zone)
    place = ZoneInfo(zone)

    def label(second: int) -> tuple[int, ...]:
        local = datetime.fromtimestamp(second, place)
        if anchor == "week":
            return tuple(local.isocalendar())[:2]
        return (local.year, local.month) if anchor == "month" else local.timetuple()[:3]

    for _ in range(400):
        second = chance.randint(631_152_000, 2_000_000_000)
        window = calendar_window(second * SECOND, anchor, zone)
        begin, end = (instant // SECOND for instant in window)
        assert begin <= second < end <= begin + 32 * 86_400
        assert label(begin - 1) < label(begin) == label(second) == label(end - 1) < label(end)


def test_a_deciding_clock_past_midnight_has_the_next_window(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker computes the calendar a moment before the server decides: its midnight is over."""
    limit = Limit(2, DAY, "fixed-window", anchor="day")
    midnight = instant_us("2027-05-01T00:00:00", "UTC")
    parameters = FixedWindow().parameters(limit, midnight - 1)
    monkeypatch.setattr(limit.algorithm, "parameters", lambda *_: parameters)
    world.now_us = midnight - 1
    assert world.passed(limit, 3) == 2
    world.now_us = midnight + 5
    verdict = world.look(limit, 0)
    tomorrow = midnight + timedelta(days=1) // timedelta(microseconds=1)
    assert (verdict.remaining, verdict.receipt) == (2, tomorrow)


@pytest.mark.parametrize(
    ("days", "us", "ends"),
    [
        *((-1, 0, 0), (0, -1, 0), (0, 0, 1), (1, -1, 1), (1, 0, 2), (2, -1, 2), (2, 0, 3)),
        *((3, -1, 3), (3, 0, 4)),
    ],
)
def test_a_window_ends_with_its_last_microsecond(
    world: World, monkeypatch: pytest.MonkeyPatch, days: int, us: int, ends: int
) -> None:
    """Whatever day the worker's clock is in, by the clock that decides the next window begins at
    midnight, and counts from then on. After the windows that the worker knows, they are equal."""
    limit = Limit(2, DAY, "fixed-window", anchor="day")
    midnight = instant_us("2027-05-01T00:00:00", "UTC")
    parameters = FixedWindow().parameters(limit, midnight + DAY // 2)
    monkeypatch.setattr(limit.algorithm, "parameters", lambda *_: parameters)
    world.now_us = midnight + days * DAY + us
    assert world.call(limit).receipt == midnight + ends * DAY
    assert world.passed(limit, 3) == 1


def test_the_next_window_may_be_longer_than_its_period(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deciding clock is in Berlin's day of 25 hours already, more than 24 before its end."""
    limit = Limit(2, DAY, "fixed-window", anchor="day", timezone="Europe/Berlin")
    begin, end = (instant_us(f"2027-{day}", "Europe/Berlin") for day in ("10-31", "11-01"))
    parameters = FixedWindow().parameters(limit, begin - 1)
    monkeypatch.setattr(limit.algorithm, "parameters", lambda *_: parameters)
    world.now_us = begin + 1
    assert world.call(limit).receipt == end


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("anchor", ["day", "week", "month"])
def test_known_windows_hold_until_they_end(anchor: str, zone: str) -> None:
    """Also for a clock that is set back, and whatever other limits have asked."""
    limit = Limit(2, DAY, "fixed-window", anchor=anchor, timezone=zone)
    now_us = instant_us("2027-05-01T12:00:00", zone)
    begin, end = calendar_window(now_us, anchor, zone)
    for instant in (now_us, end - 1, end, begin, begin - 1, now_us):
        last, current = calendar_window(instant, anchor, zone)
        following = calendar_window(current, anchor, zone)[1]
        FixedWindow().parameters(Limit(2, DAY, "fixed-window", anchor="day"), instant)
        assert FixedWindow().parameters(limit, instant)[2:] == (last, current, following)
