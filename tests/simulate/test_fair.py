"""A budget shared fairly, in virtual time: a team of 24 people and a loop."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.simulate.demand import suggestions
from ratelimit_ext.simulate.replay import Replay, Rule
from ratelimit_ext.simulate.traffic import Traffic, TrafficCall

DAY_US, SECOND_US = 86_400_000_000, 1_000_000
PEOPLE = [f"person {number}" for number in range(24)]
AMOUNT = 1250
SHARE = AMOUNT // 25


def traffic(demand: tuple[float, float], days: int = 2, step_s: int = 12) -> Iterator[TrafficCall]:
    """Everyone makes calls at random times of each day, between these parts of their share; the
    loop makes one each few seconds, and begins before the others."""
    chance = random.Random(5)
    times = [(at_us, "loop") for at_us in range(0, days * DAY_US, step_s * SECOND_US)]
    for name in PEOPLE:
        for day in range(days):
            calls = round(SHARE * chance.uniform(*demand))
            times += [(day * DAY_US + chance.randrange(DAY_US), name) for _ in range(calls)]
    for at_us, name in sorted(times):
        yield TrafficCall(20_000 * DAY_US + at_us, "chat", {"team": "acme", "user": name})


def rules(limit: Limit) -> tuple[Rule, ...]:
    return (Rule("team", limit, "team", "team:", member="user"),)


def outcome(limit: Limit, demand: tuple[float, float]) -> list[tuple[float, float, float]]:
    """For each day: the smallest part of min(demand, share) that a person got, the part of the
    budget that stayed unused, and Jain's index of what everyone got of theirs."""
    replay, found = Replay(lambda *_: rules(limit)), []
    asked: list[Counter[str]] = [Counter(), Counter()]
    got: list[Counter[str]] = [Counter(), Counter()]
    for call in traffic(demand):
        day, name = call.at_us // DAY_US - 20_000, call.who["user"]
        asked[day][name] += 1
        got[day][name] += not replay.decide(call)
    for each, own in zip(asked, got, strict=True):
        parts = [own[name] / min(each[name], SHARE) for name in PEOPLE]
        parts.append(1.0 if own["loop"] >= SHARE else own["loop"] / SHARE)
        index = sum(parts) ** 2 / (len(parts) * sum(part**2 for part in parts))
        found.append((min(parts[:-1]), 1 - own.total() / AMOUNT, index))
    return found


def fair(**more: object) -> Limit:
    words = {"anchor": "day", "name": "team", "fair": True, **more}
    return Limit(AMOUNT, DAY_US, "fixed-window", **words)  # type: ignore[arg-type]


@pytest.mark.parametrize("demand", [(0.9, 1.0), (0.0, 3.0)])
def test_everyone_gets_their_share(demand: tuple[float, float]) -> None:
    """Whatever the loop does, from the first day on, and nothing is left over."""
    for least, unused, index in outcome(fair(), demand):
        assert least >= 0.95
        assert unused <= 0.02
        assert index >= 0.95


def test_without_it_the_loop_takes_all() -> None:
    """People get less than a fifth of what they ask for."""
    for least, unused, _ in outcome(fair(fair=False), (0.2, 0.8)):
        assert least < 0.2
        assert unused == 0


def test_a_steeper_pace_ends_sooner() -> None:
    """With a pace of 1.5 the budget may be gone after two thirds of the day; those who ask later
    have what they took until then."""
    for least, unused, _ in outcome(fair(pace=1500), (0.9, 1.0)):
        assert 0.45 < least < 0.75
        assert unused == 0


def test_a_suggestion_is_for_the_team() -> None:
    """It is the amount of the budget, and not of a share."""
    calls = list(traffic((0.5, 0.5), 1, 4000))
    [found] = suggestions(Traffic(lambda: iter(calls)), lambda *_: rules(fair()))
    assert (found.identities, found.amount) == (1, len(calls))


def test_traffic_without_members() -> None:
    """The budget applies, without shares."""
    replay = Replay(lambda *_: rules(fair()))
    call = TrafficCall(20_000 * DAY_US, "chat", {"team": "acme"})
    assert [bool(replay.decide(call)) for _ in range(AMOUNT + 1)].count(True) == 1
    assert replay.outcome.unknown == {"user": AMOUNT + 1}
