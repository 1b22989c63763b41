"""Who asks for a limit by a name that none has is told so in the application's log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from ratelimit_ext import Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker

Asks = Callable[[Limiter], Any]


def warned(make: Maker, caplog: pytest.LogCaptureFixture, asks: Asks) -> list[str]:
    """What the log has when a view asks, twice."""
    app, limiter = make(application_limits=["1000/day"])

    @app.get("/")
    @limiter.limit("unless blocked", name="provider")
    @limiter.limit("as reported", name="quota", unit="tokens", cost=5)
    @limiter.limit("30/minute", name="pace")
    def view() -> str:
        asks(limiter)
        return "ok"

    @app.get("/other")
    @limiter.limit("unless blocked", name="other switch")
    @limiter.limit("as reported", name="other quota", unit="requests")
    def other() -> str:
        return "ok"

    assert statuses(app, times=2) == [200, 200]
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == app.logger.name and record.levelno == logging.WARNING
    ]


def admits(limiter: Limiter) -> None:
    assert limiter.admit_again("nope", "provder", "pace") is None


def waits(limiter: Limiter) -> None:
    assert limiter.wait_again("provder") == 0


def blocks(limiter: Limiter) -> None:
    limiter.reservation.block("pace", for_s=1)


def reports(limiter: Limiter) -> None:
    limiter.reservation.report("token", amount=5, used=1, period_s=60)


NAMES = "'other quota', 'other switch', 'pace', 'provider', 'quota'"


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        (
            admits,
            {
                f"admit_again('nope') does nothing: no limit is called 'nope'; there are: {NAMES}.",
                (
                    "admit_again('provder') does nothing: no limit is called 'provder'; there are: "
                    f"{NAMES}. Did you mean 'provider'?"
                ),
            },
        ),
        (
            waits,
            {
                (
                    "wait_again('provder') does nothing: no limit is called 'provder'; there are: "
                    f"{NAMES}. Did you mean 'provider'?"
                ),
            },
        ),
        (
            blocks,
            {
                (
                    "reservation.block('pace') does nothing: no limit 'unless blocked' is called "
                    "'pace'; there are: 'other switch', 'provider'."
                )
            },
        ),
        (
            reports,
            {
                (
                    "reservation.report('token') does nothing: no limit 'as reported' is in "
                    "'token'; there are: 'requests', 'tokens'. Did you mean 'tokens'?"
                )
            },
        ),
    ],
)
def test_a_name_that_no_limit_has_is_told_once(
    make: Maker, caplog: pytest.LogCaptureFixture, asks: Asks, told: set[str]
) -> None:
    """It decides nothing, as a policy may well have no such limit; but it may be a slip."""
    messages = warned(make, caplog, asks)
    assert len(messages) == len(told)
    assert set(messages) == told


def elsewhere(limiter: Limiter) -> None:
    assert limiter.admit_again("other switch", "provider") is None
    assert limiter.wait_again("other quota") == 0
    limiter.reservation.block("other switch", for_s=1)
    limiter.reservation.report("requests", amount=5, used=1, period_s=60)
    limiter.reservation.report("tokens", amount=500, used=1, period_s=60)


def test_a_name_of_another_view_is_nothing_here_and_no_slip(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """What several views have in common may ask for the limits of all."""
    assert warned(make, caplog, elsewhere) == []


def test_where_no_limit_has_a_name_that_it_could_be_none_is_told(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may ask for a switch and report a quota, also in an application without either."""
    app, limiter = make(application_limits=["1000/day"])

    @app.get("/")
    @limiter.limit("30/minute")
    def view() -> str:
        assert limiter.admit_again("provider") is None
        limiter.reservation.block("provider", for_s=1)
        limiter.reservation.report("requests", amount=5, used=1, period_s=60)
        return "ok"

    assert statuses(app, times=2) == [200, 200]
    assert [record.getMessage() for record in caplog.records] == []


def test_an_endpoint_that_does_not_exist_cannot_be_looked_at(make: Maker) -> None:
    """The error names those that do."""
    app, limiter = make()
    app.add_url_rule("/", "answers", lambda: "ok")
    with (
        app.test_request_context("/"),
        pytest.raises(ValueError, match=r"endpoint 'answer'; .*: 'answers'. Did you mean 'ans"),
    ):
        limiter.peek("answer")
