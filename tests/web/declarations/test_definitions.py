"""Limits as written on views, blueprints, classes and blocks, with every keyword."""

from typing import Any

import pytest
from flask import Blueprint, Flask, Response, current_app, request
from flask.views import MethodView, View

from ratelimit_ext import ApplicationLimit, Limit, Limiter, RateLimitExceeded, RouteLimit
from tests.clocks import Clock
from tests.web.calls import second, serve, statuses
from tests.web.conftest import Maker, root


def test_a_view_without_decorators_has_the_default_limits(make: Maker) -> None:
    """Each endpoint has a bucket of its own."""
    app, _ = make(default_limits=["2/minute"])
    app.add_url_rule("/", "one", root)
    app.add_url_rule("/two", "two", root)
    assert statuses(app, "/", 3) == [200, 200, 429]
    assert statuses(app, "/two", 3) == [200, 200, 429]


def test_a_decorated_view_has_its_own_limit_instead_of_the_defaults(make: Maker) -> None:
    """Or beside them, with `override_defaults=False`."""
    app, limiter = make(default_limits=["1/minute"])
    app.get("/own")(limiter.limit("2/minute")(lambda: "ok"))
    serve(app, limiter.limit("2/minute", override_defaults=False), path="/both")
    assert statuses(app, "/own", 3) == [200, 200, 429]
    assert statuses(app, "/both", 2) == [200, 429]


def test_a_blueprints_limit_is_counted_for_each_of_its_views(make: Maker) -> None:
    """In a bucket for each; views of other blueprints are not limited."""
    app, limiter = make()
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.add_url_rule("/one", "one", root)
    blueprint.add_url_rule("/two", "two", root)
    limiter.limit("1/minute")(blueprint)
    app.register_blueprint(blueprint)
    app.get("/")(root)
    assert statuses(app, "/chat/one", 2) == [200, 429]
    assert statuses(app, "/chat/two", 2) == [200, 429]
    assert statuses(app, "/", 3) == [200] * 3


def test_a_shared_limit_is_one_bucket_for_its_scope(make: Maker) -> None:
    """For views and blueprints; another scope is another bucket."""
    app, limiter = make()
    models = limiter.shared_limit("3/minute", scope="models")
    app.get("/a", endpoint="a")(models(root))
    app.get("/b", endpoint="b")(models(root))
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.get("/")(root)
    limiter.shared_limit("3/minute", scope="models")(blueprint)
    app.register_blueprint(blueprint)
    app.get("/other")(limiter.shared_limit("3/minute", scope="other")(lambda: "ok"))
    assert statuses(app, "/a") + statuses(app, "/b") + statuses(app, "/chat/") == [200] * 3
    assert statuses(app, "/a") + statuses(app, "/b") + statuses(app, "/chat/") == [429] * 3
    assert statuses(app, "/other") == [200]


