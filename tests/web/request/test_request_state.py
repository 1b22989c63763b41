"""The state of a request, and what views and headers show of it."""

from typing import Any

import pytest
from flask import Response

import ratelimit_ext
from ratelimit_ext import Limiter, RequestLimit, Verdict
from ratelimit_ext.engine.verdicts import Reply
from ratelimit_ext.web.bound_limit import Records
from tests.called import called
from tests.clocks import Clock
from tests.web.calls import second, serve, statuses
from tests.web.conftest import Maker

NOW = 1_800_000_000


def shown(limit: RequestLimit) -> dict[str, Any]:
    """What callbacks and views can read of a limit."""
    return {
        "limit": str(limit.limit),
        "remaining": limit.remaining,
        "reset_at": limit.reset_at,
        "breached": limit.breached,
        "shared": limit.shared,
        "window": list(limit.window),
    }


def test_a_view_can_see_its_limits(make: Maker, clock: Clock) -> None:
    """`current_limit` is the one nearest to exhaustion, `current_limits` are all of them, the
    shortest period first, each after this request's charge."""
    app, limiter = make(application_limits=["2/hour"])

    @app.get("/")
    @limiter.limit("10/minute")
    def view() -> Any:
        assert limiter.current_limit is not None
        return [shown(limiter.current_limit), *map(shown, limiter.current_limits)]

    minute = {
        "limit": "10 per 1 minute",
        "remaining": 9,
        "reset_at": NOW + 61,
        "breached": False,
        "shared": False,
        "window": [NOW + 60, 9],
    }
    hour = {
        "limit": "2 per 1 hour",
        "remaining": 1,
        "reset_at": NOW + 3601,
        "breached": False,
        "shared": True,
        "window": [NOW + 3600, 1],
    }
    assert app.test_client().get("/").json == [hour, minute, hour]


def test_the_verdicts_are_those_of_the_current_limits(make: Maker) -> None:
    """`current_verdicts` are the same verdicts in the same order, before and after a denial, whose
    first breach ends both."""
    app, limiter = make()
    seen: list[tuple[list[Verdict], list[Verdict]]] = []

    @app.after_request
    def compare(response: Response) -> Response:
        limits = [limit.verdict for limit in limiter.current_limits]
        seen.append((limits, limiter.current.verdicts))
        return response

    serve(app, limiter.limit("5/day"), limiter.limit("1/minute"), limiter.limit("3/hour"))
    assert statuses(app, times=2) == [200, 429]
    assert [limits for limits, _ in seen] == [verdicts for _, verdicts in seen]
    assert [len(verdicts) for _, verdicts in seen] == [3, 1]


def test_a_denied_request_shows_what_denied_it(make: Maker, clock: Clock) -> None:
    """In an error handler, `current_limit` is the breached one with the longest wait, and
    `verdict` has its exact answer."""
    app, limiter = make(fail_on_first_breach=False)

    @app.errorhandler(429)
    def refused(_: Any) -> Any:
        assert limiter.current_limit is not None
        verdict = limiter.current_limit.verdict
        each = [(str(limit.limit), limit.breached) for limit in limiter.current_limits]
        return [str(limiter.current_limit.limit), verdict.retry_after_ms, each], 429

    serve(app, limiter.limit("1/minute"), limiter.limit("1/hour"), limiter.limit("5/day"))
    client = app.test_client()
    client.get("/")
    clock.forward(0.5)
    assert client.get("/").json == [
        "1 per 1 hour",
        3_599_500,
        [["1 per 1 minute", True], ["1 per 1 hour", True], ["5 per 1 day", False]],
    ]


def test_after_the_first_breach_no_limit_is_shown(make: Maker) -> None:
    """With `fail_on_first_breach`, the default, as in Flask-Limiter; headers name them all."""
    app, limiter = make()
    shown = []

    @app.errorhandler(429)
    def refused(_: Any) -> Any:
        shown.extend(str(limit.limit) for limit in limiter.current_limits)
        return "refused", 429

    serve(app, limiter.limit("9/second"), limiter.limit("1/minute"), limiter.limit("5/day"))
    assert second(app).headers["RateLimit"].count(";r=") == 3
    assert shown == ["9 per 1 second", "1 per 1 minute"]


#: Where verdicts are made of an engine's reply, and records of a decision.
MAKERS = [Records._make.__code__, Reply._read.__code__]


