"""Refunds: every charge is given back once, by the engine that took it, or not at all."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
import redis

from ratelimit_ext import Limiter, RateLimitExceeded
from tests.web.calls import left_of, remaining, serve
from tests.web.conftest import Maker
from tests.web.outage.flaky import make_flaky

#: Limits of a view by name. ``cost`` is what a request takes of each.
COSTS = {"tokens": 100, "money": 1_000_000, "slots": 1, "calls": 1}
AMOUNTS = {"tokens": 1000, "money": 9_000_000, "slots": 5, "calls": 10}


class Refunded:
    """One view, ``/``, behind limits in all units; ``acts`` is what it does.

    ``deducts`` is the ``deduct_when`` of the limits named in ``conditional``, with ``reserve``.
    """

    def __init__(
        self,
        uri: str,
        acts: Callable[[Limiter], Any] = lambda _: "ok",
        *,
        conditional: frozenset[str] = frozenset(),
        deducts: Callable[[flask.Response], bool] = lambda response: response.status_code < 300,
        reserve: bool = True,
    ) -> None:
        self.app = flask.Flask("refunded")
        self.limiter = Limiter(
            lambda: "ada",
            app=self.app,
            storage_uri=uri,
            headers_enabled=True,
            application_limits=["100/day"],
        )
        self.acts = acts
        self.limiter.estimator("tokens")(lambda: COSTS["tokens"])
        self.limiter.estimator("usd")(lambda: 1)
        view: Any = self._view
        for name, text, words in [
            ("tokens", "1000/day", {"unit": "tokens"}),
            ("money", "9 usd/day", {}),
            ("slots", "5 in flight", {}),
            ("calls", "10/day", {}),
        ]:
            if name in conditional:
                words |= {"deduct_when": deducts, "reserve": reserve}
            view = self.limiter.limit(text, name=name, **words)(view)
        self.app.add_url_rule("/", "view", view)
        self.client = self.app.test_client()

    def _view(self) -> Any:
        return self.acts(self.limiter)

    def used(self) -> dict[str, int]:
        """How much of each limit is used, without those that are not."""
        left = remaining(self.app, self.limiter)
        left["edge"] = left.pop("")
        amounts = {**AMOUNTS, "edge": 100}
        return {name: amounts[name] - each for name, each in left.items() if amounts[name] - each}


def _open_slots(refunded: Refunded, count: int) -> list[Any]:
    """So many streams that go on, whose charges are other calls' to every later request."""
    refunded.acts = lambda _: flask.Response(iter(["a", "b"]))
    return [refunded.client.get("/") for _ in range(count)]


def _stream(*_: object) -> flask.Response:
    return flask.Response(iter(["a", "b"]), status=500)


def _settles(limiter: Limiter) -> tuple[str, int]:
    limiter.settle(tokens=7, usd=0)
    return "settled", 500


def _cancels(limiter: Limiter) -> tuple[str, int]:
    limiter.current.cancel()
    return "cancelled", 500


def _settles_and_cancels(limiter: Limiter) -> tuple[str, int]:
    _settles(limiter)
    return _cancels(limiter)


def _fails(_: Limiter) -> str:
    raise RuntimeError("a defect")


def _settling_stream(limiter: Limiter) -> flask.Response:
    reservation = limiter.current.reservation

    def chunks() -> Iterator[str]:
        yield "a"
        reservation.settle(tokens=7, usd=0)

    return flask.Response(chunks(), status=500)


ACTS = [_settles, _cancels, _settles_and_cancels, _fails, _stream, _settling_stream]


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("acts", ACTS)
def test_what_is_not_deducted_is_given_back_once(
    uri: str, acts: Callable[[Limiter], Any], reserve: bool
) -> None:
    """Whatever else the view does: two other calls keep what they hold, and nothing is left of
    this one but its call at the edge. Estimates are reserved in any case."""
    refunded = Refunded(uri, conditional=frozenset(COSTS), reserve=reserve)
    others = _open_slots(refunded, 2)
    held = {name: 2 * cost for name, cost in COSTS.items()}
    refunded.acts = acts
    with refunded.client.get("/") as response:
        assert response.status_code == 500
        assert response.text is not None
    assert refunded.used() == {**held, "edge": 3}
    for other in others:
        other.close()
    del held["slots"]
    assert refunded.used() == {**held, "edge": 3}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("acts", ACTS)
