"""The functions that an application registers."""

import logging
from functools import partial
from typing import Any

import pytest
from flask import Flask, request
from werkzeug.exceptions import ServiceUnavailable

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


def test_an_identity_is_registered_twice() -> None:
    """Only one could count. A built-in one may be replaced, and a factory may register its own
    again."""
    limiter = Limiter(asked_key)

    def register(answer: str) -> None:
        limiter.identity("user")(lambda: answer)

    register("ada")
    register("bob")
    for name in ("x-tenant", "x-team"):
        limiter.identity("tenant")(partial(str, name))
    with pytest.raises(ConfigurationError, match="identity 'user' is registered twice"):
        limiter.identity("user")(asked_key)
    assert limiter.identities["user"]() == "bob"


def test_a_refusal_handler_that_fails(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """The request stays denied. An exception of HTTP is the handler's answer."""
    app, limiter = make(default_limits=["1/minute"])
    app.add_url_rule("/", "view", lambda: "ok")

    @limiter.refusal_handler
    def handler(_refusal: object, _decide_again: object) -> Any:
        if request.args:
            raise ServiceUnavailable
        raise ZeroDivisionError

    assert statuses(app, "/", 2) == [200, 429]
    assert statuses(app, "/?region=eu") == [503]
    assert caplog.text.count("The refusal handler failed; the request is denied") == 1


@pytest.mark.parametrize("answer", [["1/minute"], 5, "1/minute"])
def test_amounts_that_are_no_table(
    make: Maker, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """The usual amounts apply, and the log says so once."""
    app, limiter = make(default_limits=["2/minute"])
    app.add_url_rule("/", "view", lambda: "ok")
    limiter.amount_loader(lambda: answer)
    assert statuses(app, "/", 3) == [200, 200, 429]
    assert caplog.text.count("amount_loader returned") == 1


def test_a_plan_that_is_no_text(caplog: pytest.LogCaptureFixture) -> None:
    """The default plan applies, and the log says so once."""
    limits = [{"name": "plan", "limit": "1/minute"}]
    policy = {"routes": {"view": {"plans": True}}, "plans": {"free": {"limits": limits}}}
    app, limiter = Flask("example"), Limiter(asked_key, storage_uri="memory://")
    app.config["RATELIMIT_POLICY"] = policy
    limiter.plan_loader(lambda: 7)  # type: ignore[arg-type, return-value]
    limiter.init_app(app)
    app.add_url_rule("/", "view", lambda: "ok")
    assert statuses(app, "/", 2) == [200, 429]
    assert caplog.text.count("plan_loader: found 7 (a whole number); allowed: 'free'") == 1


def test_a_loader_that_fails_is_logged_once_for_each_kind_of_error(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual amounts apply, and no request fails. An exception of HTTP is the answer; a request
    without a view may lack what the loader reads, so nothing is logged of it."""
    app, limiter = make(default_limits=["5/minute"], application_limits=["50/minute"])
    app.add_url_rule("/", "view", lambda: "ok")

    @limiter.amount_loader
    def amounts() -> Any:
        if "deny" in request.args:
            raise ServiceUnavailable
        raise (KeyError if request.args else AttributeError)

    assert statuses(app, "/nowhere") == [404]
    assert caplog.text == ""
    assert statuses(app, "/", 2) + statuses(app, "/?x=1", 2) == [200] * 4
    assert caplog.text.count("amount_loader failed, and the usual amounts apply.") == 2
    assert statuses(app, "/?deny=1") == [503]


def test_a_refusal_handler_may_return_another_exception(make: Maker) -> None:
    """It is the answer, as if the handler had raised it."""
    app, limiter = make(default_limits=["1/minute"])
    app.add_url_rule("/", "view", lambda: "ok")
    limiter.refusal_handler(lambda _refusal, _again: ServiceUnavailable())
    assert statuses(app, "/", 2) == [200, 503]
