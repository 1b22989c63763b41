"""Reserve, settle, stream: what becomes of estimates on the extension."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from threading import Thread
from typing import Any

import flask
import pytest
import redis

from ratelimit_ext import Claim, ConfigurationError, Guess, Limiter, Reservation
from ratelimit_ext.core.charge import DEFAULT_LEASE_S, KEPT_AFTER_LEASE_S
from ratelimit_ext.web.request import reservation as reservation_module
from ratelimit_ext.web.storage import LEASE, lease_s
from tests.clocks import Clock
from tests.web.calls import remaining
from tests.web.conftest import Maker
from tests.web.outage.flaky import make_flaky

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
        """What remains of each limit of the view."""
        left = remaining(self.app, self.limiter, "served")
        del left[""]  # the application's
        return left


@pytest.mark.parametrize(
    ("acts", "left"),
    [
        (
            lambda limiter: limiter.settle(tokens=150, usd=Decimal("0.1000001")),
            {"tokens": 850, "money": 899_999, "slots": 2, "calls": 9},
        ),
        (
            lambda limiter: limiter.settle(tokens=0, usd=0),
            {"tokens": 1000, "money": 1_000_000, "slots": 2, "calls": 9},
        ),
        (lambda _: None, {"tokens": 600, "money": 700_000, "slots": 2, "calls": 9}),
        (
            lambda limiter: limiter.current.cancel(),
            {"tokens": 1000, "money": 1_000_000, "slots": 2, "calls": 10},
        ),
    ],
    ids=["settled", "settled at nothing", "unsettled", "cancelled"],
)
def test_what_a_request_costs(
    uri: str, acts: Callable[[Limiter], object], left: dict[str, int]
) -> None:
    """Estimates go, real costs stay, the slot is free, and the call is counted. Without a
    settlement the estimate is the cost. A cancelled call counts at the edge alone."""
    service = Service(uri, lambda limiter: acts(limiter) or "ok")
    with service.client.get("/") as response:
        assert response.status_code == 200
        assert '"tokens";r=600' in response.headers["RateLimit"]
    assert service.left() == left
    assert remaining(service.app, service.limiter, "served")[""] == 999


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
        reservation = limiter.current.reservation

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


def test_a_stream_with_context_settles_in_its_own_request(uri: str) -> None:
    """Flask ends the request before such a stream begins, and enters its context again."""

    def view(limiter: Limiter) -> flask.Response:
        def chunks() -> Iterator[str]:
            yield "a"
            limiter.settle(tokens=7, usd="0.01")
            yield "b"

        return flask.Response(flask.stream_with_context(chunks()))

    service = Service(uri, view)
    with service.client.get("/") as response:
        assert response.text == "ab"
    assert service.left() == {"tokens": 993, "money": 990_000, "slots": 2, "calls": 9}


def test_a_copy_of_the_context_settles_its_request(uri: str) -> None:
    """As in a thread of the view."""

    def view(limiter: Limiter) -> str:
        @flask.copy_current_request_context
        def work() -> None:
            limiter.settle(tokens=7, usd="0.01")

        thread = Thread(target=work)
        thread.start()
        thread.join()
        return "done"

    service = Service(uri, view)
    service.client.get("/")
    assert service.left() == {"tokens": 993, "money": 990_000, "slots": 2, "calls": 9}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_frees_its_slot_when_it_is_sent(uri: str, method: str) -> None:
    """A server closes the file of `send_file` in place of the response."""
    service = Service(uri, lambda _: flask.send_file(__file__))
    response = service.client.open("/", method=method)
    assert service.left()["slots"] == 1
    response.close()
    assert service.left()["slots"] == 2


def test_a_stream_that_an_error_replaces_frees_its_slot(uri: str) -> None:
    """A hook that fails after the limits' own makes a 500 of a stream, which no server closes."""
    service = Service(uri, lambda _: flask.Response(iter(["a", "b"])))

    def fail(response: flask.Response) -> flask.Response:
        raise RuntimeError("a defect")

    service.app.after_request_funcs[None].insert(0, fail)  # the last hook to be called
    service.client.get("/").close()
    assert service.left()["slots"] == 2


