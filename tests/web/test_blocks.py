"""Guards on the extension: blocks, provider quotas, surges, further attempts, rerouting."""

import json
import time
from collections.abc import Callable
from typing import Any

import flask
import pytest
import redis
from flask.views import MethodView
from werkzeug.exceptions import HTTPException

from ratelimit_ext import DecideAgain, MetaLimit, Reservation, StorageUnavailable
from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.strategies.guards.block import REASONS
from tests.clocks import Clock
from tests.web.calls import left_of, remaining, serve, statuses
from tests.web.conftest import Maker

PROBLEM = "application/problem+json"
TYPES = "https://iana.org/assignments/http-problem-types#"


class Guarded:
    """An application with one view, `/`, and the header `X-Key` for who calls.

    `acts` is what the view does before it answers.
    """

    def __init__(self, make: Maker, uri: str, *limits: str, **words: Any) -> None:
        self.app, self.limiter = make(storage_uri=uri, application_limits=["1000/day"])
        self.acts: Callable[[Reservation], object] = lambda _: None
        served: Any = self._view
        for position, text in enumerate(limits):
            name = f"limit-{position}" if position else "guard"
            served = self.limiter.limit(text, name=name, **words)(served)
        self.app.add_url_rule("/", "served", served)
        self.client = self.app.test_client()

    def get(self, key: str = "ada", **headers: str) -> Any:
        return self.client.get("/", headers={"X-Key": key, **headers})

    def block(self, **words: Any) -> None:
        with self.app.app_context():
            assert self.limiter.operators.block("guard", "ada", **words)

    def unblock(self) -> bool:
        with self.app.app_context():
            return self.limiter.operators.unblock("guard", "ada")

    def statuses(self, calls: int) -> list[int]:
        return statuses(self.client, times=calls, headers={"X-Key": "ada"})

    def left(self) -> int:
        return left_of(self.limiter, "guard", "ada", "served")

    def _view(self) -> str:
        self.acts(self.limiter.current.reservation)
        return "ok"


def test_a_blocked_identity_is_refused_at_once(make: Maker, uri: str) -> None:
    """403 without Retry-After until it is lifted; other callers pass."""
    guarded = Guarded(make, uri, "unless blocked")
    assert guarded.get().status_code == 200
    guarded.block()
    refused = guarded.get()
    assert (refused.status_code, refused.json["code"]) == (403, "blocked")
    assert refused.json["policy"] == "guard"
    assert "Retry-After" not in refused.headers
    assert guarded.get("bob").status_code == 200


def test_a_block_is_lifted_at_once(make: Maker, uri: str) -> None:
    """However much the blocked one has hammered: no worker remembers the denial."""
    guarded = Guarded(make, uri, "unless blocked")
    guarded.block()
    other_worker = guarded if uri == "memory://" else Guarded(make, uri, "unless blocked")
    assert guarded.statuses(5) == [403] * 5
    assert other_worker.unblock()
    assert guarded.get().status_code == 200
    assert not other_worker.unblock()


