"""Fixtures for pytest: limits of your application in memory, empty for each test, with a clock that
stands still.

In ``conftest.py``, beside your own fixture ``app``::

    pytest_plugins = ["ratelimit_ext.testing"]

In a test::

    def test_ten_at_once(client, rate_limits):
        for _ in range(10):
            rate_limits.assert_admitted(client.get("/search"))
        rate_limits.assert_limited(client.get("/search"), "pace", retry_after=2)
        rate_limits.forward(2)
        rate_limits.assert_admitted(client.get("/search"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import flask
import pytest
from limits.storage import MemoryStorage, Storage
from werkzeug.test import TestResponse

from ratelimit_ext.core import clock
from ratelimit_ext.core.events import DecisionEvent, Event
from ratelimit_ext.extension import Limiter

#: An instant at which every calendar window begins: 1 January 2029, 0:00 UTC, a Monday.
START_US = 1_861_920_000_000_000


class RateLimits:
    """The limits of an application under test; without ``app``, of the one that the extension was
    attached to last. ``decisions`` are its decisions so far."""

    def __init__(self, limiter: Limiter, app: flask.Flask | None = None) -> None:
        self.decisions: list[DecisionEvent] = []
        self._limiter = limiter
        self._app = app
        self._now_us = START_US
        self._before = self._use(MemoryStorage())
        limiter.listen(self._note)

    def close(self) -> None:
        """Give the extension its own storage back."""
        self._limiter.unlisten(self._note)
        if self._before is not None:
            self._use(self._before)

    def forward(self, seconds: float) -> None:
        """Let time pass, for limits alone."""
        if seconds < 0:
            raise ValueError(f"forward: found {seconds!r} seconds; allowed: 0 or more")
        self._now_us += round(seconds * 1_000_000)

    def reset(self) -> None:
        """Forget everything that was charged."""
        self._use(MemoryStorage())
        self.decisions.clear()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave out all limits in a block."""
        was, self._limiter.enabled = self._limiter.enabled, False
        try:
            yield
        finally:
            self._limiter.enabled = was

    def assert_admitted(self, response: TestResponse) -> None:
        """Fail if the response is a refusal by a limit."""
        denied = self._denying()
        assert not denied, f"denied by {_listed(denied)}: {response.status}"

    def assert_limited(
        self, response: TestResponse, limit: str | None = None, *, retry_after: float | None = None
    ) -> None:
        """Fail unless the response is a 429, by the limit of that name, with that ``Retry-After``
        in seconds (which is a whole number, rounded up)."""
        assert response.status_code == 429, f"not limited: {response.status}"
        denied = self._denying()
        assert limit is None or limit in denied, f"denied by {_listed(denied)}, not by {limit!r}"
        if retry_after is not None:
            header, wanted = response.headers.get("Retry-After"), str(math.ceil(retry_after))
            assert header == wanted, f"Retry-After is {header}, not {wanted}"

    def now_us(self) -> int:
        """Return the time of the limits, in microseconds since 1970."""
        return self._now_us

    def _use(self, storage: Storage) -> Storage | None:
        with self._app.app_context() if self._app else nullcontext():
            hooks = self._limiter._hooks  # noqa: SLF001 - no user may call it
            return hooks.use_storage(storage)

    def _note(self, event: Event) -> None:
        app = flask.current_app
        if isinstance(event, DecisionEvent) and (self._app is None or app == self._app):
            self.decisions.append(event)

    def _denying(self) -> list[str]:
        """Return the names, or amounts, of the limits that denied the last request."""
        if not self.decisions or self.decisions[-1].admitted:
            return []
        return [verdict.charge.limit.label for verdict in self.decisions[-1].denials]


@pytest.fixture
def rate_limits(app: flask.Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[RateLimits]:
    """The limits of the fixture ``app``."""
    limits = RateLimits(limiter_of(app), app)
    monkeypatch.setattr(clock, "now_us", limits.now_us)
    yield limits
    limits.close()


def limiter_of(app: flask.Flask) -> Limiter:
    """Return the extension of an application. ``LookupError`` unless it has exactly one."""
    limiters: list[Any] = [
        limiter for limiter in app.extensions.get("limiter", ()) if isinstance(limiter, Limiter)
    ]
    if len(limiters) != 1:
        raise LookupError(
            f"the application has {len(limiters)} extensions of ratelimit_ext; allowed: one. Call "
            "its init_app(app) in the fixture app, or of several make RateLimits(…) of one."
        )
    limiter: Limiter = limiters[0]
    return limiter


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "no limit"
