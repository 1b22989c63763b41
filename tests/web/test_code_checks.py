"""Mistakes of a program are found before any request, with what was probably meant."""

from __future__ import annotations

from typing import Any

import limits.errors
import pytest
from flask import Blueprint, Flask

from ratelimit_ext import ApplicationLimit, ConfigurationError, Limit, Limiter
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key


def by_request(request: object) -> str:
    """A key function as slowapi has it."""
    return str(request)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"brust": 3}, r"limit '5/minute': unknown keyword 'brust'; .* Did you mean 'burst'\?"),
        ({"key": asked_key}, r"unknown keyword 'key'; allowed: .*key_func"),
        ({"strategy": "token_bucket"}, r"strategy: found 'token_bucket' .* mean 'token-bucket'"),
        ({"mode": "shaddow"}, r"mode: found 'shaddow' .* Did you mean 'shadow'\?"),
        ({"unit": "token"}, r"unit: found 'token' .* Did you mean 'tokens'\?"),
        ({"key_func": by_request}, r"key_func: found the function 'by_request'.*no argument.*"),
        ({"cost": by_request}, r"cost: found the function .* called with no argument"),
        ({"deduct_when": lambda: True}, r"deduct_when: .* called with one argument"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_mistake_at_a_decorator(options: dict[str, Any], told: str) -> None:
    """Where it is written."""
    limiter = Limiter(asked_key)
    with pytest.raises(ConfigurationError, match=told):
        limiter.limit("5/minute", **options)
    with pytest.raises(ConfigurationError, match=told):
        limiter.shared_limit("5/minute", scope="all", **options)


@pytest.mark.parametrize(
    ("key_func", "options", "told"),
    [
        (by_request, {}, "leave the argument out"),
        (Flask("app"), {}, "Limiter, key_func: .* called with no argument"),
        (asked_key, {"defualt_limits": ["5/minute"]}, "Did you mean 'default_limits'"),
        (asked_key, {"strategy": "token-bukket"}, "Did you mean 'token-bucket'"),
        (
            asked_key,
            {"config": {"RATELIMIT_STRATEGY": "fixed_window"}},
            "Did you mean 'fixed-window'",
        ),
        (asked_key, {"config": {"RATELIMIT_DEFUALT": "5/minute"}}, "mean 'RATELIMIT_DEFAULT'"),
        (asked_key, {"config": {"RATELIMIT_STORAGE_URL": "x"}}, "mean 'RATELIMIT_STORAGE_URI'"),
        (asked_key, {"config": {"RATELIMIT_POLICY_FLIE": "x"}}, "'RATELIMIT_POLICY_FILE'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_at_the_extension(
    make: Maker, key_func: Any, options: dict[str, Any], told: str
) -> None:
    """At its construction, or as soon as it knows the configuration."""
    with pytest.raises(ConfigurationError, match=told):
        make(key_func=key_func, **options)


def test_an_identity_takes_no_argument() -> None:
    """It is called as a key function is."""
    with pytest.raises(ConfigurationError, match="identity 'tenant': found the function"):
        Limiter(asked_key).identity("tenant")(by_request)  # type: ignore[arg-type]


def test_a_setting_of_the_applications_own_is_left_alone(make: Maker) -> None:
    """A key with the prefix that resembles none of the settings."""
    make(config={"RATELIMIT_TENANTS": 5, "RATE": "5/minute"})


def test_a_decorator_without_parentheses(make: Maker) -> None:
    """It would be a limit that is given by the view, on nothing."""
    app, limiter = make()

    @limiter.limit
    def view() -> str:
        return "ok"

    told = r"@limiter\.limit\(\"30/minute\"\), below the route"
    with pytest.raises(ConfigurationError, match=told):
        app.get("/")(view)
    with pytest.raises(ConfigurationError, match=told):
        view()
    with pytest.raises(ConfigurationError, match=told):
        limiter.limit("5/minute")(view)


def test_names_of_limits_that_apply_together_are_their_own(make: Maker) -> None:
    """On a view, on a blueprint, and beside the application's; as in a file."""
    app, limiter = make(application_limits=[ApplicationLimit("50/minute", name="edge")])
    told = "found 'pace', which is also the name of '5/minute'"
    with pytest.raises(ConfigurationError, match=told):
        limiter.limit("9/hour", name="pace")(limiter.limit("5/minute", name="pace")(root))
    blueprint = Blueprint("chat", __name__)
    limiter.limit("5/minute", name="pace")(blueprint)
    with pytest.raises(ConfigurationError, match=told):
        limiter.limit("9/hour", name="pace")(blueprint)
    by_user = limiter.limit("5/minute", name="pace", key_func=lambda: "user")
    with pytest.raises(ConfigurationError, match=told):
        by_user(limiter.limit("5/minute", name="pace")(lambda: "by two keys"))
    with pytest.raises(ConfigurationError, match="'edge', which is also the name of '50/minute'"):
        limiter.limit("9/hour", name="edge")(lambda: "ok")
    with pytest.raises(ConfigurationError, match="'x', which is also the name of '1/day'"):
        make(default_limits=[Limit("1/day", name="x"), Limit("1/hour", name="x")])
    app.get("/")(limiter.limit("2/minute", name="pace")(other))
    assert statuses(app, times=3) == [200, 200, 429]


def test_a_limit_that_is_stated_again_is_no_duplicate(make: Maker) -> None:
    """An application that is made twice states its limits twice."""
    app, limiter = make()

    def create(path: str) -> None:
        @limiter.limit("2/minute", name="pace", cost=lambda: 1)
        def view() -> str:
            return "ok"

        app.add_url_rule(path, path, view)

    create("/one")
    create("/two")


def root() -> str:
    """A view."""
    return "ok"


def other() -> str:
    """Another view."""
    return "ok"


def test_an_unknown_default_strategy_is_the_error_that_it_was() -> None:
    """A program that caught the error of limits still catches it."""
    with pytest.raises(limits.errors.ConfigurationError, match="fubar"):
        Limiter(asked_key, app=Flask(__name__), strategy="fubar")
