"""The extension's parts, alone: without Flask-Limiter, without an application."""

import inspect
import logging

import flask_limiter
import pytest
from flask import Response
from flask_limiter import HeaderNames
from flask_limiter._limits import RuntimeLimit
from werkzeug.exceptions import HTTPException

from ratelimit_ext import Limiter
from ratelimit_ext.core.charge import NO_HOLD, Charge
from ratelimit_ext.core.events import Events
from ratelimit_ext.core.key import Naming
from ratelimit_ext.core.limit import NO_OPTIONS, OPTION_NAMES, Limit, LimitKeywords
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.settlements.queue import SettlementQueue
from ratelimit_ext.web.bound_limit import BoundCharges, BoundLimit
from ratelimit_ext.web.declarations.limits_adapter import items_of, rank
from ratelimit_ext.web.request.admission import decide
from ratelimit_ext.web.request.request_state import RequestState
from ratelimit_ext.web.request.reservation import Reservation
from ratelimit_ext.web.request.response import ResponseWriter
from ratelimit_ext.web.storage import Engines, failure_policy
from tests.clocks import Clock

LOGGER = logging.getLogger("test")


def bound(text: str, **more: int) -> BoundLimit:
    """A limit for everyone."""
    (item,) = items_of(text, NO_OPTIONS)
    limit = Limit(item.amount, item.get_expiry() * 1_000_000)
    return BoundLimit(
        runtime=RuntimeLimit(item, lambda: "everyone", "view"),
        limit=limit,
        scope="view",
        bucket_prefix=Naming("LIMITS", "", "fixed-window").prefix(limit, "view"),
        header=f'"{text}"',
        policy=f'"{text}";q={limit.amount}',
        rank=rank(item),
        **more,
    )


def no_reservation(_: object) -> Reservation:
    raise AssertionError("nothing is held")


def test_a_decision_needs_an_engine_and_charges(clock: Clock) -> None:
    """A denied one charges nothing; each record has its limit and the shared instant."""
    engine, limits = MemoryEngine(), [bound("2/minute"), bound("1/hour")]
    charges = BoundCharges(
        (each, "ada", Charge(each.limit, each.bucket_prefix + "{ada}")) for each in limits
    )
    records = decide(engine, charges, NO_HOLD)
    assert records.decision.admitted
    assert [(r.bound, r.verdict.remaining) for r in records] == [(limits[0], 1), (limits[1], 0)]
    records = decide(engine, charges, NO_HOLD)
    assert not records.decision.admitted
    assert [record.verdict.allowed for record in records] == [True, False]
    assert records[0].verdict.remaining == 1


def test_headers_need_a_state_and_no_request(clock: Clock) -> None:
    """The one nearest to exhaustion in Flask-Limiter's headers, all in the draft's."""
    state = RequestState(no_reservation)
    limits = [bound("5/hour"), bound("2/minute")]
    charges = BoundCharges((each, "ada", Charge(each.limit, each.header)) for each in limits)
    state.admit(decide(MemoryEngine(), charges, NO_HOLD))
    writer = ResponseWriter(
        names={each: each.value for each in HeaderNames},
        headers_enabled=True,
        retry_after_as_date=False,
        swallow_errors=False,
        logger=LOGGER,
    )
    response = Response("ok")
    writer.finish(response, state, [state], has_origin=False)
    assert response.headers["RateLimit-Policy"] == '"5/hour";q=5, "2/minute";q=2'
    assert response.headers["RateLimit"] == '"5/hour";r=4;t=3600, "2/minute";r=1;t=60'
    assert response.headers["X-RateLimit-Remaining"] == "1"


def test_engines_without_a_storage_say_so() -> None:
    """An extension that has no application yet."""
    with pytest.raises(AssertionError, match=r"Call limiter\.init_app"):
        _ = Engines(
            None, failure_policy, Workers(), events=Events(), queue=SettlementQueue()
        ).current


def test_callbacks_keep_what_is_registered() -> None:
    """A refusal handler is a function of the refusal and of a second decision."""
    limiter = Limiter(lambda: "someone")

    @limiter.estimator("usd")
    def dollars() -> float:
        return 0.25

    @limiter.refusal_handler
    def give_up(refusal: HTTPException, _: object) -> HTTPException:
        return refusal

    callbacks = limiter._callbacks
    assert callbacks.refusal_handler is give_up
    assert callbacks.estimators == {("usd", ""): dollars}
    assert {"ip", "user", "model"} <= callbacks.identities.keys()


@pytest.mark.parametrize("method", ["__init__", "limit", "shared_limit"])
def test_every_keyword_is_spelled_out(method: str) -> None:
    """Editors show Flask-Limiter's keywords with its defaults, and those of `LimitOptions`."""
    stock = inspect.signature(getattr(flask_limiter.Limiter, method)).parameters
    own = dict(inspect.signature(getattr(Limiter, method)).parameters)
    others = [name for name, each in own.items() if each.kind is inspect.Parameter.VAR_KEYWORD]
    typed = {own.pop(name).annotation for name in others}
    assert typed == {f"Unpack[{'_NoKeywords' if method == '__init__' else 'LimitKeywords'}]"}
    own.pop("strict", None)  # the extension's
    assert own.keys() == stock.keys()
    for name, parameter in own.items():
        if name == "override_defaults":
            assert parameter.default is None  # true, except for guards
        else:
            assert (parameter.default, parameter.kind) == (stock[name].default, stock[name].kind)
    assert LimitKeywords.__annotations__.keys() == set(OPTION_NAMES)
