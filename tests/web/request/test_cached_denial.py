"""Denials that are answered from memory: as if the exception had been raised."""

import gc
import logging
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, current_app
from werkzeug.exceptions import HTTPException

from ratelimit_ext import Limiter, RateLimitExceeded
from ratelimit_ext.engine.denial_cache import DenialCache
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.web.request import resolver
from ratelimit_ext.web.request.cached_denial import ReadyHeaders
from tests.clocks import Clock
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key

Add = Callable[[Limiter, Any], Any]


class CountingEngine(MemoryEngine):
    """Counts how often it is asked."""

    asked = 0

    def admit(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return super().admit(*args, **kwargs)


def cached(limiter: Limiter) -> CountingEngine:
    """Put the cache of denials in front of an engine that counts."""
    engine = CountingEngine()
    limiter._components.engines._primary = DenialCache(engine)
    return engine


def limited(make: Maker, *limits: Any, **options: Any) -> tuple[Flask, Limiter, CountingEngine]:
    """An application with one view under these limits: strings, or keywords with ``text``."""
    app, limiter = make(**options)
    engine = cached(limiter)

    def view() -> str:
        return "ok"

    for limit in limits:
        words = {"text": limit} if isinstance(limit, str) else dict(limit)
        view = limiter.limit(words.pop("text"), **words)(view)
    app.add_url_rule("/", "view", view)
    return app, limiter, engine


@pytest.mark.parametrize("has_handler", [False, True])
def test_a_request_looks_into_the_memory_once(
    make: Maker, monkeypatch: pytest.MonkeyPatch, has_handler: bool
) -> None:
    """Also where code of the application takes part in the answer; a repeated denial reaches no
    engine."""
    app, limiter, engine = limited(make, "2/minute")
    if has_handler:
        limiter.refusal_handler(lambda refusal, _: refusal)
    looks: list[int] = []
    original = DenialCache.cached

    def counted(self: DenialCache, charges: Any) -> Any:
        looks.append(1)
        return original(self, charges)

    monkeypatch.setattr(DenialCache, "cached", counted)
    statuses = [app.test_client().get("/").status_code for _ in range(5)]
    assert (statuses, len(looks), engine.asked) == ([200, 200, 429, 429, 429], 5, 4)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each time that an exception was rendered."""
    calls: list[int] = []
    original = RateLimitExceeded.get_response

    def counted(self: RateLimitExceeded, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(RateLimitExceeded, "get_response", counted)
    return calls


@pytest.mark.parametrize("accept", ["", "application/problem+json", "text/html"])
@pytest.mark.parametrize(
    ("limits", "options"),
    [
        (["2/minute"], {}),
        (["2/minute", "3/hour", "100/day"], {}),
        ([{"text": "2/day", "name": "daily"}, "2/hour"], {}),
        ([{"text": "2/5 second", "strategy": "token-bucket"}, "9/minute"], {}),
        ([{"text": "2/minute", "strategy": "sliding-window"}], {}),
        ([{"text": "2/minute", "error_message": 'No "more" of it.'}], {}),
        ([{"text": "2/minute", "error_message": "\x00 \x01 Try again in 60 seconds."}], {}),
        ([{"text": "0.02 usd/day", "name": "budget", "cost": 0.01}, "9/minute"], {}),
        (["2/minute"], {"headers_enabled": False}),
        (["2/minute"], {"retry_after": "http-date"}),
        (["2/minute"], {"default_limits": ["9/hour"], "application_limits": ["50/hour"]}),
        ([], {"default_limits": ["2/minute", "9/hour"], "application_limits": ["50/hour"]}),
    ],
)
def test_it_is_the_answer_of_the_exception(
    make: Maker,
    clock: Clock,
    rendered: list[int],
    limits: list[Any],
    options: dict[str, Any],
    accept: str,
) -> None:
    """Status, body and headers are those of an application whose handler sees every exception."""
    ready, _, _ = limited(make, *limits, **options)
    raised, _, _ = limited(make, *limits, **options)
    raised.register_error_handler(RateLimitExceeded, lambda error: error)
    for app in (ready, raised):

        @app.after_request
        def allow(response: Response) -> Response:
            response.headers["Access-Control-Allow-Origin"] = "*"
            return response

    answers = []
    for _ in range(9):
        answers = [
            app.test_client().get("/", headers={"Accept": accept} if accept else {})
            for app in (ready, raised)
        ]
        first, second = answers
        assert first.status_code == second.status_code
        assert first.get_data(as_text=True) == second.get_data(as_text=True)
        assert sorted(first.headers) == sorted(second.headers)
        clock.forward(0.07)
    assert answers[0].status_code == 429
    rendered.clear()
    ready.test_client().get("/", headers={"Accept": accept} if accept else {})
    assert not rendered


class OwnResponse(Response):
    def get_wsgi_headers(self, environ: Any) -> Any:
        headers = super().get_wsgi_headers(environ)
        headers["X-Own"] = "1"
        return headers


def elsewhere(response: Response) -> None:
    response.headers["location"] = "/ä b"
    response.headers["Content-Location"] = "/ä b"


def without_body(response: Response) -> None:
    response.status_code = 204 if response.status_code == 429 else 200


def without_length(response: Response) -> None:
    del response.headers["Content-Length"]


@pytest.mark.parametrize("change", [elsewhere, without_body, without_length])
def test_a_hook_may_change_what_the_server_gets(
    make: Maker, clock: Clock, rendered: list[int], change: Callable[[Response], None]
) -> None:
    """Werkzeug corrects it as in the first denial, which is rendered."""
    app, _, _ = limited(make, "2/minute")

    @app.after_request
    def changed(response: Response) -> Response:
        change(response)
        return response

    first, *_, last = [app.test_client().get("/") for _ in range(7)][2:]
    assert len(rendered) == 4  # the last is not
    assert (first.status, first.data) == (last.status, last.data)
    assert sorted(first.headers) == sorted(last.headers)


def test_a_class_of_responses_has_its_own_headers(make: Maker, clock: Clock) -> None:
    """Which it adds when the server asks for them."""
    app, _, _ = limited(make, "2/minute")
    app.response_class = OwnResponse
    assert [app.test_client().get("/") for _ in range(6)][-1].headers["X-Own"] == "1"


def test_a_class_of_responses_is_freed_with_its_application(make: Maker, clock: Clock) -> None:
    """Which its methods may refer to."""
    app, _, _ = limited(make, "2/minute")
    app.response_class = type("Own", (Response,), {"app": app})
    statuses(app, "/", 6)
    gone = weakref.ref(app)
    del app, _
    gc.collect()
    assert gone() is None


def test_a_hook_may_pickle_it(make: Maker, clock: Clock) -> None:
    """As one that keeps responses does."""
    app, _, _ = limited(make, "2/minute")

    @app.after_request
    def keep(response: Response) -> Response:
        pickle.dumps(response)
        return response

    assert statuses(app, "/", 6) == [200, 200, *[429] * 4]


def test_what_callers_know_of_it(make: Maker, clock: Clock) -> None:
    """The extension's properties show the denial to the hooks of the application."""
    app, limiter, engine = limited(make, "2/minute", {"text": "5/hour", "name": "hourly"})
    seen: list[Any] = []

    @app.after_request
    def look(response: Response) -> Response:
        verdict = limiter.current.verdict("hourly")
        assert verdict is not None
        breached = [limit.breached for limit in limiter.current_limits]
        limit = limiter.current_limit
        assert limit is not None
        seen.append((str(limit.limit), breached, verdict.remaining, limit.remaining))
        return response

    for _ in range(6):
        assert app.test_client().get("/") is not None
        clock.forward(0.1)
    assert engine.asked == 4
    assert seen[3:] == [("2 per 1 minute", [True], 3, 0)] * 3


def test_it_is_logged(make: Maker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Each denial has its line, with the caller of this request."""
    app, _, _ = limited(make, {"text": "1/minute", "key_func": lambda: "everyone"}, "9/hour")
    with caplog.at_level(logging.INFO, "flask-limiter"):
        for caller in "abcdef":
            app.test_client().get("/", headers={"X-Key": caller})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["ratelimit 1 per 1 minute (everyone) exceeded at endpoint: view"] * 5


def test_it_is_logged_after_its_limit_was_compiled_again(
    make: Maker, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits with the amounts of overrides are kept for a while only."""
    monkeypatch.setattr(resolver, "MOST_VARIANTS", 1)
    app, limiter, _ = limited(make, {"text": "1/minute", "name": "pace"})
    with app.app_context():
        limiter.operators.override("pace", "a", "2/minute")
        limiter.operators.override("pace", "b", "3/minute")
    with caplog.at_level(logging.INFO, "flask-limiter"):
        for caller in "aaaaabbbbbab":
            app.test_client().get("/", headers={"X-Key": caller})
    callers = [record.getMessage().split()[5] for record in caplog.records]
    assert callers == ["(a)"] * 3 + ["(b)"] * 2 + ["(a)", "(b)"]


def on_breach(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
    return {"on_breach": seen.append}


def error_message(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
    return {"error_message": lambda: seen.append("message") or "no"}


def refusal_handler(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
    @limiter.refusal_handler
    def reroute(refusal: HTTPException, again: Any) -> HTTPException:
        seen.append(refusal)
        return refusal

    return {}


def error_handler(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
    current_app.register_error_handler(429, lambda error: (seen.append(error), error)[1])
    return {}


def own_method(name: str) -> Callable[..., dict[str, Any]]:
    """As Flask-RESTful and Flask-RESTX install theirs."""

    def register(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
        app: Any = current_app
        handle = getattr(app, name)
        setattr(app, name, lambda error: (seen.append(error), handle(error))[1])
        return {}

    return register


def subclass(limiter: Limiter, seen: list[Any]) -> dict[str, Any]:
    class Own(Flask):
        def handle_http_exception(self, e: HTTPException) -> Any:
            seen.append(e)
            return super().handle_http_exception(e)

    app: Any = current_app
    app._get_current_object().__class__ = Own
    return {}


@pytest.mark.parametrize(
    "register",
    [
        *(on_breach, error_message, refusal_handler, error_handler, subclass),
        own_method("handle_user_exception"),
        own_method("handle_http_exception"),
    ],
)
def test_code_of_the_application_sees_every_denial(
    make: Maker, clock: Clock, register: Callable[..., dict[str, Any]]
) -> None:
    """A callback, a function as the message, a handler: each is called once a denial at least."""
    app, limiter = make()
    cached(limiter)
    seen: list[Any] = []
    with app.app_context():
        options = register(limiter, seen)
    app.add_url_rule("/", "view", limiter.limit("1/minute", **options)(lambda: "ok"))
    assert app.test_client().get("/").status_code == 200
    for number in range(1, 6):
        assert app.test_client().get("/").status_code == 429
        assert len(seen) >= number


def test_a_decorator_around_the_limit_sees_the_exception(make: Maker, clock: Clock) -> None:
    """Then the wrapper's return value is no response yet."""
    app, limiter = make()
    cached(limiter)
    inner = limiter.limit("1/minute")(lambda: "ok")

    def view() -> Any:
        try:
            return inner()
        except RateLimitExceeded:
            return "caught"

    app.add_url_rule("/", "view", view)
    bodies = [app.test_client().get("/").text for _ in range(5)]
    assert bodies == ["ok", *["caught"] * 4]


def test_it_refunds_what_another_extension_took(make: Maker, clock: Clock) -> None:
    """A denied request costs nothing in any limit."""
    app, outer = make()
    inner = Limiter(asked_key, app=app, storage_uri="memory://", key_prefix="inner")
    cached(inner)
    view = outer.limit("1000/hour")(inner.limit("1/minute")(lambda: "ok"))
    app.add_url_rule("/", "view", view)
    left = [app.test_client().get("/").headers["X-RateLimit-Remaining"] for _ in range(5)]
    assert left == ["999"] * 5


def test_what_was_decided_before_is_the_callers_own(make: Maker, clock: Clock) -> None:
    """Limits that were charged earlier in the request are in its headers, and in no other's."""
    everyone = {"text": "1/minute", "key_func": lambda: "everyone"}
    app, limiter, _ = limited(make, everyone, application_limits=["9/hour"])

    @app.before_request
    def early() -> None:
        limiter.current.admit_edge()

    app.add_url_rule("/free", "free", lambda: "ok")
    client = app.test_client()
    for path in ("/", "/free", "/free"):
        assert client.get(path, headers={"X-Key": "one"}).status_code == 200
    for _ in range(4):
        for caller, left in (("one", 6), ("another", 9)):
            response = client.get("/", headers={"X-Key": caller})
            assert response.status_code == 429
            assert f'"9-per-3600s";r={left};' in response.headers["RateLimit"]


def test_its_times_are_those_of_each_moment() -> None:
    """Whatever the order in which threads ask; a reset that is over is 0 seconds away."""
    headers = ReadyHeaders((), [("day", 0, 2_500_000), ("hour", 3, 400_000)], written_us=100)
    expected = {0: (3, 1), 400_100: (3, 0), 500_100: (2, 0), 9_000_000: (0, 0)}
    for passed_us in (500_100, 0, 9_000_000, 400_100, 500_100):
        day, hour = expected[passed_us]
        text = f"day;r=0;t={day}, hour;r=3;t={hour}"
        assert headers.rate_limit(passed_us) == text


def test_it_ends_with_the_wait(make: Maker, clock: Clock) -> None:
    """Then the engine decides, and the request passes."""
    app, _, engine = limited(make, {"text": "2/second", "strategy": "token-bucket", "burst": 1})
    statuses = []
    for _ in range(5):
        statuses.append(app.test_client().get("/").status_code)
        clock.forward(0.125)
    assert statuses == [200, 429, 429, 429, 200]
    assert engine.asked == 4
