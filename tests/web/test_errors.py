"""The bodies of refusals."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from markupsafe import Markup
from werkzeug.exceptions import HTTPException, TooManyRequests

from ratelimit_ext import Claim, Guess, Limiter, RateLimitExceeded
from ratelimit_ext.web.errors import try_again
from tests.clocks import Clock
from tests.web.calls import second, serve
from tests.web.conftest import Maker, root

PROBLEM = "application/problem+json"
HTML = "text/html; charset=utf-8"


def test_the_default_body_says_which_limit_what_remains_and_how_long(
    make: Maker, clock: Clock
) -> None:
    """JSON, with a sentence for people and fields for programs."""
    app, limiter = make()
    limit = limiter.limit("30/minute", strategy="token-bucket", burst=1, name="user")
    app.get("/")(limit(root))
    refusal = second(app)
    assert refusal.status_code == 429
    assert refusal.content_type == "application/json"
    assert refusal.json == {
        "error": "Rate limit 'user' exceeded: 30 per 1 minute, 1 at once. Try again in 2 seconds.",
        "code": "rate_limited",
        "limit": "30 per 1 minute, 1 at once",
        "policy": "user",
        "remaining": 0,
        "retry_after": 2.0,
    }


def test_a_budget_that_other_calls_hold_may_be_tried_again(make: Maker) -> None:
    """It has its own code and sentence, as the limit's `error_message` is for a spent budget."""
    app, limiter = make()
    limiter.estimator("usd")(lambda: Guess("1", claim=Claim(10**6, *[95 * 10**5] * 3)))
    inner: list[Any] = []

    @app.get("/")
    @limiter.limit("10 usd/day", name="money", error_message="The budget is spent.")
    def view() -> str:
        if not inner:
            inner.append(None)  # so that one call asks
            inner.append(app.test_client().get("/"))
        return "ok"

    @app.errorhandler(RateLimitExceeded)
    def note(error: RateLimitExceeded) -> RateLimitExceeded:
        inner.append(error.is_budget)
        return error

    assert app.test_client().get("/").status_code == 200
    is_budget, refusal = inner[1:]
    assert is_budget is False
    assert (refusal.status_code, refusal.json["code"]) == (429, "budget_in_use")
    assert refusal.json["error"].startswith("Other calls in flight hold what is left of the budget")
    assert "x-should-retry" not in refusal.headers


def test_the_burst_of_a_budget_is_in_dollars(make: Maker, clock: Clock) -> None:
    """A policy has it in micro-dollars, which no caller sees."""
    app, limiter = make()
    words: dict[str, Any] = {"strategy": "token-bucket", "burst": 2_500_000, "name": "money"}
    app.get("/")(limiter.limit("10 usd/day", cost=lambda: "2", **words)(root))
    body = second(app).json
    assert body is not None
    assert body["limit"] == "10 usd per 1 day, 2.5 usd at once"
    assert "exceeded: 10 usd per 1 day, 2.5 usd at once. Try again in" in body["error"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (PROBLEM, PROBLEM),
        (f"{PROBLEM}, application/json;q=0.5", PROBLEM),
        ("application/json", "application/json"),
        (f"application/json, {PROBLEM};q=0.5", "application/json"),
        ("*/*", "application/json"),
        ("text/html", HTML),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("text/html,application/json", "application/json"),
        ("image/png", "application/json"),
        (None, "application/json"),
    ],
)
def test_a_client_may_have_another_body(make: Maker, accept: str | None, content_type: str) -> None:
    """A page for browsers, RFC 9457 where the client prefers it; plain JSON for everyone else."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/minute")(root))
    headers = {} if accept is None else {"Accept": accept}
    assert second(app, headers=headers).content_type == content_type


def test_a_page_has_the_sentence(make: Maker, clock: Clock) -> None:
    """Werkzeug's page, as in Flask-Limiter."""
    app, limiter = make()
    app.get("/")(limiter.limit("1/hour", name="plan")(root))
    client = app.test_client()
    client.get("/")
    for wait in ("1 hour", "59 minutes"):
        assert client.get("/", headers={"Accept": "text/html"}).text == (
            "<!doctype html>\n<html lang=en>\n<title>429 Too Many Requests</title>\n"
            "<h1>Too Many Requests</h1>\n<p>Rate limit &#39;plan&#39; exceeded: 1 per 1 hour. "
            f"Try again in {wait}.</p>\n"
        )
        clock.forward(60)


