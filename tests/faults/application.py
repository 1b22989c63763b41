"""The plain extension in an application. The header `X-Caller` is the identity, and each answer
names its worker. No period ends during a test: amounts are exact."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flask import Flask, Response, request

from ratelimit_ext import Limiter

AMOUNT = 10
#: More than any test sends.
ROOMY = 1_000_000


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


def create_app() -> Flask:
    if first := os.environ.get("WRONG_CLOCKS"):
        set_wrong_clock(first)
    app = Flask(__name__)
    app.config["RATELIMIT_STORAGE_URI"] = os.environ["RATELIMIT_STORAGE_URI"]
    app.config["RATELIMIT_STORAGE_OPTIONS"] = json.loads(
        os.environ.get("RATELIMIT_STORAGE_OPTIONS", "{}")
    )
    app.config["RATELIMIT_HEADERS_ENABLED"] = True
    limiter = Limiter(lambda: request.headers["X-Caller"])

    @app.get("/roomy")
    @limiter.limit(f"{ROOMY}/day", strategy="token-bucket")
    def roomy() -> str:
        return "admitted"

    @app.get("/scarce")
    @limiter.limit(f"{AMOUNT}/day", strategy="sliding-window")
    def scarce() -> str:
        return "admitted"

    @app.get("/slow")
    @limiter.limit(f"{ROOMY}/day", strategy="token-bucket")
    def slow() -> str:
        time.sleep(1)
        return "admitted"

    @app.get("/healthz")
    @limiter.exempt
    def healthz() -> str:
        return "alive"

    @app.after_request
    def name_the_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        response.headers["X-Clock"] = str(time.time())
        return response

    limiter.init_app(app)
    return app
