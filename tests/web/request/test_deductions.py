"""`deduct_when`: checked before the view and charged by its response, or reserved before it."""

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any

import flask
import httpx2
import pytest
import redis

from ratelimit_ext import ApplicationLimit, Limiter, MetaLimit
from tests import servers
from tests.served import serving
from tests.web.calls import left_of, statuses
from tests.web.conftest import Maker
from tests.web.outage.flaky import make_flaky

AT_ONCE = 20
STRATEGIES = ("token-bucket", "sliding-window", "sliding-window-counter", "fixed-window")


def failed(response: flask.Response) -> bool:
    return response.status_code == 401


def always(_: flask.Response) -> bool:
    return True


def log_in(uri: str, text: str = "5/minute", **options: Any) -> tuple[flask.Flask, Limiter]:
    """An application that limits failures: `/<status>` answers with that status."""
    app = flask.Flask("log-in")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri, headers_enabled=True)

    @app.get("/<int:status>", endpoint="view")
    @limiter.limit(text, **{"deduct_when": failed, "name": "failures", **options})
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    return app, limiter


def left(app: flask.Flask, limiter: Limiter) -> list[int]:
    with app.test_request_context("/"):
        return [int(limit.remaining) for limit in limiter.current.peek("view")]


# -- calls at once ---------------------------------------------------------------------------------


def calls_at_once(uri: str, status: int, *, admitted: int, **options: Any) -> list[int]:
    """The statuses of calls to a real server with threads. Those in the view wait until so many are
    there, and all others are answered."""
    app = flask.Flask("slow")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri)
    inside, leave = threading.Semaphore(0), threading.Event()

    @app.get("/")
    @limiter.limit("5/minute", deduct_when=failed, **options)
    def view() -> tuple[str, int]:
        inside.release()
        return ("answered", status) if leave.wait(30) else ("too late", 500)

    def call(address: str) -> int:
        return httpx2.get(address, timeout=60).status_code

    with serving(app) as address, ThreadPoolExecutor(AT_ONCE) as pool:
        calls = [pool.submit(call, address) for _ in range(AT_ONCE)]
        try:
            for _ in range(admitted):
                assert inside.acquire(timeout=10), "a call was refused"
            refused = list(islice(as_completed(calls), AT_ONCE - admitted))
        finally:
            leave.set()
        assert {each.result() for each in refused} <= {429}
        answered = sorted(each.result() for each in calls)
        return [*answered, call(address)]


@pytest.mark.parametrize(
    ("status", "admitted", "following"),
    [(200, AT_ONCE, 200), (401, AT_ONCE, 429), (401, 5, 429), (200, 5, 200)],
    ids=["successes", "failures", "reserved failures", "reserved successes"],
)
def test_calls_at_once(uri: str, status: int, admitted: int, following: int) -> None:
    """20 on 5 failures a minute. None is refused: they were checked before the first of them had
    failed, as in Flask-Limiter, and only failures close the limit. If each call reserves its part,
    no more guesses get in than 5. Its price is that no more successes do."""
    answered = calls_at_once(uri, status, admitted=admitted, reserve=admitted == 5)
    assert answered == [status] * admitted + [429] * (AT_ONCE - admitted) + [following]


# -- what is charged -------------------------------------------------------------------------------


@pytest.mark.parametrize("reserve", [True, False])
def test_only_what_is_deducted_counts(uri: str, reserve: bool) -> None:
    """Successes are free until the failures are used up."""
    app, _ = log_in(uri, reserve=reserve)
    assert statuses(app, "/200", 7) + statuses(app, "/401", 6) == [200] * 7 + [401] * 5 + [429]
    assert statuses(app, "/200") == [429]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_cost_is_that_after_the_view(make: Maker, uri: str, strategy: str) -> None:
    """The view finds out what the call has cost; headers say what is left and until when."""
    app, limiter = make(storage_uri=uri)

    @app.get("/<int:characters>", endpoint="view")
    @limiter.limit(
        "10/hour",
        strategy=strategy,
        name="characters",
        cost=lambda: getattr(flask.request, "characters", 1),
        deduct_when=always,
    )
    def view(characters: int) -> str:
        flask.request.characters = characters  # type: ignore[attr-defined]
        return "translated"

    client = app.test_client()
    first = client.get("/7")
    assert left(app, limiter) == [3]
    assert first.headers["X-RateLimit-Remaining"] == "3"
    assert '"characters";r=3;t=0' not in first.headers["RateLimit"]
    assert client.get("/7").headers["X-RateLimit-Remaining"] == "0"
    assert client.get("/1").status_code == 429


