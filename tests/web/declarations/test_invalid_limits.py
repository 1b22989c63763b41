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


def by_request(request: object) -> str:
    """A key function of slowapi."""
    return str(request)


KEEP: dict[str, Any] = {"keep": {"interactive": 4}, "priority": lambda: "interactive"}
FAIR: dict[str, Any] = {"fair": lambda: "ada", "key_func": asked_key, "strategy": "fixed-window"}
#: Limits, their keywords, and what the error says.
MISTAKES: list[tuple[Any, dict[str, Any], str]] = [
    ("$0.000001/day", {}, r"found '\$0.000001/day' .* Dollars are written \"5 usd/day\""),
    ("1 tokens/minute", {}, "found '1 tokens/minute' .* with unit = \"tokens\""),
    ("1 in-flight", {}, "found '1 in-flight' .* written \"4 in flight\""),
    ("1/minuet", {"unit": "tokens"}, "found '1/minuet' .*allowed: amount per period"),
    ("1/minuet", {"name": "pace"}, "found '1/minuet' .*allowed: amount per period"),
    (5, {}, r"found 5 \(a whole number\).*allowed: amount per period"),
    (None, {}, "found None.*allowed: amount per period"),
    ("5/m", {}, "found '5/m' .* Did you mean '5/minute'"),
    ("30/minuet", {}, "found '30/minuet' .* Did you mean '30/minute'"),
    ("5/2h;3/dya", {}, "found .* Did you mean '5/2h;3/day'"),
    ("0/hour or 9 x usual", {}, "amount is 0; a whole number from 1 to"),
    ("nonsense", {}, "found 'nonsense' .*\"as reported\"\\.$"),
    ("3/minute;5/hour", {"name": "x"}, "name: found 'x' .*, which is 2 limits"),
    ("5/minute", {"name": 'Plan "Grün"\r\nX: y'}, "name: found"),
    # What is counted, and how.
    ("0.000001 usd/day", {"unit": "tokens"}, "unit: found 'tokens' beside .* states 'usd' itself"),
    ("3/minute", {"unit": "usd"}, "unit: found 'usd' beside .* Write '3 usd/minute'"),
    ("5/minute", {"unit": "token"}, r"unit: found 'token' .* Did you mean 'tokens'\?"),
    ("5/minute", {"unit": "bananas"}, "unit: found 'bananas' .* allowed"),
    ("3/minute", {"cost": -1}, "cost: found -1 .*allowed: a whole number from 0 to"),
    ("3/minute", {"cost": "1"}, "cost: found '1' .*a whole number from 0 up"),
    ("3/minute", {"cost": True}, "cost: found true; allowed: a whole number"),
    ("3/minute", {"cost": [1]}, "cost: found a list; allowed: a whole number"),
    ("3/minute", {"cost": 4}, "cost: found 4, but '3/minute' holds at most 3"),
    ("5/minute", {"cost": by_request}, r"cost: found the function .* called with no argument"),
    ("5 usd/day", {"cost": "1 cent"}, "cost: found '1 cent' .*an amount of dollars"),
    ("5 usd/day", {"cost": 6}, "cost: found 6, but .* holds at most 5 usd"),
    ("4 in flight", {"cost": 2}, "cost: found a cost, but '4 in flight' counts each call"),
    ("5/minute", {"strategy": "token_bucket"}, "found 'token_bucket' .* mean 'token-bucket'"),
    ("5/minute", {"strategy": "leaky"}, "strategy: found 'leaky' .* allowed: .*token-bucket"),
    ("5/minute", {"strategy": "concurrency"}, "Write '4 in flight'"),
    (
        *("4 in flight", {"strategy": "token-bucket"}),
        "strategy: found 'token-bucket' beside '4 in flight', which states 'concurrency' itself",
    ),
    ("5/minute", {"strategy": "fixed-window", "burst": 2}, "only 'token-bucket' has a burst"),
    (
        *("3/day", {"anchor": "day", "timezone": "Berlin"}),
        "timezone: found 'Berlin' .* Did you mean 'Europe/Berlin'",
    ),
    ("3/day", {"timezone": "Europe/Berlin"}, "timezone: found .* without an anchor"),
    ("3/hour", {"anchor": "day"}, "anchor: found 'day' .* needs a limit per day"),
    (
        *("5/minute", {"anchor": "day", "strategy": "token-bucket"}),
        "only 'fixed-window' has an anchor",
    ),
    ("5/minute", {"mode": "shaddow"}, r"mode: found 'shaddow' .* Did you mean 'shadow'\?"),
    ("5/minute", {"mode": "maybe"}, 'mode: found .maybe. .* allowed: "enforce", "shadow"'),
    ("1/minute", {"on_failure": "closes"}, '"open", "closed", "local"'),
    ("1/minute", {"on_failure": ""}, '"open", "closed", "local"'),
    ("3/minute", {"meta_limits": ["2/sce"]}, "found '2/sce' .*allowed"),
    ("5/hour", {"candidate": "60/minute"}, "found '60/minute' .*; allowed: '5/hour' with another"),
    ("5/hour", {"candidate": "lots"}, "candidate: found 'lots' .*; allowed: '5/hour' with another"),
    (
        *("5/hour", {"candidate": "2/hour", "mode": "shadow"}),
        r"candidate: found '2/hour' \(a string\) beside a limit in shadow",
    ),
    # Whom it concerns, and when.
    ("5/minute", {"exempt_when": True}, r"exempt_when: found true; allowed: a function\."),
    ("5/minute", {"deduct_when": lambda: True}, r"deduct_when: .* called with one argument"),
    ("5/minute", {"reserve": True}, "reserve: found true without deduct_when"),
    ("5/minute", {"methods": ["HEAD"]}, 'found "HEAD" alone; HEAD counts as GET. Write "GET".'),
    ("5/minute", {"methods": ["GET", "PSOT"]}, r"methods: found 'PSOT', .* you mean 'POST'\?"),
    ("5/minute", {"methods": []}, "methods: found an empty list; allowed: a list of methods"),
    ("5/minute", {"error_message": 5}, r"error_message: found 5 \(a whole number\); allowed: a t"),
    ("5/minute", {"per_method": "yes"}, r"per_method: found 'yes' \(a string\); .*: True or Fal"),
    ("5/minute", {"override_defaults": "no"}, "override_defaults: found 'no' .* True or False"),
]
#: What a limit keeps for classes of traffic, and shares among members.
OF_SHARES: list[tuple[Any, dict[str, Any], str]] = [
    ("10/day", KEEP | {"keep": {"a": 6, "b": 4}}, "keep reserves 10 of 10.*Reserve less"),
    ("10/day", KEEP | {"keep": {}}, "found priority without keep"),
    ("10/day", KEEP | {"priority": None}, "found keep without priority"),
    ("10/day", KEEP | {"keep": {"a": "4"}}, r"found '4' \(a string\) kept for 'a' \(a string\); a"),
    ("10/day", KEEP | {"keep": {"a": -1}}, r"found -1 \(a whole number\) kept for"),
    ("10/day", KEEP | {"keep": 40}, 'allowed: units by class, as {"interactive": 40}'),
    ("10/day", KEEP | {"priority": 5}, r"found 5 \(a whole number\); allowed: the name of an id"),
    ("unless blocked", KEEP, "a guard takes no keep"),
    ("9/day", FAIR | {"fair": asked_key}, "found the key function of the limit"),
    ("9/day", FAIR | {"strategy": "token-bucket"}, "fair needs windows that begin and end"),
    ("9/day", FAIR | {"pace": 0.5}, r"pace: found 0.5 \(a number with a fraction\); .* from 1"),
    (
        *("9/day", FAIR | {"hours": "18-8", "anchor": "day"}),
        r"hours: found '18-8' \(a string\); allowed: two whole",
    ),
    ("9/day", FAIR | {"hours": "8-18"}, 'Add anchor = "day", "week" or "month"'),
    ("9/day", FAIR | {"spread": "20%"}, "spread: found '20%' .*; allowed: true, or whole percents"),
    ("9/day", FAIR | {"fair": None, "pace": 2}, "without fair"),
    ("9/day", FAIR | {"deduct_when": lambda _: True}, "found beside deduct_when"),
]
#: Those that the class of Flask-Limiter finds by itself, with another error, or not at all.
OF_DECORATORS: list[tuple[Any, dict[str, Any], str]] = [
    ("5/minute", {"brust": 3}, r"limit '5/minute': unknown keyword 'brust'; .* mean 'burst'\?"),
    ("5/minute", {"key": asked_key}, r"keyword 'key'; allowed: 'limit_value', .*key_func"),
    ("5/minute", {"key_func": by_request}, "key_func: found the function 'by_request'.*no argum"),
    ("5/minute", {"key_func": "user"}, r"key_func: found 'user' \(a string\); allowed: a func"),
    ("1/minute", {"key_func": ["user"]}, "allowed: two or three different identities"),
    ("1/minute", {"key_func": ["user", "user"]}, "allowed: two or three different identities"),
    ("1/minute", {"key_func": ["ip", "user", "model", "global"]}, "two or three different ident"),
    ("1/minute", {"key_func": ["user", "modell"]}, "there is no identity 'modell'"),
    ("1/minute", {"key_func": ["user", 5]}, "allowed: the name of an identity"),
    ("5/minute", {"methods": "POST"}, r"methods: found 'POST' \(a string\); allowed: a list of m"),
    ("5/minute", {"methods": [5]}, "methods: found a list; allowed: a list of methods"),
]