def test_stacked_decorators_are_decided_together(make: Maker, clock: Clock) -> None:
    """Each limit is charged once per call and can deny."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/hour")
    @limiter.limit("2/minute")
    @limiter.limit("1/second")
    def stacked() -> Any:
        return {str(each.limit): each.remaining for each in limiter.current_limits}

    client = app.test_client()
    left = {"1 per 1 second": 0, "2 per 1 minute": 1, "5 per 1 hour": 4}
    assert client.get("/").json == left
    denied_by = []
    for wait_s in (0, 1, 1, 60, 1, 60, 1):
        clock.forward(wait_s)
        response = client.get("/")
        denied_by.append(response.json.get("limit"))
    second, minute, hour = left
    assert denied_by == [second, None, minute, None, None, None, hour]


def test_an_equal_default_limit_counts_once(make: Maker) -> None:
    """As in Flask-Limiter, so that a limit that is stated twice is not halved."""
    app, _ = make(default_limits=["2/minute", "2/minute"], application_limits=["9/day", "9/day"])
    app.add_url_rule("/", "root", root)
    client = app.test_client()
    shown = client.get("/").headers["RateLimit"]
    assert shown == '"9-per-86400s";r=8;t=86400, "2-per-60s";r=1;t=60'
    assert statuses(client, times=2) == [200, 429]


def test_a_view_class_takes_its_limits_from_its_decorators(make: Maker) -> None:
    """`per_method` gives each method its bucket; HEAD counts as GET."""
    app, limiter = make()

    class Resource(View):
        methods = ("GET", "POST")
        decorators = (limiter.limit("1/minute", per_method=True),)

        def dispatch_request(self) -> str:
            return request.method

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    assert statuses(app, method="GET", times=2) == [200, 429]
    assert statuses(app, method="HEAD") == [429]
    assert statuses(app, method="POST", times=2) == [200, 429]


def test_a_method_of_a_view_class_has_its_own_limit(make: Maker) -> None:
    """Other methods of the `MethodView` keep the defaults."""
    app, limiter = make(default_limits=["100/minute"])

    class Resource(MethodView):
        @limiter.limit("1/minute")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    assert statuses(app, method="GET", times=2) == [200, 429]
    assert statuses(app, method="POST", times=3) == [200] * 3


@pytest.mark.parametrize("place", ["default", "blueprint"])
def test_a_method_with_limits_changes_nothing_for_other_methods(make: Maker, place: str) -> None:
    """Neither is charged for the other, from the first request of a worker on."""
    app, limiter = make(default_limits=["1/minute"] if place == "default" else [])
    blueprint = Blueprint("items", "items")
    if place == "blueprint":
        limiter.limit("1/minute")(blueprint)

    class Resource(MethodView):
        @limiter.limit("3/minute")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    blueprint.add_url_rule("/", view_func=Resource.as_view("resource"))
    app.register_blueprint(blueprint)
    assert statuses(app, method="POST") == [200]
    assert statuses(app, method="HEAD") == [200]
    assert statuses(app, method="GET", times=3) == [200, 200, 429]
    assert statuses(app, method="POST") == [429]


def test_a_class_may_decorate_its_methods_at_each_request(make: Maker) -> None:
    """As Flask-RESTful does: from the second request on, the limit is known to override."""
    app, limiter = make(default_limits=["1/minute"])

    class Resource(MethodView):
        def dispatch_request(self) -> str:
            return str(limiter.limit("3/minute")(self.get)())

        def get(self) -> str:
            return "got"

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    assert statuses(app, times=4) == [200, 200, 200, 429]


def test_a_method_without_overriding_limits_is_charged_once(make: Maker) -> None:
    """To its own limit and to the blueprint's."""
    app, limiter = make()
    blueprint = Blueprint("items", "items")
    limiter.limit("2/minute")(blueprint)

    class Resource(View):
        @limiter.limit("5/minute", override_defaults=False)
        def dispatch_request(self) -> str:
            return "done"

    blueprint.add_url_rule("/", view_func=Resource.as_view("resource"))
    app.register_blueprint(blueprint)
    assert statuses(app, times=3) == [200, 200, 429]
    with app.test_request_context("/"):
        left = [limit.remaining for limit in limiter.current.peek("items.resource")]
    assert left == [0, 3]


def test_a_block_of_a_view_can_be_limited(make: Maker) -> None:
    """Code before it runs; its refusal can be caught."""
    app, limiter = make()
    expensive = limiter.limit("1/minute")

    @app.get("/")
    def view() -> str:
        try:
            with expensive:
                return "expensive"
        except RateLimitExceeded as exceeded:
            return f"cheap: {exceeded.description}"

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["expensive", "cheap: 1 per 1 minute"]


def test_two_blocks_of_one_function_are_two_limits(make: Maker) -> None:
    """Each counts for itself, in any order."""
    app, limiter = make()

    @app.get("/<part>")
    def view(part: str) -> str:
        if part == "one":
            with limiter.limit("1/minute"):
                return part
        with limiter.limit("2/minute"):
            return part

    assert statuses(app, "/one", 2) == [200, 429]
    assert statuses(app, "/two", 3) == [200, 200, 429]


