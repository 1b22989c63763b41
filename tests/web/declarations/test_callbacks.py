"""The functions that an application registers: here, estimators."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ratelimit_ext import ConfigurationError, Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key


@pytest.mark.parametrize("unit", ["token", "calls", "dollars", ""])
def test_an_estimator_for_an_unknown_unit(unit: str) -> None:
    """It would never be called."""
    limiter = Limiter(asked_key)
    allowed = "'requests', 'tokens', 'input_tokens', 'output_tokens', 'usd'"
    with pytest.raises(ConfigurationError, match=f"unit '{unit}'; allowed: {allowed}"):
        limiter.estimator(unit)
    assert not limiter._callbacks.estimators


def test_a_misspelt_unit_has_a_suggestion() -> None:
    """As a misspelt keyword has."""
    with pytest.raises(ConfigurationError, match=r"Did you mean 'tokens'\?"):
        Limiter(asked_key).estimator("token")


def warnings_of(
    make: Maker, caplog: pytest.LogCaptureFixture, text: str, **words: Any
) -> list[str]:
    """What the application's log has after two calls of a view with this limit."""
    app, limiter = make()
    limiter.estimator("output_tokens")(lambda: 7)
    app.get("/")(limiter.limit(text, **words)(lambda: "ok"))
    assert statuses(app, times=2) == [200, 200]
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == app.logger.name and record.levelno == logging.WARNING
    ]


@pytest.mark.parametrize(
    ("text", "words", "unit"),
    [
        ("90000/minute", {"unit": "tokens"}, "tokens"),
        ("90000/minute", {"unit": "input_tokens", "name": "pace"}, "input_tokens"),
        ("5 usd/day", {}, "usd"),
        ("50 usd/hour or 20 x usual", {}, "usd"),
    ],
)
def test_a_limit_without_an_estimate_is_logged_once(
    make: Maker, caplog: pytest.LogCaptureFixture, text: str, words: dict[str, str], unit: str
) -> None:
    """A dollar a call is rarely intended."""
    (warning,) = warnings_of(make, caplog, text, **words)
    assert f"each call costs 1 {unit}" in warning
    assert f"@limiter.estimator('{unit}')" in warning


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("90000/minute", {"unit": "output_tokens"}),
        ("90000/minute", {"unit": "tokens", "cost": 400}),
        ("90000/minute", {"unit": "tokens", "cost": lambda: 1}),
        ("5 usd/day", {"cost": 0.01}),
        ("5 usd/day", {"cost": lambda: "0.01"}),
        ("4 in flight", {}),
        ("30/minute", {}),
        ("unless blocked", {}),
        ("as reported", {"unit": "tokens"}),
    ],
)
def test_an_estimated_or_counted_limit_is_not_logged(
    make: Maker, caplog: pytest.LogCaptureFixture, text: str, words: dict[str, Any]
) -> None:
    """Nothing is logged for it."""
    assert warnings_of(make, caplog, text, **words) == []


def test_a_budget_below_a_dollar_needs_no_cost(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """The estimate is the cost; without one, a call holds the whole budget until it is settled."""
    app, limiter = make()
    app.get("/")(limiter.limit("0.5 usd/day")(lambda: "ok"))
    limiter.estimator("usd")(lambda: "0.2")
    assert statuses(app, times=3) == [200, 200, 429]

    app, limiter = make()

    @app.get("/")
    @limiter.limit("0.5 usd/day", candidate="0.25 usd/day")
    def view() -> str:
        limiter.settle(usd=0)
        return "ok"

    assert statuses(app, times=3) == [200, 200, 200]
    assert "each call costs 0.5 usd until it is settled" in caplog.text


def test_a_plan_without_a_loader(make: Maker) -> None:
    """Is an error that names what to register."""
    app, limiter = make()
    with app.test_request_context(), pytest.raises(ConfigurationError, match="plan_loader"):
        assert limiter.current.plan