@pytest.mark.parametrize(
    ("reason", "status", "code", "problem"),
    [
        ("blocked", 429, "blocked", "about:blank"),
        ("abnormal-usage", 429, "abnormal_usage", f"{TYPES}abnormal-usage-detected"),
        ("overloaded", 503, "server_is_overloaded", f"{TYPES}temporary-reduced-capacity"),
        ("closed", 503, "switched_off", f"{TYPES}temporary-reduced-capacity"),
    ],
)
def test_the_reason_makes_the_answer(
    make: Maker, uri: str, reason: Any, status: int, code: str, problem: str
) -> None:
    """A block with an end has its exact wait and its reason; an SDK should not wait for it."""
    guarded = Guarded(make, uri, "unless blocked")
    begin = time.monotonic()
    guarded.block(for_s=300, reason=reason)
    refused = guarded.get(Accept=PROBLEM)
    passed_ms = 1000 * (time.monotonic() - begin)
    assert refused.status_code == status
    body = json.loads(refused.data)
    assert (body["type"], body["code"], body["status"]) == (problem, code, status)
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 299_999 - passed_ms <= wait_ms <= 300_000
    assert refused.headers["Retry-After"] == str(-(-wait_ms // 1000))
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["Cache-Control"] == "no-store"
    assert "Try again in 5 minutes" in body["error"]


@pytest.mark.parametrize(("reason", "status"), [("closed", 503), ("abnormal-usage", 429)])
def test_without_an_end_there_is_no_wait(make: Maker, uri: str, reason: Any, status: int) -> None:
    """And none of years."""
    guarded = Guarded(make, uri, "unless blocked")
    guarded.block(reason=reason)
    refused = guarded.get()
    assert (refused.status_code, refused.headers["x-should-retry"]) == (status, "false")
    assert "Retry-After" not in refused.headers
    assert "Try again" not in refused.json["error"]
    assert "retry_after" not in refused.json


def test_mistakes_are_errors(make: Maker) -> None:
    """An unknown name, reason or length changes nothing and says what is allowed."""
    guarded = Guarded(make, "memory://", "unless blocked")
    block = guarded.limiter.operators.block
    with guarded.app.app_context():
        with pytest.raises(ValueError, match=r"named 'gard'; known names: 'guard'"):
            block("gard", "ada")
        with pytest.raises(ValueError, match=f"'bored'; allowed: '{REASONS[0]}'"):
            block("guard", "ada", reason="bored")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="-1 seconds; allowed: more than 0"):
            block("guard", "ada", for_s=-1)
    assert guarded.get().status_code == 200


def test_nothing_is_blocked_where_limits_are_off(make: Maker) -> None:
    """With limits disabled, blocking is an error."""
    app, limiter = make(enabled=False)
    with app.app_context(), pytest.raises(ValueError, match="RATELIMIT_ENABLED"):
        limiter.operators.block("guard", "ada")


def test_a_block_stands_before_every_view_that_has_it(make: Maker, uri: str) -> None:
    """Views with buckets of their own, shared ones, a blueprint: one name blocks them all."""
    app, limiter = make(storage_uri=uri)
    bp = flask.Blueprint("bp", __name__)
    bp.add_url_rule("/in", "inside", lambda: "ok")
    limiter.limit("unless blocked", name="switch")(bp)
    shared = limiter.shared_limit("unless blocked", scope="both", name="switch")
    for path in ("/a", "/b"):
        app.add_url_rule(path, path[1:], shared(lambda: "ok"))
    single = limiter.limit("unless blocked", name="switch", per_method=True)
    app.add_url_rule("/c", "c", single(lambda: "ok"), methods=["GET", "POST"])
    app.register_blueprint(bp)
    client = app.test_client()

    def statuses() -> set[int]:
        paths = ("/a", "/b", "/c", "/in")
        found = [client.get(path, headers={"X-Key": "ada"}) for path in paths]
        found.append(client.post("/c", headers={"X-Key": "ada"}))
        return {response.status_code for response in found}

    assert statuses() == {200}
    with app.app_context():
        limiter.operators.block("switch", "ada")
    assert statuses() == {403}
    with app.app_context():
        limiter.operators.unblock("switch", "ada")
    assert statuses() == {200}


def test_a_block_of_a_classes_method_is_found_before_any_request(make: Maker) -> None:
    """By its name; other methods are not blocked."""
    app, limiter = make()

    class Resource(MethodView):
        @limiter.limit("unless blocked", name="guard")
        def get(self) -> str:
            return "got"

        def post(self) -> str:
            return "posted"

    app.add_url_rule("/", view_func=Resource.as_view("resource"))
    with app.app_context():
        assert limiter.operators.block("guard", "someone")
    client = app.test_client()
    assert [client.get("/").status_code, client.post("/").status_code] == [403, 200]


def test_a_shadow_does_not_block(make: Maker, uri: str) -> None:
    """A block in shadow is tried out, and refuses nothing."""
    guarded = Guarded(make, uri, "unless blocked", mode="shadow")
    guarded.block()
    assert guarded.get().status_code == 200


def test_guards_are_not_told_to_callers(make: Maker, uri: str) -> None:
    """They are no allowance: headers and `current_limits` leave them out."""
    guarded = Guarded(make, uri, "unless blocked", "as reported", "1/second or 9 x usual")
    answered = guarded.get()
    assert answered.headers["RateLimit-Policy"] == '"1000-per-86400s";q=1000;w=86400'
    assert answered.headers["X-RateLimit-Limit"] == "1000"


def test_a_callers_own_limit_is_told_before_an_overload(make: Maker, uri: str) -> None:
    """An exhausted limit and an overloaded provider: 429, and the longer of both waits."""
    guarded = Guarded(make, uri, "unless blocked", "1/day")
    assert guarded.get().status_code == 200
    guarded.block(for_s=9, reason="overloaded")
    refused = guarded.get()
    assert (refused.status_code, refused.json["policy"]) == (429, "limit-1")
    guarded.block()
    assert guarded.get().status_code == 403


def test_a_request_cools_down_what_it_met(make: Maker, clock: Clock) -> None:
    """The next request of anybody waits, exactly."""
    guarded = Guarded(make, "memory://", "unless blocked")
    guarded.acts = lambda reservation: reservation.block("guard", for_s=10)
    assert guarded.get().status_code == 200
    refused = guarded.get()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "10")
    guarded.acts = lambda _: None
    clock.forward(10)
    assert set(guarded.statuses(100)) == {200}