def test_a_decorated_function_that_a_view_calls_is_limited(make: Maker) -> None:
    """Not only views."""
    app, limiter = make()

    @limiter.limit("1/minute")
    def expensive() -> str:
        return "expensive"

    @app.get("/")
    def view() -> str:
        return expensive()

    assert statuses(app, times=2) == [200, 429]


def test_a_limit_function_is_called_at_each_request(make: Maker) -> None:
    """Each string that it returns is a limit with its own bucket."""
    app, limiter = make()
    app.get("/")(limiter.limit(lambda: request.headers.get("X-Limit", "1/minute"))(root))
    assert statuses(app, times=2) == [200, 429]
    assert statuses(app, headers={"X-Limit": "2/minute"}, times=3) == [200, 200, 429]
    assert statuses(app) == [429]


@pytest.mark.parametrize(("defaults", "answers"), [(["1/minute"], [200, 429]), ([], [200, 200])])
def test_a_limit_function_may_return_no_limit(
    make: Maker, defaults: list[str], answers: list[int]
) -> None:
    """Then the defaults apply, if there are any."""
    app, limiter = make(default_limits=defaults)
    app.get("/")(limiter.limit(lambda: request.headers.get("X-Limit", ""))(root))
    assert statuses(app, times=2) == answers
    assert statuses(app, headers={"X-Limit": "2/minute"}, times=3) == [200, 200, 429]


def test_a_limit_may_be_for_some_methods_only(make: Maker) -> None:
    """Other methods have the defaults."""
    app, limiter = make(default_limits=["2/minute"])
    app.route("/", methods=["GET", "POST"])(limiter.limit("1/minute", methods=["post"])(root))
    assert statuses(app, method="POST", times=2) == [200, 429]
    assert statuses(app, method="GET", times=3) == [200, 200, 429]


def test_a_limit_is_skipped_if_exempt_when_returns_true(make: Maker) -> None:
    """It is called at each request."""
    app, limiter = make()
    limit = limiter.limit("1/minute", exempt_when=lambda: "X-Internal" in request.headers)
    app.get("/")(limit(root))
    assert statuses(app, headers={"X-Internal": "1"}, times=3) == [200] * 3
    assert statuses(app, times=2) == [200, 429]


def test_deduct_when_can_refund_a_request(make: Maker) -> None:
    """It receives the response; headers state what remains afterwards."""
    app, limiter = make()

    @app.get("/<int:status>")
    @limiter.limit("2/minute", deduct_when=lambda response: response.status_code != 200)
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    client = app.test_client()
    assert statuses(client, "/200", 5) == [200] * 5
    assert client.get("/200").headers["X-RateLimit-Remaining"] == "2"
    assert client.get("/400").headers["X-RateLimit-Remaining"] == "1"
    assert statuses(client, "/400") + statuses(client, "/200") == [400, 429]


def test_callbacks_are_called_for_each_breach(make: Maker) -> None:
    """The extension's and the limit's; a returned response is sent."""
    calls = []

    def everywhere(breached: Any) -> None:
        calls.append(("everywhere", str(breached.limit), breached.breached))

    def here(breached: Any) -> Response:
        calls.append(("here", str(breached.limit), breached.remaining))
        return Response("gently", 429, {"X-Own": "yes"})

    app, limiter = make(on_breach=everywhere)
    app.get("/")(limiter.limit("1/minute", on_breach=here)(root))
    client = app.test_client()
    assert client.get("/").status_code == 200
    assert calls == []
    refusal = client.get("/")
    assert (refusal.status_code, refusal.text, refusal.headers["X-Own"]) == (429, "gently", "yes")
    assert refusal.headers["Retry-After"] == "60"
    assert calls == [("everywhere", "1 per 1 minute", True), ("here", "1 per 1 minute", 0)]