def test_a_cost_that_is_unknown_before_the_view(make: Maker, uri: str) -> None:
    """A cost of 0 fits until more than the limit was charged, as in Flask-Limiter."""
    app, limiter = make(storage_uri=uri)

    @app.get("/")
    @limiter.limit("10/hour", cost=lambda: flask.g.get("cost", 0), deduct_when=always)
    def view() -> str:
        flask.g.cost = 5
        return "translated"

    assert statuses(app, times=4) == [200, 200, 200, 429]


def test_a_look_at_an_overdrawn_limit_is_not_denied(make: Maker, uri: str) -> None:
    """Also not from memory, where the same cost of 0 was denied as it is charged later."""
    app, limiter = make(storage_uri=uri)

    @app.get("/")
    @limiter.shared_limit(
        "1/hour", "all", cost=lambda: flask.g.get("cost", 0), deduct_when=always, name="all"
    )
    def view() -> str:
        flask.g.cost = 5
        return "translated"

    app.get("/look")(limiter.shared_limit("1/hour", "all", cost=0, name="all")(lambda: "ok"))
    assert statuses(app, times=4) == [200, 429, 429, 429]
    assert statuses(app, "/look") == [200]


def test_equal_limits_of_which_one_is_charged_later(make: Maker, uri: str) -> None:
    """They are one bucket: before the view both have to fit, and one is taken."""
    app, limiter = make(storage_uri=uri)

    @app.get("/<int:status>", endpoint="view")
    @limiter.limit("5/day")
    @limiter.limit("5/day", deduct_when=failed, override_defaults=False)
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    assert statuses(app, "/200") + statuses(app, "/401") == [200, 401]
    assert left(app, limiter) == [2, 2]
    assert statuses(app, "/200", 2) == [200, 429]


def test_a_full_shadow_takes_no_more(uri: str) -> None:
    """It counts what it would count if it were enforced."""
    app, limiter = log_in(uri, "2/day", mode="shadow")
    assert statuses(app, "/401", 4) == [401] * 4
    assert left_of(limiter, "failures", "ada") == 0


def test_a_denied_request_is_charged_nothing_later(make: Maker, uri: str) -> None:
    """Neither one that the conditional limit itself denies, nor one that another limit denies, also
    inside of the view."""
    app, limiter = make(storage_uri=uri)

    @app.get("/", endpoint="view")
    @limiter.limit("9/hour", deduct_when=always)
    def view() -> str:
        with limiter.limit("1/hour"):
            return "answered"

    assert statuses(app, times=4) == [200, 429, 429, 429]
    assert left(app, limiter) == [8]


def test_a_cancelled_call_is_charged_nothing_later(uri: str) -> None:
    """Whatever `deduct_when` returns. The application's own limits have counted it."""
    app = flask.Flask("cancelled")
    edge = ApplicationLimit("9/hour", deduct_when=always)
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri, application_limits=[edge])
    limited = limiter.limit("5/hour", deduct_when=always)
    app.get("/", endpoint="view")(limited(lambda: limiter.current.cancel() or "cancelled"))
    assert statuses(app, times=2) == [200, 200]
    assert left(app, limiter) == [5, 7]


def test_a_denial_counts_for_bans(make: Maker, uri: str) -> None:
    """Also one by a limit that would have been charged later."""
    app, limiter = make(storage_uri=uri, meta_limits=[MetaLimit("1/hour")])
    app.get("/")(limiter.limit("1/minute", deduct_when=always)(lambda: "ok"))
    app.get("/other", endpoint="other")(lambda: "other")
    assert statuses(app, "/other") + statuses(app, times=2) == [200, 200, 429]
    assert statuses(app, "/other") == [429]


def test_an_error_that_goes_to_the_server_is_not_charged(uri: str) -> None:
    """There is no response that `deduct_when` could judge."""
    app = flask.Flask("errors")
    app.testing = True
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri)

    @app.get("/", endpoint="view")
    @limiter.limit("1/minute", deduct_when=always)
    def view() -> str:
        raise RuntimeError("this view fails")

    for _ in range(3):
        with pytest.raises(RuntimeError):
            app.test_client().get("/")
    assert left(app, limiter) == [1]