def test_a_reported_quota_holds_for_all_callers(make: Maker, clock: Clock) -> None:
    """3 of 60 a minute are left, says an answer: three more pass, and the fourth waits 1 s."""
    guarded = Guarded(make, "memory://", "as reported")
    guarded.acts = lambda reservation: reservation.report(
        "requests", amount=60, used=57, period_s=60
    )
    assert guarded.get().status_code == 200
    guarded.acts = lambda _: None
    assert guarded.statuses(3) == [200] * 3
    refused = guarded.get()
    assert (refused.status_code, refused.headers["retry-after-ms"]) == (503, "1000")
    assert refused.json["code"] == "server_is_overloaded"


def test_a_report_is_of_its_own_time(make: Maker, clock: Clock) -> None:
    """What was used when the call began has been refilled since, in part."""
    guarded = Guarded(make, "memory://", "as reported")

    def tell(reservation: Reservation) -> None:
        begun = clock.now_s
        clock.forward(20)
        reservation.report("requests", amount=60, used=60, period_s=60, as_of=begun)

    guarded.acts = tell
    guarded.get()
    guarded.acts = lambda _: None
    assert guarded.statuses(21) == [200] * 20 + [503]


def test_a_quota_in_input_tokens_does_not_count_cached_ones(make: Maker, clock: Clock) -> None:
    """An estimate of 400 that was 1,000, of which 900 came from a cache, counts 100; a call that
    failed is counted as it was estimated."""
    guarded = Guarded(make, "memory://", "as reported", unit="input_tokens")
    guarded.limiter.estimator("input_tokens")(lambda: 400)

    def left_after(acts: Callable[[Reservation], object]) -> int:
        guarded.acts = acts
        assert guarded.get().status_code == 200
        return guarded.left()

    quota = {"amount": 1000, "used": 0, "period_s": 60}
    assert left_after(lambda r: r.report("input_tokens", **quota)) == 1000
    assert left_after(lambda r: r.settle(input_tokens=1000, cached_input_tokens=900)) == 900
    assert left_after(Reservation.cancel) == 500

    def failed(reservation: Reservation) -> None:
        reservation.settle(input_tokens=0)
        reservation.cancel()

    assert left_after(failed) == 100


