"""The headers of an answer, to the letter."""

from email.utils import parsedate_to_datetime
from typing import Any

import http_sf
import pytest
from flask import Response, request
from flask_limiter import HeaderNames
from werkzeug.http import http_date

from ratelimit_ext import Limiter, RequestLimit
from tests.clocks import Clock
from tests.servers import Server
from tests.web.calls import second, serve, statuses
from tests.web.conftest import Maker, root

NOW = 1_800_000_000


def limit_headers(response: Any) -> dict[str, str]:
    """The headers that we write, and no others."""
    own = ("ratelimit", "retry", "x-ratelimit", "x-should", "cache-control", "access-control")
    return {name: value for name, value in response.headers if name.lower().startswith(own)}


def test_an_admitted_answer_names_every_limit(make: Maker, clock: Clock) -> None:
    """The IETF fields have them all; the X-RateLimit fields the one nearest to exhaustion, and a
    token bucket's quota is its burst over the time in which that refills."""
    app, limiter = make(application_limits=["1000/day"])
    serve(
        app,
        limiter.limit("100/hour", strategy="sliding-window", name="plan"),
        limiter.limit("30/minute", strategy="token-bucket", burst=10),
    )
    client = app.test_client()
    client.get("/")
    clock.forward(1)
    assert limit_headers(client.get("/")) == {
        "RateLimit-Policy": '"30-per-60s";q=10;w=20, "plan";q=100;w=3600, "1000-per-86400s"'
        ";q=1000;w=86400",
        "RateLimit": '"30-per-60s";r=8;t=1, "plan";r=98;t=3599, "1000-per-86400s";r=998;t=86399',
        "X-RateLimit-Limit": "10",
        "X-RateLimit-Remaining": "8",
        "X-RateLimit-Reset": str(NOW + 5),
    }


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("0/minute", {}),
        ("0/minute", {"strategy": "token-bucket", "burst": 5}),
        ("0/minute", {"strategy": "sliding-window"}),
        ("0/minute", {"strategy": "sliding-window-counter"}),
        ("0 usd/minute", {}),
        ("0/minute", {"unit": "tokens", "on_failure": "open"}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("storage", ["memory", "redis", "down"])
def test_an_amount_of_zero_denies_without_a_wait(
    make: Maker, redis_server: Server, storage: str, text: str, options: dict[str, Any]
) -> None:
    """429 as in Flask-Limiter, and no Retry-After: no wait is enough. Also during an outage."""
    uri = {"memory": "memory://", "redis": redis_server.uri, "down": "redis://127.0.0.1:1"}[storage]
    app, limiter = make(storage_uri=uri)
    app.get("/")(limiter.limit(text, name="nothing", **options)(root))
    for _ in range(3):
        answer = app.test_client().get("/")
        assert answer.status_code == 429
        assert answer.json["error"].startswith("Rate limit 'nothing' exceeded: 0 ")
        assert "Try again" not in answer.json["error"]
        assert (answer.json["remaining"], answer.json.get("retry_after")) == (0, None)
        headers = limit_headers(answer)
        assert headers["RateLimit-Policy"].startswith('"nothing";q=0;w=60')
        assert headers["RateLimit"] == '"nothing";r=0'
        assert headers["X-RateLimit-Remaining"] == "0"
        assert headers["x-should-retry"] == "false"
        assert not {"Retry-After", "retry-after-ms"} & headers.keys()


def test_calls_in_flight_are_no_limit_that_is_used_up(make: Maker, clock: Clock) -> None:
    """The place of the call that is answered is free again: the next one may come at once. A
    refusal is about them, and where there is nothing else they are what there is."""
    app, limiter = make()
    slots = limiter.limit("1 in flight", name="slots")
    app.get("/")(limiter.limit("30/minute")(slots(root)))
    serve(app, limiter.limit("1 in flight", name="only"), path="/only")
    client = app.test_client()
    answer = client.get("/")
    assert (answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Remaining"]) == (
        "30",
        "29",
    )
    assert '"slots";r=0' in answer.headers["RateLimit"]
    assert client.get("/only").headers["X-RateLimit-Limit"] == "1"
    with app.test_request_context("/"):
        app.view_functions["root"]()  # and is not over yet
        assert client.get("/").headers["X-RateLimit-Limit"] == "1"


def test_a_refusal_says_how_long_to_wait(make: Maker, clock: Clock) -> None:
    """In whole seconds rounded up, and in milliseconds; and it is never cached."""
    app, limiter = make()
    limit = limiter.limit("40/minute", strategy="token-bucket", burst=1)
    app.get("/")(limit(root))
    client = app.test_client()
    client.get("/")
    clock.forward(0.25)
    assert limit_headers(client.get("/")) == {
        "RateLimit-Policy": '"40-per-60s";q=1;w=2',
        "RateLimit": '"40-per-60s";r=0;t=2',
        "X-RateLimit-Limit": "1",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(NOW + 2),
        "Retry-After": "2",
        "retry-after-ms": "1250",
        "Cache-Control": "no-store",
    }


@pytest.mark.parametrize(
    ("period", "should_retry"), [("60 seconds", None), ("61 seconds", "false")]
)
def test_above_a_minute_a_client_is_told_not_to_wait(
    make: Maker, clock: Clock, period: str, should_retry: str | None
) -> None:
    """`x-should-retry: false` is sent for waits above 60 s: SDKs would sleep, or retry at once."""
    app, limiter = make()
    app.get("/")(limiter.limit(f"1/{period}")(root))
    client = app.test_client()
    assert "x-should-retry" not in client.get("/").headers
    assert client.get("/").headers.get("x-should-retry") == should_retry


def test_several_denials_tell_the_longest_wait(make: Maker, clock: Clock) -> None:
    """A client that waited for the shorter one would be denied again."""
    app, limiter = make()
    serve(app, limiter.limit("1/minute"), limiter.limit("1/hour", name="slow"))
    client = app.test_client()
    client.get("/")
    refusal = client.get("/")
    assert refusal.headers["Retry-After"] == "3600"
    assert refusal.headers["X-RateLimit-Reset"] == str(NOW + 3601)
    assert refusal.headers["RateLimit"] == '"slow";r=0;t=3600, "1-per-60s";r=0;t=60'


def test_a_limit_that_did_not_deny_tells_its_uncharged_remaining(make: Maker, clock: Clock) -> None:
    """A denied request took nothing from it."""
    app, limiter = make()
    serve(app, limiter.limit("1/minute"), limiter.limit("10/hour"))
    client = app.test_client()
    assert statuses(client, times=4) == [200, 429, 429, 429]
    shown = client.get("/").headers["RateLimit"]
    assert shown == '"10-per-3600s";r=9;t=3600, "1-per-60s";r=0;t=60'


def test_retry_after_may_be_a_date(make: Maker, clock: Clock) -> None:
    """`retry_after="http-date"` writes the first whole second at which the wait is over; the
    milliseconds stay a number."""
    app, limiter = make(retry_after="http-date")
    app.get("/")(limiter.limit("1/second")(root))
    client = app.test_client()
    clock.forward(0.9)
    client.get("/")
    clock.forward(0.05)
    response = client.get("/")
    assert response.headers["retry-after-ms"] == "950"
    assert response.headers["Retry-After"].endswith(" GMT")
    instant = parsedate_to_datetime(response.headers["Retry-After"])
    clock.forward(instant.timestamp() - clock.now_s)
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("own", "wait"),
    [
        ("300", 300),
        (http_date(NOW + 300), 300),
        ("20", 60),
        (http_date(NOW + 20), 60),
        ("soon", 60),
    ],
)
def test_the_longer_retry_after_stays(make: Maker, clock: Clock, own: str, wait: int) -> None:
    """An error handler of the application may know a longer wait; all headers say the same."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/minute")(root))

    @app.errorhandler(429)
    def refuse(error: object) -> Response:
        return Response("wait", 429, {"Retry-After": own})

    headers = second(app).headers
    assert headers.getlist("Retry-After") == [str(wait)]
    assert headers.getlist("retry-after-ms") == [str(wait * 1000)]
    assert headers.get("x-should-retry") == ("false" if wait > 60 else None)


def test_a_wait_of_years_is_exact(make: Maker, clock: Clock) -> None:
    """Only a block may have no known end."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/2 years")(root))
    refusal = second(app)
    assert refusal.headers["Retry-After"] == "62208000"
    assert refusal.headers["retry-after-ms"] == "62208000000"
    assert refusal.json["retry_after"] == 62_208_000


