"""One route per strategy, each with the same limit, for tests that count admissions. The period is
so long that nothing refills during a test. `/call` takes a while, settles what it has cost, and
answers with its begin and end. The header `X-Key` is the identity, and each answer names its
worker."""

import os
import time
from collections.abc import Callable

from flask import Flask, Response, request

from ratelimit_ext import Limiter

AMOUNT = 137
STRATEGIES = ("token-bucket", "sliding-window", "sliding-window-counter", "fixed-window")
IN_FLIGHT = 4
SETTINGS = ("RATELIMIT_STORAGE_URI", "RATELIMIT_SETTLEMENTS_DIR", "RATELIMIT_DEADLINE_SECONDS")
CALL_S = 1.0


def admitting(name: str) -> Callable[[], str]:
    """A view of this name: Flask-Limiter stores limits by it, and lambdas would share theirs."""

    def view() -> str:
        return "admitted"

    view.__name__ = view.__qualname__ = name
    return view


def create_app() -> Flask:
    app = Flask(__name__)
    app.config |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
    app.config["RATELIMIT_HEADERS_ENABLED"] = True
    limiter = Limiter(lambda: request.headers.get("X-Key", "one"))
    for strategy in STRATEGIES:
        view = limiter.limit(f"{AMOUNT}/day", strategy=strategy)(admitting(strategy))
        app.add_url_rule(f"/{strategy}", strategy, view)

    @app.get("/call")
    @limiter.limit("5 usd/day", cost="1")
    @limiter.limit(f"{IN_FLIGHT} in flight")
    def call() -> list[float]:
        began = time.time()
        time.sleep(CALL_S)
        limiter.settle(usd="0.25")
        return [began, time.time()]

    @app.after_request
    def name_the_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    app.add_url_rule("/healthz", "healthz", lambda: "alive")
    limiter.init_app(app)
    return app
