"""The replay decides as the engines do."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.simulate import replay as module
from ratelimit_ext.simulate.demand import false_positives, suggestions
from ratelimit_ext.simulate.replay import Replay, Rule
from ratelimit_ext.simulate.report import as_data, notes, simulate
from ratelimit_ext.simulate.traffic import Traffic, TrafficCall

MINUTE_US, DAY_US = 60_000_000, 86_400_000_000


def rule(name: str, key: str, amount: int, period_us: int, strategy: str, **more) -> Rule:
    own = {"cost": more.pop("cost", 1), "optional": more.pop("optional", False)}
    limit = Limit(amount, period_us, strategy, name=name, **more)
    return Rule(name, limit, key, f"{name}:", **own)


LIMITS = (
    rule("pace", "user", 30, MINUTE_US, "token-bucket", burst=5),
    rule("all", "global", 40, MINUTE_US, "fixed-window"),
    rule("plan", "user", 25, 3 * MINUTE_US, "sliding-window"),
    rule("approximate", "ip", 70, MINUTE_US, "sliding-window-counter"),
    rule("shadow", "user", 10, MINUTE_US, "fixed-window", mode="shadow"),
    rule("candidate", "user", 3, MINUTE_US, "token-bucket", mode="candidate"),
    rule("day", "user", 300, DAY_US, "fixed-window", anchor="day"),
    rule("surge", "ip", 30, MINUTE_US, "surge", multiple=2),
)


def calls(count: int = 3000) -> list[TrafficCall]:
    chance = random.Random(7)
    at_us, found = 20_000 * DAY_US, []
    for _ in range(count):
        at_us += chance.choice((10_000, 300_000, 2_000_000) * 30 + (900_000_000,))
        user = f"user-{chance.randrange(4)}"
        found.append(TrafficCall(at_us, "chat", {"user": user, "ip": f"ip of {user}"}, seconds=3))
    return found


def traffic(found: list[TrafficCall]) -> Traffic:
    return Traffic(lambda: iter(found))


def test_the_same_decisions_as_an_engine():
    """In requests, tokens, dollars and calls in flight, enforced, in shadow and as candidates: the
    same are denied, and of the admitted the same would be. Each call is settled when it is over,
    and has cost what was estimated."""
    units = {
        "tokens": rule("tokens", "user", 1500, MINUTE_US, "token-bucket", unit="tokens", cost=None),
        "usd": rule("usd", "user", 75_000, MINUTE_US, "sliding-window", unit="usd", cost=None),
        "calls": rule("calls", "user", 9, 1_000_000, "concurrency", unit="calls"),
    }
    modes = {"shadow": 2, "candidate": 3}  # a half and a third of the amount
    tried = tuple(
        each._replace(
            name=f"{unit} {mode}",
            limit=replace(each.limit, amount=each.limit.amount // part, mode=mode),
            bucket=f"{unit} {mode}:",
        )
        for unit, each in units.items()
        for mode, part in modes.items()
    )
    rules = (*LIMITS, *units.values(), *tried)
    engine, replay = MemoryEngine(), Replay(lambda *_: rules)
    running: list[tuple[int, list[Change]]] = []
    denied: Counter[str] = Counter()
    would_deny: Counter[str] = Counter()
    for number, drawn in enumerate(calls(), 1):
        costs = {"tokens": number * 37 % 300, "usd": number * 1009 % 15_000}
        call = drawn._replace(costs=costs, seconds=20)
        for ends, settlements in running:
            if ends <= call.at_us:
                engine.settle(settlements, now_us=call.at_us)
        running = [each for each in running if each[0] > call.at_us]
        hold = Hold(number, DAY_US)
        charges = [Charge(r.limit, f"{r.bucket}{r.identity(call)}", r.cost_of(call)) for r in rules]
        decision = engine.admit(charges, hold=hold, now_us=call.at_us)
        names = {charge.limit.name for charge, *_ in decision.denials}
        assert {each.limit.name for each in replay.decide(call)} == names
        denied.update(names)
        if decision.admitted:
            keys = {verdict.charge.key for verdict in decision.verdicts if not verdict.allowed}
            would_deny.update(key.partition(":")[0] for key in keys)
            cost = {"calls": 0, **call.costs}
            running.append(
                (
                    call.at_us + 20_000_000,
                    [
                        Change.settle(verdict, hold, cost[verdict.charge.limit.unit])
                        for verdict in decision.verdicts
                        if verdict.charge.limit.held
                    ],
                )
            )
    assert denied.keys() >= {"pace", "all", "plan", "day", *units}
    assert replay.outcome.would_deny == would_deny
    assert would_deny.keys() == {"shadow", "candidate", *(each.name for each in tried)}


def test_forgetting_what_is_over_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    """Memory stays bounded by those who do not return, and the decisions are the same."""
    visits = [
        call if number % 3 else call._replace(who={"user": f"visitor-{number}", "ip": "visitors"})
        for number, call in enumerate(calls())
    ]

    def outcome() -> tuple[Replay, list[list[Rule]]]:
        replay = Replay(lambda *_: LIMITS)
        return replay, [replay.decide(call) for call in visits]

    whole, without = outcome()
    monkeypatch.setattr(module, "SWEEP_EVERY", 50)
    swept, with_sweeps = outcome()
    assert with_sweeps == without
    assert len(swept._buckets.named("")) < len(whole._buckets.named(""))


def test_a_slot_is_free_when_its_call_is_over():
    """Calls in flight end after their seconds."""
    slots = rule("slots", "user", 2, 1_000_000, "concurrency", unit="calls")
    replay = Replay(lambda *_: (slots,))

    def admits(at_s: float) -> bool:
        call = TrafficCall(int(at_s * 1_000_000), "chat", {"user": "alice"}, seconds=10)
        return not replay.decide(call)

    assert [admits(at) for at in (0, 1, 2, 9.9, 10, 10.5, 11)] == [
        *(True, True, False, False),
        *(True, False, True),
    ]


def test_costs_are_those_of_the_call():
    """A cost above what is left is denied, a smaller one still fits."""
    budget = rule("budget", "user", 5_000_000, DAY_US, "fixed-window", unit="usd", cost=None)
    replay = Replay(lambda *_: (budget,))

    def admits(usd: int) -> bool:
        call = TrafficCall(0, "chat", {"user": "alice"}, {"usd": usd * 1_000_000})
        return not replay.decide(call)

    assert [admits(usd) for usd in (3, 3, 2, 1, 0)] == [True, False, True, False, True]
    assert (replay.outcome.total.spent, replay.outcome.total.saved) == (5_000_000, 4_000_000)


def test_what_does_not_apply():
    """Optional limits, exempt ones, and those whose identity is unknown: a call is noted once."""
    optional = rule("own", "user", 1, DAY_US, "fixed-window", optional=True)
    team = rule("team", "team", 1, DAY_US, "fixed-window")
    month = rule("team-month", "team", 1, 30 * DAY_US, "fixed-window")
    replay = Replay(lambda *_: (optional, team, month, LIMITS[0]))
    call = TrafficCall(0, "chat", {"user": "alice"}, exempt=frozenset({"pace"}))
    assert not any(replay.decide(call) for _ in range(10))
    assert replay.outcome.unknown == {"team": 10}
    assert Replay(lambda *_: ()).decide(call) == []


def test_what_is_not_known_is_listed_in_one_order():
    """Whatever the seed of hashes in this process."""
    keys = [f"key-{n}" for n in range(9)]
    replay = Replay(lambda *_: [rule(each, each, 1, DAY_US, "fixed-window") for each in keys])
    replay.decide(TrafficCall(0, "chat", {}))
    assert list(replay.outcome.unknown) == keys


def test_who_is_denied_because_of_others_is_a_false_positive():
    """One who asked for less than a fair share of a shared limit."""
    shared = rule("all", "global", 10, MINUTE_US, "fixed-window")
    hog = [TrafficCall(n, "chat", {"user": "hog"}) for n in range(50)]
    [result] = simulate(
        traffic([*hog, TrafficCall(60, "chat", {"user": "alice"})]), {"now": lambda *_: (shared,)}
    )
    assert result.outcome.total.denied == 41
    assert result.outcome.wronged == {"alice": 1}
    assert result.outcome.false_positives == {"all": 1}


def test_what_the_traffic_calls_abusive_is_none():
    """A mark in the traffic comes first."""
    limit = rule("pace", "user", 60, MINUTE_US, "token-bucket", burst=1)
    twice = [TrafficCall(0, "chat", {"user": "alice"}), TrafficCall(1, "chat", {"user": "alice"})]
    denied = {1: [limit]}
    assert false_positives(twice, lambda *_: (limit,), denied)[1] == {"alice": 1}
    marked = [twice[0], twice[1]._replace(abusive=True)]
    assert false_positives(marked, lambda *_: (limit,), denied)[1] == {}


def denied(asked: Traffic, limited: Rule) -> int:
    [result] = simulate(asked, {"then": lambda *_: (limited,)})
    return result.outcome.total.denied


@pytest.mark.parametrize("cost", [1, None])
@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("token-bucket", {}),
        ("fixed-window", {}),
        ("fixed-window", {"anchor": "day"}),
        ("sliding-window", {}),
        ("sliding-window-counter", {}),
    ],
)
def test_suggestions_deny_nothing_to_their_share(
    strategy: str, more: dict[str, str], cost: int | None
):
    """With the suggested amount nothing is denied, and with one less of a window something is."""
    unit = {} if cost else {"unit": "tokens"}
    present = rule("plan", "user", 5, 10 * MINUTE_US, strategy, cost=cost, **unit, **more)
    asked = traffic(
        [call._replace(costs={"tokens": n * 37 % 300}) for n, call in enumerate(calls())]
    )
    [found] = suggestions(asked, lambda *_: (present,), share=1.0)
    assert found.identities == found.denied == 4
    assert denied(asked, present) > 0
    enough = replace(present.limit, amount=found.amount, burst=found.burst)
    assert denied(asked, present._replace(limit=enough)) == 0
    if strategy != "token-bucket":
        less = replace(enough, amount=found.amount - 1)
        assert denied(asked, present._replace(limit=less)) > 0


def test_a_suggestion_for_a_month_counts_all_of_its_days():
    """One call a day: 31 in January, though no 30 days have more than 30."""
    month = rule("month", "user", 5, 30 * DAY_US, "fixed-window", anchor="month")
    january = 20_089  # of 2025
    days = [TrafficCall((january + day) * DAY_US, "chat", {"user": "alice"}) for day in range(60)]
    [found] = suggestions(traffic(days), lambda *_: (month,))
    assert found.amount == 31


def test_classes_of_the_traffic():
    """A limit keeps a part for a class; the traffic says the class of each call."""
    limit = Limit(10, MINUTE_US, "sliding-window", keep=(("interactive", 4),))
    replay = Replay(lambda *_: [Rule("model", limit, "global", "bucket", priority="class")])
    names = ["batch"] * 8 + ["interactive"] * 8
    denied = [bool(replay.decide(TrafficCall(0, "chat", {"class": name}))) for name in names]
    assert denied.count(False) == 6 + 4


def test_traffic_without_classes():
    """The whole limit is for all, and the report counts the calls that say no class."""
    limit = Limit(10, MINUTE_US, "sliding-window", keep=(("interactive", 4),))
    replay = Replay(lambda *_: [Rule("model", limit, "global", "bucket", priority="class")])
    denied = [bool(replay.decide(TrafficCall(0, "chat", {}))) for _ in range(12)]
    assert denied.count(False) == 10
    assert replay.outcome.classless == {"class": 12}


def test_calls_that_wait():
    """For their turn in a bucket, or for a slot; the seventh would wait for too long. How long a
    call takes is not known: the seventh in line for a slot is denied when its wait is over."""
    pace = rule("pace", "global", 60, MINUTE_US, "token-bucket", burst=2, wait=4_000_000)
    slots = rule("slots", "global", 2, 1_000_000, "concurrency", unit="calls", wait=4_500_000)
    for one in (pace, slots):
        replay = Replay(lambda *_, one=one: [one])
        calls = [TrafficCall(0, "chat", {}, seconds=2.0) for _ in range(7)]
        denied = [bool(replay.decide(call)) for call in calls]
        assert denied == [False] * 6 + [one is pace]
        replay.finish()
        assert replay.denied == {6: [one]}
        waits = [1, 2, 3, 4] if one is pace else [2, 2, 4, 4]
        assert replay.outcome.waits == [1_000_000 * each for each in waits]


def admitted(replay: Replay, calls: list[TrafficCall]) -> list[bool]:
    for call in calls:
        replay.decide(call)
    replay.finish()
    return [number not in replay.denied for number in range(len(calls))]


def test_classes_wait_in_their_order():
    """Those of a higher class that come later start first."""
    keep = (("people", 1),)
    for limit in (
        Limit(60, MINUTE_US, "token-bucket", burst=2, wait=4_000_000, keep=keep, name="pace"),
        Limit(2, 1_000_000, "concurrency", unit="calls", wait=4_000_000, keep=keep, name="slots"),
    ):
        one = Rule(limit.name, limit, "global", "b:", priority="class")
        replay = Replay(lambda *_, one=one: [one])
        who = ["batch"] * 6 + ["people"] * 3
        calls = [TrafficCall(0, "chat", {"class": name}, seconds=1.0) for name in who]
        assert admitted(replay, calls)[6:] == [True] * 3
        assert admitted(replay, calls).count(True) < len(calls)


def test_members_take_turns():
    """One with many calls in line starts as many as one with few."""
    limit = Limit(
        1, 1_000_000, "concurrency", unit="calls", wait=8_500_000, fair=True, name="slots"
    )
    one = Rule("slots", limit, "global", "slots:", member="user")
    replay = Replay(lambda *_: [one])
    who = ["loop"] * 20 + ["alice"] * 4
    calls = [TrafficCall(n, "chat", {"user": name}, seconds=1.0) for n, name in enumerate(who)]
    got = Counter(name for name, own in zip(who, admitted(replay, calls), strict=True) if own)
    assert got == {"loop": 5, "alice": 4}


def test_calls_that_wait_as_in_an_engine():
    """Of random traffic the same calls start, at the same instants."""
    chance = random.Random(3)
    limit = Limit(60, MINUTE_US, "token-bucket", burst=3, wait=6_000_000, name="pace")
    at_us, calls = 0, []
    for _ in range(300):
        at_us += chance.choice((0, 100_000, 500_000, 3_000_000))
        calls.append(TrafficCall(at_us, "chat", {}))
    replay = Replay(lambda *_: [Rule("pace", limit, "global", "pace:")])
    free_us, waits, denied = -(10**9), list[int](), list[bool]()
    for call in calls:  # a bucket of three: the start of the third one before is a bound
        start = max(call.at_us, free_us - 2_000_000)
        denied.append(start - call.at_us > 6_000_000)
        if not denied[-1]:
            free_us = max(free_us, start) + 1_000_000
            waits += [start - call.at_us] if start > call.at_us else []
    assert [not each for each in admitted(replay, calls)] == denied
    assert sorted(replay.outcome.waits) == sorted(waits)


@pytest.mark.parametrize("priced", [True, False])
def test_members_share_what_calls_reserve(priced: bool):
    """Jain's index over the dollars of ten users, whose calls differ a hundredfold; without a limit
    in dollars each has as many calls, and the dearest nearly all that is spent."""
    limit = Limit(4, 1_000_000, "concurrency", unit="calls", wait=5_000_000, fair=True)
    budget = Limit(10**12, 86_400_000_000, "fixed-window", unit="usd", name="budget")
    rules = [Rule("slots", limit, "global", "slots:", member="user")]
    rules += [Rule("budget", budget, "global", "budget:", cost=None)] if priced else []
    replay = Replay(lambda *_: rules)
    calls, lasts_s = [], 240
    for number in range(10):
        usd, name = round(1000 * 100 ** (number / 9)), f"user {number}"
        rate = max(0.5, 1.3 * 8 / 2.5 * 1000 / usd)  # eight calls a second share four slots
        times = [n / rate for n in range(round(lasts_s * rate))]
        calls += [
            TrafficCall(round(at * 1e6), "", {"user": name}, {"usd": usd}, "", 0.5) for at in times
        ]
    for call in sorted(calls, key=lambda call: call.at_us):
        replay.decide(call)
    spent = [tally.spent for tally in replay.outcome.callers.values()]
    index = sum(spent) ** 2 / (10 * sum(each**2 for each in spent))
    print(f"priced={priced}: Jain's index {index:.3f}")  # noqa: T201
    assert (index >= 0.95) is priced


def test_waits_of_each_class():
    """A lower class waits for longer, and the report says for how long."""
    limit = Limit(
        *(2, 1_000_000, "concurrency"), unit="calls", wait=9_000_000, keep=(("people", 1),)
    )
    one = Rule("slots", limit, "global", "b:", priority="class")
    who = ["batch"] * 3 + ["people"] * 3
    calls = [TrafficCall(0, "chat", {"class": name}, seconds=1.0) for name in who]
    [result] = simulate(Traffic(lambda: iter(calls)), {"policy": lambda *_: [one]})
    [data] = as_data([result])
    assert data["waits_by_class"] == {
        "batch": {"waited": 2, "longest_wait": 3.0},
        "people": {"waited": 2, "longest_wait": 1.0},
    }
    assert "policy: 2 calls of class 'batch' waited, at most 3.0 s." in notes(
        [result], Traffic(lambda: iter(calls)), {}
    )