def test_a_function_that_fails_after_the_view(make: Maker) -> None:
    """An invalid cost is an error of the application, unless errors are swallowed."""
    for swallow, status in ((False, 500), (True, 200)):
        app, limiter = make(swallow_errors=swallow)
        app.get("/", endpoint="view")(
            limiter.limit(
                "5/minute", cost=lambda: flask.g.get("cost", 1), deduct_when=_sets_a_wrong_cost
            )(lambda: "ok")
        )
        assert statuses(app) == [status]
        assert left(app, limiter) == [5]


def _sets_a_wrong_cost(_: flask.Response) -> bool:
    flask.g.cost = -1
    return True


# -- the storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "calls"), [("/200", 1), ("/401", 2)])
def test_the_check_is_a_part_of_the_decision(
    make: Maker, redis_uri: str, redis_client: redis.Redis, path: str, calls: int
) -> None:
    """One call of the server for all limits of the request; one more if something is charged."""
    app, limiter = make(storage_uri=redis_uri, application_limits=["100/day"])

    @app.get("/<int:status>")
    @limiter.limit("50/minute", deduct_when=failed)
    @limiter.limit("60/hour", deduct_when=failed, strategy="token-bucket")
    @limiter.limit("70/hour", strategy="sliding-window")
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    client = app.test_client()
    for _ in range(2):  # the first time, the server learns the scripts
        redis_client.config_resetstat()
        client.get(path)
    assert redis_client.info("commandstats")["cmdstat_fcall"]["calls"] == calls


def test_an_exhausted_limit_is_denied_from_memory_until_it_is_given_back(
    redis_uri: str, redis_client: redis.Redis
) -> None:
    """A client that hammers costs no round trip."""
    app, limiter = log_in(redis_uri, "1/day")
    assert statuses(app, "/401", 3) == [401, 429, 429]
    redis_client.config_resetstat()
    assert statuses(app, "/200", 5) == [429] * 5
    assert "cmdstat_fcall" not in redis_client.info("commandstats")
    limiter.reset()
    assert statuses(app, "/200") == [200]


def test_what_the_storage_could_not_take_is_charged_when_it_is_back(uri: str) -> None:
    """The response arrives, and the charge later, once."""
    app, limiter = log_in(uri)
    engine, queue = make_flaky(limiter)
    engine.is_away = True
    assert statuses(app, "/401", 2) == [401, 401]
    assert left(app, limiter) == [5]
    engine.is_away = False
    engine.loses_replies = True
    queue.send_waiting()
    engine.loses_replies = False
    queue.send_waiting()
    assert left(app, limiter) == [3]


def test_what_an_outage_has_counted_is_charged_afterwards(own_server: servers.Server) -> None:
    """The worker checks and charges its share; so does the storage when it is back. The failure
    whose view the server did not survive is charged there, too."""
    app = flask.Flask("outage")
    app.config["RATELIMIT_SETTLEMENTS_DIR"] = ""
    # A busy machine is no outage: a dead server refuses connections at once.
    app.config["RATELIMIT_DEADLINE_SECONDS"] = 5
    limiter = Limiter(lambda: "ada", app=app, storage_uri=own_server.uri)

    @app.get("/<int:status>", endpoint="view")
    @limiter.limit("5/day", deduct_when=failed)
    def view(status: int) -> tuple[str, int]:
        if "kill" in flask.request.args:
            own_server.kill()
        return "answered", status

    assert statuses(app, "/401?kill=1") == [401]
    assert statuses(app, "/200", 3) + statuses(app, "/401", 3) == [200] * 3 + [401] * 3
    own_server.relaunch()
    servers.eventually(lambda: not limiter.operators.storage_is_down)
    servers.eventually(lambda: left(app, limiter) == [1])
    assert statuses(app, "/401") + statuses(app, "/200") == [401, 429]


