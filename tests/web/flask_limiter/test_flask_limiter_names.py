"""The private names of Flask-Limiter that are used exist and have the expected meaning.

A release that renames one fails here first, by that name.
"""

import dataclasses
import inspect
from functools import partial
from typing import Any

import flask_limiter
import pytest
from flask import Flask
from flask_limiter import _limits, _manager, constants, util
from limits import strategies
from limits.limits import GRANULARITIES, RateLimitItem
from limits.storage import MemoryStorage, RedisStorage
from werkzeug.exceptions import TooManyRequests

from ratelimit_ext.web.declarations.definitions import error_handler


@pytest.fixture
def limiter() -> flask_limiter.Limiter:
    """Flask-Limiter's extension, attached."""
    return flask_limiter.Limiter(
        lambda: "someone",
        app=Flask("example"),
        storage_uri="memory://",
        in_memory_fallback=["1/minute"],
        default_limits=["1/minute"],
        application_limits=["1/minute"],
        meta_limits=["1/minute"],
    )


ATTRIBUTES = (
    *("_fail_on_first_breach", "_fallback_storage", "_header_mapping", "_headers_enabled"),
    *("_in_memory_fallback", "_in_memory_fallback_enabled", "_key_func", "_key_prefix"),
    *("_limiter", "_marked_for_limiting", "_meta_limits", "_on_breach", "_on_meta_breach"),
    *("_request_filters", "_retry_after", "_storage", "_strategy", "_swallow_errors", "enabled"),
    *("identify_request", "initialized", "limit_manager", "logger"),
)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_extension_has(name: str, limiter: flask_limiter.Limiter) -> None:
    """An attribute of Flask-Limiter's extension that is read, written or overridden."""
    assert hasattr(limiter, name), f"flask_limiter.Limiter has no {name} any more"


def test_the_extension_checks_a_request_by_this_method() -> None:
    """It is overridden; a hook and the wrappers call it with these names."""
    method = flask_limiter.Limiter._check_request_limit
    assert list(inspect.signature(method).parameters) == ["self", "callable_name", "in_middleware"]


def test_the_overridden_properties_are_properties() -> None:
    """Of the extension."""
    for name in ("limiter", "storage", "context", "current_limit", "current_limits"):
        assert isinstance(inspect.getattr_static(flask_limiter.Limiter, name), property), name


def test_the_header_hook_is_a_partial_over_the_extension(limiter: flask_limiter.Limiter) -> None:
    """By which it is found among the application's functions and removed."""
    app = Flask("example")
    limiter.init_app(app)
    own = [
        hook
        for hook in app.after_request_funcs[None]
        if isinstance(hook, partial) and hook.args and hook.args[0] is limiter
    ]
    assert len(own) == 1


def test_the_extension_is_found_in_the_application() -> None:
    """The commands look for it there."""
    app = Flask("example")
    limiter = flask_limiter.Limiter(lambda: "someone", app=app, storage_uri="memory://")
    assert limiter in app.extensions["limiter"]


MANAGER = (
    *("_application_limits", "_blueprint_exemption_scope", "_blueprint_exemptions"),
    *("_blueprint_limits", "_decorated_limits", "_default_limits", "_endpoint_hints"),
    *("_route_exemptions", "add_blueprint_exemption", "add_blueprint_limit"),
    *("add_decorated_limit", "add_endpoint_hint", "add_route_exemption", "blueprint_limits"),
    *("exemption_scope", "has_hints", "resolve_limits"),
)


@pytest.mark.parametrize("name", MANAGER)
def test_the_manager_has(name: str, limiter: flask_limiter.Limiter) -> None:
    """An attribute of Flask-Limiter's manager that is read or overridden."""
    manager = limiter.limit_manager
    assert type(manager) is _manager.LimitManager
    assert hasattr(manager, name), f"flask_limiter._manager.LimitManager has no {name} any more"


def fields(kind: Any) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(kind)]


def test_a_runtime_limit_has_these_fields() -> None:
    """Runtime limits are made with these names."""
    assert fields(_limits.RuntimeLimit) == [
        *("limit", "key_func", "scope", "per_method", "methods", "error_message", "exempt_when"),
        *("override_defaults", "deduct_when", "on_breach", "cost", "shared", "meta_limits"),
    ]
    assert callable(_limits.RuntimeLimit.scope_for)


def test_a_definition_has_these_fields() -> None:
    """The definitions add their fields to them."""
    assert fields(flask_limiter.Limit) == [
        *("limit_provider", "key_function", "scope", "cost", "shared", "methods", "per_method"),
        *("error_message", "meta_limits", "exempt_when", "deduct_when", "on_breach"),
        *("override_defaults", "limiter", "finalized"),
    ]


def test_wrappers_are_marked_by_this_attribute(limiter: flask_limiter.Limiter) -> None:
    """By which a view that is decorated is recognised."""
    view = limiter.limit("1/minute")(lambda: "ok")
    assert getattr(view, "__wrapper-limiter-instance") == limiter


def test_a_request_limit_has_these_arguments() -> None:
    """A subclass passes them and fills the window."""
    parameters = list(inspect.signature(flask_limiter.RequestLimit.__init__).parameters)
    assert parameters == ["self", "extension", "limit", "request_args", "breached", "shared"]
    assert "_window" in inspect.getsource(flask_limiter.RequestLimit.window.fget)


def test_a_refusal_has_these_arguments() -> None:
    """A subclass passes them."""
    parameters = list(inspect.signature(flask_limiter.RateLimitExceeded.__init__).parameters)
    assert parameters == ["self", "limit", "response"]


def test_the_modules_have_these_names() -> None:
    """Functions and constants that we import."""
    assert callable(util.get_qualified_name)
    assert constants.MAX_BACKEND_CHECKS > 0


def test_limits_has_these_names() -> None:
    """Strategies are registered in its dict; items are subclassed, with slots."""
    assert isinstance(strategies.STRATEGIES, dict)
    assert all(issubclass(item, RateLimitItem) for item in GRANULARITIES.values())
    assert {"second", "minute", "hour", "day", "month", "year"} <= set(GRANULARITIES)
    assert isinstance(MemoryStorage().storage, dict)
    assert callable(RedisStorage.get_connection)
    assert strategies.RateLimiter.__abstractmethods__ == {"hit", "test", "get_window_stats"}


def test_flask_has_these_error_functions() -> None:
    """They decide whether a refusal can be answered without raising it."""
    app = Flask("example")
    error = TooManyRequests()
    assert app.trap_http_exception(error) is False
    with app.test_request_context():
        assert error_handler(app, error) is None
        app.register_error_handler(429, lambda _: "own")
        assert error_handler(app, error) is not None
