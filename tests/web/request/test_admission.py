"""Admissions: what a request is charged if a function of one of its limits fails."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import abort, request

from ratelimit_ext import ApplicationLimit, ConfigurationError
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.web.request import charges
from tests.servers import Server
from tests.web.calls import statuses
from tests.web.conftest import Maker


def number_of_texts() -> int:
    return len(request.json["texts"])  # type: ignore[index]  # 415 where it is no JSON


def unknown() -> Any:
    return {}["unknown"]


#: Functions of a view's limit that fail, with the status of the request.
FAILING: dict[str, tuple[dict[str, Any], int]] = {
    "a cost": ({"limit_value": "100/minute", "cost": number_of_texts}, 415),
    "a cost that aborts": ({"limit_value": "100/minute", "cost": lambda: abort(400)}, 400),
    "an invalid cost": ({"limit_value": "100/minute", "cost": lambda: -1}, 500),
    "a key": ({"limit_value": "100/minute", "key_func": unknown}, 500),
    "a string": ({"limit_value": unknown}, 500),
    "an exemption": ({"limit_value": "100/minute", "exempt_when": unknown}, 500),
}


@pytest.mark.parametrize("limit", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("decided", ["at the view", "in a block"])
def test_a_failing_function_does_not_skip_the_edge(
    make: Maker, limit: tuple[dict[str, Any], int], decided: str
) -> None:
    """The application's limits are charged, and deny as they deny any other request."""
    options, status = limit
    app, limiter = make(application_limits=["3/minute"])

    def view() -> str:
        return "ok"

    def view_with_block() -> str:
        with limiter.limit(**options):
            return "ok"

    limited = view_with_block if decided == "in a block" else limiter.limit(**options)(view)
    app.add_url_rule("/", "view", limited, methods=["POST"])
    app.add_url_rule("/other", "other", lambda: "ok")
    called = statuses(app, "/", 5, method="POST", data="x")
    assert called == [status] * 3 + [429] * 2
    assert statuses(app, "/other") == [429]


def test_an_estimate_that_fails_does_not_skip_the_edge(make: Maker) -> None:
    """Estimators are called like costs."""
    app, limiter = make(application_limits=["3/minute"])
    limiter.estimator("tokens")(unknown)
    app.add_url_rule("/", "view", limiter.limit("9 per day", unit="tokens")(lambda: "ok"))
    assert statuses(app, "/", 5) == [500] * 3 + [429] * 2


def test_the_answer_to_a_failed_request_tells_of_the_edge(make: Maker) -> None:
    """The request was charged, so the header shows it."""
    app, limiter = make(application_limits=["3/minute"])
    app.add_url_rule(
        "/",
        "view",
        limiter.limit("100/minute", cost=number_of_texts)(lambda: "ok"),
        methods=["POST"],
    )
    answer = app.test_client().post("/", data="x")
    assert answer.headers["RateLimit"].startswith('"3-per-60s";r=2;')


def test_a_failing_function_of_the_edge_itself_is_left_out_there(make: Maker) -> None:
    """The other limits of the application go on."""
    app, _ = make(application_limits=["3/minute", unknown])
    app.add_url_rule("/", "view", lambda: "ok")
    assert statuses(app, "/", 5) == [500] * 3 + [429] * 2