def test_reports_ride_along(make: Maker, redis_uri: str, redis_client: redis.Redis) -> None:
    """Deciding is one FCALL, and settling with all that was reported another."""
    guarded = Guarded(make, redis_uri, "unless blocked", "as reported")
    guarded.acts = lambda reservation: reservation.report(
        "requests", amount=60, used=1, period_s=60
    )
    guarded.get()
    redis_client.config_resetstat()
    guarded.get()
    stats = redis_client.info("commandstats")
    assert stats["cmdstat_fcall"]["calls"] == 2


@pytest.mark.parametrize("already", [False, True], ids=["unknown", "known"])
def test_what_went_nowhere_is_not_corrected(make: Maker, *, already: bool) -> None:
    """Admitted before anybody knew the quota, the call was counted nowhere; one that was counted is
    brought to its real use. A report of another worker comes in between."""
    guarded = Guarded(make, "memory://", "as reported", unit="input_tokens", cost=200)
    quota = {"amount": 1000, "used": 700, "period_s": 86_400}
    if already:
        guarded.acts = lambda reservation: reservation.report("input_tokens", **quota)
        guarded.get()

    def settles(reservation: Reservation) -> None:
        reservation.block("nothing", for_s=1)  # sends what was reported, as another call would
        reservation.settle(input_tokens=20)

    def reports_and_settles(reservation: Reservation) -> None:
        reservation.report("input_tokens", **quota)
        settles(reservation)

    guarded.acts = settles if already else reports_and_settles
    guarded.get()
    assert guarded.left() == (280 if already else 300)


def test_a_surge_is_abnormal_usage(make: Maker, clock: Clock) -> None:
    """Twice the usual 3 a minute passes; the rest waits for the minute's end."""
    guarded = Guarded(make, "memory://", "1/minute or 2 x usual")
    for _ in range(4):
        assert guarded.statuses(3) == [200] * 3
        clock.forward(60)
    assert guarded.statuses(7) == [200] * 6 + [429]
    refused = guarded.get(Accept=PROBLEM)
    assert json.loads(refused.data)["type"] == f"{TYPES}abnormal-usage-detected"
    assert refused.headers["Retry-After"] == "60"


def test_a_surge_can_be_lifted(make: Maker, clock: Clock) -> None:
    """By its name, like a block: the history is forgotten."""
    guarded = Guarded(make, "memory://", "1/minute or 2 x usual")
    for _ in range(4):
        guarded.get()
        clock.forward(60)
    assert guarded.statuses(3) == [200, 200, 429]
    assert guarded.unblock()
    assert set(guarded.statuses(100)) == {200}


def test_another_attempt_is_charged(make: Maker, uri: str) -> None:
    """Each attempt passes the guards again; what they do not have is not given."""
    guarded = Guarded(make, uri, "2/minute", "unless blocked")
    waits: list[float | None] = []

    def attempt(_: Reservation) -> None:
        waits.append(guarded.limiter.current.admit_again("guard", "limit-1"))

    guarded.acts = lambda reservation: (attempt(reservation), attempt(reservation))
    assert guarded.get().status_code == 200
    admitted, wait_s = waits
    assert admitted is None
    assert wait_s is not None
    assert 29 < wait_s <= 60
    assert guarded.get().status_code == 429


