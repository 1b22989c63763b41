"""An invalid limit in code is an error at the decorator. If a function returns it, the defaults
apply, or with ``strict`` it denies."""

import logging
from collections.abc import Callable
from typing import Any

import flask_limiter
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
from tests.web.conftest import Maker, asked_key, root

#: Limits with their errors.
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
    ({"limit_value": None}, "found None.*allowed: amount per period"),
    ({"limit_value": "5/m"}, "found '5/m' .* Did you mean '5/minute'"),
    ({"limit_value": "30/minuet"}, "found '30/minuet' .* Did you mean '30/minute'"),
    ({"limit_value": "5/2h;3/dya"}, "found .* Did you mean '5/2h;3/day'"),
    ({"limit_value": "0/hour or 9 x usual"}, "amount is 0; a whole number from 1 to"),
    ({"limit_value": "nonsense"}, "found 'nonsense' .*\"as reported\"\\.$"),
    (
        {"limit_value": "0.000001 usd/day", "unit": "tokens"},
        "unit: found 'tokens' beside .* states 'usd' itself",
    ),
    (
        {"limit_value": "3/minute", "unit": "usd"},
        "unit: found 'usd' beside .* Write '3 usd/minute'",
    ),
    ({"limit_value": "3/minute", "cost": -1}, "cost: found -1 .*allowed: a whole number from 0 to"),
    ({"limit_value": "3/minute", "cost": "1"}, "cost: found '1' .*a whole number from 0 up"),
    ({"limit_value": "3/minute", "cost": True}, "cost: found true; allowed: a whole number"),
    ({"limit_value": "3/minute", "cost": [1]}, "cost: found a list; allowed: a whole number"),
    ({"limit_value": "3/minute", "cost": 4}, "cost: found 4, but '3/minute' holds at most 3"),
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
        "strategy: found 'token-bucket' beside '4 in flight', which states 'concurrency' itself",
    ),
    (
        {"limit_value": "4 in flight", "cost": 2},
        "cost: found a cost, but '4 in flight' counts each call",
    ),
    ({"limit_value": "3/minute;5/hour", "name": "x"}, "name: found 'x' .*, which is 2 limits"),
    ({"limit_value": "3/minute", "meta_limits": ["2/sce"]}, "found '2/sce' .*allowed"),
]


@pytest.mark.parametrize(("statement", "message"), MISTAKES, ids=[repr(m[0]) for m in MISTAKES])
def test_a_mistake_is_an_error_at_the_decorator(statement: dict[str, Any], message: str) -> None:
    """What was found, what is allowed, what to do."""
    limiter = Limiter(asked_key)
    with pytest.raises(ConfigurationError, match=message):
        limiter.limit(**statement)
    with pytest.raises(ConfigurationError, match=message):
        limiter.shared_limit(scope="all", **statement)
    value = statement["limit_value"]
    rest = {key: given for key, given in statement.items() if key != "limit_value"}
    with pytest.raises(ConfigurationError, match=message):
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
        {"limit_value": "0/minute"},
        {"limit_value": "0/minute", "strategy": "token-bucket", "burst": 3},
        {"limit_value": "0.5 usd/day"},
        {"limit_value": "3/day", "anchor": "day", "timezone": "Europe/Berlin"},
        {"limit_value": "3/day", "strategy": "moving-window"},
        {"limit_value": "4 in flight", "strategy": "concurrency", "unit": "calls"},
        {"limit_value": "as reported", "unit": "tokens", "cost": 200},
    ],
    ids=repr,
)
def test_a_valid_limit_is_accepted(statement: dict[str, Any]) -> None:
    """Each of these combinations."""
    Limiter(asked_key).limit(**statement)


def test_a_function_may_return_no_limit(make: Maker) -> None:
    """Only a string that is empty is a mistake."""
    app, limiter = make()
    app.get("/")(limiter.limit(lambda: "")(asked_key))
    assert statuses(app, times=2) == [200, 200]


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
def test_limits_without_a_decorator_are_checked_at_the_start(
    make: Maker, options: dict[str, Any]
) -> None:
    """Not at the first request."""
    with pytest.raises(ConfigurationError, match=r"found '1/minuet' .*allowed: amount per period"):
        make(**options)


@pytest.mark.parametrize("where", ["RATELIMIT_DEFAULT", "RATELIMIT_APPLICATION"])
def test_the_configuration_takes_dollars_and_calls_in_flight(make: Maker, where: str) -> None:
    """Which Flask-Limiter does not know."""
    app, _ = make(config={where: "5 usd/day;4 in flight"})
    app.get("/")(lambda: "ok")
    policy = app.test_client().get("/").headers["RateLimit-Policy"]
    assert 'qu="micro-usd"' in policy
    assert 'qu="concurrent-requests"' in policy


def logged_errors(app: Flask, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors in the application's log."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == app.logger.name and record.levelno == logging.ERROR
    ]


@pytest.mark.parametrize("kind", [RouteLimit, flask_limiter.RouteLimit])
@pytest.mark.parametrize(
    "attach",
    [
        lambda limit: limit(lambda: "ok"),
        lambda limit: limit(Blueprint("chat", __name__)),
        lambda limit: limit.__enter__(),
    ],
    ids=["view", "blueprint", "block"],
)
def test_an_invalid_limit_cannot_be_attached(
    make: Maker, kind: type[flask_limiter.RouteLimit], attach: Callable[[Any], Any]
) -> None:
    """To a view, blueprint or block, also of the class of Flask-Limiter."""
    app, limiter = make()
    limit = kind("2/secnod", limiter=limiter)
    with app.test_request_context(), pytest.raises(ConfigurationError, match="mean '2/second'"):
        attach(limit)