@pytest.mark.parametrize("strategy", ["fixed-window", "token-bucket", "sliding-window"])
def test_an_admitted_answer_needs_no_verdicts(make: Maker, strategy: str, uri: str) -> None:
    """Its headers are made from the engine's reply; verdicts and records when they are read."""
    app, limiter = make(storage_uri=uri)

    @app.get("/<reads>")
    @limiter.limit("9/minute", strategy=strategy)
    @limiter.limit("7/hour", strategy=strategy)
    def view(reads: str) -> str:
        return str([v.remaining for v in limiter.current.verdicts] if reads == "some" else "")

    client = app.test_client()
    with called(ratelimit_ext) as codes:
        assert '"9-per-60s";r=8;' in client.get("/none").headers["RateLimit"]
    assert codes
    assert not {*MAKERS} & {*codes}
    with called(ratelimit_ext) as codes:
        assert client.get("/some").text == "[7, 5]"
    assert [code for code in codes if code in MAKERS] == MAKERS


def test_a_view_that_has_no_limits_sees_none(make: Maker) -> None:
    """Without an error."""
    app, limiter = make()
    app.get("/")(lambda: {"one": limiter.current_limit, "all": limiter.current_limits})
    assert app.test_client().get("/").json == {"one": None, "all": []}


def test_a_slow_views_headers_show_what_is_left_at_its_end(make: Maker, clock: Clock) -> None:
    """What has refilled while the view ran is in its headers."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute", strategy="fixed-window", name="window")
    @limiter.limit("60/minute", strategy="token-bucket", burst=10, name="bucket")
    def slow() -> str:
        clock.forward(30)
        return "ok"

    client = app.test_client()
    response = client.get("/")
    assert response.headers["RateLimit"] == '"bucket";r=10;t=0, "window";r=4;t=30'
    assert response.headers["X-RateLimit-Reset"] == str(NOW + 61)
    response = client.get("/")
    assert response.headers["RateLimit"] == '"bucket";r=10;t=0, "window";r=5;t=0'


def test_a_request_is_forgotten_when_it_has_ended(make: Maker) -> None:
    """The next one on the same worker sees its own limits alone."""
    app, limiter = make()
    seen = []

    @app.teardown_request
    def look(_: BaseException | None) -> None:
        seen.append(len(limiter.current_limits))

    app.get("/", endpoint="one")(limiter.limit("5/minute")(lambda: "ok"))
    app.get("/none", endpoint="none")(lambda: "ok")
    client = app.test_client()
    assert statuses(client) + statuses(client, "/none") == [200, 200]
    assert client.get("/none").headers.get("X-RateLimit-Limit") is None
    assert len(seen) == 3


def test_a_request_inside_a_request_has_its_own_limits(make: Maker) -> None:
    """A test client that is called from a view changes nothing of the outer request."""
    app, limiter = make()

    @app.get("/inner", endpoint="inner")
    @limiter.limit("3/minute", name="inner")
    def inner() -> str:
        return "inner"

    @app.get("/", endpoint="outer")
    @limiter.limit("7/minute", name="outer")
    def outer() -> str:
        return str(app.test_client().get("/inner").headers["RateLimit-Policy"])

    response: Response = app.test_client().get("/")
    assert response.text == '"inner";q=3;w=60'
    assert response.headers["RateLimit-Policy"] == '"outer";q=7;w=60'


def test_decorators_of_two_extensions_take_turns(make: Maker) -> None:
    """Each extension has one wrapper: a second one would charge all of its limits again."""
    app, first = make()
    second = Limiter(lambda: "someone", app=app, storage_uri="memory://")

    @app.get("/")
    @first.limit("5/minute")
    @second.limit("7/minute")
    @first.limit("4/hour")
    def view() -> str:
        return " ".join(str(limit.remaining) for limit in first.current_limits)

    client = app.test_client()
    assert [client.get("/").text for _ in range(4)] == ["4 3", "3 2", "2 1", "1 0"]
    assert client.get("/").status_code == 429


def test_the_limits_of_two_extensions_are_told_apart(make: Maker) -> None:
    """Each shows its own."""
    app, first = make(headers_enabled=False)
    second = Limiter(lambda: "someone", app=app, storage_uri="memory://", headers_enabled=True)

    @app.get("/")
    @first.limit("5/minute")
    @second.limit("7/minute")
    def view() -> str:
        return f"{first.current_limit.limit.amount} {second.current_limit.limit.amount}"

    response = app.test_client().get("/")
    assert response.text == "5 7"
    assert response.headers["X-RateLimit-Limit"] == "7"
