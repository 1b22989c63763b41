"""Listeners learn of every decision and settlement, and can do no harm."""

import logging
from typing import Any

import pytest
from flask import request

from ratelimit_ext import DecisionEvent, Event, Limiter, SettlementEvent
from ratelimit_ext.core.events import Events
from tests.clocks import Clock
from tests.web.calls import serve
from tests.web.conftest import Maker

A_MINUTE_MS = 60_000


def heard(limiter: Limiter) -> list[Event]:
    """The events of the extension from now on."""
    events: list[Event] = []
    limiter.listen(events.append)
    return events


def test_an_admission_and_a_denial_say_what_was_decided(make: Maker, clock: Clock) -> None:
    """The endpoint, the reason, the wait, the denying limit and whom it counts."""
    app, limiter = make()
    serve(app, limiter.limit("1/minute", name="calls"))
    events, client = heard(limiter), app.test_client()
    assert [client.get("/", headers={"X-Key": "ada"}).status_code for _ in range(2)] == [200, 429]
    first, second = events
    assert isinstance(first, DecisionEvent)
    assert isinstance(second, DecisionEvent)
    assert (first.endpoint, first.admitted, first.reason, first.wait_ms) == ("view", True, None, 0)
    assert (second.admitted, second.reason, second.wait_ms) == (False, "limit", A_MINUTE_MS)
    assert (second.degraded, second.cached, second.again) == ("", False, False)
    (denial,) = second.denials
    assert denial.charge.limit.name == "calls"
    assert second.identities[denial.charge.key] == "ada"


def test_a_shadow_that_would_have_denied_is_in_the_event(make: Maker, clock: Clock) -> None:
    """The request is admitted; who reads events sees what enforcing would change."""
    app, limiter = make()
    serve(app, limiter.limit("1/minute", name="stricter", mode="shadow"))
    events, client = heard(limiter), app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 200]
    names = [
        [verdict.charge.limit.name for verdict in event.shadow_denials]
        for event in events
        if isinstance(event, DecisionEvent)
    ]
    assert names == [[], ["stricter"]]


@pytest.mark.parametrize(
    ("text", "cost", "reason", "wait_ms"),
    [("5/minute", 6, "too-large", None), ("five", 1, "unavailable", 30_000)],
)
def test_every_refusal_has_its_reason(
    make: Maker, clock: Clock, text: str, cost: int, reason: str, wait_ms: int | None
) -> None:
    """Also a request that can never pass, and a function that returns an invalid limit."""
    app, limiter = make(strict=True)
    serve(app, limiter.limit(lambda: text, cost=lambda: cost))
    events = heard(limiter)
    app.test_client().get("/")
    assert [(e.reason, e.wait_ms) for e in events if isinstance(e, DecisionEvent)] == [
        (reason, wait_ms)
    ]


def test_a_denial_from_memory_is_an_event_of_its_own(make: Maker, redis_uri: str) -> None:
    """The worker repeats a denial without the storage, and says so."""
    app, limiter = make(storage_uri=redis_uri)
    serve(app, limiter.limit("1/hour"))
    events, client = heard(limiter), app.test_client()
    for _ in range(5):
        client.get("/")
    decisions = [event for event in events if isinstance(event, DecisionEvent)]
    assert [(event.admitted, event.cached) for event in decisions] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    assert {event.reason for event in decisions[1:]} == {"limit"}
    assert all(event.wait_ms for event in decisions[1:])


def test_a_settlement_says_what_it_cost(make: Maker, clock: Clock) -> None:
    """The estimate, the real cost, and that the storage has it."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("100/hour", unit="tokens", cost=40)
    def view() -> str:
        limiter.settle(tokens=25)
        return "ok"

    events = heard(limiter)
    app.test_client().get("/")
    (settled,) = [event for event in events if isinstance(event, SettlementEvent)]
    (change,) = settled.changes
    assert (settled.outcome, change.charge.cost, change.verb) == ("sent", 40, "settle")
    assert change.numbers[1] == 25


def test_a_listener_that_fails_harms_nothing(
    make: Maker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is answered, the other listeners are called, and the log has it once."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute")
    def view() -> str:
        return request.path

    @limiter.listen
    def fail(event: Event) -> None:
        raise RuntimeError("defective listener")

    events, client = heard(limiter), app.test_client()
    with caplog.at_level(logging.ERROR, "ratelimit_ext"):
        assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert len(events) == 3
    assert [record.exc_text or "" for record in caplog.records if "A listener" in record.message]
    assert sum("A listener failed" in record.message for record in caplog.records) == 1


def test_without_listeners_no_event_is_made(
    make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost a request one look at an empty tuple."""
    app, limiter = make()
    serve(app, limiter.limit("1/minute"))

    def fail(*_: Any) -> None:
        raise AssertionError("an event was made")

    monkeypatch.setattr(Events, "emit", fail)
    assert [app.test_client().get("/").status_code for _ in range(2)] == [200, 429]