def test_one_conditional_limit_among_others(
    uri: str, acts: Callable[[Limiter], Any], name: str
) -> None:
    """It alone is given back; the others are settled, cancelled or kept as without it."""
    used: list[dict[str, int]] = []
    for conditional in (frozenset[str](), frozenset({name})):
        refunded = Refunded(uri, conditional=conditional)
        refunded.limiter.reset()
        others = _open_slots(refunded, 1)
        refunded.acts = acts
        with refunded.client.get("/") as response:
            assert response.text is not None
        used.append(refunded.used())
        others[0].close()
    plain, own = used
    assert own == plain | {name: COSTS[name]}


def test_what_is_not_deducted_does_not_wait_for_the_end_of_a_stream(uri: str) -> None:
    """It is given back when the response begins, and not again at the end. The slot of a stream
    is not charged but taken: until the stream is over."""
    refunded = Refunded(uri, _stream, conditional=frozenset(COSTS))
    response = refunded.client.get("/")
    assert refunded.used() == {"slots": 1, "edge": 1}
    response.close()
    assert refunded.used() == {"edge": 1}


@pytest.mark.parametrize("reserve", [True, False])
def test_an_over_admission_by_refunds(make: Maker, uri: str, reserve: bool) -> None:
    """Of calls in flight no more get in than there are places, also of those that are not
    deducted."""
    app, limiter = make(storage_uri=uri)

    @app.get("/")
    @limiter.limit("2 in flight", deduct_when=lambda r: r.status_code == 200, reserve=reserve)
    def view() -> flask.Response:
        fails = "fail" in flask.request.args
        return flask.Response(iter("ab"), status=500 if fails else 200)

    client = app.test_client()
    streams = [client.get("/"), client.get("/?fail=1")]
    assert [stream.status_code for stream in streams] == [200, 500]
    assert client.get("/").status_code == client.get("/?fail=1").status_code == 429
    streams.pop().close()
    streams += [client.get("/") for _ in range(3)]
    assert [stream.status_code for stream in streams] == [200, 200, 429, 429]


def test_a_detached_reservation_does_not_refund_again(uri: str) -> None:
    """Nor does it settle what `deduct_when` gave back before."""

    def acts(limiter: Limiter) -> tuple[str, int]:
        kept.append(limiter.current.reservation.detach())
        return "later", 500

    kept: list[Any] = []
    refunded = Refunded(uri, conditional=frozenset(COSTS))
    others = _open_slots(refunded, 1)
    refunded.acts = acts
    refunded.client.get("/").close()
    kept[0].settle(tokens=900)
    assert refunded.used() == {**COSTS, "slots": 2, "edge": 2}  # the detached call goes on
    kept[0].close()
    assert refunded.used() == {**COSTS, "edge": 2}
    others[0].close()


def test_equal_limits_of_which_one_is_conditional(make: Maker, uri: str) -> None:
    """They are one bucket; the conditional one gives back its own share alone."""
    app, limiter = make(storage_uri=uri)
    serve(
        app,
        limiter.limit("10/day"),
        limiter.limit("10/day", deduct_when=lambda _: False, reserve=True, override_defaults=False),
    )
    client = app.test_client()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert remaining(app, limiter) == {"": 7}


def test_a_shadow_that_was_full_gives_nothing_back(make: Maker, uri: str) -> None:
    """It took nothing of the request."""
    app, limiter = make(storage_uri=uri)

    @app.get("/<int:status>")
    @limiter.limit(
        "2/day",
        mode="shadow",
        name="shadow",
        deduct_when=lambda response: response.status_code == 200,
        reserve=True,
    )
    def view(status: int) -> tuple[str, int]:
        return "ok", status

    client = app.test_client()
    for path in ("/200", "/200", "/500", "/500"):
        client.get(path)
    assert left_of(limiter, "shadow", "someone") == 0


def test_a_refusal_of_deduct_when_itself_refunds_nothing(uri: str) -> None:
    """A function that fails is an error of the application: 500, charged, its slot free."""

    def fails(_: flask.Response) -> bool:
        raise RuntimeError("a defect")

    refunded = Refunded(uri, conditional=frozenset(COSTS), deducts=fails)
    assert refunded.client.get("/").status_code == 500
    assert refunded.used() == {"tokens": 100, "money": 1_000_000, "calls": 1, "edge": 1}


