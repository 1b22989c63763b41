"""What code states of a limit and cannot be: told where it is stated, or else in the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Blueprint, Flask, request

from ratelimit_ext import (
    ApplicationLimit,
    ConfigurationError,
    Limit,
    Limiter,
    MetaLimit,
    RouteLimit,
)
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key

#: Statements with what the error has to say.
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"limit_value": "$0.000001/day"},
        r"found '\$0.000001/day' .* Dollars are written \"5 usd/day\"",
    ),
    ({"limit_value": "1 tokens/minute"}, "found '1 tokens/minute' .* with unit = \"tokens\""),
    ({"limit_value": "1 in-flight"}, "found '1 in-flight' .* written \"4 in flight\""),
    (
        {"limit_value": "1/minuet", "unit": "tokens"},
        "found '1/minuet' .*allowed: amount per period",
    ),
    ({"limit_value": "1/minuet", "name": "pace"}, "found '1/minuet' .*allowed: amount per period"),
    ({"limit_value": 5}, "found 5 .*allowed: amount per period"),
    ({"limit_value": "0.000001 usd/day", "unit": "tokens"}, "is in usd, and its unit 'tokens'"),
    (
        {"limit_value": "3/minute", "unit": "usd"},
        "unit: found 'usd' beside .* Write '3 usd/minute'",
    ),
    ({"limit_value": "3/minute", "cost": -1}, "cost: found -1 .*allowed: a whole number from 0 up"),
    ({"limit_value": "3/minute", "cost": "1"}, "cost: found '1' .*a whole number from 0 up"),
    ({"limit_value": "3/minute", "cost": True}, "cost: found true; allowed: a whole number"),
    ({"limit_value": "3/minute", "cost": [1]}, "cost: found '.1.'.*a whole number from 0 up"),
    ({"limit_value": "3/minute", "cost": 4}, "cost: found 4, but '3 per 1 minute' holds at most 3"),
    ({"limit_value": "5 usd/day", "cost": "1 cent"}, "cost: found '1 cent' .*an amount of dollars"),
    ({"limit_value": "5 usd/day", "cost": 6}, "cost: found 6, but .* holds at most 5 usd"),
    (
        {"limit_value": "3/day", "anchor": "day", "timezone": "Berlin"},
        "timezone: found 'Berlin' .* Did you mean 'Europe/Berlin'",
    ),
    ({"limit_value": "3/day", "timezone": "Europe/Berlin"}, "timezone: found .* without an anchor"),
    ({"limit_value": "3/hour", "anchor": "day"}, "anchor: found 'day' .* needs a limit per day"),
    (
        {"limit_value": "4 in flight", "strategy": "token-bucket"},
        "strategy: found 'token-bucket' beside '4 in flight', which says 'concurrency' itself",
    ),
    (
        {"limit_value": "4 in flight", "cost": 2},
        "cost: found a cost, but in '4 in flight' each call",
    ),
    ({"limit_value": "3/minute;5/hour", "name": "x"}, "name: found 'x' .*, which is 2 limits"),
    ({"limit_value": "3/minute", "meta_limits": ["2/sec"]}, "found '2/sec' .*allowed"),
]


@pytest.mark.parametrize(("statement", "told"), MISTAKES, ids=[repr(m[0]) for m in MISTAKES])
def test_a_mistake_is_told_where_it_is_stated(statement: dict[str, Any], told: str) -> None:
    """At the decorator, before any request: what was found, what is allowed, what to do."""
    limiter = Limiter(asked_key)
    with pytest.raises(ConfigurationError, match=told):
        limiter.limit(**statement)
    with pytest.raises(ConfigurationError, match=told):
        limiter.shared_limit(scope="all", **statement)
    value = statement["limit_value"]
    rest = {key: said for key, said in statement.items() if key != "limit_value"}
    with pytest.raises(ConfigurationError, match=told):
        RouteLimit(value, limiter=limiter, **rest)(lambda: "ok")


@pytest.mark.parametrize(
    "statement",
    [
        {"limit_value": "5 usd/day;100 per hour"},
        {"limit_value": "3/minute;5/hour"},
        {"limit_value": "5 usd/day", "cost": 0.01},
        {"limit_value": "5 usd/day", "unit": "usd", "cost": "0.01"},
        {"limit_value": "1 usd/hour or 20 x usual", "cost": 0.5},
        {"limit_value": "3/minute", "cost": 2.0},
        {"limit_value": "3/minute", "cost": 4, "mode": "shadow"},
        {"limit_value": "3/day", "anchor": "day", "timezone": "Europe/Berlin"},
        {"limit_value": "3/day", "strategy": "moving-window"},
        {"limit_value": "4 in flight", "strategy": "concurrency", "unit": "calls"},
        {"limit_value": "as reported", "unit": "tokens", "cost": 200},
        {"limit_value": ""},
    ],
    ids=repr,
)
def test_what_is_no_mistake(statement: dict[str, Any]) -> None:
    """It can be carried out."""
    Limiter(asked_key).limit(**statement)


@pytest.mark.parametrize(
    "options",
    [
        {"default_limits": ["1/minuet"]},
        {"application_limits": ["1/minuet"]},
        {"meta_limits": ["1/minuet"]},
        {"in_memory_fallback": ["1/minuet"]},
        {"default_limits": [Limit("1/minuet")]},
        {"application_limits": [ApplicationLimit("1/minuet")]},
        {"meta_limits": [MetaLimit("1/minuet")]},
        {"config": {"RATELIMIT_DEFAULT": "1/minuet"}},
        {"config": {"RATELIMIT_APPLICATION": "1/minuet"}},
        {"config": {"RATELIMIT_META": "1/minuet"}},
        {"config": {"RATELIMIT_IN_MEMORY_FALLBACK": "1/minuet"}},
    ],
    ids=repr,
)
def test_what_applies_everywhere_is_read_at_the_start(make: Maker, options: dict[str, Any]) -> None:
    """A mistake in it was a 500 at every request."""
    with pytest.raises(ConfigurationError, match=r"found '1/minuet' .*allowed: amount per period"):
        make(**options)


@pytest.mark.parametrize("where", ["RATELIMIT_DEFAULT", "RATELIMIT_APPLICATION"])
def test_the_configuration_knows_our_words(make: Maker, where: str) -> None:
    """Money and calls at once are no words of Flask-Limiter's."""
    app, _ = make(config={where: "5 usd/day;4 in flight"})
    app.get("/")(lambda: "ok")
    policy = app.test_client().get("/").headers["RateLimit-Policy"]
    assert 'qu="micro-usd"' in policy
    assert 'qu="concurrent-requests"' in policy


