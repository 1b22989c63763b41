"""The Flask applications that are measured, in process or under gunicorn."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flask
import flask_limiter
from flask_limiter.util import get_remote_address

import ratelimit_ext
from benchmarks import peers

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]
AMOUNTS = {"minute": 1_000_000, "hour": 10_000_000, "day": 100_000_000}
LIMITS = [f"{amount}/{period}" for period, amount in AMOUNTS.items()]
DENYING = [*LIMITS[:2], "1/day"]
STORAGE = "BENCHMARK_STORAGE_URI"


# -- one view --------------------------------------------------------------------------------------


def ready_429() -> flask.Flask:
    """The least that a denial can cost."""
    app = flask.Flask("ready")
    app.add_url_rule("/", "view", lambda: ("denied", 429))
    return app


def script_view(uri: str) -> flask.Flask:
    """The least that shared limits can cost: one empty script over three keys."""
    app = flask.Flask("script")
    client = peers.client_of(uri)
    sha = client.script_load("return 1")

    @app.get("/")
    def view() -> str:
        client.evalsha(sha, 3, "a", "b", "c")
        return "ok"

    return app


def peer_view(name: str, uri: str) -> flask.Flask:
    """One of `peers.HITS`, called by the view; no headers."""
    app = flask.Flask(name)
    hit = peers.HITS[name](uri, AMOUNTS)

    @app.get("/")
    def view() -> tuple[str, int]:
        return ("ok", 200) if hit(f"{name}/{get_remote_address()}") else ("denied", 429)

    return app


def limited(
    name: str,
    limiter_class: type[flask_limiter.Limiter] | None = None,
    uri: str = "",
    limits: Sequence[str] = LIMITS,
    **options: Any,
) -> flask.Flask:
    """One view under route limits, with headers; a bare one without a class."""
    app = flask.Flask(name)

    def view() -> str:
        return "ok"

    if limiter_class is not None:
        limiter = limiter_class(
            get_remote_address,
            app=app,
            storage_uri=uri,
            headers_enabled=True,
            key_prefix=name.replace(" ", "-"),
            **options,
        )
        for limit in limits:
            view = limiter.limit(limit)(view)
    app.add_url_rule("/", "view", view)
    return app


def shared_limit_view(uri: str) -> flask.Flask:
    """A limit of each caller, and one exhausted limit of all callers together."""
    app = flask.Flask("shared")
    limiter = ratelimit_ext.Limiter(
        lambda: flask.request.headers["X-Caller"],
        app=app,
        storage_uri=uri,
        headers_enabled=True,
        key_prefix="shared",
    )

    @app.get("/")
    @limiter.limit("1000000/minute")
    @limiter.limit("1/day", key_func=lambda: "everyone")
    def view() -> str:
        return "ok"

    return app


# -- for gunicorn ----------------------------------------------------------------------------------


def all_views() -> WSGI:
    """Every contender of `throughput`, by the first part of the path, in the same processes."""
    warnings.simplefilter("ignore")
    uri = os.environ[STORAGE]
    peer, here = flask_limiter.Limiter, ratelimit_ext.Limiter
    apps: dict[str, flask.Flask] = {
        "bare": limited("bare"),
        "script": script_view(uri),
        "flask-limiter": limited("flask-limiter", peer, uri),
        "here": limited("here", here, uri),
        "flask-limiter-denied": limited("flask-limiter-denied", peer, uri, DENYING),
        "here-denied": limited("here-denied", here, uri, DENYING),
        "here-shared": shared_limit_view(uri),
    }

    def choose(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        app = apps[environ["PATH_INFO"].strip("/")]
        environ["PATH_INFO"] = "/"
        return app(environ, start_response)

    return with_worker(choose)


def chatapp_gateway() -> WSGI:
    """chatapp as gunicorn serves it, configured by the environment."""
    import wsgi

    return with_worker(wsgi.app)


def sdk_gateway() -> WSGI:
    """A view that calls the provider with its official SDK: no limits, no keys, no ledger."""
    import openai

    app = flask.Flask("sdk")
    client = openai.OpenAI(max_retries=0)

    @app.post("/v1/chat/completions")
    def chat_completions() -> flask.Response:
        request = flask.request.get_json()
        answer = client.chat.completions.create(**request)
        if not request.get("stream"):
            body = answer.model_dump_json(exclude_unset=True)
            return flask.Response(body, mimetype="application/json")

        def events() -> Iterator[str]:
            for chunk in answer:
                yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
            yield "data: [DONE]\n\n"

        return flask.Response(events(), mimetype="text/event-stream")

    return with_worker(app)


def with_worker(app: WSGI) -> WSGI:
    """The application, and /worker, which answers with the id of the worker's process."""

    def either(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/worker":
            return app(environ, start_response)
        body = str(os.getpid()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return either
