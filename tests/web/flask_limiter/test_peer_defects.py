"""The defects of PEERS that were reproduced in Flask-Limiter and `limits`: not here.

The numbers are those of the list of differences. Others are tested where their subject is: calls at
once beside `deduct_when` (3) and headers (5) with requests, negative costs (17) with bound limits,
and storages that fail (18, 19) with outages.
"""

import time

import pytest
import redis
from flask import Blueprint, Flask, Response, request
from flask_limiter import commands
from limits import parse

from ratelimit_ext import Limiter, MetaLimit
from ratelimit_ext.core.change import Change
from tests.clocks import Clock
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key, root

STRATEGIES = ("token-bucket", "sliding-window", "sliding-window-counter", "fixed-window")


def remaining(limiter: Limiter, item: str, endpoint: str, key: str = "someone") -> int:
    """What the extension's own strategy object says is left."""
    return limiter.limiter.get_window_stats(parse(item), key, endpoint).remaining


def test_a_denied_request_charges_no_other_limit(make: Maker) -> None:
    """(1) With 100/minute;3/hour;2/day, twenty calls leave the hour and the minute as they were
    after the two that passed."""
    app, limiter = make()
    app.get("/")(limiter.limit("100/minute;3/hour;2/day")(root))
    assert statuses(app, times=20) == [200] * 2 + [429] * 18
    assert remaining(limiter, "3/hour", "root") == 1
    assert remaining(limiter, "100/minute", "root") == 98


def test_a_denied_cost_does_not_burn_what_was_left(make: Maker) -> None:
    """(2) 7 of 10 used: a call that costs 5 is denied, and the 3 that are left can be had."""
    app, limiter = make()
    app.get("/")(limiter.limit("10/minute", cost=lambda: int(request.args["cost"]))(root))
    costs = (7, 5, 3, 1)
    assert [statuses(app, f"/?cost={cost}") for cost in costs] == [[200], [429], [200], [429]]


def test_what_a_stream_used_can_be_charged_when_it_has_ended(make: Maker) -> None:
    """(4) The answer to a charge says where it went, so that a stream is corrected at its end."""
    app, limiter = make()

    @app.get("/")
    @limiter.limit("100/minute", cost=10)
    def stream() -> Response:
        verdict = limiter.current_limits[0].verdict

        def generated() -> object:
            yield from ("one ", "two")
            limiter._components.engines.current.settle([Change.adjust(verdict, 32)])

        return Response(generated())

    assert app.test_client().get("/").text == "one two"
    assert remaining(limiter, "100/minute", "stream") == 58


