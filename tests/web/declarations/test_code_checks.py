"""Mistakes in a program are found with what was probably meant, most of them before any request."""

import logging
import re
from collections.abc import Callable
from typing import Any

import flask_limiter
import limits.errors
import pytest
from flask import Blueprint, Flask

from ratelimit_ext import ApplicationLimit, ConfigurationError, Limit, Limiter
from tests.web.calls import serve, statuses
from tests.web.conftest import Maker, asked_key, root


def test_a_number_as_a_scope(make: Maker) -> None:
    """Is an error of a decorator and of a default limit. In a block, it may come from the path."""
    app, limiter = make()
    message = r"limit '1/minute', scope: found 5 \(a whole number\); allowed: a text, or a function"
    for limit in (limiter.limit("1/minute", scope=5), limiter.shared_limit("1/minute", scope=5)):
        with pytest.raises(ConfigurationError, match=message):
            limit(asked_key)
    with pytest.raises(ConfigurationError, match=message):
        make(default_limits=[Limit("1/minute", scope=5)])

    @app.get("/<int:number>")
    def view(number: int) -> str:
        with limiter.limit("1/minute", scope=number):
            return "ok"

    assert statuses(app, "/1", 2) + statuses(app, "/2", 2) == [200, 429, 200, 429]


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("RATELIMIT_DEFUALT", "5/minute", "Did you mean 'RATELIMIT_DEFAULT'?"),
        ("RATELIMIT_STORAGE_URL", "x", "Did you mean 'RATELIMIT_STORAGE_URI'?"),
        ("RATELIMIT_POLICY_FLIE", "x", "Did you mean 'RATELIMIT_POLICY_FILE'?"),
        ("RATELIMIT_DEFAULT_LIMITS", "x", "Did you mean 'RATELIMIT_DEFAULT'?"),
        ("RATELIMIT_ENABLED", "false", "found 'false' (a string), which Python takes for true"),
    ],
)
def test_a_setting_that_flask_limiter_ignores(
    make: Maker, caplog: pytest.LogCaptureFixture, name: str, found: str, message: str
) -> None:
    """May be the application's own: an error in the log, once. With `strict` it stops the start."""
    app, _ = make(default_limits=["1/minute"], config={name: found})
    app.get("/")(asked_key)
    assert statuses(app, times=2) == [200, 429]
    (logged,) = caplog.messages
    assert name in logged
    assert message in logged
    for strict in ({"strict": True}, {"config": {"RATELIMIT_STRICT": True}}):
        options = {**strict, "config": {name: found, **strict.get("config", {})}}
        with pytest.raises(ConfigurationError, match=re.escape(logged)):
            make(**options)
    make(strict=False, config={name: found, "RATELIMIT_STRICT": True})


def test_each_application_is_strict_by_its_own_setting() -> None:
    """The next one is not."""
    limiter = Limiter(asked_key, storage_uri="memory://")
    strict, lenient = Flask("strict"), Flask("lenient")
    strict.config["RATELIMIT_STRICT"] = True
    lenient.config["RATELIMIT_STORAGE_URL"] = "x"
    for app in (strict, lenient):
        limiter.init_app(app)
    strict.config["RATELIMIT_STORAGE_URL"] = "x"
    with pytest.raises(ConfigurationError, match="RATELIMIT_STORAGE_URI"):
        limiter.init_app(strict)


def test_a_switch_may_be_a_word_for_true(make: Maker) -> None:
    """As an environment variable has it. Flask-Limiter takes every other word for true, too."""
    app, limiter = make(config={"RATELIMIT_ENABLED": "True", "RATELIMIT_SWALLOW_ERRORS": "1"})
    with app.app_context():
        assert limiter.enabled


