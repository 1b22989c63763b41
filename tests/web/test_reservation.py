"""Reserve, settle, stream: what becomes of estimates on the extension."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import flask
import pytest
import redis

from ratelimit_ext import Limiter, Reservation, StorageUnavailable
from ratelimit_ext.web import reservation as reservation_module

View = Callable[[], Any]


class Service:
    """An application with one view behind limits in every unit."""

    def __init__(self, uri: str, view: Callable[[Limiter], Any]) -> None:
        self.app = flask.Flask("service")
        self.limiter = Limiter(
            lambda: flask.request.headers.get("User", "ada"),
            app=self.app,
            storage_uri=uri,
            headers_enabled=True,
            application_limits=["1000/day"],
        )
        self.limiter.estimator("tokens")(lambda: 400)
        self.limiter.estimator("usd")(lambda: Decimal("0.30"))
        served = self._limited(lambda: view(self.limiter))
        self.app.add_url_rule("/", "served", served)
        self.client = self.app.test_client()

    def _limited(self, view: View) -> View:
        for text, words in [
            ("1000/day", {"unit": "tokens", "name": "tokens"}),
            ("1 usd/day", {"name": "money"}),
            ("2 in flight", {"name": "slots"}),
            ("10/day", {"name": "calls"}),
        ]:
            view = self.limiter.limit(text, **words)(view)
        return view

    def left(self) -> dict[str, int]:
        """What remains of each limit, as a look finds it."""
        found = {}
        for definitions in self.limiter.limit_manager._decorated_limits.values():
            for limit in (limit for definition in definitions for limit in definition):
                stats = self.limiter.limiter.get_window_stats(limit.limit, "ada", "served")
                found[limit.limit.keywords.name] = stats.remaining
        return found


@pytest.fixture(params=["memory", "redis"])
def uri(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    if request.param == "memory":
        return "memory://"
    request.getfixturevalue("redis_client")
    return str(request.getfixturevalue("redis_server").uri)


def test_a_settled_request_costs_what_it_cost(uri: str) -> None:
    """Estimates go, real costs stay, the slot is free, and the call is counted."""

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=150, usd=Decimal("0.1000001"))
        return "ok"

    service = Service(uri, view)
    with service.client.get("/") as response:
        assert response.status_code == 200
        assert '"tokens";r=600' in response.headers["RateLimit"]
    assert service.left() == {"tokens": 850, "money": 899_999, "slots": 2, "calls": 9}


def test_an_unsettled_request_costs_its_estimate(uri: str) -> None:
    """Nobody said what it cost: the estimate stands, and the slot is free again."""
    service = Service(uri, lambda _: "ok")
    service.client.get("/").close()
    assert service.left() == {"tokens": 600, "money": 700_000, "slots": 2, "calls": 9}


def test_a_cancelled_request_costs_nothing_but_the_edge(uri: str) -> None:
    """The provider failed: the user's call, tokens and money go back; the application's do not."""

    def view(limiter: Limiter) -> tuple[str, int]:
        limiter.cancel()
        return "provider down", 502

    service = Service(uri, view)
    with service.client.get("/") as response:
        assert response.status_code == 502
    assert service.left() == {"tokens": 1000, "money": 1_000_000, "slots": 2, "calls": 10}
    application = next(iter(service.limiter.limit_manager.application_limits))
    stats = service.limiter.limiter.get_window_stats(application.limit, "ada", "global")
    assert stats.remaining == 999


def test_debt_makes_the_next_call_wait(uri: str) -> None:
    """A call may cost more than its estimate and more than is left; the next one is refused."""

    def view(limiter: Limiter) -> str:
        limiter.settle(input_tokens=100, output_tokens=2000)
        return "ok"

    service = Service(uri, view)
    service.client.get("/").close()
    assert service.left()["tokens"] == 0
    with service.client.get("/") as response:
        assert response.status_code == 429
        assert response.json is not None
        assert response.json["policy"] == "tokens"


def test_a_stream_settles_when_it_ends(uri: str) -> None:
    """Until then its slot is taken and its estimate held; two streams at once, not three."""

    def view(limiter: Limiter) -> flask.Response:
        reservation = limiter.reservation

        def chunks() -> Iterator[str]:
            try:
                yield "a"
                yield "b"
            finally:
                reservation.settle(tokens=7, usd="0.01")

        return flask.Response(chunks())

    service = Service(uri, view)
    first, second = service.client.get("/"), service.client.get("/")
    assert service.left() == {"tokens": 200, "money": 400_000, "slots": 0, "calls": 8}
    assert service.client.get("/").status_code == 429
    assert first.text == "ab"
    first.close()
    second.close()  # the client left in the middle
    assert service.left()["slots"] == 2
    assert service.left()["calls"] == 8
    assert service.left()["tokens"] == 1000 - 7 - 7


def test_a_failing_view_leaves_nothing_in_flight(uri: str) -> None:
    """An unhandled error is a response too, and gives its slot back."""

    def view(limiter: Limiter) -> str:
        raise RuntimeError("a defect")

    service = Service(uri, view)
    service.client.get("/").close()
    assert service.left()["slots"] == 2
    service.app.testing = True
    with pytest.raises(RuntimeError):
        service.client.get("/")
    assert service.left()["slots"] == 2


def test_a_detached_reservation_outlives_its_response(uri: str) -> None:
    """A job that goes on after the answer closes its reservation itself, from any thread."""
    kept: list[Reservation] = []

    def view(limiter: Limiter) -> str:
        kept.append(limiter.reservation.detach())
        return "accepted"

    service = Service(uri, view)
    service.client.get("/").close()
    assert service.left()["slots"] == 1
    kept[0].settle(tokens=50)
    kept[0].close()
    kept[0].settle(tokens=900)
    kept[0].close()
    assert service.left()["slots"] == 2
    assert service.left()["tokens"] == 950


def test_one_call_to_admit_and_one_to_settle(redis_server: Any, redis_client: redis.Redis) -> None:
    """Five limits in four units, headers on: two EVALSHA in all, and nothing else."""

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=1, usd=0)
        return "ok"

    service = Service(redis_server.uri, view)
    for _ in range(2):  # the first time, the server learns the scripts
        redis_client.config_resetstat()
        service.client.get("/").close()
    calls = {name: stat["calls"] for name, stat in redis_client.info("commandstats").items()}
    assert calls.pop("cmdstat_evalsha") == 2
    assert set(calls) <= {
        f"cmdstat_{n}" for n in ("mget", "set", "del", "time", "config|resetstat", "info")
    }


def test_a_stream_renews_seldom(
    redis_server: Any, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks: one renewal in five seconds."""
    here = [1000.0]
    monkeypatch.setattr(reservation_module.time, "monotonic", lambda: here[0])

    def view(limiter: Limiter) -> flask.Response:
        reservation = limiter.reservation

        def chunks() -> Iterator[str]:
            for _ in range(120):
                here[0] += 0.1
                reservation.renew(tokens=1)
                yield "."

        return flask.Response(chunks())

    service = Service(redis_server.uri, view)
    service.client.get("/").close()
    redis_client.config_resetstat()
    with service.client.get("/") as response:
        assert len(response.text) == 120
    assert redis_client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1 + 2 + 1