def test_headers_have_the_names_that_were_chosen(make: Maker, clock: Clock) -> None:
    """By option or by configuration, as in Flask-Limiter."""
    names = {
        HeaderNames.LIMIT: "X-Limit",
        HeaderNames.REMAINING: "X-Left",
        HeaderNames.RESET: "X-Reset",
        HeaderNames.RETRY_AFTER: "X-Wait",
    }
    by_config = {
        "RATELIMIT_HEADER_LIMIT": "X-Limit",
        "RATELIMIT_HEADER_REMAINING": "X-Left",
        "RATELIMIT_HEADER_RESET": "X-Reset",
        "RATELIMIT_HEADER_RETRY_AFTER": "X-Wait",
    }
    for given in ({"header_name_mapping": names}, {"config": by_config}):
        app, limiter = make(**given)
        app.get("/")(limiter.limit("1/minute")(root))
        headers = second(app).headers
        shown = [headers[name] for name in ("X-Limit", "X-Left", "X-Reset", "X-Wait")]
        assert shown == ["1", "0", str(NOW + 61), "60"]


def test_scripts_of_allowed_origins_can_read_the_headers(make: Maker) -> None:
    """Where the application allows an origin, the names are exposed beside its own."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute")
    def view() -> Response:
        return Response(
            "ok",
            headers={"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "X-Own"},
        )

    app.get("/closed", endpoint="closed")(limiter.limit("5/minute")(root))
    client = app.test_client()
    exposed = client.get("/").headers["Access-Control-Expose-Headers"].split(", ")
    assert exposed[0] == "X-Own"
    written = {name for name, _ in client.get("/").headers if "ratelimit" in name.lower()}
    assert written <= set(exposed)
    assert {"Retry-After", "retry-after-ms", "x-should-retry"} <= set(exposed)
    assert "Access-Control-Expose-Headers" not in client.get("/closed").headers


def test_a_later_hook_may_allow_the_origin(make: Maker) -> None:
    """One that was registered before the extension, such as that of Flask-CORS, is called after
    it. Then the names are exposed if the request has an origin."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/minute")(root))
    client = app.test_client()
    assert "Access-Control-Expose-Headers" not in client.get("/").headers
    refusal = client.get("/", headers={"Origin": "https://app.example"})
    assert "retry-after-ms" in refusal.headers["Access-Control-Expose-Headers"].split(", ")


