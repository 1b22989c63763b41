"""`on_failure`: what clients, listeners and operators see of an outage, with a real server."""

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, g, request

from ratelimit_ext import DecisionEvent, Event, Limiter, MetaLimit, StorageEvent, StorageUnavailable
from ratelimit_ext.settlements.queue import settlements
from tests import servers
from tests.engine.relay import Relay, whole
from tests.web.calls import remaining, statuses
from tests.web.conftest import asked_key

DEGRADED = "X-RateLimit-Degraded"
SCRIPT_CALLS = ("eval", "evalsha", "fcall")
LONG = {"RATELIMIT_WORKERS": 2}


def made(uri: str, config: dict[str, Any] | None = None, **options: Any) -> tuple[Flask, Limiter]:
    app = Flask("example")
    app.config.update({"RATELIMIT_SETTLEMENTS_DIR": "", **(config or {})})
    return app, Limiter(asked_key, app=app, storage_uri=uri, headers_enabled=True, **options)


def revive(server: servers.Server, limiter: Limiter) -> None:
    server.relaunch()
    servers.eventually(lambda: not limiter.operators.storage_is_down)


AWAY = "redis://127.0.0.1:1"


def always(_: Response) -> bool:
    return True


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("1/day", {}, [200, 429]),
        ("10/day", {"unit": "tokens", "cost": 6}, [200, 429]),
        ("5 usd/day", {"cost": 1}, [503, 503]),
        ("1 in flight", {}, [200, 200]),
        ("unless blocked", {}, [200, 200]),
        ("1/day", {"on_failure": "open"}, [200, 200]),
        ("1/day", {"on_failure": "closed"}, [503, 503]),
        ("1/day", {"deduct_when": always}, [200, 429]),
        ("1/day", {"deduct_when": always, "on_failure": "open"}, [200, 200]),
        ("1/day", {"deduct_when": always, "on_failure": "closed"}, [503, 503]),
        ("1 usd/day", {"cost": "0.6", "on_failure": "local"}, [200, 429]),
        ("unless blocked", {"on_failure": "closed"}, [503, 503]),
    ],
)
def test_each_limit_does_what_its_keyword_says(
    text: str, options: dict[str, Any], expected: list[int]
) -> None:
    """Without it, requests are limited in the worker and dollars are refused."""
    app, limiter = made(AWAY)
    app.get("/")(limiter.limit(text, **options)(lambda: "ok"))
    assert statuses(app, times=2) == expected


def test_a_closed_limit_is_a_clear_503() -> None:
    """With a wait, its own code, and none of the words of the limit's own refusal."""
    app, limiter = made(AWAY)
    limited = limiter.limit("5/day", name="pay", on_failure="closed", error_message="Used up.")
    app.get("/")(limited(lambda: "ok"))
    answer = app.test_client().get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.headers[DEGRADED] == "closed"
    assert "x-should-retry" not in answer.headers
    assert answer.json == {
        "error": "The rate limit storage is unavailable. Try again in 5 seconds.",
        "code": "storage_unavailable",
        "policy": "pay",
        "retry_after": 5.0,
    }


def test_a_limit_on_denials_that_no_worker_can_share_bans_nobody() -> None:
    """A ban needs denials, and a limit that is closed is no denial of the caller either."""
    for policy, expected in (("local", 200), ("closed", 503)):
        app, limiter = made(
            AWAY, {"RATELIMIT_WORKERS": 8}, meta_limits=[MetaLimit("3/hour", on_failure=policy)]
        )
        app.get("/")(limiter.limit("100/day")(lambda: "ok"))
        assert statuses(app, times=2) == [expected] * 2


def test_a_budget_that_is_spent_in_one_worker_may_be_retried() -> None:
    """Other workers have their shares, and the storage may be back: no `insufficient_quota`."""
    app, limiter = made(AWAY)
    app.get("/")(limiter.limit("1 usd/day", cost=1, on_failure="local")(lambda: "ok"))
    client = app.test_client()
    assert client.get("/").headers[DEGRADED] == "local"
    answer = client.get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "30")
    assert answer.json is not None
    assert answer.json["code"] == "rate_limited"
    assert "x-should-retry" not in answer.headers


def test_the_number_of_workers_comes_from_the_configuration_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In this order: the setting, its variable, gunicorn's."""

    def share(**config: object) -> int:
        app, limiter = made(AWAY, config)
        app.get("/")(limiter.limit("12/day")(lambda: "ok"))
        return int(app.test_client().get("/").headers["X-RateLimit-Remaining"]) + 1

    assert share() == 12
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    assert share() == 6
    monkeypatch.setenv("RATELIMIT_WORKERS", "3")
    assert share() == 4
    assert share(RATELIMIT_WORKERS=4) == 3


