"""Fixtures for the extension: applications with their own storages, and a stopped clock."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, request

from ratelimit_ext import Limiter
from tests.clocks import Clock

#: Makes an application and its extension; options are the extension's, ``config`` the app's.
Maker = Callable[..., tuple[Flask, Limiter]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The process's clocks, standing still. Redis decides by a clock of its own."""
    standing = Clock()
    monkeypatch.setattr(time, "time", lambda: standing.now_s)
    monkeypatch.setattr(time, "monotonic", lambda: standing.now_s)
    return standing


@pytest.fixture(params=["memory", "redis"])
def uri(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    if request.param == "memory":
        return "memory://"
    request.getfixturevalue("redis_client")
    return str(request.getfixturevalue("redis_server").uri)


def asked_key() -> str:
    """The identity in the header X-Key; without one, everyone is the same."""
    return request.headers.get("X-Key", "someone")


def root() -> str:
    """A view."""
    return "ok"


@pytest.fixture
def make() -> Maker:
    """Makes an application in memory, with headers; the header `X-Key` says who calls."""

    def made(*, config: dict[str, Any] | None = None, **options: Any) -> tuple[Flask, Limiter]:
        app = Flask("example")
        app.config.update(config or {})
        options = {"storage_uri": "memory://", "headers_enabled": True, **options}
        key_func = options.pop("key_func", asked_key)
        return app, Limiter(key_func, app=app, **options)

    return made