@pytest.mark.parametrize("away", [StorageUnavailable("away"), KeyError("oops")])
def test_settling_never_fails_a_response(
    uri: str, caplog: pytest.LogCaptureFixture, away: Exception
) -> None:
    """The storage is away when the call is over: it is logged, and the lease does the rest. How we
    came there is told of a mistake alone; an outage is one line for each call."""

    class Away:
        def settle(self, changes: Any) -> int:
            raise away

    def view(limiter: Limiter) -> str:
        limiter.reservation._engine = Away()  # type: ignore[assignment]
        limiter.settle(tokens=1)
        return "ok"

    service = Service(uri, view)
    with caplog.at_level(logging.ERROR), service.client.get("/") as response:
        assert response.status_code == 200
    assert "charges, their lease ends by itself" in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(away, KeyError)


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"tokens": 1.5}, {"usd": "-1"}, {"usd": "x"}])
def test_a_cost_that_is_none_is_told(wrong: dict[str, Any]) -> None:
    """Settling nonsense is a defect of the caller, and says so."""

    def view(limiter: Limiter) -> str:
        with pytest.raises(ValueError, match=r"settling|dollars"):
            limiter.settle(**wrong)
        return "ok"

    assert Service("memory://", view).client.get("/").status_code == 200


def test_without_estimates_settling_is_nothing() -> None:
    """A view whose limits are final may settle all the same."""
    app = flask.Flask("plain")
    limiter = Limiter(lambda: "ada", app=app, storage_uri="memory://", default_limits=["3/day"])

    @app.get("/")
    def plain() -> str:
        limiter.settle(tokens=5)
        return "ok"

    assert app.test_client().get("/").status_code == 200


def test_a_look_at_what_is_left(uri: str) -> None:
    """Each limit of an endpoint for the present caller; looking costs nothing."""

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=150, usd="0.1")
        return "ok"

    service = Service(uri, view)
    service.client.get("/").close()
    for _ in range(3):
        with service.app.test_request_context(headers={"User": "ada"}):
            limits = service.limiter.peek("served")
        assert [(str(limit.limit), limit.remaining) for limit in limits] == [
            ("2 in flight", 2),
            ("10 per 1 day", 9),
            ("1000 per 1 day", 850),
            ("1000 per 1 day", 999),
            ("1 usd per 1 day", 900_000),
        ]


def test_one_bucket_claimed_twice_is_given_back_once(uri: str) -> None:
    """Two equal limits of a view are one bucket and two calls; another request's stay."""
    app = flask.Flask("twice")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri, default_limits=["10/day"])

    @app.get("/")
    @limiter.limit("10/day", override_defaults=False)
    def view() -> str:
        if "fail" in flask.request.args:
            limiter.cancel()
        return "ok"

    def left() -> set[int]:
        with app.test_request_context():
            return {limit.remaining for limit in limiter.peek("view")}

    client = app.test_client()
    client.get("/")
    assert left() == {8}
    client.get("/?fail=1")
    assert left() == {8}
