"""The call of the current request: what it is expected to use, and its beginning."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from flask import g, request
from werkzeug.exceptions import HTTPException

from chatapp.calls.disconnect import Disconnect
from chatapp.calls.provider_call import CallRequest, Demand, ProviderCall
from chatapp.estimates.estimate import Estimate
from chatapp.ledger.call import Call, new_call_id
from chatapp.providers import QuotaUnit
from chatapp.services import current_services
from chatapp.web.call_limits import INPUT_QUOTA, SURGE, RequestLimits
from chatapp.web.requests import ModelRequest
from ratelimit_ext import DecideAgain, Guess, Limiter, TemporarilyUnavailable

#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")
#: The tier of a call whose input is long enough for another price, and other limits.
LONG: Final = "long"


def install(limiter: Limiter) -> None:
    """Charge limits in tokens and dollars with the estimate of the call, count a provider's quotas
    by model and tier, and decide again for the fallback of a model that cools down."""
    limiter.estimator("tokens")(_tokens)
    limiter.estimator("input_tokens")(lambda: Guess(_current_estimate().input_tokens))
    limiter.estimator("output_tokens")(lambda: Guess(_current_estimate().output_tokens))
    limiter.estimator("usd")(_held_dollars)
    limiter.estimator("usd", limit=SURGE)(lambda: _cost_of(_current_estimate()))
    limiter.estimator("input_tokens", limit=INPUT_QUOTA)(_counted_input)
    limiter.identity("upstream")(_upstream)
    limiter.refusal_handler(_decide_for_fallback)


def begin_call() -> ProviderCall:
    """Begin the call of the current request; its provider is called next."""
    services = current_services()
    demand = _demand()
    connections = filter(None, map(request.environ.get, CONNECTIONS))
    record = Call(
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=services.limiter.identities["user"](),
        key_id=g.get("key_id"),
        plan=services.limiter.present_plan(),
        endpoint=request.endpoint or "",
        model=g.get("requested_model", demand.model.name),
        slug=demand.model.slug,
        provider=demand.model.provider,
        estimated_input_tokens=0,  # ProviderCall knows what is held
        estimated_output_tokens=0,
        cost_micro_usd=0,
    )
    return ProviderCall(
        record,
        CallRequest(
            demand,
            RequestLimits(services.limiter, shares_pauses=not _tiers()),
            Disconnect(next(connections, None)),
            lambda: _demand() if _switch_to_fallback() else None,
        ),
        catalogue=services.catalogue,
        ledger=services.ledger,
        estimator=services.estimator,
        most_attempts=services.settings.provider_attempts,
    )


def _demand() -> Demand:
    """What the current request asks of its model."""
    wanted: ModelRequest = g.model_request
    model, estimate, longest = wanted.turn.model, _current_estimate(), wanted.most_output_tokens
    most = estimate.output_tokens if longest is None else longest
    # What the provider counts before it answers; a quota for both directions counts the bound.
    quota_use: dict[QuotaUnit, int] = {
        "tokens": estimate.input_tokens + most,
        "input_tokens": estimate.input_tokens,
    }
    return Demand(
        model=model,
        estimate=estimate,
        bound=longest and longest // estimate.choices,
        may_hide_output=current_services().catalogue.may_hide_output(
            model, thinks=wanted.extras.thinks
        ),
        quota_use=quota_use,
    )


# -- fallback ----------------------------------------------------------------------------------


def _decide_for_fallback(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    """The decision for the fallback model if the requested model is overloaded; ``None`` admits the
    request. If neither model can serve it, the refusal with the shorter wait."""
    if not _is_overload(refusal) or not _switch_to_fallback():
        return refusal
    second = decide_again()
    if second is None or (_is_overload(second) and _wait_ms(second) < _wait_ms(refusal)):
        return second
    return refusal


def _is_overload(refusal: HTTPException) -> bool:
    return isinstance(refusal, TemporarilyUnavailable) and refusal.cause == "overloaded"


def _wait_ms(refusal: HTTPException) -> float:
    wait_ms: int | None = getattr(refusal, "wait_ms", None)
    return math.inf if wait_ms is None else wait_ms


def _switch_to_fallback() -> bool:
    """Change the current request to the fallback of its model; False if none can serve it, or if
    it has changed already."""
    wanted: ModelRequest | None = g.get("model_request")
    if wanted is None or "requested_model" in g:  # a page calls no model
        return False
    services, model = current_services(), wanted.turn.model
    fallback = services.conversation.fallback(model)
    if fallback is None:
        return False
    # A request in a vendor's protocol stays with that vendor.
    has_protocol = wanted.raw_request is None or fallback.provider == model.provider
    tiers = wanted.extras.tiers.values()
    if not (has_protocol and all(services.catalogue.prices_tier(fallback, t) for t in tiers)):
        return False
    g.requested_model = model.name
    g.model_request = replace(wanted, turn=replace(wanted.turn, model=fallback))
    g.pop("estimate", None)
    g.pop("held", None)
    return True


# -- estimates ---------------------------------------------------------------------------------


def _current_estimate() -> Estimate:
    """The estimate of the current request, made once."""
    known: Estimate | None = g.get("estimate")
    if known is None:
        wanted: ModelRequest = g.model_request
        services = current_services()
        known = g.estimate = services.estimator.estimate(
            wanted.turn.model,
            wanted.fields,
            most_output_tokens=wanted.most_output_tokens,
            choices=wanted.choices,
            caller=services.limiter.identities["user"](),
            tiers=tuple(wanted.extras.tiers.values()),
        )
    return known


def _tokens() -> Guess:
    estimate = _current_estimate()
    return Guess(estimate.tokens, estimate.least_tokens)


def _held_dollars() -> Guess:
    """The expected cost, or a higher one that the call holds: more dollars, not more tokens."""
    return _cost_of(g.get("held") or _current_estimate())


def _cost_of(estimate: Estimate) -> Guess:
    known: tuple[Estimate, Guess] | None = g.get("cost")
    if known is None or known[0] is not estimate:
        estimator, slug = current_services().estimator, g.model_request.turn.model.slug
        guess = Guess(estimator.cost_usd(estimate, slug), estimator.least_usd(estimate, slug))
        known = g.cost = estimate, guess
    return known[1]


def _counted_input() -> int:
    """What the provider will count as input. A cached prompt hardly counts, and how much of it is
    cached is unknown before the answer."""
    wanted: ModelRequest = g.model_request
    if wanted.raw_request is not None and b'"cache_control"' in wanted.raw_request.raw:
        return 0
    estimate = _current_estimate()
    return estimate.input_tokens - estimate.cached_input_tokens


def _upstream() -> str:
    """The model and tiers at the provider. Unlisted models share limits, but not a cool-down."""
    return "/".join([g.model_request.turn.model.upstream, *_tiers()])


def _tiers() -> tuple[str, ...]:
    """The tiers of the current request, which have quotas of their own at the provider; none for a
    standard call."""
    wanted: ModelRequest = g.model_request
    tiers = tuple(wanted.extras.tiers.values())
    input_tokens = _current_estimate().input_tokens
    is_long = current_services().catalogue.is_long(wanted.turn.model, input_tokens)
    return (*tiers, LONG) if is_long else tiers