def test_an_error_does_not_wait_for_its_response_to_be_closed(uri: str) -> None:
    """Flask's test client closes none, and the body of an error is complete."""

    def view(limiter: Limiter) -> str:
        flask.abort(404)

    service = Service(uri, view)
    assert service.client.get("/").status_code == 404
    assert service.left()["slots"] == 2


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
        kept.append(limiter.current.reservation.detach())
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


def test_one_call_to_admit_and_one_to_settle(redis_uri: str, redis_client: redis.Redis) -> None:
    """Five limits in four units, headers on: two FCALL in all, and nothing else."""

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=1, usd=0)
        return "ok"

    service = Service(redis_uri, view)
    for _ in range(2):  # the first time, the server learns the scripts
        redis_client.config_resetstat()
        service.client.get("/").close()
    calls = {name: stat["calls"] for name, stat in redis_client.info("commandstats").items()}
    assert calls.pop("cmdstat_fcall") == 2
    assert set(calls) <= {
        f"cmdstat_{n}"
        for n in ("mget", "set", "setrange", "del", "time", "config|resetstat", "info")
    }


def test_a_stream_renews_seldom(
    redis_uri: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks: one renewal in five seconds."""
    here = [1000.0]
    monkeypatch.setattr(reservation_module.time, "monotonic", lambda: here[0])

    def view(limiter: Limiter) -> flask.Response:
        reservation = limiter.current.reservation

        def chunks() -> Iterator[str]:
            for _ in range(120):
                here[0] += 0.1
                reservation.renew(tokens=1)
                yield "."

        return flask.Response(chunks())

    service = Service(redis_uri, view)
    service.client.get("/").close()
    redis_client.config_resetstat()
    with service.client.get("/") as response:
        assert len(response.text) == 120
    assert redis_client.info("commandstats")["cmdstat_fcall"]["calls"] == 1 + 2 + 1


def test_settling_never_fails_a_response(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """The storage is unavailable when the call is over: it is logged once for all calls, and the
    settlements arrive when it is back."""

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=1, usd=0)
        return "ok"

    service = Service(uri, view)
    engine, queue = make_flaky(service.limiter)
    engine.is_away = True
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            service.client.get("/").close()
            queue.send_waiting()
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text
    assert service.left() == {"tokens": 200, "money": 400_000, "slots": 0, "calls": 8}
    engine.is_away = False
    assert queue.send_waiting() == 0
    assert service.left() == {"tokens": 998, "money": 1_000_000, "slots": 2, "calls": 8}


@pytest.mark.parametrize("wrong", [{"tokens": -1}, {"tokens": 1.5}, {"usd": "-1"}, {"usd": "x"}])
def test_an_invalid_cost_is_an_error(wrong: dict[str, Any]) -> None:
    """An invalid cost is an error of the caller."""

    def view(limiter: Limiter) -> str:
        with pytest.raises(ValueError, match=r"tokens: found|dollars"):
            limiter.settle(**wrong)
        return "ok"

    assert Service("memory://", view).client.get("/").status_code == 200


def test_without_estimates_settling_is_nothing(make: Maker) -> None:
    """A view whose limits are final may settle all the same."""
    app, limiter = make(default_limits=["3/day"])

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
            limits = service.limiter.current.peek("served")
        assert [(str(limit.limit), limit.remaining) for limit in limits] == [
            ("2 in flight", 2),
            ("10 per 1 day", 9),
            ("1000 per 1 day", 850),
            ("1000 per 1 day", 999),
            ("1 usd per 1 day", Decimal("0.9")),
        ]


def test_one_bucket_claimed_twice_is_given_back_once(make: Maker, uri: str) -> None:
    """Two equal limits of a view are one bucket and two calls; another request's stay."""
    app, limiter = make(storage_uri=uri, default_limits=["10/day"])

    @app.get("/")
    @limiter.limit("10/day", override_defaults=False)
    def view() -> str:
        if "fail" in flask.request.args:
            limiter.current.cancel()
        return "ok"

    def left() -> set[int]:
        with app.test_request_context():
            return {limit.remaining for limit in limiter.current.peek("view")}

    client = app.test_client()
    client.get("/")
    assert left() == {8}
    client.get("/?fail=1")
    assert left() == {8}


# -- one limit, several times ----------------------------------------------------------------------


class Repeated:
    """A request that meets ``1000/day`` in tokens, ``9 usd/day`` and ``9 in flight`` three times,
    with an estimate of 100 tokens and of 1 dollar; ``acts`` is what its view does then."""

    def __init__(self, uri: str, acts: Callable[[Limiter], Any], *, how: str) -> None:
        self.app = flask.Flask("repeated")
        self.limiter = limiter = Limiter(lambda: "ada", app=self.app, storage_uri=uri)
        limiter.estimator("tokens")(lambda: 100)
        limiter.estimator("usd")(lambda: 1)
        limits = [
            limiter.shared_limit(text, scope="all", name=name, **words)
            for name, text, words in [
                ("tokens", "1000/day", {"unit": "tokens"}),
                ("money", "9 usd/day", {}),
                ("slots", "9 in flight", {}),
            ]
        ]

        def helper() -> None:
            """Met where it is called."""

        for limit in limits:
            helper = limit(helper)

        def view() -> Any:
            for _ in range(3):
                if how == "in blocks":
                    for limit in limits:
                        with limit:
                            pass
                else:
                    helper()
            return acts(limiter)

        look: Any = lambda: "ok"  # noqa: E731
        for limit in limits:
            look = limit(look)
        self.app.add_url_rule("/", "view", view)
        self.app.add_url_rule("/look", "look", look)
        self.client = self.app.test_client()

    def left(self) -> dict[str, int]:
        return remaining(self.app, self.limiter, "look")


@pytest.mark.parametrize(
    ("acts", "how", "left"),
    [
        (lambda limiter: limiter.settle(tokens=150, usd="0.5"), "in blocks", (850, 8_500_000, 9)),
        (lambda limiter: limiter.settle(tokens=150, usd="0.5"), "by a helper", (850, 8_500_000, 9)),
        (lambda _: None, "in blocks", (700, 6_000_000, 9)),
        (lambda limiter: limiter.current.cancel(), "by a helper", (1000, 9_000_000, 9)),
    ],
    ids=["settled in blocks", "settled by a helper", "unsettled", "cancelled"],
)
def test_a_limit_that_is_met_three_times(
    uri: str, acts: Callable[[Limiter], object], how: str, left: tuple[int, int, int]
) -> None:
    """The request costs once what it costs, and all its slots come back. What was not settled costs
    three estimates, and a cancelled request nothing."""
    repeated = Repeated(uri, lambda limiter: acts(limiter) or "ok", how=how)
    repeated.client.get("/").close()
    assert repeated.left() == dict(zip(("tokens", "money", "slots"), left, strict=True))


def test_a_limit_that_is_met_three_times_is_renewed_at_its_actual_cost(clock: Clock) -> None:
    """The first charge bears the 350 tokens so far; the others keep their holds until the end."""
    left = []

    def acts(limiter: Limiter) -> str:
        clock.forward(6)
        limiter.current.reservation.renew(tokens=350)
        left.append(repeated.left()["tokens"])
        limiter.settle(tokens=360)
        return "ok"

    repeated = Repeated("memory://", acts, how="in blocks")
    repeated.client.get("/").close()
    assert left == [1000 - 350 - 100 - 100]
    assert repeated.left()["tokens"] == 640


# -- leases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lease_s", "pause_s"), [(3, 1), (9, 3), (120, 5)])
def test_renewals_keep_within_the_lease(clock: Clock, lease_s: float, pause_s: float) -> None:
    """Every five seconds, or three times within a shorter lease: a slot is never lost to its lease
    while its stream runs."""
    app = flask.Flask("leases")
    app.config["RATELIMIT_LEASE_SECONDS"] = lease_s
    limiter = Limiter(lambda: "ada", app=app, storage_uri="memory://")
    slots, pauses = [], []

    @app.get("/")
    @limiter.limit("2 in flight", name="slots")
    def view() -> str:
        reservation, since = limiter.current.reservation, clock.now_s
        for _ in range(200):
            clock.forward(0.25)
            if reservation.renewal_is_due:
                pauses.append(clock.now_s - since)
                since = clock.now_s
            reservation.renew()
            slots.append(limiter.current.peek("view")[0].remaining)
        return "ok"

    app.test_client().get("/")
    assert set(pauses) == {pause_s}
    assert set(slots) == {1}


@pytest.mark.parametrize("late_s", [-1, 1])
@pytest.mark.parametrize("renewed", [None, 70, 600], ids=["silent", "less", "more"])
@pytest.mark.parametrize("actual", [None, 150, 700], ids=["cancelled", "less", "more"])
def test_a_call_that_was_silent_for_long_is_charged(
    clock: Clock, late_s: float, renewed: int | None, actual: int | None
) -> None:
    """Also if its holds are forgotten, ten minutes after its lease ended: what they have left, the
    estimate or the cost of the last renewal, is corrected."""

    def view(limiter: Limiter) -> str:
        if renewed is not None:
            clock.forward(5)
            limiter.current.reservation.renew(tokens=renewed, usd=Decimal(renewed) / 1000)
        clock.forward(DEFAULT_LEASE_S + KEPT_AFTER_LEASE_S + late_s)
        if actual is None:
            limiter.current.cancel()
        else:
            limiter.settle(tokens=actual, usd=Decimal(actual) / 1000)
        return "ok"

    service = Service("memory://", view)
    service.client.get("/").close()
    cost, calls = actual or 0, 10 if actual is None else 9
    left = {"tokens": 1000 - cost, "money": 1000 * (1000 - cost), "slots": 2, "calls": calls}
    assert service.left() == left


@pytest.mark.parametrize("renewed", [None, {}, {"tokens": 70}])
def test_a_call_that_never_settles_costs_its_estimate(
    clock: Clock, renewed: dict[str, int] | None
) -> None:
    """When its lease ends, as its worker died; or the cost of its last renewal."""

    def view(limiter: Limiter) -> str:
        reservation = limiter.current.reservation.detach()
        if renewed is not None:
            clock.forward(5)
            reservation.renew(**renewed)
        return "ok"

    service = Service("memory://", view)
    service.client.get("/").close()
    tokens = 70 if renewed else 400
    assert service.left() == {"tokens": 600, "money": 700_000, "slots": 1, "calls": 9}
    clock.forward(DEFAULT_LEASE_S)
    left = {"tokens": 1000 - tokens, "money": 700_000, "slots": 2, "calls": 9}
    assert service.left() == left


@pytest.mark.parametrize("ended", ["settled", "cancelled"])
def test_a_call_whose_worker_slept_is_charged_once(
    uri: str, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """Its own clock says that the hold is forgotten, and the storage still has it."""
    monkeypatch.setattr(reservation_module, "KEPT_AFTER_LEASE_S", -DEFAULT_LEASE_S)

    def view(limiter: Limiter) -> str:
        limiter.settle(tokens=150, usd=Decimal("0.1"))
        if ended == "cancelled":
            limiter.current.cancel()
        return "ok"

    service = Service(uri, view)
    service.client.get("/").close()
    left = {"tokens": 850, "money": 900_000, "slots": 2, "calls": 9}
    cancelled = {"tokens": 1000, "money": 1_000_000, "slots": 2, "calls": 10}
    assert service.left() == (left if ended == "settled" else cancelled)


# -- a dearer attempt ------------------------------------------------------------------------------


class Dearer:
    """A view whose first attempt is estimated at 100 tokens and 1 dollar. ``retry`` changes the
    estimates and the model, and asks for another attempt."""

    def __init__(self, uri: str, acts: Callable[[Dearer], Any]) -> None:
        self.app = flask.Flask("dearer")
        self.limiter = limiter = Limiter(lambda: "ada", app=self.app, storage_uri=uri)
        self.answers: list[float | None] = []
        self.budgets: list[Decimal | None] = []
        limiter.estimator("tokens")(lambda: flask.g.get("tokens", 100))
        limiter.estimator("usd")(lambda: flask.g.get("usd", "1"))
        view: Any = lambda: acts(self) or "ok"  # noqa: E731
        for name, text, words in [
            ("tokens", "1000/day", {"unit": "tokens"}),
            ("money", "9 usd/day", {}),
            ("shadow", "9 usd/day", {"mode": "shadow"}),
            ("slots", "5 in flight", {}),
            ("calls", "10/day", {}),
            ("model", "1000/day", {"unit": "tokens", "key_func": self._model}),
        ]:
            view = limiter.limit(text, name=name, **words)(view)
        self.app.add_url_rule("/", "view", view)
        self.client = self.app.test_client()

    @staticmethod
    def _model() -> str:
        return flask.request.headers.get("Model") or str(flask.g.get("model", "small"))

    def retry(self, *names: str, **changed: Any) -> None:
        for word, value in changed.items():
            setattr(flask.g, word, value)
        self.answers.append(self.limiter.current.admit_again(*names))
        self.budgets.append(self.limiter.current.remaining_budget)

    def get(self) -> None:
        with self.client.get("/") as response:
            assert response.status_code == 200

    def left(self, model: str = "small") -> dict[str, int]:
        return remaining(self.app, self.limiter, headers={"Model": model})


FRESH = {"tokens": 1000, "money": 9_000_000, "slots": 5, "calls": 10, "model": 1000}
HELD = ("tokens", "money", "shadow", "slots")


def test_a_dearer_attempt_is_held_in_full(uri: str) -> None:
    """By every limit that holds an estimate, also by one that is not named (`model`): the
    difference is decided and held; an equal or cheaper one adds nothing."""
    seen = []

    def acts(dearer: Dearer) -> None:
        dearer.retry(*HELD)
        seen.append(dearer.left())
        dearer.retry(*HELD, tokens=300, usd="4")
        seen.append(dearer.left())
        dearer.retry(*HELD, tokens=300, usd="2")
        seen.append(dearer.left())

    dearer = Dearer(uri, acts)
    dearer.get()
    first = {**FRESH, "tokens": 900, "money": 8_000_000, "slots": 4, "calls": 9, "model": 900}
    assert dearer.answers == [None] * 3
    assert seen == [first, *[{**first, "tokens": 700, "money": 5_000_000, "model": 700}] * 2]
    # Nothing was settled: it costs the estimate of the dearest attempt.
    assert dearer.left() == {**seen[-1], "slots": 5}


def test_a_dearer_attempt_settles_at_what_it_cost(uri: str) -> None:
    """Once, whatever was held for it."""

    def acts(dearer: Dearer) -> None:
        dearer.retry(*HELD, tokens=300, usd="4")
        dearer.limiter.settle(tokens=250, usd="3.5")

    dearer = Dearer(uri, acts)
    dearer.get()
    assert dearer.left() == {
        **FRESH, "tokens": 750, "money": 5_500_000, "calls": 9, "model": 750
    }  # fmt: skip


def test_a_dearer_attempt_is_denied_by_the_budget(uri: str) -> None:
    """It is decided against what the caller has left, with what this call holds; nothing more is
    charged, and the first attempt's estimate stays."""

    def acts(dearer: Dearer) -> None:
        dearer.retry("calls", *HELD, usd="9.01")
        dearer.retry(*HELD, usd="9")

    dearer = Dearer(uri, acts)
    dearer.get()
    assert dearer.answers[0] is not None
    assert dearer.answers[1] is None
    assert dearer.left() == {**FRESH, "tokens": 900, "money": 0, "calls": 9, "model": 900}


def test_another_models_limit_is_held_in_its_place(uri: str) -> None:
    """The new model's limit is charged and settled, that of the first gets everything back."""

    def acts(dearer: Dearer) -> None:
        dearer.retry("model", model="big", tokens=300)
        seen.extend(dearer.left(model)["model"] for model in ("small", "big"))
        dearer.limiter.settle(tokens=250)

    seen: list[int] = []
    dearer = Dearer(uri, acts)
    dearer.get()
    assert seen == [900, 700]
    assert [dearer.left(model)["model"] for model in ("small", "big")] == [1000, 750]


# -- what a call may cost at most ------------------------------------------------------------------


def test_the_remaining_budget_is_what_this_call_may_cost(uri: str) -> None:
    """The least of the limits in dollars, with what the call itself holds; others' are gone."""

    def acts(dearer: Dearer) -> None:
        dearer.budgets.append(dearer.limiter.current.remaining_budget)
        dearer.retry(*HELD, usd="4")
        with dearer.limiter.limit("3.5 usd/day", name="day", cost=lambda: "0.25"):
            dearer.budgets.append(dearer.limiter.current.remaining_budget)
        with dearer.limiter.limit("3 usd/day", name="day", mode="shadow"):
            dearer.budgets.append(dearer.limiter.current.remaining_budget)

    dearer = Dearer(uri, acts)
    dearer.get()
    assert dearer.budgets == [9, 9, Decimal("3.5"), Decimal("3.5")]
    dearer.get()
    assert dearer.budgets[4:] == [5, 5, Decimal("3.25"), Decimal("3.25")]


@pytest.mark.parametrize("claims", [True, False])
def test_two_limits_of_one_bucket_are_one_budget(make: Maker, claims: bool) -> None:
    """What both hold is the call's: alone, it may spend all ten dollars."""
    app, limiter = make()
    claim = Claim(10**6, 10**6, 10**6, 10**6) if claims else None
    limiter.estimator("usd")(lambda: Guess("1", claim=claim))
    words: dict[str, Any] = {"scope": "calls", "override_defaults": False}
    blueprint = flask.Blueprint("calls", "calls")
    limiter.shared_limit("10 usd/day", **words)(blueprint)

    @blueprint.get("/")
    @limiter.shared_limit("10 usd/day", **words)
    def view() -> str:
        return str(limiter.current.remaining_budget)

    app.register_blueprint(blueprint)
    assert Decimal(app.test_client().get("/").text) == 10


def test_calls_that_share_a_budget_divide_it(make: Maker) -> None:
    """Each budget among its own calls in flight, by its own count: one call of a user, others of
    their team; the only call of all of them may spend what is left."""
    app, limiter = make()
    found: list[tuple[Decimal | None, bool]] = []

    def user() -> str:
        return flask.request.args["user"]

    @limiter.estimator("usd")
    def estimate() -> Guess:
        return Guess("1", claim=Claim(*[10**6 * dollars for dollars in (1, 2, 4, 9)]))

    @app.get("/")
    @limiter.limit("10 usd/day", key_func=user, name="own")
    @limiter.limit("20 usd/day", key_func=lambda: "team", name="shared")
    def view() -> str:
        others = flask.request.args["others"]
        if others:  # while this call is in flight
            app.test_client().get(f"/?user={others[0]}&others={others[1:]}")
        found.append((limiter.current.remaining_budget, limiter.current.is_alone))
        return "ok"

    app.test_client().get("/?user=a&others=bcda")
    # The first call of a holds one dollar, those of b and c four each, and that of d a fourth of
    # the 11 that are left. The next one is the second of a and the fifth of the team, and needs
    # more than a fifth of the rest.
    assert found == [(2, False), (Decimal("2.75"), False), (4, False), (4, False), (10, True)]


def test_without_a_budget_there_is_none(make: Maker) -> None:
    """Neither a limit in requests is one, nor a guard."""
    app, limiter = make(default_limits=["3/day"])

    @app.get("/")
    @limiter.limit("1 usd/hour or 20 x usual", cost=lambda: "0.1", override_defaults=False)
    def view() -> str:
        return str(limiter.current.remaining_budget)

    assert app.test_client().get("/").text == "None"


def test_the_remaining_budget_asks_no_storage(redis_uri: str, redis_client: redis.Redis) -> None:
    """It is known from the admission."""

    def acts(dearer: Dearer) -> None:
        for _ in range(3):
            assert dearer.limiter.current.remaining_budget is not None

    dearer = Dearer(redis_uri, acts)
    dearer.get()
    redis_client.config_resetstat()
    dearer.get()
    assert redis_client.info("commandstats")["cmdstat_fcall"]["calls"] == 2


# -- guesses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guess", "status", "used"),
    [
        (Guess(200), 200, 200),
        (Guess(5000), 200, 1000),
        (Guess(5000, least=1000), 200, 1000),
        (Guess(5000, least=1001), 400, 0),
        (Guess(10, least=30), 200, 30),
        (5000, 400, 0),
    ],
)
@pytest.mark.parametrize("said_by", ["an estimator", "a cost function"])
def test_a_guess_is_clamped_to_what_the_limit_can_hold(
    make: Maker, uri: str, guess: Any, status: int, used: int, said_by: str
) -> None:
    """Only what a request costs at the least can make it too large. A plain number is exact."""
    app, limiter = make(storage_uri=uri)
    words: dict[str, Any] = {}
    if said_by == "an estimator":
        limiter.estimator("tokens")(lambda: guess)
    else:
        words["cost"] = lambda: guess
    view = limiter.limit("1000/day", unit="tokens", **words)(lambda: "ok")
    app.add_url_rule("/", "view", view)
    response = app.test_client().get("/")
    assert response.status_code == status
    assert remaining(app, limiter) == {"": 1000 - used}


def test_a_guess_is_clamped_for_each_limit(make: Maker, uri: str) -> None:
    """One answer, limits of several sizes; of ``usd`` both numbers are dollars."""
    app, limiter = make(storage_uri=uri)
    limiter.estimator("usd")(lambda: Guess(Decimal("2.5"), least="0.5"))

    @app.get("/")
    @limiter.limit("1 usd/day", name="small")
    @limiter.limit("9 usd/day", name="large")
    def view() -> str:
        limiter.settle(usd="0.75")
        return "ok"

    app.test_client().get("/").close()
    assert remaining(app, limiter) == {"small": 250_000, "large": 8_250_000}


@pytest.mark.parametrize("guess", [Guess(-1), Guess(1, least=-1), Guess(1.5), Guess("x")])
def test_a_guess_of_no_number_is_a_mistake(make: Maker, guess: Any) -> None:
    """Like any other cost."""
    app, limiter = make()
    limiter.estimator("tokens")(lambda: guess)
    app.add_url_rule("/", "view", limiter.limit("9/day", unit="tokens")(lambda: "ok"))
    app.testing = True
    with pytest.raises(ValueError, match="a whole number from 0 up"):
        app.test_client().get("/")


@pytest.mark.parametrize(
    "found", [-5, 0, math.nan, math.inf, 86_401, 10**400, "abc", "", None, True, [1]], ids=repr
)
def test_an_invalid_lease_stops_the_start(make: Maker, found: Any) -> None:
    """A negative lease would disable limits on calls in flight."""
    with pytest.raises(ConfigurationError, match=rf"{LEASE}: found .*; allowed: a number of sec"):
        make(config={LEASE: found})


@pytest.mark.parametrize(("found", "lease"), [(0.5, 0.5), (86_400, 86_400), ("90", 90)])
def test_a_lease_is_a_number_of_seconds(found: Any, lease: float) -> None:
    """As a number, or as an environment has it."""
    assert lease_s({LEASE: found}) == lease


def test_without_one_there_is_a_default() -> None:
    """Without configuration."""
    assert lease_s({}) == DEFAULT_LEASE_S