@pytest.mark.parametrize(
    "message",
    ["Enough & <b>more</b>, try again in 1 hour.", "Try again in 1 hour.", "\x00 \x01 {}"],
)
@pytest.mark.parametrize("is_function", [False, True])
def test_an_error_message_is_sent_unchanged(
    make: Maker, clock: Clock, message: str, is_function: bool
) -> None:
    """In JSON, in a problem and on the page, where Flask-Limiter has it."""
    app, limiter = make()
    own = (lambda: message) if is_function else message
    app.get("/")(limiter.limit("1/hour", error_message=own)(root))
    client = app.test_client()
    client.get("/")
    refusal = client.get("/")
    assert refusal.json["error"] == message
    assert refusal.json["retry_after"] == int(refusal.headers["retry-after-ms"]) / 1000
    problem = client.get("/", headers={"Accept": PROBLEM}).get_json(force=True)
    assert problem["detail"] == message
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert page == TooManyRequests(message).get_body()


def test_an_error_message_may_be_markup_or_translated_late(make: Maker) -> None:
    """As a library of translations makes it: its text is asked when the answer is written."""

    class Late:
        def __str__(self) -> str:
            return "Später"

    for own, text in ((lambda: Markup("<b>No</b>"), "<p><b>No</b></p>"), (Late, "<p>Später</p>")):
        app, limiter = make()
        app.get("/")(limiter.limit("1/hour", error_message=own)(root))
        assert text in second(app, headers={"Accept": "text/html"}).text
        assert second(app).json["error"] == str(own())


