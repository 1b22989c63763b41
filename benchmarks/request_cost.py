"""What limits add to a Flask request: bare Flask, Flask-Limiter and this extension over one Redis.

    python benchmarks/request_cost.py [--rounds N]

Starts its own Valkey on a Unix socket and measures in alternating rounds: the machine's mood
changes within seconds, so only ratios of one run mean anything; the best round of each counts.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import flask
import flask_limiter
import redis
from flask_limiter.util import get_remote_address

import ratelimit_ext
from ratelimit_ext.embedded.server import EmbeddedServer

CALLS = 400
LIMITS = ("1000000/minute", "10000000/hour", "100000000/day")


@contextmanager
def running(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def bare_app() -> flask.Flask:
    app = flask.Flask("bare")

    @app.route("/")
    def view() -> str:
        return "ok"

    return app


def evalsha_app(client: redis.Redis, sha: str) -> flask.Flask:
    """The least that a limit in Redis can cost: one empty script in the view."""
    app = flask.Flask("evalsha")

    @app.route("/")
    def view() -> str:
        client.evalsha(sha, 0)
        return "ok"

    return app


def limited_app(
    limiter_class: type[flask_limiter.Limiter], uri: str, **options: Any
) -> flask.Flask:
    app = flask.Flask("limited")
    limiter = limiter_class(
        get_remote_address, app=app, storage_uri=uri, headers_enabled=True, **options
    )

    @app.route("/")
    @limiter.limit(LIMITS[0])
    @limiter.limit(LIMITS[1])
    @limiter.limit(LIMITS[2])
    def view() -> str:
        return "ok"

    return app


def denied_app(uri: str) -> flask.Flask:
    app = flask.Flask("denied")
    limiter = ratelimit_ext.Limiter(
        get_remote_address, app=app, storage_uri=uri, headers_enabled=True
    )

    @app.route("/")
    @limiter.limit("1/day")
    def view() -> str:
        return "ok"

    return app


def caller(app: flask.Flask) -> Callable[[], None]:
    """One request through the WSGI interface, without the test client's own cost."""
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.errors": sys.stderr,
    }

    def start_response(status: str, *_: Any) -> Callable[[bytes], None]:
        if status[0] == "5":
            raise SystemExit(f"the measured application answered {status}")
        return write

    def write(data: bytes) -> None:
        """What WSGI asks for, and nobody uses."""

    def call() -> None:
        for _ in app.wsgi_app(dict(environ), start_response):
            pass

    return call


def timed(call: Callable[[], Any]) -> float:
    """Microseconds a call, over one round."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder, running(EmbeddedServer(Path(folder))) as server:
        client = redis.from_url(server.uri.replace("redis+unix", "unix"))
        sha = client.script_load("return 1")
        contenders: dict[str, Callable[[], Any]] = {
            "EVALSHA 'return 1' (redis-py)": lambda: client.evalsha(sha, 0),
            "bare Flask": caller(bare_app()),
            "EVALSHA 'return 1' in the view": caller(evalsha_app(client, sha)),
            "flask-limiter, fixed-window": caller(
                limited_app(flask_limiter.Limiter, server.uri, key_prefix="stock")
            ),
            "ours, fixed-window": caller(limited_app(ratelimit_ext.Limiter, server.uri)),
            "ours, token-bucket": caller(
                limited_app(ratelimit_ext.Limiter, server.uri, strategy="token-bucket")
            ),
            "ours, every request denied": caller(denied_app(server.uri)),
        }
        results: dict[str, list[float]] = {name: [] for name in contenders}
        for call in contenders.values():
            timed(call)
        gc.disable()
        for _ in range(rounds):
            for name, call in contenders.items():
                results[name].append(timed(call))
        report(results)


def report(results: dict[str, list[float]]) -> None:
    best = {name: min(times) for name, times in results.items()}
    bare, alone = best["bare Flask"], best["EVALSHA 'return 1' (redis-py)"]
    inside = best["EVALSHA 'return 1' in the view"] - bare
    stock = best["flask-limiter, fixed-window"] - bare
    columns = f"{'added':>7} {'/EVALSHA':>9} {'/in view':>9} {'/stock':>7}"
    print(f"{'µs a request, best round (median)':38} {'':>16} {columns}")
    for name, times in results.items():
        shown = f"{best[name]:6.1f} ({statistics.median(times):6.1f})"
        added = best[name] - bare
        ratios = f"{added / alone:9.2f} {added / inside:9.2f} {added / stock:7.2f}"
        limited = added > 0 and "redis-py" not in name
        print(f"{name:38} {shown:>16} {f'{added:7.1f} {ratios}' if limited else ''}")
    print("must: ours <= 2 EVALSHA, <= 0.25 of flask-limiter; a denial from the cache <= 20 µs")


if __name__ == "__main__":
    main()
