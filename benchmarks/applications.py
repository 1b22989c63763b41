"""What gunicorn serves for `chatapp_cost`: chatapp, and the most direct gateway there can be.

All take the same request at /chat, ask the same model and answer alike. /worker answers with the
process that answers, as `throughput` needs it to know that all workers are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import flask
import openai
import redis

import chatapp
from benchmarks.throughput import WSGI, worker


def limited() -> WSGI:
    """chatapp, as its environment sets it."""
    return with_worker(chatapp.create_app())


def direct() -> WSGI:
    """One route and OpenAI's SDK: no limits, no ledger, no checks."""
    return with_worker(gateway(lambda: None))


def scripted() -> WSGI:
    """The same with an empty script before the call and one after it: the least that limits which
    all workers share can cost."""
    client = redis.from_url(os.environ["RATELIMIT_STORAGE_URI"].replace("redis+unix", "unix"))
    sha = client.script_load("return 1")
    return with_worker(gateway(lambda: client.evalsha(sha, 0)))


def gateway(ask_storage: Callable[[], object]) -> flask.Flask:
    app = flask.Flask("direct")
    client = openai.OpenAI(max_retries=0)

    @app.post("/chat")
    def chat() -> flask.Response:
        asked = flask.request.get_json()
        ask_storage()
        completion = client.chat.completions.create(
            model=asked["model"],
            messages=[{"role": "user", "content": asked["message"]}],
            max_completion_tokens=2048,
        )
        ask_storage()
        usage = completion.usage
        return flask.jsonify(
            reply=completion.choices[0].message.content,
            model=completion.model,
            usage={"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
        )

    return app


def with_worker(app: flask.Flask) -> WSGI:
    tells = worker()

    def either(environ: dict[str, Any], start_response: Any) -> Any:
        chosen = tells if environ["PATH_INFO"] == "/worker" else app
        return chosen(environ, start_response)

    return either