@pytest.mark.parametrize(("text", "options", "message"), [*MISTAKES, *OF_DECORATORS, *OF_SHARES])
def test_a_mistake_is_an_error_at_the_decorator(
    text: Any, options: dict[str, Any], message: str
) -> None:
    """What was found, what is allowed, what to do."""
    limiter = Limiter(asked_key)
    with pytest.raises(ConfigurationError, match=message):
        limiter.limit(text, **options)
    with pytest.raises(ConfigurationError, match=message):
        limiter.shared_limit(text, scope="all", **options)


@pytest.mark.parametrize(("text", "options", "message"), MISTAKES)
def test_a_mistake_is_an_error_of_the_class_of_flask_limiter(
    text: Any, options: dict[str, Any], message: str
) -> None:
    """Where it is attached to a view."""
    limiter = Limiter(asked_key)
    with pytest.raises(ConfigurationError, match=message):
        RouteLimit(text, limiter=limiter, **options)(lambda: "ok")


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
        # The extension's strategy may be one that has a burst.
        {"limit_value": "5/minute", "burst": 2},
        # As Flask-Limiter understands them: methods of WebDAV and of caches, and numbers for words.
        {"limit_value": "5/minute", "methods": ["get", "PURGE", "propfind", "REPORT"]},
        {"limit_value": "5/minute", "per_method": 1, "override_defaults": 0},
        {"limit_value": "5/minute", "error_message": {"code": 7}},
    ],
    ids=repr,
)
def test_a_valid_limit_is_accepted(statement: dict[str, Any]) -> None:
    """Each of these combinations. A message may be what an error handler sends as JSON."""
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
