"""The strategies in Flask-Limiter's own extension, which only this package's import adds to."""

import flask_limiter
import pytest
from flask import Flask

import ratelimit_ext  # noqa: F401 - registers the strategies
from tests.web.calls import serve, statuses


def served(uri: str, strategy: str) -> Flask:
    """An application of Flask-Limiter's alone, with five calls a minute."""
    app = Flask("stock")
    limiter = flask_limiter.Limiter(
        lambda: "ada", app=app, storage_uri=uri, strategy=strategy, headers_enabled=True
    )
    assert type(limiter) is flask_limiter.Limiter
    serve(app, limiter.limit("5/minute"))
    return app


@pytest.mark.parametrize(("strategy", "wait_s"), [("token-bucket", 12), ("sliding-window", 60)])
def test_flask_limiter_itself_uses_the_strategies(uri: str, strategy: str, wait_s: int) -> None:
    """Five calls pass, and Retry-After is when the next one does: at most a second later, as
    Flask-Limiter rounds up, and at most two seconds earlier, if the calls took that long."""
    client = served(uri, strategy).test_client()
    answers = [client.get("/") for _ in range(6)]
    assert [each.status_code for each in answers] == [200] * 5 + [429]
    assert answers[0].headers["X-RateLimit-Remaining"] == "4"
    headers = answers[-1].headers
    assert headers["X-RateLimit-Remaining"] == "0"
    assert wait_s - 2 <= int(headers["Retry-After"]) <= wait_s + 1


def test_a_caller_who_waits_passes(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the Retry-After of Flask-Limiter's answer, one call of a token bucket passes."""
    if uri.startswith("redis"):
        pytest.skip("the server's clock does not stand still")
    now = [1_800_000_000.25]
    monkeypatch.setattr("time.time", lambda: now[0])
    client = served(uri, "token-bucket").test_client()
    refused = [client.get("/") for _ in range(6)][-1]
    now[0] += int(refused.headers["Retry-After"])
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]


def test_a_reset_drops_the_buckets(uri: str) -> None:
    """They are part of its storage."""
    app = served(uri, "token-bucket")
    assert statuses(app, times=6) == [200] * 5 + [429]
    (limiter,) = app.extensions["limiter"]
    limiter.reset()
    assert statuses(app) == [200]
