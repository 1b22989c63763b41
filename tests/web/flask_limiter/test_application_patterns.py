"""What applications on the package index do with Flask-Limiter, by the change of one import."""

import logging
from typing import Any, NoReturn

import flask
import pytest
from flask import Blueprint, Flask, current_app, request
from werkzeug.local import LocalProxy

from ratelimit_ext import ConfigurationError, Limit, Limiter, RouteLimit
from tests.web.calls import statuses
from tests.web.conftest import asked_key


def test_the_current_application_outside_of_a_context(caplog: pytest.LogCaptureFixture) -> None:
    """Is none, as in ihatemoney, which attaches the extension later, and in Lemur, which never
    does: it has no limits, and an error in its log."""
    attached, forgotten = Flask("ihatemoney"), Flask("lemur")
    for app in (attached, forgotten):
        limiter = Limiter(app=current_app, key_func=asked_key, storage_uri="memory://")
        app.get("/")(limiter.limit("1/minute")(asked_key))
        if app is attached:
            limiter.init_app(app)
    assert statuses(attached, times=2) == [200, 429]
    assert not caplog.messages
    assert statuses(forgotten, times=2) == [200, 200]
    assert "do not apply in the application 'lemur'" in caplog.text


def test_the_current_application_inside_of_a_context() -> None:
    """Is attached at once, and is itself in `app.extensions`, not its proxy."""
    app = Flask("example")
    with app.app_context():
        limiter = Limiter(app=current_app, key_func=asked_key, storage_uri="memory://")
        limiter.init_app(current_app)  # type: ignore[arg-type] # as applications do
    app.get("/")(limiter.limit("1/minute")(asked_key))
    assert statuses(app, times=2) == [200, 429]


def _unresolvable() -> NoReturn:
    raise AssertionError("was resolved before a request")


#: Resolvable only in a request, by an application's setting, as in invenio-app.
BY_SETTING: Any = LocalProxy(
    lambda: current_app.config["KEY_FUNC"] if flask.has_request_context() else _unresolvable()
)


def test_a_function_behind_a_proxy() -> None:
    """Is resolved by requests alone, wherever it is written; equal limits with it are one."""
    limiter = Limiter(
        BY_SETTING,
        default_limits=[
            "9/minute",
            Limit("2/minute", key_function=BY_SETTING),
            Limit("2/minute", key_function=BY_SETTING),
        ],
        default_limits_exempt_when=LocalProxy(lambda: _is_free),
        storage_uri="memory://",
    )
    app = Flask("example")
    app.config["KEY_FUNC"] = asked_key
    blueprint = Blueprint("pages", __name__)
    app.get("/default", endpoint="default")(lambda: "ok")
    by_proxy = limiter.limit("2/minute", key_func=BY_SETTING, deduct_when=LocalProxy(lambda: bool))
    app.get("/own", endpoint="own")(by_proxy(limiter.limit("5/hour", key_func=BY_SETTING)(_page)))
    stated = RouteLimit("3/hour", key_function=BY_SETTING, limiter=limiter)
    app.get("/route")(stated(_route))
    blueprint.get("/blueprint")(lambda: "ok")
    limiter.limit("2/minute", key_func=BY_SETTING)(blueprint)
    app.register_blueprint(blueprint)
    limiter.init_app(app)
    for path in ("/default", "/own", "/route", "/blueprint"):
        for key in ("a", "b"):
            assert statuses(app, path, 3, headers={"X-Key": path + key}) == [200, 200, 429]


def _is_free() -> bool:
    return request.path == "/free"


def _page() -> str:
    return "ok"


def _route() -> str:
    return "ok"


@pytest.mark.parametrize("key_func", [True, None])
def test_a_key_function_that_is_none(key_func: Any) -> None:
    """Is a mistake of the limits that need it, as in calibre-web, where each limit has its own."""
    app = Flask("example")
    limiter = Limiter(key_func=key_func, headers_enabled=True, in_memory_fallback_enabled=True)
    app.get("/own", endpoint="own")(limiter.limit("1/minute", key_func=asked_key)(asked_key))
    app.get("/needs", endpoint="needs")(limiter.limit("1/minute")(lambda: "ok"))
    app.config["RATELIMIT_STORAGE_URI"] = "memory://"
    limiter.init_app(app)
    assert statuses(app, "/own", times=2) == [200, 429]
    app.testing = True
    with pytest.raises(ConfigurationError, match=r"key_func: found .*; allowed: a function"):
        app.test_client().get("/needs")


def test_a_failed_start_can_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """With other settings, as calibre-web falls back to the memory."""
    app = Flask("example")
    limiter = Limiter(key_func=asked_key)
    app.get("/")(limiter.limit("1/minute")(asked_key))
    app.config["RATELIMIT_STORAGE_URI"] = "reddis://localhost"
    with pytest.raises(ValueError, match="reddis"):
        limiter.init_app(app)
    app.config["RATELIMIT_STORAGE_URI"] = None
    with caplog.at_level(logging.ERROR), pytest.warns(UserWarning, match="in-memory"):
        limiter.init_app(app)
    assert statuses(app, times=2) == [200, 429]