def test_the_deadline_is_the_clients_timeout() -> None:
    """Unless the operator has set one."""
    options = {"socket_timeout": 2.0}
    for own, expected in (({}, (0.3, 0.3)), (options, (2.0, 0.3))):
        _, limiter = made(AWAY, {"RATELIMIT_DEADLINE_SECONDS": 0.3}, storage_options=own)
        client: Any = limiter.storage
        known = client.get_connection().connection_pool.connection_kwargs
        assert (known["socket_timeout"], known["socket_connect_timeout"]) == expected


def test_no_sentinel_is_asked_twice() -> None:
    """redis-py would try again for seconds, while a request waits."""
    _, limiter = made("redis+sentinel://127.0.0.1:1/master")
    storage: Any = limiter.storage
    (sentinel,) = storage.sentinel.sentinels
    assert sentinel.connection_pool.connection_kwargs["retry"] is None


def test_listeners_and_the_log_learn_of_an_outage(
    own_server: servers.Server, caplog: pytest.LogCaptureFixture
) -> None:
    """That it began, why, what was decided meanwhile and how, and that it is over."""
    app, limiter = made(own_server.uri)
    app.get("/")(limiter.limit("5/day")(lambda: "ok"))
    client, events = app.test_client(), list[Event]()
    limiter.listen(events.append)
    with caplog.at_level(logging.WARNING, "ratelimit_ext"):
        assert statuses(client) == [200]
        own_server.kill()
        assert statuses(client, times=3) == [200] * 3
        revive(own_server, limiter)
        servers.eventually(lambda: any("is back" in r.message for r in caplog.records))
        assert client.get("/").headers["X-RateLimit-Remaining"] == "1"  # the server was empty
    down, back = [event for event in events if isinstance(event, StorageEvent)]
    assert (down.is_down, back.is_down) == (True, False)
    assert "refused" in down.reason
    assert back.down_s > 0
    decisions = [event.degraded for event in events if isinstance(event, DecisionEvent)]
    assert decisions == ["", "local", "local", "local", ""]
    messages = [r.getMessage() for r in caplog.records if r.name == "ratelimit_ext"]
    assert messages[0].startswith("The storage is down;")
    assert messages[-1].endswith("requests decided without it: local 3")


def test_a_request_pays_one_deadline_at_most(own_server: servers.Server) -> None:
    """A server that hangs: the call that hit the deadline is decided without it, and what it may
    hold there is released when the server goes on."""
    app, limiter = made(own_server.uri, {"RATELIMIT_DEADLINE_SECONDS": 0.5})

    @app.get("/")
    @limiter.limit("100/day", unit="tokens", cost=30, name="tokens")
    def view() -> str:
        limiter.settle(tokens=int(request.args.get("used", 10)))
        return "ok"

    client = app.test_client()
    assert statuses(client) == [200]
    os.kill(own_server.pid, signal.SIGSTOP)
    servers.eventually(
        lambda: client.get("/?used=1").headers[DEGRADED] and limiter.operators.storage_is_down
    )
    degraded = sum(limiter._components.engines.outage.decided.values())  # type: ignore[union-attr]
    os.kill(own_server.pid, signal.SIGCONT)
    servers.eventually(lambda: not limiter.operators.storage_is_down)
    first = 1  # it was decided when the breaker was still closed, and is not in the count
    servers.eventually(lambda: limiter._components.engines.outage.is_handed_back)  # type: ignore[union-attr]

    # What the lost call holds is released by the queue, at about the same time.
    servers.eventually(lambda: remaining(app, limiter)["tokens"] >= 100 - 10 - degraded - first - 1)
    assert remaining(app, limiter)["tokens"] <= 100 - 10 - degraded


