"""Routes: what is compiled once, and what is asked at each request."""

from flask import request

from ratelimit_ext.web.request.resolver import MOST_ROUTES
from tests.web.calls import statuses
from tests.web.conftest import Maker, root


def test_methods_and_paths_that_clients_invent_take_no_room(make: Maker) -> None:
    """The number of compiled routes is bounded."""
    app, limiter = make(
        application_limits=["1000000/minute"], request_identifier=lambda: request.path
    )
    app.get("/")(root)
    client = app.test_client()
    for number in range(MOST_ROUTES + 20):
        client.open(f"/{number}", method=f"M{number}")
    assert len(limiter._components.resolver._routes) <= MOST_ROUTES


def test_a_limit_that_is_added_later_applies(make: Maker) -> None:
    """After the first request, too: routes are compiled again."""
    app, limiter = make()
    view = limiter.limit("9/minute")(root)
    app.get("/")(view)
    assert statuses(app, times=3) == [200] * 3
    limiter.limit("1/minute")(view)
    assert statuses(app, times=2) == [200, 429]


def test_a_scope_is_asked_at_each_request(make: Maker) -> None:
    """A callable that is given the endpoint, and may look at the request."""
    asked = []

    def scope(endpoint: str) -> str:
        asked.append(endpoint)
        return request.args["tenant"]

    app, limiter = make()
    app.get("/", endpoint="chat")(limiter.shared_limit("1/minute", scope=scope)(root))
    assert statuses(app, "/?tenant=a", 2) + statuses(app, "/?tenant=b", 2) == [200, 429] * 2
    assert set(asked) == {"chat"}


def test_a_dynamic_limits_answers_are_not_confused(make: Maker) -> None:
    """More answers than are kept prepared, each with its amount."""
    app, limiter = make()
    app.get("/")(limiter.limit(lambda: f"{request.args['n']}/minute")(root))
    client = app.test_client()
    for number in (*range(1, 600), *range(1, 600)):
        response = client.get(f"/?n={number}", headers={"X-Key": str(number)})
        assert response.headers["X-RateLimit-Limit"] == str(number)


def test_a_dynamic_meta_limit_is_asked_at_each_request(make: Maker) -> None:
    """The extension's and a limit's own."""
    app, limiter = make(meta_limits=[lambda: request.headers.get("X-Bans", "9/hour")])
    app.get("/", endpoint="one")(limiter.limit("1/minute")(root))
    own = limiter.limit(
        "1/minute", meta_limits=[lambda: request.headers.get("X-Own", "9/hour")], scope="own"
    )
    app.get("/own", endpoint="two")(own(lambda: "ok"))
    client = app.test_client()

    def banned_by(path: str, **headers: str) -> str:
        return str((client.get(path, headers=headers).json or {}).get("limit"))

    client.get("/")
    assert banned_by("/") == "1 per 1 minute"
    assert banned_by("/", **{"X-Bans": "1/day"}) == "1 per 1 minute"
    assert banned_by("/", **{"X-Bans": "1/day"}) == "1 per 1 day"
    assert banned_by("/") == "1 per 1 minute"
    client.get("/own")
    assert banned_by("/own", **{"X-Own": "1/month"}) == "1 per 1 minute"
    assert banned_by("/own", **{"X-Own": "1/month"}) == "1 per 1 month"
    assert banned_by("/own") == "1 per 1 minute"