def test_retry_after_is_that_of_this_requests_cost(make: Maker, clock: Clock) -> None:
    """(6) A client that waits for ``Retry-After`` passes; one that waits a bit less does not."""
    app, limiter = make(strategy="sliding-window")
    app.get("/")(limiter.limit("10/minute", cost=lambda: int(request.args["cost"]))(root))
    client = app.test_client()
    assert client.get("/?cost=4").status_code == 200
    clock.forward(6)
    assert client.get("/?cost=5").status_code == 200
    clock.forward(50)
    for cost, wait_ms in ((3, 4_000), (7, 10_000)):
        refusal = client.get(f"/?cost={cost}")
        assert refusal.status_code == 429
        assert refusal.headers["retry-after-ms"] == str(wait_ms)
        assert refusal.headers["Retry-After"] == str(wait_ms // 1000)
    clock.forward(9.75)
    assert client.get("/?cost=7").status_code == 429
    clock.forward(0.25)
    assert client.get("/?cost=7").status_code == 200
    assert client.get("/?cost=11").status_code == 400  # waiting cannot help
    assert "Retry-After" not in client.get("/?cost=11").headers


def test_a_retry_after_of_the_view_stays_as_it_is(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(7) A date that the view gives is not read in the machine's time zone, nor changed."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    app, limiter = make()

    @app.get("/")
    @limiter.limit("5/minute")
    def away() -> tuple[str, int, dict[str, str]]:
        return "later", 503, {"Retry-After": date}

    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        response = app.test_client().get("/")
    time.tzset()
    assert response.headers.getlist("Retry-After") == [date]


def test_workers_whose_clocks_differ_share_one_limit(
    redis_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(8) The server's clock decides: a worker 65 s ahead admits nothing more."""
    first, second = (sliding(redis_uri) for _ in range(2))
    assert statuses(first, times=7) == [200] * 7
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 65)
    assert statuses(second, times=7) == [200] * 3 + [429] * 4


def test_a_sliding_window_takes_one_entry_whatever_the_cost(
    redis_uri: str, redis_client: redis.Redis
) -> None:
    """(9) A call that costs 50,000 takes as much room as one that costs 50."""
    sizes = []
    for cost in (50, 50_000):
        redis_client.flushall()
        assert statuses(sliding(redis_uri, "100000/minute", cost), times=2) == [200, 200]
        [key] = redis_client.keys()
        sizes.append(redis_client.memory_usage(key))
    assert sizes[1] <= sizes[0] + 16 < 400


def test_a_change_of_strategy_starts_afresh(make: Maker, redis_uri: str) -> None:
    """(10) The same limit under another strategy is another bucket, and no error; the first one
    is still there when it comes back."""
    answers = []
    for strategy in (*STRATEGIES, STRATEGIES[0]):
        app, limiter = make(storage_uri=redis_uri)
        app.get("/")(limiter.limit("2/hour", strategy=strategy, name="chat")(root))
        answers += statuses(app, times=3)
    assert answers == [200, 200, 429] * len(STRATEGIES) + [429] * 3


def test_a_changed_amount_keeps_the_usage(make: Maker, redis_uri: str) -> None:
    """(11) 60 of 100 a day used: raised to 2,000 it leaves 1,940, lowered to 50 nothing."""
    left = {}
    for amount, calls in ((100, 60), (2000, 1), (50, 1)):
        app, limiter = make(storage_uri=redis_uri)
        limit = limiter.limit(f"{amount}/day", name="plan", strategy="sliding-window")
        app.get("/")(limit(root))
        client = app.test_client()
        left[amount] = [client.get("/").headers["X-RateLimit-Remaining"] for _ in range(calls)][-1]
    assert left == {100: "40", 2000: "1939", 50: "0"}


def test_identities_are_never_taken_for_each_other(make: Maker) -> None:
    """(12) The caller a/b of c and the caller a of b/c are two."""
    app, limiter = make()
    limit = limiter.limit("1/minute", scope=lambda _: request.headers["X-Scope"])
    app.get("/")(limit(root))
    pairs = [("a/b", "c"), ("a", "b/c"), ("a/b/c", "c"), ("a:b", "c"), ("{a}", "c"), ("a}", "c")]
    for key, scope in pairs:
        headers = {"X-Key": key, "X-Scope": scope}
        assert statuses(app, times=2, headers=headers) == [200, 429], (key, scope)


def test_a_blueprint_keeps_its_meta_limits(make: Maker, clock: Clock) -> None:
    """(13) Who is denied twice on a blueprint is banned by its meta limit, and for that long."""
    app, limiter = make()
    blueprint = Blueprint("chat", "chat")
    blueprint.get("/")(root)
    limiter.limit("1/minute", meta_limits=["2/hour"])(blueprint)
    app.register_blueprint(blueprint)
    assert statuses(app, times=3) == [200, 429, 429]
    clock.forward(61)
    assert statuses(app) == [429]
    clock.forward(3600)
    assert statuses(app) == [200]


def test_meta_limits_are_kept_under_the_prefix(redis_uri: str) -> None:
    """(14) Two extensions with prefixes of their own share no ban."""
    apps = []
    for prefix in ("one", "two"):
        app = Flask(prefix)
        limiter = Limiter(
            asked_key,
            app=app,
            storage_uri=redis_uri,
            key_prefix=prefix,
            meta_limits=[MetaLimit("1/day")],
            headers_enabled=True,
        )
        app.get("/")(limiter.limit("1/minute")(root))
        apps.append(app)
    assert statuses(apps[0], times=3) == [200, 429, 429]
    assert apps[0].test_client().get("/").json["limit"] == "1 per 1 day"
    assert statuses(apps[1], times=2) == [200, 429]


def test_the_clear_command_clears_with_a_prefix(make: Maker) -> None:
    """(15) After `flask limiter clear`, the caller may call again."""
    app, limiter = make(key_prefix="tenant", application_limits=["5/minute"])
    app.get("/")(limiter.limit("1/minute")(root))
    assert statuses(app, times=2) == [200, 429]
    result = app.test_cli_runner().invoke(commands.cli, ["clear", "--key", "someone", "-y"])
    assert "root\n└── 1 per 1 minute: Cleared" in result.output
    assert statuses(app, times=2) == [200, 429]


def test_requests_that_reach_no_view_are_limited_and_options_are_free(make: Maker) -> None:
    """(16) 404 and 405 are charged to the application's limits; OPTIONS never is."""
    app, _ = make(application_limits=["3/minute"])
    app.get("/")(root)
    assert statuses(app, "/", 5, method="OPTIONS") == [200] * 5
    assert statuses(app, "/nothing") == [404]
    assert statuses(app, "/", method="POST") == [405]
    assert statuses(app, "/", times=2) == [200, 429]
    assert statuses(app, "/nothing") == [429]


def test_limits_rank_by_their_periods(make: Maker) -> None:
    """(20) 30 minutes are longer than one, however they are written down."""
    app, limiter = make()
    shown = []

    @app.get("/")
    @limiter.limit("9/minute")
    @limiter.limit("9/30 minutes")
    @limiter.limit("9/hour")
    @limiter.limit("9/2 seconds")
    def ordered() -> str:
        shown.extend(str(each.limit) for each in limiter.current_limits)
        return "ok"

    assert statuses(app) == [200]
    assert shown == ["9 per 2 second", "9 per 1 minute", "9 per 30 minute", "9 per 1 hour"]


def test_a_reset_never_stops_the_server(redis_uri: str, redis_client: redis.Redis) -> None:
    """(21) `reset` goes through the names in steps (SCAN), never all at once (KEYS)."""
    app = sliding(redis_uri)
    redis_client.set("someone else's", "kept")
    assert statuses(app, times=12)[-1] == 429
    redis_client.config_resetstat()
    [limiter] = app.extensions["limiter"]
    limiter.reset()
    commands = redis_client.info("commandstats")
    assert "cmdstat_scan" in commands
    assert "cmdstat_keys" not in commands
    assert statuses(app) == [200]
    assert redis_client.get("someone else's") == b"kept"


def sliding(uri: str, limit: str = "10/minute", cost: int = 1) -> Flask:
    """An application with one sliding window, on that storage."""
    app = Flask("example")
    limiter = Limiter(asked_key, app=app, storage_uri=uri)
    app.get("/")(limiter.limit(limit, strategy="sliding-window", cost=cost)(root))
    return app