# -- after a good log-in ---------------------------------------------------------------------------


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_failures_are_forgotten_after_a_good_log_in(
    make: Maker, uri: str, strategy: str, reserve: bool
) -> None:
    """In the view itself: those of this user, of every view with a limit of the name, and of its
    candidate, and no other limit's."""
    app, limiter = make(storage_uri=uri, key_func=lambda: flask.request.args["user"])
    keywords: Any = {"deduct_when": failed, "reserve": reserve, "strategy": strategy}

    def view(status: int) -> tuple[str, int]:
        if status == 200:
            assert limiter.forget("login", flask.request.args["user"])
        return "answered", status

    for path in ("page", "api"):
        limited = limiter.limit("9/hour", name="pace")(view)
        limited = limiter.limit("3/hour", name="login", candidate="2/hour", **keywords)(limited)
        app.add_url_rule(f"/{path}/<int:status>", path, limited)
    for user in ("ada", "bob"):
        assert statuses(app, f"/api/401?user={user}", 2) == [401] * 2
        assert statuses(app, f"/page/401?user={user}", 2) == [401] * 2
    assert statuses(app, "/page/200?user=ada") == [200]
    for user, remaining in (("ada", [3, 3]), ("bob", [1, 1])):
        with app.test_request_context(f"/?user={user}"):
            looked = [limiter.current.peek("page"), limiter.current.peek("api")]
        named = [{str(e.verdict.charge.limit.name): e.remaining for e in each} for each in looked]
        assert [each["login"] for each in named] == remaining
        assert [each["pace"] for each in named] == [6 + (user == "bob"), 7]
    assert statuses(app, "/page/401?user=ada", 4) == [401] * 3 + [429]


def test_nothing_to_forget(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was counted; the name is unknown, of which the log warns once; or it is not a limit
    that counts what is used up."""
    app, limiter = log_in(uri)
    slots = limiter.limit("2 in flight", name="slots")
    app.get("/slots", endpoint="slots")(slots(lambda: flask.Response(iter("a"))))
    running = app.test_client().get("/slots")
    with app.test_request_context("/"):
        names = ("failures", "fialures", "fialures", "slots")
        assert [limiter.forget(name, "ada") for name in names] == [False] * 4
        assert [limit.remaining for limit in limiter.current.peek("slots")] == [1]
    running.close()
    [warning] = [each for each in caplog.records if each.name == app.logger.name]
    assert "Did you mean 'failures'?" in warning.getMessage()


def test_a_log_in_does_not_fail_if_limits_are_disabled() -> None:
    """As in tests of an application, which has default limits beside the log-in's."""
    app = flask.Flask("disabled")
    app.config["RATELIMIT_ENABLED"] = False
    limiter = Limiter(lambda: "ada", app=app, default_limits=["9/minute"])
    view = limiter.limit("5/minute", name="login")(lambda: str(limiter.forget("login", "ada")))
    app.get("/")(view)
    assert app.test_client().get("/").text == "False"


def test_a_log_in_does_not_fail_if_nothing_can_be_forgotten(
    caplog: pytest.LogCaptureFixture, own_server: servers.Server
) -> None:
    """The storage is down: the log says so, and the caller keeps the failures."""
    app = flask.Flask("outage")
    app.config["RATELIMIT_SETTLEMENTS_DIR"] = ""
    limiter = Limiter(lambda: "ada", app=app, storage_uri=own_server.uri)
    app.get("/")(
        limiter.limit("5/minute", name="login")(lambda: str(limiter.forget("login", "ada")))
    )
    client = app.test_client()
    assert client.get("/").text == "True"
    own_server.kill()
    with app.test_request_context("/"):
        assert not limiter.forget("login", "ada")
    assert "the counts of 'login' are kept" in caplog.text


# -- as it is written ------------------------------------------------------------------------------


def test_it_is_a_keyword_of_every_limit(make: Maker) -> None:
    """Of decorators, definitions and policies."""
    blueprints = {
        "shop": [{"limit": "2/minute", "deduct_when": always, "reserve": True, "name": "shop"}]
    }
    app, limiter = make(config={"RATELIMIT_BLUEPRINTS": blueprints})
    shop = flask.Blueprint("shop", "shop")
    seen: list[int] = []
    shop.get("/")(lambda: seen.append(int(limiter.current_limits[0].remaining)) or "ok")
    app.register_blueprint(shop)
    assert statuses(app, times=3) == [200, 200, 429]
    assert seen == [1, 0]