def test_a_request_whose_functions_fail_is_one_call_of_the_storage(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is a request without failures."""
    app, limiter = make(application_limits=["3/minute"])
    app.add_url_rule(
        "/",
        "view",
        limiter.limit("100/minute", cost=number_of_texts)(lambda: "ok"),
        methods=["POST"],
    )
    calls: list[object] = []
    admit = MemoryEngine.admit
    monkeypatch.setattr(
        MemoryEngine, "admit", lambda *args, **kw: calls.append(args) or admit(*args, **kw)
    )
    client = app.test_client()
    assert client.post("/", data="x").status_code == 415
    assert len(calls) == 1
    assert client.post("/", json={"texts": ["one"]}).status_code == 200
    assert len(calls) == 2


def test_a_storage_that_failed_is_not_asked_again(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request waits for it once."""
    app, limiter = make(application_limits=["3/minute"])
    app.add_url_rule("/", "view", limiter.limit("100/minute")(lambda: "ok"))
    calls: list[object] = []

    def fails(*args: object, **_: object) -> None:
        calls.append(args)
        raise ConnectionError("gone")

    monkeypatch.setattr(MemoryEngine, "admit", fails)
    assert statuses(app) == [500]
    assert len(calls) == 1


@pytest.mark.parametrize("limit", FAILING.values(), ids=FAILING)
def test_where_errors_are_swallowed_the_failing_limit_alone_is_left_out(
    make: Maker, limit: tuple[dict[str, Any], int], caplog: pytest.LogCaptureFixture
) -> None:
    """The edge and the view's other limits hold, and the failure is logged with its trace."""
    options, _ = limit
    app, limiter = make(application_limits=["4/minute"], swallow_errors=True)
    view: Callable[[], str] = limiter.limit("3/minute")(limiter.limit(**options)(lambda: "ok"))
    app.add_url_rule("/", "view", view, methods=["POST"])
    app.add_url_rule("/other", "other", lambda: "ok")
    assert statuses(app, "/", 4, method="POST", data="x") == [200] * 3 + [429]
    assert statuses(app, "/other", 2) == [200, 429]
    records = caplog.records
    assert len(records) == 4
    assert {record.getMessage() for record in records} == {"Failed to rate limit. Swallowing error"}
    assert all(record.exc_info for record in records)


def test_a_configuration_error_keeps_the_edge(make: Maker) -> None:
    """An unknown plan is an error of the application, and the request still counts."""
    app, limiter = make(application_limits=["3/minute"])

    def plan() -> str:
        raise ConfigurationError("no such plan")

    app.add_url_rule("/", "view", limiter.limit(plan)(lambda: "ok"))
    assert statuses(app, "/", 5) == [500] * 3 + [429] * 2


@pytest.mark.parametrize("storage", ["memory", "redis"])
def test_the_edge_decided_early_is_charged_once(
    make: Maker, redis_server: Server, storage: str
) -> None:
    """The application's limits, before a body is read; the view's others with the view. A request
    that those deny takes nothing of the application's either."""
    uri = "memory://" if storage == "memory" else redis_server.uri
    edge = ApplicationLimit("4/minute", name="edge")
    app, limiter = make(application_limits=[edge], storage_uri=uri)
    entered = []

    @app.before_request
    def early() -> None:
        limiter.current.admit_edge()
        entered.append(request.path)

    def two() -> str:
        assert limiter.current.verdict("edge") is not None
        return "ok"

    app.add_url_rule("/two", "two", limiter.limit("2/minute")(two))
    app.add_url_rule("/free", "free", lambda: "ok")
    assert statuses(app, "/two", 3) == [200, 200, 429]
    assert statuses(app, "/free", 4) == [200, 200, 429, 429]
    assert entered == ["/two"] * 3 + ["/free"] * 2


def test_an_override_ends_although_it_was_read_amid_a_request(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the thread that reads them: what is kept of a caller is without it."""
    app, limiter = make()
    app.add_url_rule("/", "view", limiter.limit("1/minute", name="pace")(lambda: "ok"))
    original = charges.bucket_key

    def read(*parts: str) -> str:
        limiter.operators.override("pace", "someone", "9/minute")
        return original(*parts)

    monkeypatch.setattr(charges, "bucket_key", read)
    assert statuses(app) == [200]
    with app.app_context():
        assert limiter.operators.clear_override("pace", "someone")
    assert statuses(app) == [429]


def test_an_override_concerns_one_caller(make: Maker) -> None:
    """The charges of others are kept as without it, and each caller is asked for once."""
    asked: list[str] = []

    def caller() -> str:
        asked.append(request.headers["X-Key"])
        return asked[-1]

    app, limiter = make(key_func=caller)
    app.add_url_rule("/", "view", limiter.limit("1/minute", name="pace")(lambda: "ok"))
    with app.app_context():
        limiter.operators.override("pace", "ann", "2/minute")
    answers = {name: statuses(app, "/", 3, headers={"X-Key": name}) for name in ("ann", "bob")}
    assert answers == {"ann": [200, 200, 429], "bob": [200, 429, 429]}
    assert asked == ["ann"] * 3 + ["bob"] * 3
    kept: Any = limiter._components.admission.charges._of_names
    assert kept.cache_info()[:2] == (2, 1)


def test_an_exemption_is_asked_at_each_request(make: Maker) -> None:
    """Also of a caller who has been admitted and denied before."""
    app, limiter = make()
    answers = [False, False, True, False]
    limit = limiter.limit("1/minute", exempt_when=lambda: answers.pop(0))
    app.add_url_rule("/", "view", limit(lambda: "ok"))
    assert statuses(app, "/", 4) == [200, 429, 200, 429]
