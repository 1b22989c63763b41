"""Bound limits: the methods they apply to, the cost of a call, and shadows."""

import math
from typing import Any

import pytest
from flask import Blueprint, request
from flask_limiter.util import get_qualified_name

from ratelimit_ext import Limit
from tests.clocks import Clock
from tests.web.calls import remaining, serve, statuses
from tests.web.conftest import Maker, root


def options() -> str:
    """A view for OPTIONS alone."""
    return "what is allowed here"


def test_head_is_counted_as_get(make: Maker) -> None:
    """A probe by HEAD uses up what GET has."""
    app, limiter = make()
    app.get("/")(limiter.limit("2/minute", methods=["GET"], per_method=True)(root))
    assert statuses(app, method="HEAD", times=2) == [200, 200]
    assert statuses(app, method="GET") == [429]


def test_options_is_free_unless_a_limit_names_it(make: Maker) -> None:
    """Preflights cost nothing, on automatic and on own OPTIONS, decorated or not."""
    app, limiter = make(application_limits=["3/minute"], default_limits=["2/minute"])
    app.route("/own", methods=["GET", "OPTIONS"], endpoint="own")(
        limiter.limit("1/minute")(lambda: "own")
    )
    app.get("/")(root)
    named = limiter.limit("1/minute", methods=["OPTIONS"])(options)
    app.add_url_rule("/named", "named", named, methods=["OPTIONS"])
    for path in ("/", "/own", "/nothing"):
        assert 429 not in statuses(app, path, 5, method="OPTIONS")
    assert statuses(app, "/own", 2) == [200, 429]
    assert statuses(app, "/named", 2, method="OPTIONS") == [200, 429]


def test_a_banned_client_gets_its_preflights(make: Maker) -> None:
    """OPTIONS is free of meta limits as well."""
    app, limiter = make(meta_limits=["1/day"])
    app.get("/")(limiter.limit("1/minute")(root))
    assert statuses(app, times=3) == [200, 429, 429]
    assert statuses(app, method="OPTIONS") == [200]


def test_a_cost_of_nothing_looks_without_taking(make: Maker) -> None:
    """It passes even if nothing is left, and its headers show what is left."""
    app, limiter = make()
    app.get("/")(limiter.limit("2/minute", cost=lambda: int(request.args["cost"]))(root))
    client = app.test_client()
    assert client.get("/?cost=0").headers["X-RateLimit-Remaining"] == "2"
    assert statuses(client, "/?cost=2") == [200]
    assert client.get("/?cost=0").headers["X-RateLimit-Remaining"] == "0"
    assert statuses(client, "/?cost=0") + statuses(client, "/?cost=1") == [200, 429]


def test_a_cost_may_be_fixed(make: Maker) -> None:
    """A cost of 0 is not taken for a missing one."""
    app, limiter = make()
    app.get("/", endpoint="two")(limiter.limit("4/minute", cost=2)(root))
    app.get("/free", endpoint="free")(limiter.limit("1/minute", cost=0)(lambda: "ok"))
    assert statuses(app, times=3) == [200, 200, 429]
    assert statuses(app, "/free", 3) == [200] * 3


def test_default_and_application_limits_have_costs(make: Maker) -> None:
    """Each by its own option."""
    app, _ = make(
        default_limits=["6/minute"],
        default_limits_cost=2,
        application_limits=["100/minute"],
        application_limits_cost=lambda: 25,
    )
    app.get("/")(root)
    client = app.test_client()
    response = client.get("/")
    assert response.headers["RateLimit"] == '"100-per-60s";r=75;t=60, "6-per-60s";r=4;t=60'


@pytest.mark.parametrize(
    "cost", [-1, math.nan, math.inf, 1.5, "3", b"1", True, None, [1]], ids=repr
)
def test_a_cost_that_is_none_is_an_error_that_names_the_limit(make: Maker, cost: Any) -> None:
    """Nothing is charged, and the error says what is allowed."""
    app, limiter = make()
    app.testing = True
    app.get("/")(limiter.limit("7/minute", cost=lambda: cost)(root))
    with pytest.raises(ValueError, match=r"'7 per 1 minute' is .*whole number from 0 up"):
        app.test_client().get("/")
    assert remaining(app, limiter, "root") == {"": 7}


def test_a_whole_float_is_a_cost(make: Maker) -> None:
    """An estimate that was divided is often one."""
    app, limiter = make()
    app.get("/")(limiter.limit("4/minute", cost=lambda: 8 / 4)(root))
    assert statuses(app, times=3) == [200, 200, 429]


