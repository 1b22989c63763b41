"""One route per strategy, each with the same limit, for tests that count what is admitted.

The limit is so large a period that nothing comes back while a test runs. The header `X-Key` says
who asks.
"""

from __future__ import annotations

import os

from flask import Flask, request

from ratelimit_ext import Limiter

AMOUNT = 137
STRATEGIES = ("token-bucket", "sliding-window", "sliding-window-counter", "fixed-window")


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["RATELIMIT_STORAGE_URI"] = os.environ["RATELIMIT_STORAGE_URI"]
    limiter = Limiter(lambda: request.headers.get("X-Key", "one"))
    for strategy in STRATEGIES:
        view = limiter.limit(f"{AMOUNT}/day", strategy=strategy)(lambda: "admitted")
        app.add_url_rule(f"/{strategy}", strategy, view)
    app.add_url_rule("/healthz", "healthz", lambda: "alive")
    limiter.init_app(app)
    return app
