"""Calls to an application, many at a time, and what they leave of its limits."""

from itertools import chain
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from ratelimit_ext import Limiter


def statuses(
    app: Flask | FlaskClient, path: str = "/", times: int = 1, **options: Any
) -> list[int]:
    """The status of each of so many calls, one after the other; by GET unless `method` says."""
    client = app.test_client() if isinstance(app, Flask) else app
    return [client.open(path, **options).status_code for _ in range(times)]


def remaining(
    app: Flask, limiter: Limiter, endpoint: str = "view", **request: Any
) -> dict[str, int]:
    """What a look finds of each limit, by its name, in its smallest unit."""
    with app.test_request_context("/", **request):
        shown = limiter.current.peek(endpoint)
    return {each.verdict.charge.limit.name: each.verdict.remaining for each in shown}


def left_of(limiter: Limiter, name: str, key: str, endpoint: str = "view") -> int:
    """What is left of a decorator's limit, which may be a guard or in shadow."""
    definitions = chain.from_iterable(limiter.limit_manager._decorated_limits.values())
    limits = [each.limit for each in chain.from_iterable(definitions)]
    [item] = [each for each in limits if each.options.name == name]
    return limiter.limiter.get_window_stats(item, key, endpoint).remaining