def test_without_headers_a_refusal_still_says_when(make: Maker) -> None:
    """`headers_enabled=False` leaves the rate's headers out, never Retry-After."""
    app, limiter = make(headers_enabled=False)
    app.get("/")(limiter.limit("1/minute")(root))
    client = app.test_client()
    assert limit_headers(client.get("/")) == {}
    assert set(limit_headers(client.get("/"))) == {"Retry-After", "retry-after-ms", "Cache-Control"}


def test_an_answer_without_limits_has_no_headers(make: Maker) -> None:
    """Nor has one whose limits were all skipped."""
    app, limiter = make()
    app.get("/")(root)
    app.get("/skipped")(limiter.limit("1/minute", exempt_when=lambda: True)(lambda: "ok"))
    for path in ("/", "/skipped", "/nothing"):
        assert limit_headers(app.test_client().get(path)) == {}


def test_an_admitted_answer_is_cached_as_the_view_says(make: Maker) -> None:
    """`no-store` is for refusals."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("1/minute")
    def view() -> tuple[str, dict[str, str]]:
        return "ok", {"Cache-Control": "max-age=60"}

    client = app.test_client()
    assert client.get("/").headers.getlist("Cache-Control") == ["max-age=60"]
    assert client.get("/").headers.getlist("Cache-Control") == ["no-store"]


def test_two_extensions_name_their_limits_in_one_list(make: Maker) -> None:
    """Lines of one field are one list, by the rules of HTTP."""
    app, first = make()
    second = Limiter(lambda: "someone", app=app, storage_uri="memory://", headers_enabled=True)
    serve(app, first.limit("5/minute", name="first"), second.limit("7/minute", name="second"))
    named = app.test_client().get("/").headers.getlist("RateLimit")
    assert sorted(named) == ['"first";r=4;t=60', '"second";r=6;t=60']


def test_dollars_are_dollars_wherever_a_person_reads_them(make: Maker, clock: Clock) -> None:
    """In X-RateLimit, in `peek`, for callbacks and in a refusal. The integer fields of RateLimit,
    and a verdict, have micro-dollars."""
    breaches = []

    def breached(limit: RequestLimit) -> None:
        breaches.append((limit.remaining, limit.amount))

    app, limiter = make(on_breach=breached)

    @app.get("/")
    @limiter.limit("5 usd/day", cost=lambda: request.args.get("cost", "0.75"))
    def view() -> dict[str, str]:
        [look] = limiter.current.peek("view")
        exact = look.verdict.remaining
        return {"left": f"{look.remaining} of {look.amount}", "exact": str(exact)}

    client = app.test_client()
    answer = client.get("/")
    assert answer.json == {"left": "4.25 of 5", "exact": "4250000"}
    names = ("X-RateLimit-Limit", "X-RateLimit-Remaining")
    assert [answer.headers[name] for name in names] == ["5", "4.25"]
    assert ";q=5000000;" in answer.headers["RateLimit-Policy"]
    assert ";r=4250000;" in answer.headers["RateLimit"]
    refusal = client.get("/?cost=4.5")
    assert [refusal.headers[name] for name in names] == ["5", "4.25"]
    assert refusal.json["remaining"] == 4.25
    assert [(str(left), str(amount)) for left, amount in breaches] == [("4.25", "5")]


@pytest.mark.parametrize("name", ["", "a", "A-1_. b", "x" * 64])
@pytest.mark.parametrize("calls", [1, 3])
def test_the_headers_are_structured_fields(make: Maker, name: str, calls: int) -> None:
    """Whatever a limit is called, admitted and refused, in each unit: lists of strings, whose
    parameters are those of the draft, as whole numbers from 0 up, and strings."""
    app, limiter = make()
    view: Any = limiter.limit("2/hour", name=name, strategy="sliding-window")(lambda: "")
    view = limiter.limit("5 in flight", name="slots")(view)
    view = limiter.limit("90000/minute", unit="tokens", strategy="token-bucket", cost=lambda: 7)(
        view
    )
    view = limiter.limit("5 usd/month", cost=lambda: "0.01")(view)
    app.add_url_rule("/", "view", view)
    client = app.test_client()
    for _ in range(calls):
        headers = client.get("/").headers
    policy, state = (
        http_sf.parse(headers[field].encode("ascii"), tltype="list")
        for field in ("RateLimit-Policy", "RateLimit")
    )
    assert [type(item) for item, _ in (*policy, *state)] == [str] * 8
    assert [item for item, _ in policy] == [item for item, _ in state]
    for _, parameters in policy:
        in_flight = parameters.get("qu") == "concurrent-requests"
        assert set(parameters) - {"qu"} == ({"q"} if in_flight else {"q", "w"})
    for _, parameters in state:
        assert set(parameters) == {"r", "t"}
        assert all(type(value) is int and value >= 0 for value in parameters.values())