def test_a_cost_above_the_capacity_is_refused_for_good(make: Maker) -> None:
    """400 and not 429: waiting does not help. Nothing is charged, and no Retry-After lies."""
    app, limiter = make()
    limit = limiter.limit(
        "60/minute", strategy="token-bucket", burst=5, cost=lambda: int(request.args["cost"])
    )
    app.get("/")(limit(root))
    client = app.test_client()
    response = client.get("/?cost=6")
    assert response.status_code == 400
    assert response.json == {
        "error": "This request costs 6 requests, and the limit '60-per-60s' never allows more "
        "than 5 at once. Make the request smaller.",
        "code": "request_too_large",
        "limit": "60 per 1 minute, 5 at once",
        "policy": "60-per-60s",
        "cost": 6,
        "capacity": 5,
    }
    assert "Retry-After" not in response.headers
    assert "retry-after-ms" not in response.headers
    assert client.get("/?cost=0").headers["X-RateLimit-Remaining"] == "5"
    assert statuses(client, "/?cost=5") == [200]


def test_a_shadow_is_counted_and_never_enforced(make: Maker, clock: Clock) -> None:
    """It never denies, is in no header, and counts what it would have admitted."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute")
    @limiter.limit("2/minute", mode="shadow", name="planned")
    def view() -> str:
        return ", ".join(str(each.limit) for each in limiter.current_limits)

    client = app.test_client()
    for _ in range(5):
        response = client.get("/")
        assert (response.status_code, response.text) == (200, "5 per 1 minute")
        assert "planned" not in response.headers["RateLimit"]
        assert "planned" not in response.headers["RateLimit-Policy"]
        assert response.headers["X-RateLimit-Limit"] == "5"
    assert client.get("/").status_code == 429

    [shadow] = [
        limit.limit
        for limit in limiter.limit_manager.decorated_limits(get_qualified_name(view))
        if limit.limit.amount == 2
    ]
    assert limiter.limiter.get_window_stats(shadow, "someone", "view").remaining == 0


def test_a_shadow_is_not_charged_for_a_request_that_another_limit_denies(make: Maker) -> None:
    """It counts as it would if it were enforced."""
    app, limiter = make()
    blueprint = Blueprint("chat", "chat")
    blueprint.get("/")(root)
    limiter.limit("3/hour", mode="shadow")(blueprint)
    limiter.limit("1/minute")(blueprint)
    app.register_blueprint(blueprint)
    assert statuses(app, times=5) == [200] + [429] * 4
    with app.test_request_context():
        [shadow] = [
            limit.limit
            for limit in limiter.limit_manager.blueprint_limits(app, "chat")
            if limit.limit.amount == 3
        ]
    assert limiter.limiter.get_window_stats(shadow, "someone", "chat.root").remaining == 2


def test_a_shadow_too_small_for_a_cost_refuses_nothing(make: Maker) -> None:
    """A cost above a shadow's capacity passes."""
    app, _ = make(default_limits=[Limit("2/minute", mode="shadow", cost=3), "5/minute"])
    app.get("/")(root)
    assert statuses(app, times=2) == [200, 200]


def test_an_empty_identity_skips_the_limit_and_says_so(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """As in Flask-Limiter. The application's log says so, once for each limit: a library's may have
    no handler."""
    app, limiter = make(key_func=lambda: request.headers.get("X-Key", ""))
    app.get("/")(limiter.limit("1/minute")(root))
    assert statuses(app, times=2) == [200, 200]
    [record] = [each for each in caplog.records if each.name == app.logger.name]
    assert record.getMessage().startswith("The limit 1 per 1 minute does not count this caller")
    assert statuses(app, headers={"X-Key": "one"}, times=2) == [200, 429]


def test_an_identity_may_be_the_number_0(make: Maker) -> None:
    """Such as the id of a user."""
    app, limiter = make()

    @app.get("/<int:user>")
    @limiter.limit("1/minute", key_func=lambda: request.view_args["user"])
    def view(user: int) -> str:
        return str(user)

    assert statuses(app, "/0", times=2) == [200, 429]
    assert statuses(app, "/1", times=2) == [200, 429]


def test_one_bucket_twice_in_a_request_is_charged_twice(make: Maker) -> None:
    """Two definitions that name the same bucket cost the sum, and no charge is lost."""
    app, limiter = make()
    serve(
        app,
        limiter.shared_limit("5/minute", scope="all", name="one"),
        limiter.shared_limit("5/minute", scope="all", name="one", cost=2),
    )
    assert statuses(app, times=2) == [200, 429]