def test_a_storage_that_fails_after_the_view_is_no_error_of_the_request(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer arrives; what was to be refunded is refunded later, once, and logged once."""
    refunded = Refunded(uri, lambda _: ("failed", 400), conditional=frozenset(COSTS))
    engine, queue = make_flaky(refunded.limiter)
    engine.is_away = True
    with caplog.at_level(logging.ERROR):
        assert [refunded.client.get("/").status_code for _ in range(3)] == [400] * 3
        queue.send_waiting()
    assert [record.name for record in caplog.records] == ["ratelimit_ext"]
    assert refunded.used()["calls"] == 3
    engine.is_away = False
    queue.send_waiting()
    assert refunded.used() == {"edge": 3}


# -- a request that is refused after it took something ---------------------------------------------


def _denied_inside(limiter: Limiter) -> str:
    with limiter.limit("1/day", name="inner", cost=lambda: 2):
        return "never"


def _denied_by_a_full_limit(limiter: Limiter) -> str:
    with limiter.limit("2/day", name="full", cost=2):
        pass
    with limiter.limit("2/day", name="full"):
        return "never"


def _denied_by_a_helper(limiter: Limiter) -> str:
    @limiter.limit("1/day", cost=lambda: 2, name="helper")
    def helper() -> str:
        return "never"

    return str(helper())


def _denied_and_handled(limiter: Limiter) -> tuple[str, int]:
    try:
        return _denied_by_a_full_limit(limiter), 200
    except RateLimitExceeded:
        return "sorry", 429


def _denied_and_caught(limiter: Limiter) -> str:
    try:
        return _denied_by_a_full_limit(limiter)
    except RateLimitExceeded:
        return "without it"


def _denied_after_it_settled(limiter: Limiter) -> str:
    limiter.settle(tokens=42)
    return _denied_by_a_full_limit(limiter)


@pytest.mark.parametrize(
    ("acts", "status", "used"),
    [
        (_denied_inside, 400, {}),
        (_denied_by_a_helper, 400, {}),
        (_denied_by_a_full_limit, 429, {}),
        (_denied_and_handled, 429, {}),
        (_denied_and_caught, 200, {"tokens": 100, "money": 1_000_000, "calls": 1, "edge": 1}),
        (_denied_after_it_settled, 429, {"tokens": 42}),
    ],
)
def test_a_refusal_inside_a_view_costs_nothing(
    uri: str, acts: Callable[[Limiter], Any], status: int, used: dict[str, int]
) -> None:
    """What the request took before is given back, the edge included; headers say so. A view that
    catches the refusal has answered after all. What it settled before was used, and stays."""
    refunded = Refunded(uri, acts)
    with refunded.client.get("/") as response:
        assert response.status_code == status
        left = 10 - used.get("calls", 0)
        assert f'"calls";r={left};' in response.headers["RateLimit"]
    assert refunded.used() == used


def test_a_refusal_that_a_handler_makes_into_another_status(uri: str) -> None:
    """It is a refusal all the same."""
    refunded = Refunded(uri, _denied_by_a_full_limit)
    refunded.app.register_error_handler(RateLimitExceeded, lambda _: flask.redirect("/wait"))
    assert refunded.client.get("/").status_code == 302
    assert refunded.used() == {}


def test_a_refusal_leaves_a_detached_reservation_alone(uri: str) -> None:
    """The code that has detached it goes on, and closes it."""

    def acts(limiter: Limiter) -> str:
        kept.append(limiter.current.reservation.detach())
        return _denied_by_a_full_limit(limiter)

    kept: list[Any] = []
    refunded = Refunded(uri, acts)
    assert refunded.client.get("/").status_code == 429
    assert refunded.used() == {**COSTS, "edge": 1}
    kept[0].settle(tokens=5, usd=0)
    kept[0].close()
    assert refunded.used() == {"tokens": 5, "calls": 1, "edge": 1}


def test_a_refusal_in_a_view_without_limits_of_its_own(make: Maker, uri: str) -> None:
    """The edge is given back there, too."""
    app, limiter = make(storage_uri=uri, application_limits=["100/day"])
    app.add_url_rule("/", "view", lambda: _denied_by_a_full_limit(limiter))
    assert app.test_client().get("/").status_code == 429
    assert remaining(app, limiter) == {"": 100}


def test_a_refund_of_a_refusal_is_one_call(redis_uri: str, redis_client: redis.Redis) -> None:
    """Two admissions and one that was denied; everything goes back in one call."""
    refunded = Refunded(redis_uri, _denied_by_a_full_limit)
    for _ in range(2):  # the first time, the server learns the scripts
        redis_client.config_resetstat()
        refunded.client.get("/").close()
    assert redis_client.info("commandstats")["cmdstat_fcall"]["calls"] == 3 + 1


# -- several extensions ----------------------------------------------------------------------------


class Two:
    """Two extensions on one application; the second one's limit of the view is 1 a day."""

    def __init__(self, uri: str, *, inner: str) -> None:
        self.app = flask.Flask("two")
        words: dict[str, Any] = {"app": self.app, "headers_enabled": True}
        self.first = Limiter(
            lambda: "ada",
            storage_uri=uri,
            key_prefix="first",
            application_limits=["9/day"],
            **words,
        )
        self.second = Limiter(lambda: "ada", storage_uri=uri, key_prefix="second", **words)
        view: Any = lambda: "ok"  # noqa: E731
        limits = [
            self.first.limit("10/day"),
            self.first.limit("5 in flight"),
            self.second.limit("1/day", override_defaults=False),
        ]
        for limit in limits if inner == "first" else limits[::-1]:
            view = limit(view)
        self.app.add_url_rule("/", "view", view)
        self.client = self.app.test_client()

    def left(self) -> list[int]:
        with self.app.test_request_context("/"):
            return [limit.remaining for limit in self.first.current.peek("view")]


@pytest.mark.parametrize("inner", ["first", "second"])
def test_a_denial_by_another_extension_costs_nothing(uri: str, inner: str) -> None:
    """Whichever decides first: the denied call is charged to neither."""
    two = Two(uri, inner=inner)
    assert [two.client.get("/").status_code for _ in range(3)] == [200, 429, 429]
    assert two.left() == [5, 8, 9]


@pytest.mark.parametrize("order", [1, -1])
def test_a_late_denial_by_another_extension_costs_nothing(uri: str, order: int) -> None:
    """A request that reaches no view is charged to edge limits when the response is made; one
    extension denies it after or before the other has charged it."""
    app = flask.Flask("late")
    limits = [("first", "10/day"), ("second", "1/day")]
    for name, limit in limits[::order]:
        limiter = Limiter(
            lambda: "ada", app=app, storage_uri=uri, key_prefix=name, application_limits=[limit]
        )
        if name == "first":
            first = limiter
    app.add_url_rule("/", "view", lambda: "ok")
    client = app.test_client()
    assert [client.get("/nothing").status_code for _ in range(3)] == [404, 429, 429]
    assert remaining(app, first) == {"": 9}


# -- the engine that took the charge ---------------------------------------------------------------


def _fallback(uri: str) -> tuple[flask.Flask, Limiter]:
    app = flask.Flask("fallback")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=uri, in_memory_fallback=["7/day"])
    limiter.estimator("tokens")(lambda: 100)
    return app, limiter