def test_an_error_message_leaves_the_plans_sentence(tmp_path: Path) -> None:
    """In a field of its own, and in a paragraph of the page."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\n[routes.view]\nplans = true\n[plans.free]\nnext = "pro"\n'
        'limits = [{name = "plan", limit = "1/day", error_message = "Enough."}]\n'
        '[plans.pro]\nlimits = [{name = "plan", limit = "9/day"}]\n'
    )
    app = Flask("example")
    app.config["RATELIMIT_POLICY_FILE"] = policy
    limiter = Limiter(lambda: "someone", storage_uri="memory://")
    limiter.plan_loader(lambda: "free")
    limiter.init_app(app)
    app.add_url_rule("/", "view", root)
    seen: list[RateLimitExceeded] = []
    app.register_error_handler(RateLimitExceeded, lambda error: seen.append(error) or error)
    refusal = second(app)
    sentence = "The Free plan allows 1 call a day, and it is used up; the Pro plan allows 9."
    assert (refusal.json["error"], refusal.json["plan"]) == ("Enough.", sentence)
    assert refusal.json["code"] == "rate_limited"
    page = second(app, headers={"Accept": "text/html"}).text
    assert page.endswith(f"<p>Enough.</p>\n<p>{sentence}</p>\n")
    assert seen[0].description == "Enough."
    assert seen[0].message.startswith(f"Enough. {sentence} Try again in ")


def test_a_problem_names_every_policy_that_was_violated(make: Maker, clock: Clock) -> None:
    """By the type that IANA registers for it."""
    app, limiter = make()
    serve(
        app,
        limiter.limit("9/hour", name="wide"),
        limiter.limit("1/hour", name="plan"),
        limiter.limit("1/minute", name="pace"),
    )
    problem = second(app, headers={"Accept": PROBLEM}).get_json(force=True)
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["title"] == "Quota exceeded"
    assert problem["status"] == 429
    assert problem["detail"] == problem["error"]
    assert problem["violated-policies"] == ["pace", "plan"]
    assert problem["retry_after"] == 3600.0


def test_the_wait_in_the_body_is_the_one_of_the_headers(make: Maker, clock: Clock) -> None:
    """To the millisecond."""
    app, limiter = make()
    limit = limiter.limit("7/minute", strategy="token-bucket", cost=lambda: int(request.args["c"]))
    app.get("/")(limit(root))
    client = app.test_client()
    client.get("/?c=5")
    refusal = client.get("/?c=7")
    assert refusal.json["retry_after"] * 1000 == int(refusal.headers["retry-after-ms"]) == 42_858
    assert refusal.json["remaining"] == 2


@pytest.mark.parametrize(
    ("wait_ms", "sentence"),
    [
        (1, "Try again in less than a second."),
        (1000, "Try again in 1 second."),
        (1001, "Try again in 2 seconds."),
        (90_500, "Try again in 91 seconds."),
        (119_001, "Try again in 2 minutes."),
        (120_001, "Try again in 3 minutes."),
        (3_600_000, "Try again in 1 hour."),
        (7_500_000, "Try again in 2 hours 5 minutes."),
        (86_340_001, "Try again in 1 day."),
        (93_600_000, "Try again in 1 day 2 hours."),
        (2_678_400_000, "Try again in 31 days."),
        (366_000 * 86_400_000, "Try again in 366,000 days."),
    ],
)
def test_a_wait_is_a_sentence(wait_ms: int, sentence: str) -> None:
    """For a person, rounded up."""
    assert try_again(wait_ms) == sentence


def test_an_applications_handlers_come_first(make: Maker) -> None:
    """By status, by class, and of a blueprint's own: the handler is called."""
    for handled in (429, RateLimitExceeded, HTTPException):
        app, limiter = make()
        app.register_error_handler(handled, lambda error: (f"own {error.code}", 418))
        app.add_url_rule("/", "view", limiter.limit("1/day")(lambda: "ok"))
        assert (second(app).status_code, second(app).text) == (418, "own 429")


def test_a_decorator_around_a_limit_sees_the_refusal(make: Maker) -> None:
    """It is raised as an exception through the decorators around the view."""
    app, limiter = make()
    seen = []

    def around(view: Any) -> Any:
        def watched() -> Any:
            try:
                return view()
            except RateLimitExceeded as refusal:
                seen.append(refusal.code)
                raise

        return watched

    app.add_url_rule("/", "view", around(limiter.limit("1/day")(lambda: "ok")))
    assert second(app).status_code == 429
    assert seen == [429]


def test_a_trapped_refusal_is_raised(make: Maker) -> None:
    """Where the application traps HTTP exceptions, for debugging, it gets them."""
    app, limiter = make(config={"TRAP_HTTP_EXCEPTIONS": True, "TESTING": True})
    app.add_url_rule("/", "view", limiter.limit("1/day")(lambda: "ok"))
    with pytest.raises(RateLimitExceeded):
        second(app)


def test_a_refusal_raised_and_answered_are_the_same(make: Maker, clock: Clock) -> None:
    """Whether Flask makes the response of the exception or we do: status, headers and body."""
    answers = []
    for around in (lambda view: view, lambda view: lambda: view()):  # noqa: PLW0108 - a decorator
        app, limiter = make()
        limited = limiter.limit("1/day", strategy="fixed-window")(lambda: "ok")
        app.add_url_rule("/", "view", around(limited))
        answers.append(second(app))
    one, other = answers
    varying = {"retry-after-ms", "RateLimit", "Retry-After", "X-RateLimit-Reset", "Date"}
    varying.add("Content-Length")  # the wait has more or fewer digits
    assert {k: v for k, v in one.headers if k not in varying} == {
        k: v for k, v in other.headers if k not in varying
    }
    assert [name for name, _ in one.headers] == [name for name, _ in other.headers]
    assert one.json.keys() == other.json.keys()
