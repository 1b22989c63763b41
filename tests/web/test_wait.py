"""`wait`: a request waits for its turn instead of being refused."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from flask import Flask, request

from ratelimit_ext import ConfigurationError, DecisionEvent, Event, Limiter, MetaLimit, WaitEvent
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NEVER, Charge, Hold
from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import Events, WaitOutcome
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.limit_string import wait_us
from ratelimit_ext.engine.wake_ups import wake_ups
from ratelimit_ext.metrics import prometheus
from ratelimit_ext.web.request import waiting_room
from ratelimit_ext.web.request.admission import Admission
from ratelimit_ext.web.request.request_state import RequestState
from ratelimit_ext.web.request.waiting_room import Places, WaitingRoom
from tests.clocks import Clock, Night
from tests.servers import Server, eventually
from tests.web.calls import remaining, statuses
from tests.web.conftest import Maker


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Night:
    return Night(monkeypatch)


@pytest.fixture
def slept(night: Night) -> list[float]:
    return night.lengths


MANY = {"RATELIMIT_WAITING_MAX": 30}
BUCKET: dict[str, Any] = {"strategy": "token-bucket"}


def paced(
    app: Flask, limiter: Limiter, path: str = "/", view: Any = lambda: "ok", **more: Any
) -> None:
    """A view for ten calls at once and thirty a minute."""
    words: dict[str, Any] = {"strategy": "token-bucket", "burst": 10, "name": "pace"}
    words |= {"wait": "10 seconds", **more}
    app.add_url_rule(path, path.strip("/") or "view", limiter.limit("30/minute", **words)(view))


def test_a_loop_waits_for_its_turns(make: Maker, uri: str, night: Night) -> None:
    """The sixteenth call would wait for longer than ten seconds: it is refused at once, with the
    wait as it is."""
    app, limiter = make(storage_uri=uri, config=MANY)
    paced(app, limiter)
    begin, slept = time.monotonic(), night.lengths
    answers = night.together(app, "/", 16)
    passed_s = time.monotonic() - begin - night.passed_s
    assert [each.status_code for each in answers] == [200] * 15 + [429]
    assert slept == pytest.approx([2, 4, 6, 8, 10], abs=0.1 + passed_s)
    waits = [int(each.headers.get("RateLimit-Wait-Ms", 0)) for each in answers[:15]]
    assert waits[9] == 0 < waits[10]
    assert 11_999 - 1000 * passed_s <= int(answers[-1].headers["retry-after-ms"]) <= 12_000
    assert "r=0" in answers[9].headers["RateLimit"]


def test_it_really_sleeps(make: Maker, uri: str) -> None:
    """Four turns take 0.2 s, of which the first call has taken a part."""
    app, limiter = make(storage_uri=uri)
    view = limiter.limit("20/second", strategy="token-bucket", burst=1, wait="1 second")
    app.add_url_rule("/", "view", view(lambda: "ok"))
    began = time.monotonic()
    assert statuses(app, "/", 5) == [200] * 5
    assert time.monotonic() - began >= 0.15


def test_a_request_is_woken_once_by_each_turn() -> None:
    """Else it would ask the storage without a pause until it may start."""
    woken = threading.Event()
    woken.set()
    with Flask("waits").test_request_context():
        assert waiting_room._sleep(60, woken)
    assert not woken.is_set()


def test_it_sleeps_until_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, to notice that its client has left; their sum is what was asked for."""
    slept = [0.0]
    woken = threading.Event()
    monkeypatch.setattr(woken, "wait", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    with Flask("waits").test_request_context():
        assert waiting_room._sleep(3.25, woken)
    assert sum(slept) == 3.25
    assert max(slept) == waiting_room.NOTICED_S


def test_it_notices_while_it_sleeps_that_its_client_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the part of the sleep in which that happens, and not at its turn."""
    slept, woken = list[float](), threading.Event()
    monkeypatch.setattr(woken, "wait", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(waiting_room, "_has_left", lambda: len(slept) == 2)
    with Flask("waits").test_request_context():
        assert not waiting_room._sleep(60, woken)
    assert slept == [waiting_room.NOTICED_S] * 2


def test_other_limits_are_charged_when_it_starts(make: Maker, uri: str, night: Night) -> None:
    """A request that waits holds no money and no slot, and asks the storage nothing."""
    app, limiter = make(storage_uri=uri)
    limiter.estimator("usd")(lambda: "0.5")
    view = limiter.limit("20 usd/day", name="money")(lambda: "ok")
    view = limiter.limit("3 in flight", name="slots")(view)
    view = limiter.limit("100/hour", name="calls")(view)
    paced(app, limiter, view=view, burst=1)
    seen: list[dict[str, int]] = []
    night.instead = lambda _: seen.append(remaining(app, limiter)) is None
    assert statuses(app, "/", 2) == [200, 200]
    assert seen[0] == {"money": 19_500_000, "slots": 3, "calls": 99, "pace": 0}
    after = remaining(app, limiter)
    assert (after["money"], after["slots"], after["calls"]) == (19_000_000, 3, 98)


def test_what_a_request_that_has_waited_gets_back(
    make: Maker, uri: str, slept: list[float]
) -> None:
    """All of it, as any other: if deduct_when returns false, and if a later limit denies it."""
    app, limiter = make(storage_uri=uri)
    more = {"burst": 1, "reserve": True, "deduct_when": lambda _: "free" not in request.args}
    paced(app, limiter, **more)
    denied = limiter.limit("0/hour")

    def refused() -> str:
        if "late" in request.args:
            with denied:
                return "never"
        return "ok"

    words: dict[str, Any] = {"burst": 1, "strategy": "token-bucket", "wait": "10 seconds"}
    app.add_url_rule("/refused", "refused", limiter.limit("30/minute", **words)(refused))
    limiter.estimator("tokens")(lambda: 10)

    def tried() -> str:
        assert limiter.current.admit_again() is None
        return "ok"

    words |= {"burst": 10, "unit": "tokens", "name": "tokens"}
    app.add_url_rule("/tried", "tried", limiter.limit("300/minute", **words)(tried))
    assert statuses(app, "/") == [200]
    assert statuses(app, "/?free=1", 3) == [200] * 3
    assert slept == pytest.approx([2], abs=1)
    slept.clear()
    assert statuses(app, "/refused") == [200]
    assert statuses(app, "/refused?late=1", 3) == [429] * 3
    assert slept == pytest.approx([2], abs=1)
    slept.clear()
    assert statuses(app, "/tried", 3) == [200] * 3
    assert slept == pytest.approx([2, 2], abs=1)


def test_a_limit_that_is_used_up_meanwhile(make: Maker, uri: str, night: Night) -> None:
    """It refuses the request when its turn has come, and the place in line is given back."""
    app, limiter = make(storage_uri=uri)
    view = limiter.limit(
        "11/hour", name="calls", strategy="sliding-window", key_func=lambda: "all"
    )(lambda: "ok")
    paced(app, limiter, view=view)
    assert statuses(app, "/", 10) == [200] * 10

    def others(_: float) -> bool:
        assert statuses(app, "/", headers={"X-Key": "another"}) == [200]
        return True

    night.instead = others
    refused = app.test_client().get("/")
    assert (refused.status_code, refused.json and refused.json["policy"]) == (429, "calls")
    assert "RateLimit-Wait-Ms" in refused.headers
    assert int(refused.headers["retry-after-ms"]) > 3_000_000
    with app.test_request_context():
        assert limiter.operators.states("someone", kind="ip") == []
    assert in_line(limiter, app) == 0


def in_line(limiter: Limiter, app: Flask) -> int:
    """How many units wait in the limit "pace" of "someone"."""
    with app.app_context():
        states = limiter.operators.states("someone")
    return next(each.in_line for each in states if each.row.name == "pace")


def test_a_limit_that_denies_already(make: Maker, slept: list[float]) -> None:
    """Nothing waits where another limit refuses, or where the wait is known to be longer."""
    app, limiter = make()
    view = limiter.limit("10/hour", name="calls")(lambda: "ok")
    paced(app, limiter, view=view)
    paced(app, limiter, "/slow", wait="1 second")
    assert statuses(app, "/", 11) == [200] * 10 + [429]
    assert statuses(app, "/slow", 11) == [200] * 10 + [429]
    assert slept == []


def test_a_client_that_leaves(make: Maker, uri: str) -> None:
    """Its wait ends at once, and its place is free; what it sends meanwhile does not wake it."""
    app, limiter = make(storage_uri=uri)
    paced(app, limiter, wait="60 seconds", burst=1)
    assert statuses(app, "/") == [200]
    server, client = socket.socketpair()
    client.send(b"GET / HTTP/1.1")
    answers: list[int] = []
    environ = {"gunicorn.socket": server, "wsgi.multithread": True}

    def call() -> None:
        answers.extend(statuses(app, "/", environ_overrides=environ))

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: in_line(limiter, app) == 1)
    client.close()
    thread.join()
    server.close()
    assert answers == [429]
    assert in_line(limiter, app) == 0


PACED = Charge(Limit(30, 60_000_000, "token-bucket", name="pace", wait=10_000_000), "pace")
CALLS = Charge(Limit(30, 3_600_000_000, name="calls"), "calls")
BAN = Charge(Limit(9, 3_600_000_000, name="ban"), "ban", meta=True)


def answer(pace_s: float, calls_s: float = 0, charges: Sequence[Charge] = ()) -> Decision:
    """A decision by the seconds after which each limit lets the request pass."""
    waits = {PACED.key: pace_s, CALLS.key: calls_s, BAN.key: 0}
    verdicts = [
        Verdict(
            each, not waits[each.key], 0, wait := round(waits[each.key] * 1_000_000), wait, None
        )
        for each in charges or (PACED, CALLS)
    ]
    return Decision(admitted=not pace_s + calls_s, now_us=0, verdicts=tuple(verdicts))


@dataclass
class Script:
    """What a storage and an outage answer to a request that waits, one look after the other, and
    what they are sent."""

    answers: list[tuple[str, Decision]]
    looks: list[tuple[int | None, bool]] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)

    def decide(self, charges: Sequence[Charge], hold: Hold) -> tuple[Decision, Any, Hold]:
        counts_denials = any(each.meta and each.on_denial != NEVER for each in charges)
        self.looks.append((hold.waited_us, counts_denials))
        engine, decision = self.answers.pop(0)
        return decision, engine, hold

    def send(self, engine: Any, changes: Sequence[Change], **_: object) -> None:
        self.sent += [(engine, f"{each.verb} {each.charge.limit.name}") for each in changes]


BACK, LEFT = ("storage", "adjust ban"), ("storage", "leave pace")
#: By how a wait ends: the engines and what they answer; the outcome, the seconds and whether the
#: response has them; whether a ticket is left.
TURNS: dict[str, tuple[list[tuple[str, Decision]], WaitOutcome, float, bool, bool]] = {
    "starts": ([("storage", answer(2)), ("storage", answer(0))], "started", 2, True, False),
    "starts at once": ([("storage", answer(0))], "started", 0, True, False),
    "an outage": ([("storage", answer(2)), ("outage", answer(0))], "started", 2, True, True),
    "others came first": ([("storage", answer(11))], "refused", 0, False, True),
    "too late": ([("storage", answer(2)), ("storage", answer(9))], "late", 2, True, True),
    "another": ([("storage", answer(2)), ("storage", answer(0, 1))], "denied", 2, True, True),
    "both": ([("storage", answer(2)), ("storage", answer(9, 1))], "denied", 2, True, True),
    "its client leaves": ([("storage", answer(5))], "left", 5, False, True),
}


@pytest.fixture
def room(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """Let a request wait by a script, and return its events. A client stays for five seconds."""

    def sleep(seconds: float, _: object) -> bool:
        clock.forward(seconds)
        return seconds < 5

    def turn(script: Script, state: RequestState, denied: Decision) -> list[Event]:
        places, events, found = Places(1), Events(), list[Event]()
        events.add(found.append)
        room = WaitingRoom(places, None, script, events, 60)
        charges = [verdict.charge for verdict in denied.verdicts]
        room.turn(state, script.decide, charges, (denied, "storage", Hold(7, 60_000_000)))
        assert places.acquire(blocking=False)
        assert not places.seats
        assert not script.answers
        return found

    monkeypatch.setattr(waiting_room, "_sleep", sleep)
    return turn


@pytest.mark.parametrize("triggers", [None, (), (0,), (1,)])
@pytest.mark.parametrize("case", TURNS)
def test_how_a_wait_ends(
    case: str, triggers: tuple[int, ...] | None, room: Callable[..., list[Event]]
) -> None:
    """Its event names what happened, and how long it lasted; the response says how long a request
    has waited that had a turn or a deadline. A ticket is left unless its request has started. A
    limit on denials has counted the first one, if it was of its limits; it gets that back, and
    counts a refusal instead."""
    answers, outcome, seconds, is_shown, is_left = TURNS[case]
    counts = triggers in ((), (0,))
    is_refused = outcome in ("refused", "late", "denied")
    script = Script([*answers, *answers[-1:] * (counts and is_refused)])
    charges = [PACED, CALLS, BAN._replace(on_denial=triggers or ())][: 2 + (triggers is not None)]
    app, state = Flask("waits"), RequestState(lambda _: None)  # type: ignore[arg-type,return-value]
    with app.test_request_context():
        events = room(script, state, answer(2, charges=charges))
        response = app.process_response(app.make_response("ok"))
    assert events == [WaitEvent(PACED.limit, outcome, seconds)]
    waited_ms = response.headers.get("RateLimit-Wait-Ms", type=int)
    assert waited_ms == (seconds * 1000 if is_shown else None)
    assert state.waited_us == (waited_ms or 0) * 1000
    assert script.sent == [BACK] * counts + [LEFT] * is_left
    assert script.looks[0] == (0, False)
    assert [counted for _, counted in script.looks[1:]].count(True) == (counts and is_refused)


def test_a_request_may_start_as_its_refusal_is_counted(room: Callable[..., list[Event]]) -> None:
    """Those before it have left meanwhile."""
    script = Script([("storage", answer(11)), ("storage", answer(0))])
    with Flask("waits").test_request_context():
        state = RequestState(lambda _: None)  # type: ignore[arg-type,return-value]
        events = room(script, state, answer(2, charges=[PACED, CALLS, BAN]))
    assert events == [WaitEvent(PACED.limit, "started", 0)]
    assert script.sent == [BACK]


def test_a_refusal_has_an_event_of_the_limit_that_lets_requests_wait(
    room: Callable[..., list[Event]],
) -> None:
    """Another limit denies, too: it asks nothing."""
    script = Script([])
    with Flask("waits").test_request_context():
        events = room(script, RequestState(lambda _: None), answer(2, 1))  # type: ignore[arg-type,return-value]
    assert events == [WaitEvent(PACED.limit, "refused", 0)]
    assert script == Script([])


def test_a_worker_without_threads_waits_for_nothing(make: Maker, slept: list[float]) -> None:
    """gunicorn's default worker has one, which would serve no one meanwhile."""
    app, limiter = make()
    paced(app, limiter, burst=1)
    with socket.socket() as connection:
        environ = {"gunicorn.socket": connection, "wsgi.multithread": False}
        assert statuses(app, "/", 2, environ_overrides=environ) == [200, 429]
    assert slept == []


def test_only_so_many_threads_wait(make: Maker, night: Night) -> None:
    """Above that, a request is refused as without `wait`."""
    app, limiter = make(config={"RATELIMIT_WAITING_MAX": 2})
    paced(app, limiter)
    answers = night.together(app, "/", 14)
    assert [each.status_code for each in answers] == [200] * 12 + [429] * 2


@pytest.mark.parametrize("by", ["fair", "priority"])
def test_many_who_wait_leave_places_to_others(make: Maker, uri: str, by: str) -> None:
    """Of two places, the last one in line of the member or class that has both gives up its own."""
    app, limiter = make(storage_uri=uri, config={"RATELIMIT_WAITING_MAX": 2})
    words: dict[str, Any] = {by: lambda: request.headers["X-User"], "wait": "60 seconds"}
    if by == "priority":
        words["keep"] = {"few": 0, "many": 0}
    go_on, begun, ended = threading.Event(), list[str](), list[tuple[str, int]]()

    @app.get("/")
    @limiter.limit("1 in flight", name="slots", **words)
    def view() -> str:
        begun.append(request.headers["X-User"])
        assert go_on.wait(60)
        return "ok"

    with app.test_request_context():
        seats = limiter.current.places.seats

    def call(user: str) -> None:
        answer = app.test_client().get("/", headers={"X-User": user})
        ended.append((user, answer.status_code))

    def begin(user: str, waiting: int, refused: int) -> threading.Thread:
        thread = threading.Thread(target=call, args=[user])
        thread.start()
        eventually(lambda: begun and (len(seats), len(ended)) == (waiting, refused))
        return thread

    threads = [begin("many", 0, 0), begin("many", 1, 0), begin("many", 2, 0)]
    threads += [begin("many", 2, 1), begin("few", 2, 2), begin("few", 2, 3)]
    assert ended == [("many", 429), ("many", 429), ("few", 429)]
    go_on.set()
    for thread in threads:
        thread.join()
    assert begun[0] == "many"
    assert sorted(begun[1:]) == ["few", "many"]
    assert sorted(ended[3:]) == [("few", 200), ("many", 200), ("many", 200)]


def test_a_flow_never_loses_a_place_to_one_that_has_as_many() -> None:
    """Also if others hold places without waiting in line."""
    places = Places(4)
    assert places.acquire(blocking=False)
    assert [places.take(flow) is not None for flow in "aaab"] == [True, True, True, True]
    assert [*places.seats.values()] == ["a", "a", "b"]
    assert places.take("b") is None
    assert places.take("a") is None
    first, last, other = places.seats
    lost = places.take("c")
    assert lost is not None
    assert (first.is_set(), last.is_set(), other.is_set()) == (False, True, False)
    for seat in (first, last, other, lost):
        places.leave(seat)
    places.release()
    assert [places.acquire(blocking=False) for _ in range(5)] == [True] * 4 + [False]


def test_a_request_that_waits_keeps_its_amount(make: Maker, uri: str, night: Night) -> None:
    """An override that ends meanwhile paces those that come later."""
    app, limiter = make(storage_uri=uri)
    paced(app, limiter, burst=1)
    with app.app_context():
        limiter.operators.override("pace", "someone", "60/minute")
    assert statuses(app, "/", 1) == [200]

    def end(_: float) -> bool:
        with app.app_context():
            limiter.operators.clear_override("pace", "someone")
        return True

    night.instead = end
    assert statuses(app, "/", 1) == [200]
    night.instead = lambda _: True
    assert statuses(app, "/", 1) == [200]
    first, second = night.lengths
    assert first <= 1 < second <= 2


def test_limits_on_denials_do_not_count_a_wait(make: Maker, uri: str, night: Night) -> None:
    """A refusal they do count."""
    app, limiter = make(storage_uri=uri, meta_limits=[MetaLimit("1/hour")], config=MANY)
    paced(app, limiter)
    answers = night.together(app, "/", 15)
    assert [each.status_code for each in answers] == [200] * 15
    with app.app_context():
        limiter.reset()
    answers = night.together(app, "/", 17)
    assert [each.status_code for each in answers] == [200] * 10 + [429] * 7
    with app.app_context():
        limiter.reset()
    answers = night.together(app, "/", 15)
    assert [each.status_code for each in answers] == [200] * 15
    assert len(night.lengths) == 15


def test_estimates_of_a_bucket_that_lets_requests_wait(make: Maker, uri: str, night: Night) -> None:
    """A request in line holds nothing; its estimate is settled as always if it starts."""
    app, limiter = make(storage_uri=uri)
    limiter.estimator("tokens")(lambda: 600)

    @app.get("/")
    @limiter.limit(
        "6000/minute",
        strategy="token-bucket",
        burst=1000,
        unit="tokens",
        name="pace",
        wait="10 seconds",
    )
    def view() -> str:
        limiter.current.reservation.settle(tokens=100)
        return "ok"

    present, lines = True, list[int]()

    def look(_: float) -> bool:
        lines.append(in_line(limiter, app))
        return present

    night.instead = look
    assert statuses(app, "/", 30) == [200] * 30
    assert lines
    assert min(lines) > 0
    assert in_line(limiter, app) == 0
    present = False
    assert 429 in statuses(app, "/", 30)
    assert in_line(limiter, app) == 0


def test_the_storage_fails_while_it_waits(
    make: Maker, monkeypatch: pytest.MonkeyPatch, night: Night
) -> None:
    """The place in line is given back."""
    app, limiter = make()
    paced(app, limiter, burst=1)
    assert statuses(app, "/") == [200]
    engine: Any = limiter._components.engines.primary

    def fail(*_: object, **__: object) -> None:
        raise StorageUnavailable("down")

    def break_down(_: float) -> bool:
        monkeypatch.setattr(type(engine), "admit", fail)
        return True

    night.instead = break_down
    assert statuses(app, "/") == [500]
    monkeypatch.undo()
    assert in_line(limiter, app) == 0


def test_a_look_that_fails(
    make: Maker,
    redis_uri: str,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    night: Night,
) -> None:
    """The request starts by the share of this host or later, and leaves no place in line behind."""
    app, limiter = make(storage_uri=redis_uri)
    paced(app, limiter)
    engine, failures = limiter._components.engines.primary, list[int]()
    admit = engine.admit

    def fail(*charges: Any, **how: Any) -> Any:
        if (hold := how.get("hold")) is not None and hold.waited_us and not failures:
            failures.append(hold.id)
            raise StorageUnavailable("down")
        return admit(*charges, **how)

    monkeypatch.setattr(engine, "admit", fail)
    lines: list[int] = []
    night.instead = lambda _: lines.append(in_line(limiter, app)) is None
    assert statuses(app, "/", 11) == [200] * 11
    assert lines[0] == 1
    assert len(failures) == 1
    assert in_line(limiter, app) == 0
    assert not list(redis_client.keys("*:line"))


def test_while_the_storage_is_down(make: Maker, night: Night) -> None:
    """The share of this process has a line, too."""
    app, limiter = make(
        storage_uri="redis://127.0.0.1:1", config={"RATELIMIT_DEADLINE_SECONDS": 0.1, **MANY}
    )
    paced(app, limiter)
    answers = night.together(app, "/", 16)
    assert [each.status_code for each in answers] == [200] * 15 + [429]
    assert answers[14].headers["X-RateLimit-Degraded"] == "local"
    assert "RateLimit-Wait-Ms" in answers[14].headers
    assert len(night.lengths) == 5


def test_a_long_wait_while_the_storage_is_down(make: Maker, night: Night) -> None:
    """A request in line starts when it is its turn, though refusals of an outage name 30 s."""
    app, limiter = make(
        storage_uri="redis://127.0.0.1:1", config={"RATELIMIT_DEADLINE_SECONDS": 0.1, **MANY}
    )
    paced(app, limiter, wait="60 seconds", burst=20)
    answers = night.together(app, "/", 38)
    assert [each.status_code for each in answers] == [200] * 38
    assert int(answers[37].headers["RateLimit-Wait-Ms"]) > 30_000


def test_a_shadow_and_another_amount(make: Maker, night: Night) -> None:
    """A limit in shadow denies nothing; an override changes the pace of the line."""
    app, limiter = make(config=MANY)
    paced(app, limiter)
    paced(app, limiter, "/shadow", mode="shadow", name="shadow")
    assert statuses(app, "/shadow", 12) == [200] * 12
    assert night.lengths == []
    with app.app_context():
        limiter.operators.override("pace", "someone", "60/minute")
    answers = night.together(app, "/", 21)
    assert [each.status_code for each in answers] == [200] * 20 + [429]


def test_what_operators_see(make: Maker, redis_uri: str, night: Night) -> None:
    """How much is in line, and which limits let requests wait."""
    app, limiter = make(storage_uri=redis_uri, config=MANY)
    paced(app, limiter)
    seen: list[int] = []
    shown: Any = None

    def look(_: float) -> bool:
        nonlocal shown
        seen.append(in_line(limiter, app))
        if len(seen) < 3:
            return statuses(app, "/") == [200]
        shown = app.test_cli_runner().invoke(args=["ratelimit", "inspect", "someone"])
        return True

    night.instead = look
    assert statuses(app, "/", 11) == [200] * 11
    assert seen == [1, 2, 3]
    assert "3 in line" in shown.output
    shown = app.test_cli_runner().invoke(args=["ratelimit", "show", "--json"])
    assert '"wait": "10 s"' in shown.output


def test_events_and_figures(make: Maker, monkeypatch: pytest.MonkeyPatch, night: Night) -> None:
    """By limit: what started, what left, what was refused; a decision's own time has no wait."""
    monkeypatch.delenv(prometheus.DIRECTORY, raising=False)
    app, limiter = make(config=MANY)
    exporter = prometheus.measure(limiter)
    events: list[Event] = []
    limiter.listen(events.append)
    paced(app, limiter)
    paced(app, limiter, "/short", name="short", wait="1 second")
    statuses(app, "/", 10)
    night.instead = lambda seconds: seconds < 7 and statuses(app, "/") != []
    statuses(app, "/")
    night.together(app, "/short", 11)
    waited = [each for each in events if isinstance(each, WaitEvent)]
    assert [each.seconds >= 2 for each in waited] == [True] * 4 + [False]
    assert waited[-1].seconds == 0
    waits = [(each.limit.label, each.outcome) for each in waited]
    assert waits == [("pace", "left")] + [("pace", "started")] * 3 + [("short", "refused")]
    scraped = exporter.scrape()[0].decode()
    for name, outcome, count in (
        ("pace", "started", 3),
        ("pace", "left", 1),
        ("short", "refused", 1),
    ):
        labels = f'limit="{name}",outcome="{outcome}"'
        assert f"ratelimit_wait_seconds_count{{{labels}}} {count}.0" in scraped
    decisions = [each for each in events if isinstance(each, DecisionEvent)]
    assert all(0 <= each.seconds < 2 for each in decisions)


def test_a_limit_that_denies_later_has_an_event(make: Maker, night: Night) -> None:
    """Another route uses it up while the request waits for the first."""
    app, limiter = make(config=MANY)
    events: list[Event] = []
    limiter.listen(events.append)
    words = {"strategy": "token-bucket", "wait": "20 seconds"}
    common = limiter.shared_limit("6/minute", scope="all", burst=2, name="common", **words)
    view = limiter.limit("30/minute", burst=1, name="own", **words)(common(lambda: "ok"))
    app.add_url_rule("/", "view", view)
    app.add_url_rule("/other", "other", common(lambda: "ok"))
    statuses(app, "/")
    others = iter(["/other"])
    night.instead = lambda _: all(statuses(app, path) == [200] for path in others)
    assert statuses(app, "/") == [200]
    waited = [each for each in events if isinstance(each, WaitEvent)]
    assert sorted((each.limit.label, each.outcome) for each in waited) == [
        ("common", "started"),
        ("own", "started"),
    ]


@pytest.mark.parametrize("text", ["20", "0 seconds", "-1 seconds", "20 parsecs", "2 days", "", 20])
def test_invalid_lengths(text: object) -> None:
    """The sentence has the bounds and an example."""
    allowed = 'allowed: a length of time above 0, up to 24 hours, such as "20 seconds"'
    with pytest.raises(ConfigurationError, match=allowed):
        wait_us(text)


@pytest.mark.parametrize(
    ("limit", "more", "sentence"),
    [
        ("5 usd/day", {}, "wait is not an option of the strategy 'fixed-window'"),
        ("5 usd/day", BUCKET, "a budget takes no wait"),
        ("5/day", {"strategy": "sliding-window"}, "is not an option of the strategy 'sliding-wind"),
        ("5/day", BUCKET | {"wait": 20}, "found 20"),
        ("5/day", BUCKET | {"wait": "3 minutes"}, "longer than the lease of 120 s"),
        ("5/day", BUCKET | {"deduct_when": lambda _: True}, "beside deduct_when"),
        ("4 in flight", {"wait": None, "fair": lambda: "me"}, "found fair without wait"),
        ("4 in flight", {"fair": lambda: "me", "pace": 2}, "only a budget has a pace"),
        ("5 per session", {"wait": None, "idle": "1 minute"}, "shorter than the lease of 120 s"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_mistakes(limit: str, more: dict[str, Any], sentence: str, late: bool) -> None:
    """At the definition, or at the start if the lease has to be known."""
    app, limiter = Flask("example"), Limiter(lambda: "all", storage_uri="memory://")
    if late:
        limiter.init_app(app)

    def start() -> None:
        limiter.limit(limit, **{"wait": "20 seconds", **more})(lambda: "ok")
        assert not late, "it was accepted"
        limiter.init_app(app)

    with pytest.raises(ConfigurationError, match=sentence):
        start()


def test_members_in_a_file(make: Maker, tmp_path: Path) -> None:
    """A policy shares calls in flight as code does, and a mistake has its line."""
    file = tmp_path / "policy.toml"
    lines = '[[default]]\nlimit = "4 in flight"\nfair = "user"\nkey = "team"\n'
    app, limiter = make()
    for name in ("user", "team"):
        limiter.identity(name)(lambda: "someone")
    for more, sentence in (
        ('wait = "20 seconds"', ""),
        ("", "policy.toml:4: default[0].fair: found fair without wait"),
        ('wait = "20 seconds"\npace = 1.5', "policy.toml:7: default[0].pace: found pace"),
    ):
        file.write_text(f"version = 1\n{lines}{more}\n")
        with app.app_context():
            if not sentence:
                limiter.operators.check_policy_file(file)
                continue
            with pytest.raises(ConfigurationError) as error:
                limiter.operators.check_policy_file(file)
            assert sentence in str(error.value)


def test_each_class_waits(make: Maker, uri: str, night: Night) -> None:
    """A lower class behind the higher ones: of its place in line nothing is taken that others are
    kept."""
    app, limiter = make(storage_uri=uri, config=MANY)
    limiter.identity("class")(lambda: request.headers["X-Class"])
    keep: dict[str, Any] = {"keep": {"people": 4, "jobs": 2}, "priority": "class"}
    paced(app, limiter, wait="20 seconds", **keep)
    batch, people = ({"headers": {"X-Class": name}} for name in ("batch", "people"))
    began: list[str] = []

    def others(_: float) -> bool:
        night.instead = lambda _: True
        began.extend("people" for status in statuses(app, "/", 6, **people) if status == 200)
        return True

    assert statuses(app, "/", 4, **batch) == [200] * 4
    night.instead = others
    assert statuses(app, "/", **batch) == [200]
    assert began == ["people"] * 6
    assert len(night.lengths) == 2
    shown = app.test_cli_runner().invoke(args=["ratelimit", "show"])
    assert "20 s" in shown.output
    assert "only" not in shown.output


def test_a_mistake_in_a_file(make: Maker, tmp_path: Path) -> None:
    """The error names its line, also of one that only the lease shows."""
    file = tmp_path / "policy.toml"
    file.write_text(
        'version = 1\n[[default]]\nlimit = "30/minute"\nstrategy = "token-bucket"\n'
        'wait = "3 minutes"\n[[default]]\nlimit = "5/day"\nwait = "soon"\n'
    )
    config = {"RATELIMIT_POLICY_FILE": str(file)}
    with pytest.raises(ConfigurationError) as error:
        make(config=config)
    assert "policy.toml:8: default[1].wait: found 'soon'" in str(error.value)
    file.write_text(file.read_text().replace('wait = "soon"\n', ""))
    with pytest.raises(
        ConfigurationError, match=r"policy.toml:5: default\[0\].wait: .*the lease of 120"
    ):
        make(config=config)


def test_a_session_that_would_end_during_a_call(make: Maker, tmp_path: Path) -> None:
    """A call may be as long as its lease: a session that is idle for less would forget it."""
    file = tmp_path / "policy.toml"
    config = {"RATELIMIT_POLICY_FILE": str(file), "RATELIMIT_LEASE_SECONDS": 7_200}
    sentence = r"policy.toml:\d: default\[0\].*'{}'.* than the lease of 7200 s. Lengthen it"
    for idle, more in (("1 hour", ""), ("119 minutes", 'idle = "119 minutes"\n')):
        file.write_text(f'version = 1\n[[default]]\nlimit = "5 per session"\n{more}')
        with pytest.raises(ConfigurationError, match=sentence.format(idle)):
            make(config=config)
    file.write_text(file.read_text().replace("119", "120"))
    make(config=config)


class Slots:
    """An application with two slots, whose calls go on until they are let go."""

    def __init__(
        self, make: Maker, uri: str, usd: Callable[[], object] | None = None, **more: Any
    ) -> None:
        config = {"RATELIMIT_WAITING_MAX": 30}
        self.app, self.limiter = make(storage_uri=uri, config=config)
        self.running: list[str] = []
        self.over = threading.Semaphore(0)
        self.answers: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []
        words = {"name": "slots", "wait": "60 seconds", **more}
        budget: Any = lambda view: view  # noqa: E731
        if usd is not None:
            budget = self.limiter.limit("9 usd/day", strategy="fixed-window", name="usd", cost=usd)

        @self.app.get("/<name>")
        @self.limiter.limit("2 in flight", **words)
        @self.limiter.limit("100/hour", name="calls")
        @budget
        def view(name: str) -> str:
            self.running.append(name)
            self.over.acquire()
            self.running.remove(name)
            return "ok"

    def call(self, name: str, **environ: Any) -> None:
        def ask() -> None:
            client = self.app.test_client()
            self.answers[name] = client.get(f"/{name}", environ_overrides=environ)

        self.threads.append(threading.Thread(target=ask, daemon=True))
        self.threads[-1].start()

    def state(self, name: str) -> Any:
        with self.app.app_context():
            states = self.limiter.operators.states("someone")
        return next(each for each in states if each.row.name == name)

    @property
    def count(self) -> int:
        """The calls that run or wait."""
        state = self.state("slots")
        return int(state.used + state.in_line)

    def come(self, *names: str) -> None:
        """Calls, each of which runs or waits before the next one comes."""
        for name in names:
            count = self.count + 1
            self.call(name)
            eventually(lambda count=count: self.count == count)

    def fill(self, waiting: int) -> None:
        self.come(*map(str, range(2 + waiting)))

    def end_one(self, begun: list[str]) -> None:
        """A call ends, and the next one begins."""
        self.over.release()
        eventually(lambda: len(set(self.running) - set(begun)) == 1)
        begun += set(self.running) - set(begun)

    def end(self) -> set[int]:
        """All calls end. Return their statuses."""
        for _ in self.threads:
            self.over.release()
        for thread in self.threads:
            thread.join()
        return {each.status_code for each in self.answers.values()}


def test_calls_in_flight_wait_for_a_slot(make: Maker, uri: str) -> None:
    """The slot of a call that is over is the first one's in line; other limits are charged then.
    No request asks the storage meanwhile, but for the one whose turn it is."""
    slots = Slots(make, uri)
    slots.fill(waiting=4)
    assert slots.state("slots").in_line == 4
    assert slots.state("calls").used == 2
    eventually(lambda: len(slots.running) == 2)
    begun = list(slots.running)
    for _ in range(4):
        slots.end_one(begun)
    assert begun[2:] == ["2", "3", "4", "5"]
    assert slots.end() == {200}
    assert "RateLimit-Wait-Ms" in slots.answers["5"].headers
    assert "RateLimit-Wait-Ms" not in slots.answers["1"].headers
    assert (slots.state("slots").used, slots.state("calls").used) == (0, 6)


def test_slots_are_shared_among_members(make: Maker, uri: str) -> None:
    """Who has fewer running calls comes first, also after those who came before; the calls of one
    member begin in their order. What has waited is in the headers as always."""
    slots = Slots(make, uri, fair=lambda: (request.view_args or {})["name"][0])
    slots.come("a0", "a1", "a2", "a3", "b0", "b1", "c0")
    begun = list(slots.running)
    assert sorted(begun) == ["a0", "a1"]
    for _ in range(4):
        slots.end_one(begun)
    assert {begun[2], begun[3]} == {"b0", "c0"}
    assert set(begun[4:]) == {"a2", "b1"}
    assert slots.end() == {200}
    assert "RateLimit-Wait-Ms" in slots.answers["c0"].headers
    assert "slots-share" not in str(slots.answers["c0"].headers)
    assert (slots.state("slots").used, slots.state("calls").used) == (0, 7)


def test_slots_are_shared_by_what_calls_reserve(make: Maker, uri: str) -> None:
    """After one call of a dollar, its member waits until another has had four of a cent."""

    def name() -> str:
        return str((request.view_args or {})["name"])

    slots = Slots(make, uri, usd=lambda: 1 if name()[0] == "a" else 0.01, fair=lambda: name()[0])
    slots.come("x0", "x1", "a0", "a1", "b0", "b1", "b2", "b3")
    begun = list(slots.running)
    for _ in range(6):
        slots.end_one(begun)
    slots.end()
    assert set(begun[2:4]) == {"a0", "b0"}
    assert begun[4:] == ["b1", "b2", "b3", "a1"]


def test_more_holds_than_lie_in_a_string(make: Maker, uri: str) -> None:
    """Each is settled once: a call that starts holds nothing a second time."""
    slots = Slots(make, uri)
    slots.fill(waiting=18)
    assert slots.end() == {200}
    assert len(slots.answers) == 20
    assert (slots.state("slots").used, slots.state("slots").held) == (0, 0)


def test_no_slot_until_the_deadline(make: Maker, uri: str) -> None:
    """Then the ordinary refusal, and the place in line is free."""
    slots = Slots(make, uri, wait="1 second")
    slots.fill(waiting=1)
    eventually(lambda: "2" in slots.answers)
    refused = slots.answers["2"]
    assert (refused.status_code, refused.headers["retry-after-ms"]) == (429, "1000")
    eventually(lambda: slots.state("slots").used == 2)
    slots.end()
    assert slots.state("slots").used == 0


def test_a_client_that_leaves_the_line_for_a_slot(make: Maker, uri: str) -> None:
    """Those behind it move up."""
    slots = Slots(make, uri)
    server, client = socket.socketpair()
    slots.fill(waiting=0)
    slots.call("gone", **{"gunicorn.socket": server, "wsgi.multithread": True})
    eventually(lambda: slots.state("slots").in_line == 1)
    slots.call("next")
    eventually(lambda: slots.state("slots").in_line == 2)
    client.close()
    eventually(lambda: slots.state("slots").in_line == 1)
    slots.over.release()
    eventually(lambda: "next" in slots.running)
    slots.end()
    server.close()
    assert slots.answers["gone"].status_code == 429
    assert slots.state("slots").used == 0


def test_outages_while_calls_wait(make: Maker, own_server: Server) -> None:
    """The storage dies and returns empty, several times, while calls run and wait: each starts, and
    none gets an error, also if it looks for its slot just then."""
    slots = Slots(make, own_server.uri)
    slots.fill(waiting=8)
    for down in (True, False) * 3:
        if down:
            own_server.kill()
        else:
            own_server.relaunch()
        slots.over.release()
        eventually(lambda down=down: slots.limiter.operators.storage_is_down == down)
    assert slots.end() == {200}


def test_a_storage_that_fails_again_at_the_turn(
    make: Maker, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that waited through an outage looks for its slot when the storage has returned, which
    fails at once, and may have admitted it: it starts nevertheless."""
    slots = Slots(make, own_server.uri)
    slots.fill(waiting=2)
    engine = slots.limiter._components.engines.primary
    admit, failures = engine.admit, [0]

    def fail(*charges: Any, **how: Any) -> Any:
        decision, hold = admit(*charges, **how), how.get("hold")
        failures[0] += hold is not None and hold.waited_us is not None
        if 0 < failures[0] <= 3 and hold is not None and hold.waited_us is not None:
            raise StorageUnavailable("the reply is lost")
        return decision

    monkeypatch.setattr(engine, "admit", fail)
    slots.over.release()
    slots.over.release()
    eventually(lambda: len(slots.running) == 2 and failures[0] >= 2)
    assert slots.end() == {200}
    eventually(lambda: slots.count == 0)


def test_a_refused_look_keeps_its_ticket(
    make: Maker, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage cannot have admitted it. Under another id it waited behind its own ticket when
    the storage was back."""
    slots = Slots(make, own_server.uri)
    slots.fill(waiting=1)
    engines, ids = slots.limiter._components.engines, list[int]()
    assert engines.outage is not None
    admit_here = engines.outage.admit

    def refuse(*charges: Any, hold: Hold, **how: Any) -> Any:
        ids.append(hold.id)
        refusal = StorageUnavailable("refused")
        refusal.may_have_charged = False
        raise refusal

    def note(*charges: Any, hold: Hold, **how: Any) -> Any:
        ids.append(hold.id)
        return admit_here(*charges, hold=hold, **how)

    with monkeypatch.context() as patch:
        patch.setattr(engines.primary, "admit", refuse)
        patch.setattr(engines.outage, "admit", note)
        wake_ups.wake_all()
        eventually(lambda: len(ids) >= 2)
    assert ids[0] == ids[1]
    assert slots.end() == {200}


def test_lost_data_while_calls_wait(make: Maker, own_server: Server) -> None:
    """All slots are free then: those in line start within seconds."""
    slots = Slots(make, own_server.uri)
    slots.fill(waiting=2)
    with own_server.client() as client:
        client.flushall()
    eventually(lambda: len(slots.running) == 4)
    assert slots.end() == {200}


def test_a_storage_that_comes_back_and_fails_again() -> None:
    """The reply to a look is lost, and so is that without the storage, which asks it again: the
    request goes on, each time under another hold."""
    asked: list[int] = []

    def engine(*answers: Any) -> Any:
        left = list(answers)

        def admit(_charges: object, *, hold: Hold) -> Any:
            asked.append(hold.id)
            if isinstance(answer := left.pop(0), Exception):
                raise answer
            return answer

        return SimpleNamespace(admit=admit)

    storage, outage = engine(StorageUnavailable("lost"), "admitted"), engine(StorageUnavailable())
    held = Limit(4, 60_000_000, "concurrency", unit="calls")
    admission = SimpleNamespace(
        engines=SimpleNamespace(current=storage, outage=outage),
        settlements=SimpleNamespace(begin=lambda *_: None, end=lambda *_: None),
        _release=lambda *_: None,
        _new_hold=lambda: Hold(len(asked) + 1, 1),
    )
    admission._look_in_line = partial(Admission._look_in_line, admission)
    decision, by, hold = admission._look_in_line([Charge(held, "b")], Hold(1, 1))
    assert (decision, by) == ("admitted", storage)
    assert asked == [1, 2, 3]
    assert hold.id == 3
