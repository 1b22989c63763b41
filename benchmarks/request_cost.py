"""What three limits add to a request in one process, beside its peers."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import flask
import flask_limiter
import redis
from flask_limiter.util import get_remote_address

import ratelimit_ext
from benchmarks import peers
from benchmarks.applications import DENYING, LIMITS, limited, peer_view, ready_429, script_view
from benchmarks.harness import Figure, Plot, Result, Rounds, Session, alternate

BARE, SCRIPT, PEER = "bare Flask", "script view", "Flask-Limiter"
HERE, BUCKET = "ratelimit_ext, fixed window", "ratelimit_ext, token bucket"
DENIED = "ratelimit_ext, denied"


def run(session: Session) -> Result:
    warnings.simplefilter("ignore")
    uri, calls = session.uri, session.scale.calls
    apps: dict[str, flask.Flask] = {
        BARE: limited(BARE),
        SCRIPT: script_view(uri),
        PEER: limited(PEER, flask_limiter.Limiter, uri),
        **{name: peer_view(name, uri) for name in peers.installed(peers.HITS, session)},
        HERE: limited(HERE, ratelimit_ext.Limiter, uri),
        BUCKET: limited(BUCKET, ratelimit_ext.Limiter, uri, strategy="token-bucket"),
        "a ready 429": ready_429(),
        DENIED: limited(DENIED, ratelimit_ext.Limiter, uri, DENYING),
    }
    contenders = {name: partial(microseconds, caller(app), calls) for name, app in apps.items()}
    rounds = Rounds(alternate(contenders, session.scale.rounds * 3), "lower")
    added = {name: rounds.best(name) - rounds.best(BARE) for name in apps}
    commands = "Redis commands per request: one application and three route limits, headers"
    of_peer = "time added by three limits and headers, relative to Flask-Limiter's"
    of_script = "time added by three limits and headers, relative to the script view's"
    denial = "time added by a denial from the worker's memory"
    return Result(
        title="A request in one process",
        notes=(
            "µs per request through the WSGI interface, without a server. Three limits of one "
            "caller. Only Flask-Limiter and ratelimit_ext send headers. ratelimit_ext denies from "
            "the worker's memory."
        ),
        rows=[
            {
                "view": name,
                "µs": rounds.best(name),
                "median": rounds.median(name),
                "added": added[name],
                "of Flask-Limiter": added[name] / added[PEER],
                "of the script view": added[name] / added[SCRIPT],
            }
            for name in apps
        ],
        figures=[
            Figure(commands, commands_per_request(session), "exactly", 1),
            rounds.figure(of_peer, HERE, PEER, "at most", 0.25, over=BARE),
            rounds.figure(of_script, HERE, SCRIPT, "at most", 1, over=BARE),
            Figure(denial, added[DENIED], "at most", 35, "µs"),
        ],
        plot=Plot("Time added to bare Flask", "µs", {n: added[n] for n in apps if n != BARE}),
        rounds={"µs": rounds.values},
    )


def caller(app: flask.Flask, **environment: str) -> Callable[..., int]:
    """One request through the WSGI interface, without a test client's cost; returns its status."""
    shared = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.errors": sys.stderr,
        **environment,
    }
    statuses = [0]

    def start_response(status: str, *_: Any) -> None:
        statuses[0] = int(status[:3])
        if status[0] == "5":
            raise SystemExit(f"the measured application answered {status}")

    def call(**changes: str) -> int:
        answer = app.wsgi_app({**shared, **changes}, start_response)
        for _ in answer:
            pass
        answer.close()
        return statuses[0]

    return call


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Per call, over one round."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls * 1e6


def commands_per_request(session: Session, requests: int = 20) -> float:
    """As the server sees them; what a script calls is not counted."""
    app = flask.Flask("commands")
    limiter = ratelimit_ext.Limiter(
        get_remote_address,
        app=app,
        storage_uri=session.uri,
        headers_enabled=True,
        application_limits=["1000000000/year"],
    )
    view: Callable[[], str] = lambda: "ok"  # noqa: E731
    view.__name__ = "view"
    for limit in LIMITS:
        view = limiter.limit(limit)(view)
    app.add_url_rule("/", "view", view)
    call = caller(app)
    call()  # the server knows the script from here on
    count = 0
    with redis.from_url(session.uri.replace("redis+unix", "unix")).monitor() as monitor:
        for _ in range(requests):
            call()
        session.client.echo("end")
        while (command := monitor.next_command())["command"] != "ECHO end":
            count += command["client_type"] != "lua"
    return count / requests