BAD = ["5/m", "$1/day", "5 usd/day;", 5, ["5/minute"]]
BAD_IDS = [repr(text) for text in BAD]


@pytest.mark.parametrize("text", BAD, ids=BAD_IDS)
@pytest.mark.parametrize(
    "where",
    ["view", "blueprint", "block", "default_limits", "application_limits", "meta_limits", "metas"],
)
def test_a_strict_limit_denies_if_its_function_returns_an_invalid_one(
    make: Maker, caplog: pytest.LogCaptureFixture, where: str, text: Any
) -> None:
    """With 503, logged once; no other limit is charged. A valid string is a limit again."""
    answers = [text]
    options = {where: [lambda: answers[0]]} if where.endswith("_limits") else {}
    app, limiter = make(strict=True, **options)
    other = limiter.limit("9/minute", name="other", override_defaults=False)
    chat = Blueprint("chat", __name__)
    limit = limiter.limit(lambda: answers[0])
    if where == "metas":
        limit = limiter.limit("100/minute", meta_limits=[lambda: answers[0]])

    @other
    def view() -> str:
        if where == "block":
            with limit:
                pass
        return "ok"

    chat.get("/")(limit(view) if where in ("view", "metas") else view)
    if where == "blueprint":
        limit = limiter.limit(lambda: answers[0])
        limit(chat)
        app.get("/")(root)
    app.register_blueprint(chat, url_prefix="/chat")
    client = app.test_client()
    for _ in range(2):
        refused = client.get("/chat/")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        assert refused.json["code"] == "limit_unavailable"
    [logged] = logged_errors(app, caplog)
    assert "answered with 503" in logged
    answers[0] = "9/minute"
    answered = client.get("/chat/")
    assert answered.status_code == 200
    if where != "blueprint":
        assert '"other";r=8' in answered.headers["RateLimit"]


@pytest.mark.parametrize("text", BAD, ids=BAD_IDS)
@pytest.mark.parametrize("where", ["view", "blueprint", "block", "meta"])
def test_the_defaults_apply_if_a_function_returns_an_invalid_limit(
    make: Maker, caplog: pytest.LogCaptureFixture, where: str, text: Any
) -> None:
    """As in Flask-Limiter, with an error in the log. A valid string overrides them again."""
    answers = [text]
    app, limiter = make(default_limits=["2/minute"])
    chat = Blueprint("chat", __name__)
    limit = limiter.limit(lambda: answers[0])
    if where == "meta":
        limit = limiter.limit("9/minute", meta_limits=[lambda: answers[0]])

    def view() -> str:
        if where == "block":
            with limit:
                pass
        return "ok"

    chat.get("/")(limit(view) if where in ("view", "meta") else view)
    if where == "blueprint":
        limit(chat)
    app.register_blueprint(chat)
    assert statuses(app, times=3) == [200, 200, 429]
    logged = logged_errors(app, caplog)
    assert len(logged) == (2 if where == "block" else 1)  # a block and its view are two
    assert "its defaults apply instead: found " in logged[0]
    answers[0] = "9/minute"
    if where != "block":
        assert statuses(app, times=3) == [200, 200, 200]


@pytest.mark.parametrize("where", ["default_limits", "application_limits", "meta_limits"])
@pytest.mark.parametrize(("swallow", "status"), [(False, 503), (True, 200)])
def test_an_invalid_limit_that_nothing_stands_in_for_denies(
    make: Maker, where: str, swallow: bool, status: int
) -> None:
    """A default or a limit of the application, which in Flask-Limiter is an error of the request;
    ``swallow_errors`` leaves it out there, too."""
    app, _ = make(swallow_errors=swallow, **{where: [lambda: "5/m"]})
    app.get("/")(root)
    assert statuses(app) == [status]


@pytest.mark.parametrize(
    "options",
    [{"mode": "shadow"}, {"methods": ["POST"]}, {"exempt_when": lambda: True}],
    ids=["shadow", "other method", "exempt"],
)
def test_an_invalid_limit_that_could_not_deny_does_not(
    make: Maker, options: dict[str, Any]
) -> None:
    """A shadow, a limit of another method, and one that the request is exempt from."""
    app, limiter = make(strict=True, default_limits=["2/minute"])
    app.get("/")(limiter.limit(lambda: "5/m", **options)(root))
    assert statuses(app, times=3) == [200, 200, 429]


def test_swallowed_errors_do_not_lift_a_strict_limit(make: Maker) -> None:
    """`swallow_errors` is for the storage; an invalid limit denies."""
    app, limiter = make(strict=True, swallow_errors=True)
    app.get("/")(limiter.limit(lambda: "5/m")(root))
    assert statuses(app, times=2) == [503, 503]


def test_each_invalid_string_is_logged_once(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """With what was found."""
    app, limiter = make(strict=True)
    app.get("/")(limiter.limit(lambda: request.args["limit"])(root))
    for text, status in (("$1/day", 503), ("1/minuet", 503), ("$1/day", 503), ("9/minute", 200)):
        assert statuses(app, f"/?limit={text}") == [status]
    dollars, typo = logged_errors(app, caplog)
    assert "found '$1/day' (a string); allowed" in dollars
    assert "Did you mean '1/minute'?" in typo