@pytest.mark.parametrize("message", ["Slow down!", lambda: "Slow down!"], ids=["text", "callable"])
def test_a_limit_may_have_an_error_message(make: Maker, message: Any) -> None:
    """It is the error of the response."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/minute", error_message=message)(root))
    assert second(app).json["error"] == "Slow down!"


@pytest.mark.parametrize(
    ("keywords", "admitted_at_once", "admitted_in_the_second_minute"),
    [
        ({"strategy": "token-bucket"}, 4, 4),
        ({"strategy": "token-bucket", "burst": 2}, 2, 2),
        ({"strategy": "sliding-window"}, 4, 4),
        ({"strategy": "moving-window"}, 4, 4),
        ({"strategy": "sliding-window-counter"}, 4, 0),
        ({"strategy": "fixed-window"}, 4, 4),
    ],
    ids=str,
)
def test_each_limit_may_have_its_strategy(
    make: Maker,
    clock: Clock,
    keywords: dict[str, Any],
    admitted_at_once: int,
    admitted_in_the_second_minute: int,
) -> None:
    """Limits of several strategies apply to one request."""
    app, limiter = make()
    serve(
        app,
        limiter.limit("1000/day", strategy="sliding-window"),
        limiter.limit("4/minute", **keywords),
    )
    assert statuses(app, times=6).count(200) == admitted_at_once
    clock.forward(60)
    assert statuses(app, times=6).count(200) == admitted_in_the_second_minute


def test_limits_with_different_strategies_are_different(make: Maker) -> None:
    """Both apply."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute", strategy="token-bucket")
    @limiter.limit("5/minute", strategy="fixed-window")
    def view() -> str:
        return str(len(limiter.current_limits))

    assert app.test_client().get("/").text == "2"


def test_definitions_take_the_keywords(make: Maker, clock: Clock) -> None:
    """`Limit`, `ApplicationLimit` and `RouteLimit`, as the decorator."""
    app, limiter = make(
        default_limits=[Limit("6/minute", strategy="token-bucket", burst=2, name="each")],
        application_limits=[ApplicationLimit("5/minute", strategy="sliding-window", name="all")],
    )
    app.get("/")(root)
    app.get("/own")(RouteLimit("3/minute", limiter=limiter, name="own")(lambda: "ok"))
    client = app.test_client()
    response = client.get("/")
    assert response.headers["RateLimit-Policy"] == '"all";q=5;w=60, "each";q=2;w=20'
    assert statuses(client, times=2) == [200, 429]
    policy = client.get("/own").headers["RateLimit-Policy"]
    assert policy == '"own";q=3;w=60, "all";q=5;w=60, "each";q=2;w=20'


def test_a_calendar_day_ends_in_its_time_zone(make: Maker, clock: Clock) -> None:
    """At 08:00 UTC, the day of Auckland ends in 3 hours and that of UTC in 16."""
    app, limiter = make()
    plan = limiter.limit(
        "1/day", strategy="fixed-window", anchor="day", timezone="Pacific/Auckland"
    )
    app.get("/")(plan(root))
    client = app.test_client()
    client.get("/")
    assert client.get("/").headers["Retry-After"] == str(3 * 3600)
    clock.forward(3 * 3600)
    assert client.get("/").status_code == 200


def test_an_async_view_can_be_limited(make: Maker) -> None:
    """It runs to its end."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("1/minute")
    async def view() -> str:
        return current_app.name

    assert statuses(app, times=2) == [200, 429]


def test_a_limit_can_be_defined_before_init_app() -> None:
    """The extension is attached later."""
    limiter = Limiter(lambda: "someone", storage_uri="memory://")
    view = limiter.limit("1/minute")(root)
    app = Flask("late")
    app.get("/")(view)
    limiter.init_app(app)
    assert statuses(app, times=2) == [200, 429]