@pytest.mark.slow
def test_a_request_that_arrives_after_its_release_keeps_no_slot(own_server: servers.Server) -> None:
    """The network carries it once its worker has given it up and released what it might hold."""
    goes_on = threading.Event()

    def hold_up(target: socket.socket, request: bytes) -> None:
        goes_on.wait(60)
        target.sendall(request)

    def decisions() -> int:
        with own_server.client() as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{each}", {"calls": 0})["calls"] for each in SCRIPT_CALLS)

    with Relay(own_server.port) as relay:
        app, limiter = made(f"redis://127.0.0.1:{relay.port}")

        @app.get("/")
        @limiter.limit("10 in flight", name="slots")
        @limiter.limit("5 usd/day", cost=1, on_failure="local", name="budget")
        def view() -> str:
            limiter.settle(usd=0)
            return "ok"

        client = app.test_client()
        assert statuses(client) == [200]
        full = remaining(app, limiter)
        relay.forward = hold_up
        assert client.get("/").headers[DEGRADED] == "local"
        relay.forward = whole
        outage = limiter._components.engines.outage
        assert outage is not None
        servers.eventually(lambda: outage.is_handed_back and not settlements)
        before = decisions()
        goes_on.set()
        servers.eventually(lambda: decisions() > before)
        assert remaining(app, limiter) == full


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_worker_starts_while_its_cluster_is_down(scheme: str) -> None:
    """As with a single server: `on_failure` decides until the cluster is there."""
    with servers.cluster() as cluster:
        for node in cluster.nodes:
            node.kill()
        app, limiter = made(cluster.uri.replace("redis", scheme, 1), LONG)
        app.add_url_rule("/", view_func=limiter.limit("10/day")(lambda: "ok"))
        with pytest.raises(StorageUnavailable):
            limiter._components.engines.primary.reset("LIMITS")
        with pytest.raises(StorageUnavailable):
            limiter.operators.overrides()
        client = app.test_client()
        responses = [client.get("/") for _ in range(6)]
        assert [response.status_code for response in responses] == [200] * 5 + [429]
        assert {response.headers[DEGRADED] for response in responses} == {"local"}
        assert limiter.operators.storage_is_down
        for node in cluster.nodes:
            node.relaunch()
        servers.eventually(lambda: not limiter.operators.storage_is_down)
        response = client.get("/")
        assert (response.status_code, DEGRADED in response.headers) == (200, False)
        assert response.headers["X-RateLimit-Remaining"] == "4"
        limiter.operators.overrides()


@pytest.mark.parametrize("uri", ["redis+cluster://{}", "valkey+cluster://{}"])
def test_a_server_that_is_no_cluster_is_an_error_at_the_start(
    own_server: servers.Server, uri: str
) -> None:
    """It would not become one."""
    with pytest.raises(Exception, match=r"[Cc]luster"):
        made(uri.format(f"127.0.0.1:{own_server.port}"))


@pytest.mark.parametrize("ends", ["in the outage", "afterwards"])
def test_a_call_in_flight_costs_what_it_cost(own_server: servers.Server, ends: str) -> None:
    """It began before, in, or after the outage: the storage is charged each once, exactly."""
    app, limiter = made(own_server.uri, LONG)
    goes_on = {name: threading.Event() for name in ("before", "during")}

    @app.get("/<name>/<int:used>")
    @limiter.limit("1000/day", unit="tokens", cost=100, name="tokens", key_func=lambda: "team")
    @limiter.limit("10 in flight", name="slots", key_func=lambda: "team")
    def view(name: str, used: int) -> str:
        if name in goes_on:
            assert goes_on[name].wait(20)
        limiter.settle(tokens=used)
        return "ok"

    def start(path: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: app.test_client().get(path))
        thread.start()
        return thread

    def left() -> list[int]:
        return sorted(remaining(app, limiter).values())

    before = start("/before/7")
    servers.eventually(lambda: left() == [9, 900])
    os.kill(own_server.pid, signal.SIGSTOP)
    breaker: Any = limiter._components.engines.primary
    breaker._engine._open("stopped")  # as if calls had waited for the deadline
    breaker._engine.wake()
    during = start("/during/20")
    servers.eventually(lambda: left() == [4, 350])
    assert app.test_client().get("/whole/3").status_code == 200

    def end_both() -> None:
        for call, event in zip((before, during), goes_on.values(), strict=True):
            event.set()
            call.join()

    if ends == "in the outage":
        end_both()
    os.kill(own_server.pid, signal.SIGCONT)
    servers.eventually(lambda: not limiter.operators.storage_is_down)
    if ends == "afterwards":
        servers.eventually(lambda: left() == [8, 797])
        end_both()
    assert app.test_client().get("/after/5").status_code == 200
    servers.eventually(lambda: left() == [10, 1000 - 7 - 20 - 3 - 5])