@pytest.mark.parametrize("status", [200, 500])
def test_refunds_go_to_the_engine_that_took_the_charge(redis_uri: str, status: int) -> None:
    """The storage dies while the view runs: the fallback is not given what it never took, and the
    storage is settled."""
    app, limiter = _fallback(redis_uri)
    outage = limiter._components.engines.outage
    assert outage is not None
    deducts: Any = lambda response: response.status_code == 200  # noqa: E731

    @app.get("/")
    @limiter.limit("10/day", deduct_when=deducts, reserve=True, name="calls")
    @limiter.limit("1000/day", unit="tokens", name="tokens")
    @limiter.limit("2 in flight", name="slots")
    def view() -> tuple[str, int]:
        outage.is_deciding = True
        limiter.settle(tokens=10)
        return "ok", status

    assert app.test_client().get("/").status_code == status
    assert outage.is_handed_back
    outage.is_deciding = False
    calls = 9 if status == 200 else 10
    assert remaining(app, limiter) == {"calls": calls, "tokens": 990, "slots": 2}


def test_a_request_of_two_engines_settles_each(redis_uri: str) -> None:
    """What it took before the storage failed goes there; what came afterwards, to the fallback."""
    app, limiter = _fallback(redis_uri)
    outage = limiter._components.engines.outage
    assert outage is not None

    @app.get("/")
    @limiter.limit("1000/day", unit="tokens", name="tokens")
    def view() -> str:
        outage.is_deciding = True
        helper()
        limiter.settle(tokens=10)
        return "ok"

    @limiter.limit("3 in flight")
    def helper() -> None:
        """Only the fallback's limits hold here."""

    app.test_client().get("/")
    outage.is_deciding = False
    assert remaining(app, limiter) == {"tokens": 990}
