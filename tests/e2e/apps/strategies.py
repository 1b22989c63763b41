"""One route per strategy, each with the same limit, for tests that count admissions. The period is
so long that nothing refills during a test. The header `X-Key` is the identity."""

from __future__ import annotations

import os
from collections.abc import Callable

from flask import Flask, request

from ratelimit_ext import Limiter

AMOUNT = 137
STRATEGIES = ("token-bucket", "sliding-window", "sliding-window-counter", "fixed-window")


def admitting(name: str) -> Callable[[], str]:
    """A view of this name: Flask-Limiter stores limits by it, and lambdas would share theirs."""

    def view() -> str:
        return "admitted"

    view.__name__ = view.__qualname__ = name
    return view


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["RATELIMIT_STORAGE_URI"] = os.environ["RATELIMIT_STORAGE_URI"]
    limiter = Limiter(lambda: request.headers.get("X-Key", "one"))
    for strategy in STRATEGIES:
        view = limiter.limit(f"{AMOUNT}/day", strategy=strategy)(admitting(strategy))
        app.add_url_rule(f"/{strategy}", strategy, view)
    app.add_url_rule("/healthz", "healthz", lambda: "alive")
    limiter.init_app(app)
    return app