def test_another_attempt_outlives_the_storage(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone in the middle of a call, it is no error of the call's."""
    guarded = Guarded(make, "memory://", "2/minute")
    waits: list[float | None] = []

    def attempt(_: Reservation) -> None:
        def away(*_: object, **__: object) -> None:
            raise StorageUnavailable("gone")

        monkeypatch.setattr(guarded.limiter._components.engines.current, "admit", away)
        waits.append(guarded.limiter.current.admit_again("guard"))
        monkeypatch.undo()

    guarded.acts = attempt
    assert guarded.get().status_code == 200
    assert waits == [None]


def test_another_attempt_may_be_anothers(make: Maker) -> None:
    """Identities are asked again: the attempt may be another model's."""
    asked = []

    def model() -> str:
        asked.append(flask.g.get("model", "big"))
        return asked[-1]

    app, limiter = make()

    @app.get("/")
    @limiter.limit("1/day", name="model", key_func=model)
    def view() -> str:
        flask.g.model = "small"
        return str(limiter.current.admit_again("model"))

    client = app.test_client()
    assert client.get("/").text == "None"
    assert asked == ["big", "small"]
    assert client.get("/").status_code == 429


def test_a_refused_request_can_be_rerouted(make: Maker, uri: str) -> None:
    """A refusal handler changes an overloaded request and decides it again: if it is admitted, it
    is charged once."""
    app, limiter = make(storage_uri=uri, application_limits=["10/day"])

    @limiter.refusal_handler
    def reroute(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
        if refusal.code != 503:
            return refusal
        flask.g.model = "small"
        return decide_again()

    @app.get("/")
    @limiter.limit("unless blocked", name="guard", key_func=lambda: flask.g.get("model", "big"))
    def view() -> str:
        return str(flask.g.get("model", "big"))

    client = app.test_client()
    assert client.get("/").text == "big"
    with app.app_context():
        limiter.operators.block("guard", "big", for_s=60, reason="overloaded")
    answered = client.get("/")
    assert (answered.text, answered.headers["X-RateLimit-Remaining"]) == ("small", "8")
    with app.app_context():
        limiter.operators.block("guard", "small", for_s=60, reason="overloaded")
    assert client.get("/").status_code == 503
    with app.app_context():
        limiter.operators.unblock("guard", "big")
        limiter.operators.block("guard", "big")
    assert client.get("/").status_code == 403


def test_a_report_is_of_the_attempt_that_brought_it(make: Maker) -> None:
    """What the first model's provider said of its quota is not held against its fallback."""
    app, limiter = make()

    def model() -> str:
        return str(flask.g.get("model", flask.request.headers.get("Model", "big")))

    @app.get("/")
    @limiter.limit("as reported", name="quota", key_func=model)
    def view() -> str:
        if model() == "big":
            limiter.current.reservation.report("requests", amount=60, used=60, period_s=60)
            flask.g.model = "small"
            assert limiter.current.admit_again("quota") is None
        return model()

    client = app.test_client()
    assert client.get("/").text == "small"
    assert client.get("/").status_code == 503
    assert [client.get("/", headers={"Model": "small"}).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("reason", [r for r in REASONS if r != "abnormal-usage"])
def test_a_message_may_be_a_function(make: Maker, reason: Any) -> None:
    """As in Flask-Limiter: it is called when the request is refused."""
    guarded = Guarded(make, "memory://", "unless blocked", error_message=lambda: "Not you.")
    guarded.block(reason=reason)
    assert guarded.get().json["error"] == "Not you."


@pytest.mark.parametrize("message", ["The operator has blocked you.", lambda: "Not you."])
def test_abnormal_usage_has_its_own_sentence(make: Maker, message: Any) -> None:
    """Its error_message is written for an operator's block. A handler gets the same sentence."""
    seen: list[str] = []
    guarded = Guarded(make, "memory://", "unless blocked", error_message=message)
    guarded.app.register_error_handler(429, lambda error: seen.append(error.description) or error)
    guarded.block(for_s=300, reason="abnormal-usage")
    sentence = "Stopped for abnormal usage."
    assert guarded.get().json["error"] == f"{sentence} Try again in 5 minutes."
    assert seen == [sentence]


def test_a_surge_has_its_own_error_message(make: Maker, clock: Clock) -> None:
    """It is not replaced by the default."""
    app, limiter = make()
    limit = limiter.limit("1/minute or 1 x usual", error_message="Slow down.")
    app.get("/")(limit(lambda: "ok"))
    client = app.test_client()
    for _ in range(4):
        client.get("/")
        clock.forward(60)
    client.get("/")
    assert client.get("/").json["error"].startswith("Slow down.")


def test_an_overload_counts_towards_no_ban(make: Maker, uri: str) -> None:
    """Limits on denials count what the caller did; a caller who is banned stays so."""
    meta = MetaLimit("2/hour")
    app, limiter = make(storage_uri=uri, meta_limits=[meta])
    limited = limiter.limit("unless blocked", name="guard")(lambda: "ok")
    app.add_url_rule("/", "guarded", limited)
    app.add_url_rule("/own", "own", limiter.limit("1/day", name="own")(lambda: "ok"))
    client = app.test_client()

    def statuses(path: str, calls: int) -> list[int]:
        return [client.get(path, headers={"X-Key": "ada"}).status_code for _ in range(calls)]

    with app.app_context():
        limiter.operators.block("guard", "ada", for_s=60, reason="overloaded")
    assert statuses("/", 9) == [503] * 9
    with app.app_context():
        limiter.operators.unblock("guard", "ada")
    assert statuses("/", 1) == [200]
    assert statuses("/own", 4) == [200, 429, 429, 429]
    banned = client.get("/", headers={"X-Key": "ada"})
    assert banned.status_code == 429


def test_the_handlers_refusal_is_the_one_that_is_answered(make: Maker) -> None:
    """With its body, its wait and its headers; without a second decision it may not admit."""
    app, limiter = make()
    answers: list[str] = []

    @limiter.refusal_handler
    def reroute(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
        if not answers:
            return None
        flask.g.model = "small"
        second = decide_again()
        return refusal if answers.pop() == "first" else second

    model = lambda: flask.g.get("model", "big")  # noqa: E731 - a key function
    serve(app, limiter.limit("unless blocked", name="guard", key_func=model))
    with app.app_context():
        limiter.operators.block("guard", "big", for_s=600, reason="overloaded")
        limiter.operators.block("guard", "small", for_s=300, reason="closed")
    client = app.test_client()
    assert client.get("/").json["code"] == "server_is_overloaded"
    answers[:] = ["second", "first"]
    for code, wait in (("server_is_overloaded", "600"), ("switched_off", "300")):
        refused = client.get("/")
        assert (refused.json["code"], refused.headers["Retry-After"]) == (code, wait)


def test_a_rerouted_request_is_counted_once_in_shadow(make: Maker, uri: str) -> None:
    """It was decided twice, and is one request."""
    app, limiter = make(storage_uri=uri)

    @limiter.refusal_handler
    def reroute(_: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
        flask.g.model = "small"
        return decide_again()

    model = lambda: flask.g.get("model", "big")  # noqa: E731 - a key function

    @app.get("/")
    @limiter.limit("unless blocked", name="guard", key_func=model)
    @limiter.limit("100/day", name="shadow", mode="shadow")
    @limiter.limit("5 usd/day", name="money", mode="shadow", cost=1)
    def view() -> str:
        seen.append(
            [limiter.current.verdict(name) is not None for name in ("guard", "shadow", "money")]
        )
        limiter.settle(usd="0.25")
        return "ok"

    seen: list[list[bool]] = []
    with app.app_context():
        limiter.operators.block("guard", "big", for_s=60, reason="overloaded")
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert seen == [[True] * 3] * 3  # the view sees the verdicts of both decisions
    left = [left_of(limiter, name, "someone") for name in ("shadow", "money")]
    assert left == [97, 4_250_000]


def test_what_is_held_is_not_charged_again(make: Maker, uri: str) -> None:
    """A slot and an estimate are the call's, however often it is attempted."""
    guarded = Guarded(make, uri, "3 in flight", "1000/day", unit=None)
    money = guarded.limiter.limit("5 usd/day", name="money", cost=1)
    guarded.app.view_functions["served"] = money(guarded.app.view_functions["served"])

    def attempt(reservation: Reservation) -> None:
        assert guarded.limiter.current.admit_again("guard", "money", "limit-1") is None
        reservation.settle(usd="0.50")

    guarded.acts = attempt
    assert guarded.get().status_code == 200
    left = remaining(guarded.app, guarded.limiter, "served", headers={"X-Key": "ada"})
    assert (left["guard"], left["money"], left["limit-1"]) == (3, 4_500_000, 998)


def test_a_block_that_other_workers_cannot_see_is_an_error(make: Maker) -> None:
    """While the storage is away a worker decides for itself; an operator must not think that the
    others know."""
    app, limiter = make(storage_uri="redis://127.0.0.1:1", in_memory_fallback_enabled=True)
    app.add_url_rule("/", "view", limiter.limit("unless blocked", name="guard")(lambda: "ok"))
    assert app.test_client().get("/").status_code == 200
    for change in (limiter.operators.block, limiter.operators.unblock):
        with app.app_context(), pytest.raises(StorageUnavailable):
            change("guard", "ada")


def test_a_guard_overrides_no_other_limit(make: Maker) -> None:
    """A switch on a view leaves it the limits that it had."""
    app, limiter = make(default_limits=["1/day"])
    serve(app, limiter.limit("unless blocked", name="guard"))
    serve(app, limiter.limit("5/day"), path="/own")
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(2)] == [200, 429]
    assert [client.get("/own").status_code for _ in range(2)] == [200, 200]


def test_the_commands_show_what_a_guard_has_left(make: Maker) -> None:
    """Within what it says, as `flask limiter limits --key` prints it."""
    guarded = Guarded(make, "memory://", "unless blocked", "as reported", "5/hour or 2 x usual")
    for definition in next(iter(guarded.limiter.limit_manager._decorated_limits.values())):
        (limit,) = definition
        stats = guarded.limiter.limiter.get_window_stats(limit.limit, "ada", "served")
        assert 0 < stats.remaining <= limit.limit.amount


def test_a_call_that_was_expected_to_use_nothing_is_corrected(make: Maker, clock: Clock) -> None:
    """How much of a prompt is cached is known after the answer: what it used counts then."""
    guarded = Guarded(make, "memory://", "as reported", unit="input_tokens", cost=0)
    quota = {"amount": 1000, "used": 0, "period_s": 3600}
    guarded.acts = lambda reservation: reservation.report("input_tokens", **quota)
    assert guarded.get().status_code == 200
    guarded.acts = lambda reservation: reservation.settle(input_tokens=900)
    guarded.get()
    assert guarded.left() == 100


def test_another_attempt_settles_its_own_quota(make: Maker) -> None:
    """What the attempt that failed was counted stays: its provider has seen it."""
    app, limiter = make()

    def model() -> str:
        return str(flask.g.get("model", flask.request.headers.get("Model", "big")))

    @app.get("/")
    @limiter.limit("as reported", name="quota", key_func=model, unit="tokens", cost=100)
    def view() -> str:
        if "Report" in flask.request.headers:
            limiter.current.reservation.report("tokens", amount=1000, used=0, period_s=86_400)
            return "seen"
        flask.g.model = "small"
        assert limiter.current.admit_again("quota") is None
        limiter.settle(tokens=10)
        return "asked"

    client = app.test_client()
    for each in ("big", "small"):
        client.get("/", headers={"Report": "1", "Model": each})
    client.get("/")
    assert [left_of(limiter, "quota", model) for model in ("big", "small")] == [900, 990]


@pytest.mark.parametrize(
    "words",
    [
        {"amount": 0, "used": 0, "period_s": 60},
        {"amount": 60, "used": -1, "period_s": 60},
        {"amount": 60, "used": 0, "period_s": 0},
        {"amount": 1.5, "used": 0, "period_s": 60},
        {"amount": 10**13, "used": 0, "period_s": 60},
    ],
)
def test_a_report_that_is_none_loses_nothing(make: Maker, uri: str, words: dict[str, Any]) -> None:
    """The call raises, and the request is settled."""
    guarded = Guarded(make, uri, "as reported", "1 in flight")

    def mistaken(reservation: Reservation) -> None:
        with pytest.raises(ValueError, match="a whole number from"):
            reservation.report("requests", **words)

    guarded.acts = mistaken
    assert guarded.statuses(3) == [200] * 3


@pytest.mark.parametrize("for_s", [0, -5, float("nan")])
def test_a_block_of_no_length_is_a_mistake(make: Maker, uri: str, for_s: float) -> None:
    """By an operator or by a request: nothing is blocked."""
    guarded = Guarded(make, uri, "unless blocked")

    def mistaken(reservation: Reservation) -> None:
        with pytest.raises(ValueError, match="more than 0"):
            reservation.block("guard", for_s=for_s)

    guarded.acts = mistaken
    assert guarded.get().status_code == 200
    with pytest.raises(ValueError, match="more than 0"):
        guarded.block(for_s=for_s)
    assert guarded.get().status_code == 200


def test_an_endless_block_by_a_request_has_no_end(make: Maker, uri: str) -> None:
    """As long as there are blocks."""
    guarded = Guarded(make, uri, "unless blocked")
    guarded.acts = lambda reservation: reservation.block("guard", for_s=float("inf"))
    guarded.get()
    refused = guarded.get()
    assert refused.status_code == 503
    assert "Retry-After" not in refused.headers


def test_a_block_counts_nothing(make: Maker) -> None:
    """A cost is a mistake, and what requests are estimated at is not asked."""
    app, limiter = make()
    with pytest.raises(ConfigurationError, match="found a cost, but 'unless blocked'"):
        limiter.limit("unless blocked", cost=0)
    with pytest.raises(ConfigurationError, match="unit is 'tokens'; the strategy 'block' counts"):
        limiter.limit("unless blocked", unit="tokens")
    limiter.estimator("requests")(lambda: 0)
    limited = limiter.limit("unless blocked", name="guard")(lambda: "ok")
    app.add_url_rule("/", "guarded", limited)
    client = app.test_client()
    with app.app_context():
        limiter.operators.block("guard", "ada")
    assert client.get("/", headers={"X-Key": "ada"}).status_code == 403


def test_one_function_may_estimate_in_two_units(make: Maker) -> None:
    """Five of each: five dollars are no five micro-dollars."""
    app, limiter = make()
    estimate = limiter.estimator("tokens")(lambda: 5)
    limiter.estimator("usd")(estimate)
    serve(
        app,
        limiter.limit("100/day", unit="tokens", name="tokens"),
        limiter.limit("100 usd/day", name="usd"),
    )
    headers = app.test_client().get("/").headers["RateLimit"]
    assert '"tokens";r=95;' in headers
    assert '"usd";r=95000000;' in headers


def test_a_reservation_that_was_asked_for_early_holds_what_comes_later(make: Maker) -> None:
    """The view settles before the block of code that takes a slot: the slot comes back."""
    app, limiter = make()

    @app.get("/")
    def view() -> str:
        limiter.settle(usd=0)
        with limiter.limit("1 in flight", name="slot"):
            return "ok"

    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200, 200, 200]


def test_a_switch_that_only_a_request_can_find_says_so(make: Maker) -> None:
    """Its scope is a function, and an operator has no request."""
    app, limiter = make()
    limited = limiter.shared_limit("unless blocked", scope=lambda _: "any", name="guard")
    app.add_url_rule("/", "guarded", limited(lambda: "ok"))
    assert app.test_client().get("/").status_code == 200
    with app.app_context(), pytest.raises(ValueError, match="a function of the request"):
        limiter.operators.block("guard", "ada")
