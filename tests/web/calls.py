"""A view behind limits, calls to it, many at a time, and what they leave of the limits."""

from itertools import chain
from typing import Any

from flask import Blueprint, Flask
from flask.testing import FlaskClient

from ratelimit_ext import Limiter


def serve(app: Flask | Blueprint, *limits: Any, path: str = "/", name: str = "") -> None:
    """Add a view behind these limits, in the order of decorators. Its name is that of the path."""

    def view() -> str:
        return "ok"

    served: Any = view
    view.__qualname__ = view.__name__ = name or path.strip("/") or "view"
    for limit in reversed(limits):
        served = limit(served)
    app.add_url_rule(path, view.__name__, served)


def statuses(
    app: Flask | FlaskClient, path: str = "/", times: int = 1, **options: Any
) -> list[int]:
    """The status of each of so many calls, one after the other; by GET unless `method` says."""
    client = app.test_client() if isinstance(app, Flask) else app
    return [client.open(path, **options).status_code for _ in range(times)]


def second(app: Flask, path: str = "/", **options: Any) -> Any:
    """The answer to the second of two equal calls, which is the first to be refused."""
    client = app.test_client()
    client.get(path, **options)
    return client.get(path, **options)


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
