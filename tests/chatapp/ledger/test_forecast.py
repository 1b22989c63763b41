"""When a budget will be used up: against made-up ledgers whose ends are known."""

import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from statistics import median
from typing import Final

import pytest

from chatapp.ledger.forecast import DAY, HOUR, READ, Budget, Forecast, forecast

USD: Final = 1_000_000
#: A month that begins on a Sunday, after four weeks.
BEGAN: Final = datetime(2026, 11, 1, tzinfo=UTC)
FIRST: Final = BEGAN - 4 * 7 * DAY
ENDS: Final = BEGAN + 30 * DAY
#: About what a month costs in most of the ledgers, in dollars.
MONTH: Final = 30 * 24


def hours() -> Iterator[tuple[int, datetime]]:
    return ((i, FIRST + i * HOUR) for i in range((ENDS - FIRST) // HOUR))


def works(at: datetime) -> bool:
    return at.weekday() < 5 and 8 <= at.hour < 18


def steady(draws: random.Random) -> list[float]:
    return [draws.uniform(0.5, 1.5) for _ in hours()]


def working_hours(draws: random.Random) -> list[float]:
    return [works(at) * draws.uniform(0.7, 6) for _, at in hours()]


def growing(draws: random.Random) -> list[float]:
    """The last day costs six times as much as the first."""
    return [draws.uniform(0.5, 1.5) * (0.3 + i / 1000) for i, _ in hours()]


def bursty(draws: random.Random) -> list[float]:
    """Ten hours of work in about sixty."""
    costs, is_busy = [], False
    for _ in hours():
        is_busy ^= draws.random() < (0.1 if is_busy else 0.02)
        costs.append(is_busy * draws.expovariate(1 / 6))
    return costs


def a_loop(draws: random.Random) -> list[float]:
    """Eight hours of the month cost 30 dollars each, besides the work."""
    begin = BEGAN + draws.randrange(MONTH) * HOUR
    return [
        cost + 30 * (begin <= at < begin + 8 * HOUR)
        for cost, (_, at) in zip(working_hours(draws), hours(), strict=True)
    ]


def beginning(draws: random.Random) -> list[float]:
    """Nothing before this month."""
    costs = zip(working_hours(draws), hours(), strict=True)
    return [cost * (at > BEGAN) for cost, (_, at) in costs]


def idle(draws: random.Random) -> list[float]:
    """Nothing since ten days after the first."""
    return [draws.random() * (i < 240) for i, _ in hours()]


KINDS: Final = (steady, working_hours, growing, bursty, a_loop, beginning)


def ledger(kind: Callable[[random.Random], list[float]], seed: int) -> dict[datetime, int]:
    costs = kind(random.Random(seed))
    return {at: round(cost * USD) for cost, (_, at) in zip(costs, hours(), strict=True)}


def known(costs: Mapping[datetime, int], now: datetime) -> dict[datetime, int]:
    return {at: cost for at, cost in costs.items() if now - READ <= at <= now}


def at(
    costs: Mapping[datetime, int],
    now: datetime,
    amount: float,
    *,
    used: int = 10**15,
    since: datetime = BEGAN,
    resets_at: datetime = ENDS,
) -> Forecast | None:
    """What is forecast then, of a budget of so many dollars."""
    budget = Budget(round(amount * USD), used, since, resets_at)
    return forecast(known(costs, now), budget, now=now)


def used_up_at(costs: Mapping[datetime, int], amount: float) -> datetime:
    """When it really is; the end of all things if it is not."""
    left = amount * USD
    for hour, cost in costs.items():
        left -= cost * (hour >= BEGAN)
        if left <= 0:
            return hour
    return datetime.max.replace(tzinfo=UTC)


def test_what_is_foreseen_comes_true() -> None:
    """Of the alerts that would be raised in a month, by a look a day, at least 80 % come true,
    most of them days before; of budgets around what the month costs, which are the hard ones."""
    leads, wrong, missed = [], 0, 0
    for kind in KINDS:
        for seed in range(2):
            costs = ledger(kind, seed)
            for share in (0.8, 1.0, 1.2):
                end = used_up_at(costs, amount := MONTH * share)
                looks = (BEGAN + day * DAY for day in range(1, 30))
                for now in looks:
                    found = None if now >= end else at(costs, now, amount)
                    if found and found.used_up_at and found.sure >= 0.8:
                        if end < ENDS:
                            leads.append((end - now) / DAY)
                        else:
                            wrong += 1
                        break
                else:
                    missed += end < ENDS
    assert len(leads) > 12
    assert len(leads) >= 4 * wrong
    assert len(leads) >= 4 * missed
    assert median(leads) >= 1


@pytest.mark.parametrize("amount", [1, 10, 100, 1000])
def test_idle_users_have_no_forecast(amount: float) -> None:
    """However little they have left: neither if they stopped, nor if they never began."""
    costs = ledger(idle, 1)
    for day in range(30):
        assert at(costs, BEGAN + day * DAY, amount) is None
        assert at({}, BEGAN + day * DAY, amount) is None


def weekends(draws: random.Random) -> list[float]:
    return [(at.weekday() > 4) * draws.uniform(0.5, 1.5) for _, at in hours()]


@pytest.mark.parametrize("kind", [steady, working_hours, growing, beginning, weekends])
def test_a_forecast_ends_with_two_idle_days(kind: Callable[[random.Random], list[float]]) -> None:
    """Only days on which they usually spend count, whenever they stop. As they go on, there is a
    forecast again."""
    for seed in range(5):
        costs = ledger(kind, seed)
        spent = [at.date() for at, cost in costs.items() if cost]
        stops = BEGAN + (15 + seed) * DAY
        usual = [day for day in dict.fromkeys(spent) if day >= stops.date()]
        stopped = {at: cost * (at < stops) for at, cost in costs.items()}
        ends = datetime.combine(usual[1], datetime.min.time(), UTC) + DAY
        assert at(costs, ends, MONTH * 100) is not None
        for hour in range(24):
            assert at(stopped, ends + hour * HOUR, MONTH * 100) is None
            before = stops + hour * HOUR
            assert at(stopped, before, MONTH * 100) is not None
        again = {**stopped, ends + 5 * HOUR: USD}
        assert at(again, ends + 6 * HOUR, MONTH * 100) is not None


def test_a_newcomer_may_have_a_free_weekend() -> None:
    """Before a second week shows whether they usually work then."""
    first = november(2)
    costs = {hour: USD * works(hour) for _, hour in hours() if hour >= first}
    for now in (november(7, 23), november(8, 12), november(9, 7)):
        assert at(costs, now, 500, since=first, resets_at=first + 14 * DAY) is not None
    stopped = {hour: cost for hour, cost in costs.items() if hour < november(5, 20)}
    found = [
        at(stopped, now, 500, since=first, resets_at=first + 14 * DAY)
        for now in (november(9, 7), november(9, 23))
    ]
    assert [each is None for each in found] == [False, True]


def test_a_week_has_its_hours() -> None:
    """Ten dollars an hour of work: the 15 that are left on Friday evening are used up on Monday, in
    the second hour."""
    costs = {hour: 10 * USD * works(hour) for _, hour in hours()}
    friday = datetime(2026, 11, 6, 20, 30, tzinfo=UTC)
    assert at(costs, friday, 515) == Forecast(datetime(2026, 11, 9, 9, tzinfo=UTC), 1.0, 500 * USD)
    lasting = at(costs, friday, 5000)
    assert lasting == Forecast(None, 0.0, 500 * USD)


def november(day: int, hour: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "resets_at", "amount", "expected"),
    [
        (november(2), november(9), 420, november(6, 9)),
        (november(5), november(6), 75, november(5, 15)),
        (november(5), november(6), 101, None),
    ],
)
def test_weeks_and_days_have_forecasts(
    since: datetime, resets_at: datetime, amount: float, expected: datetime | None
) -> None:
    """On Thursday at noon, when the day has had four hours of ten dollars."""
    costs = {hour: 10 * USD * works(hour) for _, hour in hours()}
    found = at(costs, november(5, 12) - HOUR / 60, amount, since=since, resets_at=resets_at)
    assert found is not None
    assert found.used_up_at == expected


@pytest.mark.parametrize(("days", "has_one"), [(2, False), (4, False), (6, True), (13, True)])
def test_a_newcomer_is_waited_for(days: int, has_one: bool) -> None:
    """Three days with spending, and a quarter of the days that remain."""
    first = BEGAN + 2 * DAY
    costs = {hour: USD for _, hour in hours() if hour >= first}
    assert (at(costs, first + days * DAY, MONTH) is not None) is has_one


def test_a_budget_counts_what_was_spent_of_it() -> None:
    """Running calls hold more, and a reset or a credit leaves less."""
    costs = ledger(steady, 1)
    now = BEGAN + 10 * DAY
    spent = sum(cost for hour, cost in costs.items() if BEGAN <= hour <= now)
    for used in (spent - USD, spent, spent + 100 * USD):
        found = at(costs, now, MONTH, used=used)
        assert found is not None
        assert found.spent == min(used, spent)
    assert at(costs, now, spent / USD) is None


def test_a_budget_of_some_calls_has_their_share_of_the_pace() -> None:
    """It has counted a third of what the ledger has, and half of its amount: the other half takes
    as long, and not a third of that."""
    costs = {hour: 12 * USD for _, hour in hours()}
    found = at(costs, november(11) - HOUR / 60, 1920, used=960 * USD)
    assert found == Forecast(november(20, 23), 1.0, 960 * USD)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            Forecast(datetime(2026, 11, 26, 15, tzinfo=UTC), 0.93, 0),
            "At this pace it is used up on Thursday, 2026-11-26, at 15:00 UTC (93 % sure).",
        ),
        (Forecast(None, 0.0, 0), "At this pace it lasts (100 % sure)."),
    ],
)
def test_it_has_a_sentence(found: Forecast, sentence: str) -> None:
    """How sure it is of what the sentence says."""
    assert found.sentence == sentence