def test_a_limit_above_the_route_is_logged(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """At the first request of the view, which no limit reaches."""
    app, limiter = make(default_limits=["9/minute"])

    @limiter.limit("1/minute")
    @app.get("/")
    def index() -> str:
        return "ok"

    with caplog.at_level(logging.ERROR):
        assert statuses(app, times=3) == [200] * 3
    (record,) = caplog.records
    assert record.getMessage() == (
        "The limits of the view 'index' do not apply: its route got the function before "
        "they were added. Write @limiter.limit(…) below the route decorator."
    )


def test_limits_of_a_view_that_never_apply_are_logged(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a view: no route of it has a method of the limit, or the view is exempt. A limit that
    views share may be for others of them, and a view may have several routes."""
    app, limiter = make()

    def view(name: str) -> Callable[[], str]:
        def named() -> str:
            return name

        named.__qualname__ = name
        return named

    posts = limiter.limit("1/minute", methods=["POST"])
    both = posts(view("both"))
    app.add_url_rule("/both", endpoint="reads", view_func=both)
    app.add_url_rule("/both", endpoint="writes", view_func=both, methods=["POST"])
    views = {
        "get": posts(view("get")),
        "free": limiter.exempt(limiter.limit("1/minute")(view("free"))),
        "shared": limiter.shared_limit("1/minute", "all", methods=["POST"])(view("shared")),
        "alone": limiter.exempt(view("alone")),
    }
    for name, function in views.items():
        app.add_url_rule(f"/{name}", endpoint=name, view_func=function)
    for path in (*views, "both"):
        assert statuses(app, f"/{path}", times=2) == [200, 200]
    assert [record.getMessage() for record in caplog.records] == [
        "A limit of the view 'get' does not apply: no route of it has one of its methods.",
        "The view 'free' is exempt, so its own limits do not apply. Remove one of the two.",
    ]


@pytest.mark.parametrize(
    ("extension", "expected"), [(flask_limiter.Limiter, [200] * 3), (Limiter, [200, 200, 429])]
)
def test_a_decorated_function_that_is_not_used_has_the_defaults(
    extension: type[flask_limiter.Limiter], expected: list[int]
) -> None:
    """`limiter.limit(…)(view)` changes no route. With Flask-Limiter, its view loses the default
    limits, too."""
    app = Flask("example")
    limiter = extension(asked_key, app=app, storage_uri="memory://", default_limits=["2/minute"])
    app.add_url_rule("/", view_func=asked_key)
    limiter.limit("1/minute")(asked_key)
    assert statuses(app, times=3) == expected


def test_a_function_may_have_a_route_with_limits_and_one_without(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """This is no mistake."""
    app, limiter = make()
    app.get("/free", endpoint="free")(asked_key)
    app.get("/limited", endpoint="limited")(limiter.limit("1/minute")(asked_key))
    with caplog.at_level(logging.ERROR):
        assert statuses(app, "/free", 2) + statuses(app, "/limited", 2) == [200, 200, 200, 429]
    assert not caplog.records


def test_two_extensions_with_one_storage_and_prefix_are_logged(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal limits of both would have one bucket, which each call is charged twice."""
    app, _ = make(storage_uri="redis://localhost:1")
    with caplog.at_level(logging.WARNING):
        Limiter(asked_key, app=app, storage_uri="redis://localhost:1", key_prefix="own")
        Limiter(asked_key, app=app, storage_uri="redis://localhost:2")
        Limiter(asked_key, app=app, storage_uri="memory://")
        assert not caplog.records
        Limiter(asked_key, app=app, storage_uri="redis://localhost:1")
    (record,) = caplog.records
    assert record.getMessage() == (
        "Two extensions of the application 'example' have one storage and the key prefix '': equal "
        "limits of both share their buckets. Give one of them a key_prefix."
    )


def test_views_of_one_name_in_one_module_have_their_own_limits(make: Maker) -> None:
    """In slowapi both have both limits, so each call counts twice."""
    app, limiter = make()

    @app.get("/home", endpoint="home")
    @limiter.limit("2/minute")
    def page() -> str:
        return "home"

    @app.get("/mars", endpoint="mars")
    @limiter.limit("3/minute")
    def page() -> str:  # noqa: F811 - the mistake
        return "mars"

    assert statuses(app, "/home", 3) == [200, 200, 429]
    assert statuses(app, "/mars", 4) == [200, 200, 200, 429]


def test_an_application_may_have_settings_with_the_prefix(make: Maker) -> None:
    """If they do not resemble a setting of the extension."""
    make(config={"RATELIMIT_TENANTS": 5, "RATE": "5/minute"})


def test_a_decorator_without_parentheses(make: Maker) -> None:
    """It would take the view for a limit function, and limit nothing."""
    app, limiter = make()

    @limiter.limit
    def view() -> str:
        return "ok"

    message = r"@limiter\.limit\(\"30/minute\"\), between the route decorator"
    with pytest.raises(ConfigurationError, match=message):
        app.get("/")(view)
    with pytest.raises(ConfigurationError, match=message):
        view()
    with pytest.raises(ConfigurationError, match=message):
        limiter.limit("5/minute")(view)


def test_limits_that_apply_together_have_different_names(make: Maker) -> None:
    """On a view, on a blueprint, and beside the application limits."""
    app, limiter = make(application_limits=[ApplicationLimit("50/minute", name="edge")])
    message = "found 'pace', which is also the name of '5/minute'"
    with pytest.raises(ConfigurationError, match=message):
        limiter.limit("9/hour", name="pace")(limiter.limit("5/minute", name="pace")(root))
    blueprint = Blueprint("chat", __name__)
    limiter.limit("5/minute", name="pace")(blueprint)
    with pytest.raises(ConfigurationError, match=message):
        limiter.limit("9/hour", name="pace")(blueprint)
    by_user = limiter.limit("5/minute", name="pace", key_func=lambda: "user")
    with pytest.raises(ConfigurationError, match=message):
        by_user(limiter.limit("5/minute", name="pace")(lambda: "by two keys"))
    with pytest.raises(ConfigurationError, match="'edge', which is also the name of '50/minute'"):
        limiter.limit("9/hour", name="edge")(lambda: "ok")
    with pytest.raises(ConfigurationError, match="'x', which is also the name of '1/day'"):
        make(default_limits=[Limit("1/day", name="x"), Limit("1/hour", name="x")])
    app.get("/")(limiter.limit("2/minute", name="pace")(other))
    assert statuses(app, times=3) == [200, 200, 429]


@pytest.mark.parametrize("place", ["default", "blueprint"])
def test_one_name_in_two_places_is_logged_once(
    make: Maker, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Which of them apply together is known at the first request: they share a bucket then."""
    app, limiter = make(default_limits=[Limit("5/minute", name="pace")])
    blueprint = Blueprint("chat", __name__)
    blueprint.get("/")(limiter.limit("3/minute", name="pace", override_defaults=False)(root))
    blueprint.get("/other")(limiter.limit("3/minute", name="pace")(other))
    if place == "blueprint":
        limiter.limit("5/minute", name="pace")(blueprint)
    app.register_blueprint(blueprint)
    assert statuses(app, "/other", times=4) == [200, 200, 200, 429]
    assert not [each for each in caplog.records if each.name == app.logger.name]
    assert statuses(app, times=2) == [200, 429]
    (logged,) = [each for each in caplog.records if each.name == app.logger.name]
    assert "have one name" in logged.getMessage()


def test_two_key_functions_in_one_bucket_are_logged_once(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """Both may return the same text, such as an address; a name tells the limits apart."""
    for name, admitted, logged in (("", 1, 1), ("key", 2, 0)):
        app, limiter = make()
        view = limiter.limit("2/minute", key_func=limiter.identities["ip"])(root)
        view = limiter.limit("2/minute", key_func=limiter.identities["api_key"], name=name)(view)
        app.get("/")(view)
        caplog.clear()
        assert statuses(app, times=3).count(200) == admitted
        warnings = [each for each in caplog.records if each.name == app.logger.name]
        assert ["different key functions" in each.getMessage() for each in warnings] == [
            True
        ] * logged


def test_a_repeated_limit_is_not_a_duplicate(make: Maker) -> None:
    """A function that makes views states the same limit for each."""
    app, limiter = make()

    def create(path: str) -> None:
        @limiter.limit("2/minute", name="pace", cost=lambda: 1)
        def view() -> str:
            return "ok"

        app.add_url_rule(path, path, view)

    create("/one")
    create("/two")


def other() -> str:
    return "ok"


def test_an_unknown_default_strategy_is_also_an_error_of_limits() -> None:
    """Programs that catch that one keep working."""
    with pytest.raises(limits.errors.ConfigurationError, match="fubar"):
        Limiter(asked_key, app=Flask(__name__), strategy="fubar")


# -- names of limits -------------------------------------------------------------------------------

Call = Callable[[Limiter], Any]


def warnings(make: Maker, caplog: pytest.LogCaptureFixture, call: Call) -> list[str]:
    """The warnings of an application whose view makes the call, in two requests."""
    app, limiter = make(application_limits=["1000/day"])

    @app.get("/")
    @limiter.limit("unless blocked", name="provider")
    @limiter.limit("as reported", name="quota", unit="tokens", cost=5)
    @limiter.limit("30/minute", name="pace")
    def view() -> str:
        call(limiter)
        return "ok"

    serve(
        app,
        limiter.limit("unless blocked", name="other switch"),
        limiter.limit("as reported", name="other quota", unit="requests"),
        path="/other",
        name="other_view",
    )
    assert statuses(app, times=2) == [200, 200]
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == app.logger.name and record.levelno == logging.WARNING
    ]


NAMES = "'other quota', 'other switch', 'pace', 'provider', 'quota'"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda limiter: limiter.current.admit_again("provder", "pace"),
            (
                f"admit_again has no effect: unknown limit 'provder'; allowed: {NAMES}. "
                "Did you mean 'provider'?"
            ),
        ),
        (
            lambda limiter: limiter.current.reservation.block("pace", for_s=1),
            (
                "reservation.block has no effect: unknown 'unless blocked' limit 'pace'; allowed: "
                "'other switch', 'provider'."
            ),
        ),
        (
            lambda limiter: limiter.current.reservation.report(
                "token", amount=5, used=1, period_s=60
            ),
            (
                "reservation.report has no effect: unknown unit 'token'; allowed: 'requests', "
                "'tokens'. Did you mean 'tokens'?"
            ),
        ),
        (
            lambda limiter: limiter.settle(usd="0.01"),
            (
                "limiter.settle has no effect: no limit of the application counts usd. Add one, "
                'such as @limiter.limit("90000/minute", unit="tokens"), or remove the call.'
            ),
        ),
    ],
    ids=["admit_again", "block", "report", "settle"],
)
def test_an_unknown_name_is_logged_once(
    make: Maker, caplog: pytest.LogCaptureFixture, call: Call, message: str
) -> None:
    """The call has no effect, since a policy may lack the limit; it may also be a misspelling."""
    assert warnings(make, caplog, call) == [message]


def test_each_unknown_name_is_logged(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Of several in one call."""
    logged = warnings(make, caplog, lambda limiter: limiter.current.admit_again("nope", "provder"))
    assert len(logged) == 2


def elsewhere(limiter: Limiter) -> None:
    assert limiter.current.admit_again("other switch", "provider") is None
    assert limiter.current.admit_again("other quota") is None
    limiter.current.reservation.block("other switch", for_s=1)
    limiter.current.reservation.report("requests", amount=5, used=1, period_s=60)
    limiter.current.reservation.report("tokens", amount=500, used=1, period_s=60)
    limiter.settle(tokens=None)  # the provider reports none: it stays at the estimate
    limiter.settle(tokens=5, usd="0.01")  # all that the provider reports


def test_a_name_of_another_view_is_known(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Views may share code that refers to the limits of all of them."""
    assert warnings(make, caplog, elsewhere) == []


def test_there_is_no_warning_without_limits_of_that_kind(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may block and report in an application that has no such limits."""
    app, limiter = make(application_limits=["1000/day"])

    @app.get("/")
    @limiter.limit("30/minute")
    def view() -> str:
        assert limiter.current.admit_again("provider") is None
        limiter.current.reservation.block("provider", for_s=1)
        limiter.current.reservation.report("requests", amount=5, used=1, period_s=60)
        return "ok"

    assert statuses(app, times=2) == [200, 200]
    assert [record.getMessage() for record in caplog.records] == []


def test_a_limit_that_is_a_function_is_suggested_for_nothing(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    """It may return any string, so it may be the limit that is meant, but is not offered as one."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit(lambda: "30/minute", name="pace")
    def view() -> str:
        limiter.current.reservation.block("provider", for_s=1)
        limiter.current.reservation.block("pace", for_s=1)
        limiter.current.reservation.report("tokens", amount=5, used=1, period_s=60)
        return "ok"

    assert statuses(app, times=2) == [200, 200]
    assert [record.getMessage() for record in caplog.records] == []


def test_peek_at_an_unknown_endpoint_is_an_error(make: Maker) -> None:
    """Which lists the endpoints."""
    app, limiter = make()
    app.add_url_rule("/", "answers", lambda: "ok")
    with (
        app.test_request_context("/"),
        pytest.raises(ValueError, match=r"endpoint 'answer'; .*: 'answers'. Did you mean 'ans"),
    ):
        limiter.current.peek("answer")