def told_to_the_application(app: Flask, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the application's own logger was told."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == app.logger.name and record.levelno == logging.ERROR
    ]


def test_a_string_that_flask_limiter_skips_is_told_to_the_application_once(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """A view and a blueprint go on with the other limits, as there; its own logger is silent."""
    app, limiter = make(default_limits=["2/minute"])
    app.get("/")(limiter.limit("1/minuet")(lambda: "ok"))
    chat = Blueprint("chat", __name__)
    chat.get("/chat")(lambda: "ok")
    limiter.limit("2/sec")(chat)
    app.register_blueprint(chat)
    assert statuses(app, "/", 3) == [200, 200, 429]
    assert statuses(app, "/chat", 3) == [200, 200, 429]
    first, second = told_to_the_application(app, caplog)
    assert "found '1/minuet' (a string); allowed: amount per period" in first
    assert "found '2/sec' (a string); allowed: amount per period" in second


def test_what_a_function_answers_is_told_once_for_each_string(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be another at the next request."""
    app, limiter = make()
    app.get("/")(limiter.limit(lambda: request.args["limit"])(lambda: "ok"))
    for text in ("$1/day", "1/minuet", "$1/day", "9/minute"):
        assert statuses(app, f"/?limit={text}") == [200]
    dollars, typo = told_to_the_application(app, caplog)
    assert "found '$1/day' (a string); allowed" in dollars
    assert "found '1/minuet' (a string); allowed" in typo