@pytest.mark.parametrize("down", ["at first", "for the retry"])
def test_a_call_with_attempts_on_both_sides_of_an_outage_costs_once(
    own_server: servers.Server, down: str
) -> None:
    """A dearer attempt holds the difference, in another engine than the first attempt."""
    app, limiter = made(own_server.uri, LONG)
    breaker: Any = limiter._components.engines.primary

    def stop() -> None:
        os.kill(own_server.pid, signal.SIGSTOP)
        breaker._engine._open("stopped")
        breaker._engine.wake()

    def go_on() -> None:
        os.kill(own_server.pid, signal.SIGCONT)
        servers.eventually(lambda: not limiter.operators.storage_is_down)

    @app.get("/")
    @limiter.limit("1000/day", unit="tokens", cost=lambda: g.get("tokens", 100))
    def view() -> str:
        (go_on if down == "at first" else stop)()
        g.tokens = 500
        assert limiter.current.admit_again() is None
        limiter.settle(tokens=300)
        return "ok"

    if down == "at first":
        stop()
    assert app.test_client().get("/").status_code == 200
    if down == "for the retry":
        go_on()
    servers.eventually(lambda: limiter._components.engines.outage.is_handed_back)  # type: ignore[union-attr]
    assert limiter.operators.flush_settlements(timeout_s=20)
    servers.eventually(lambda: remaining(app, limiter) == {"": 700})


@pytest.mark.parametrize("on_failure", ["local", "open"])
def test_a_call_that_was_never_sent_releases_nothing(on_failure: str) -> None:
    """A refused connection has charged nothing. Nor has a limit that is open, so there is nothing
    to settle, renew or give back."""
    app, limiter = made(AWAY)
    before = len(limiter._components.settlements)

    @app.get("/")
    @limiter.limit("9/day", unit="tokens", cost=1, on_failure=on_failure)
    def view() -> str:
        limiter.current.reservation.renew(tokens=1, at_once=True)
        if request.args:
            limiter.current.cancel()
        return "ok"

    assert statuses(app, times=3) == [200] * 3
    assert app.test_client().get("/?cancel=1").status_code == 200
    assert len(limiter._components.settlements) == before


def test_a_caller_whose_call_ends_in_the_outage_gets_the_rest_of_its_estimate(
    own_server: servers.Server,
) -> None:
    """It held the whole budget when the outage began. Other calls of the same caller had been
    denied. The storage charges the real costs when it is back."""
    app, limiter = made(own_server.uri, {"RATELIMIT_DEADLINE_SECONDS": 0.5})
    is_running, ends = threading.Event(), threading.Event()

    @app.get("/long")
    @limiter.limit("1000/day", unit="tokens", cost=lambda: int(request.args["holds"]), name="t")
    def view() -> str:
        if request.args["holds"] == "1000":
            is_running.set()
            assert ends.wait(20)
        limiter.settle(tokens=100)
        return "ok"

    client = app.test_client()
    call = threading.Thread(target=lambda: app.test_client().get("/long?holds=1000"))
    call.start()
    assert is_running.wait(20)
    assert client.get("/long?holds=900").status_code == 429
    os.kill(own_server.pid, signal.SIGSTOP)
    servers.eventually(lambda: client.get("/long?holds=901") and limiter.operators.storage_is_down)
    assert client.get("/long?holds=900").status_code == 429
    ends.set()
    call.join()
    answers = [client.get("/long?holds=800") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    os.kill(own_server.pid, signal.SIGCONT)
    servers.eventually(lambda: not limiter.operators.storage_is_down)
    servers.eventually(
        lambda: not settlements and limiter._components.engines.outage.is_handed_back
    )  # type: ignore[union-attr]
    assert client.get("/long?holds=1").headers["X-RateLimit-Remaining"] == "699"


def test_what_was_handed_back_survives_its_process_in_the_next_outage(
    own_server: servers.Server, tmp_path: Path
) -> None:
    """A call that began in one outage and ends in the next is in the journal."""
    app, limiter = made(
        own_server.uri, {"RATELIMIT_SETTLEMENTS_DIR": str(tmp_path / "settlements")}
    )
    is_running, ends = threading.Event(), threading.Event()

    @app.get("/")
    @limiter.limit("1000/day", unit="tokens", cost=100)
    def view() -> str:
        is_running.set()
        assert ends.wait(20)
        limiter.settle(tokens=20)
        return "ok"

    own_server.kill()
    app.test_client().get("/nowhere")
    call = threading.Thread(target=lambda: app.test_client().get("/"))
    call.start()
    assert is_running.wait(20)
    revive(own_server, limiter)
    servers.eventually(lambda: limiter._components.engines.outage.is_handed_back)  # type: ignore[union-attr]
    own_server.kill()
    ends.set()
    call.join()
    (journal,) = (tmp_path / "settlements").glob("*.journal")
    assert ",20]" in journal.read_text()
    revive(own_server, limiter)
    servers.eventually(lambda: not list((tmp_path / "settlements").glob("*.journal")))
