"""The plain extension in an application. The header `X-Caller` is the identity, and each answer
names its worker. No period ends during a test: amounts are exact."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask, Response, request

from ratelimit_ext import Limiter

AMOUNT = 10
#: More than any test sends.
ROOMY = 1_000_000
SLOW_S = 1.0
#: Ends only with its worker.
LONG_S = 60.0
SETTINGS = (
    "RATELIMIT_STORAGE_URI",
    "RATELIMIT_STORAGE_OPTIONS",
    "RATELIMIT_DEADLINE_SECONDS",
    "RATELIMIT_SETTLEMENTS_DIR",
)


def set_wrong_clock(first: str) -> None:
    """The first worker, which makes this directory, is an hour ahead; the others are behind."""
    try:
        Path(first).mkdir()
        ahead_s = 3600
    except FileExistsError:
        ahead_s = -3600
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + ahead_s
    time.time_ns = lambda: nanoseconds() + ahead_s * 10**9


def admitting(name: str, *, takes_s: float = 0.0) -> Callable[[], str]:
    """A view of this name: Flask-Limiter stores limits by it."""

    def view() -> str:
        time.sleep(takes_s)
        return "admitted"

    view.__name__ = view.__qualname__ = name
    return view


def create_app() -> Flask:
    if (obstacle := os.environ.get("CANNOT_BOOT")) and Path(obstacle).exists():
        raise RuntimeError("the schema is of a newer version")
    if first := os.environ.get("WRONG_CLOCKS"):
        set_wrong_clock(first)
    app = Flask(__name__)
    app.config["RATELIMIT_HEADERS_ENABLED"] = True
    app.config |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
    app.config["RATELIMIT_STORAGE_OPTIONS"] = json.loads(
        app.config.get("RATELIMIT_STORAGE_OPTIONS", "{}")
    )
    limiter = Limiter(lambda: request.headers["X-Caller"])
    roomy, scarce = f"{ROOMY}/day", f"{AMOUNT}/day"
    slots = limiter.shared_limit("20 in flight", scope="slots")
    views = (
        limiter.limit(scarce, strategy="sliding-window")(admitting("scarce")),
        limiter.limit(roomy, strategy="fixed-window")(admitting("roomy")),
        limiter.limit(roomy, strategy="token-bucket")(admitting("slow", takes_s=SLOW_S)),
        limiter.limit(roomy, strategy="token-bucket", on_failure="open")(admitting("open")),
        limiter.limit(roomy, strategy="token-bucket", on_failure="closed")(admitting("closed")),
        slots(admitting("slots")),
        slots(admitting("long", takes_s=LONG_S)),
        limiter.exempt(admitting("healthz")),
    )
    for view in views:
        app.add_url_rule(f"/{view.__name__}", view_func=view)

    @app.after_request
    def name_the_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        response.headers["X-Clock"] = str(time.time())
        return response

    limiter.init_app(app)
    return app
