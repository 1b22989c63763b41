"""The call of the current request: what its limits charge for it, and its beginning."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Final

from flask import Request, Response, after_this_request, request
from werkzeug.exceptions import HTTPException

from chatapp.calls.disconnect import Disconnect
from chatapp.calls.retry import LONGEST_COOL_DOWN_S, PATIENCE_S
from chatapp.calls.throttle import Throttle
from chatapp.calls.upstream_call import CallRequest, UpstreamCall
from chatapp.catalogue import Model
from chatapp.ledger.call import Call, new_call_id
from chatapp.upstreams import OPEN_TOOLS
from chatapp.upstreams.router import ModelUnavailableError, UnknownModelError
from chatapp.web import allowed_models
from chatapp.web.call_limits import AT_LIMIT, COOL_DOWN, INPUT_QUOTA, SURGE, RequestLimits
from chatapp.web.current_request import (
    CurrentRequest,
    claimed_usd,
    counted_input,
    current_request,
    has_no_quota_by_direction,
    input_tokens,
    note_decision,
    output_tokens,
    tokens,
    usd,
)
from chatapp.web.errors import is_overload
from chatapp.web.tags import tags_of
from ratelimit_ext import (
    DecideAgain,
    Limiter,
    RateLimitExceeded,
    RequestTooLarge,
    TemporarilyUnavailable,
)

#: A policy names one: `exempt_when = "chatapp.web.current_call:has_no_quota_by_direction"`.
__all__ = ["begin_call", "has_no_quota_by_direction", "install"]

#: The id of the call in the ledger: GET /usage/calls/<id> has its cost.
CALL_ID_HEADER: Final = "x-call-id"
#: How long the limits were decided, and the provider took to begin its answer, in milliseconds.
TIMING_HEADER: Final = "Server-Timing"
#: Where servers put the connection of a request.
CONNECTIONS: Final = ("gunicorn.socket", "werkzeug.socket")
#: An answer names here the cheaper model that has given it; a caller may write NEVER.
CHEAPER_HEADER: Final = "x-cheaper-model"
NEVER: Final = "never"
#: `map` calls this without a frame of Python.
_seconds_of: Final = attrgetter("seconds")


def install(limiter: Limiter) -> None:
    """Charge limits in tokens and dollars with the estimate of the call, count a provider's quotas
    by model, key and tier, and decide again for another key or the fallback."""
    limiter.estimator("tokens")(tokens)
    limiter.estimator("input_tokens")(input_tokens)
    limiter.estimator("output_tokens")(output_tokens)
    limiter.estimator("usd")(claimed_usd)
    limiter.estimator("usd", limit=SURGE)(usd)
    limiter.estimator("input_tokens", limit=INPUT_QUOTA)(counted_input)
    limiter.refusal_handler(_decide_elsewhere)
    limiter.listen(note_decision)


def begin_call(current: CurrentRequest) -> UpstreamCall:
    """Begin the call of the current request; its upstream is called next."""
    services, demand, principal = current.services, current.demand, current.principal
    model, user, wanted = demand.model, current.user, current.wanted
    limits = services.limiter.current
    plan, decisions = limits.plan, current.decisions
    paused_s, decided_s = current.paused_s, sum(map(_seconds_of, decisions))
    received: Request = request._get_current_object()  # type: ignore[attr-defined]
    connections = filter(None, map(received.environ.get, CONNECTIONS))
    new_record = partial(
        Call,
        id=new_call_id(),
        started_at=datetime.now(UTC),
        user=user,
        key_id=None if principal is None else principal.key_id,
        plan=plan,
        endpoint=received.endpoint or "",
        model=current.requested_model or model.name,
        team=None if principal is None else principal.team,
        tags=tags_of(received.environ, wanted.fields),
        streamed=wanted.stream,
        limits_ms=round((decided_s - paused_s) * 1000, 1),
        waited_ms=round((current.in_line_s + paused_s) * 1000),
        decisions=decisions,
    )
    call_request = CallRequest(
        demand,
        RequestLimits(limits, shares_pauses=not demand.tiers),
        Disconnect(next(connections, None)),
        lambda: current.demand if _switch_to_fallback(current) else None,
        current.use_other_key,
        Throttle() if demand.tiers else services.throttle,
        current.began_s,
    )
    call = UpstreamCall(
        new_record,
        call_request,
        catalogue=services.catalogue,
        ledger=services.ledger,
        estimator=services.estimator,
        most_attempts=services.settings.provider_attempts,
        traces=services.traces,
    )
    # Also if it fails. The request would keep the call, which keeps the request.
    record = call.record
    after_this_request(partial(_describe, record.id, record.limits_ms, call.first_bytes_s))
    return call


def _describe(
    id_: str, limits_ms: float | None, first_bytes_s: Sequence[float], response: Response
) -> Response:
    response.headers[CALL_ID_HEADER] = id_
    upstream = f", upstream;dur={first_bytes_s[-1] * 1000:.1f}" if first_bytes_s else ""
    response.headers[TIMING_HEADER] = f"limits;dur={limits_ms}{upstream}"
    return response


# -- other keys, and the fallback --------------------------------------------------------------


def _decide_elsewhere(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    """Return the decision for another key or model; ``None`` admits the request. If a budget has
    refused it, that of a cheaper model counts only if it is admitted."""
    refused, current = _decide_overload(refusal, decide_again), current_request()
    cheaper = None if refused is None else _cheaper_model(current, refused)
    if cheaper is None:
        return refused
    before = current.choice
    current.use_fallback(cheaper)
    second = decide_again()
    if second is None or _decide_overload(second, decide_again) is None:
        current.is_cheaper = True
        return None
    current.choose(before)
    return refused


def _decide_overload(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    """Return the decision for another key or model, or for one of them once a provider's short wait
    is over; ``None`` admits the request."""
    current, patience_s = current_request(), PATIENCE_S
    choices = {refusal: current.choice}

    def decide() -> HTTPException | None:
        refused = decide_again()
        if refused is not None:
            choices[refused] = current.choice
        return refused

    refused, places = _decide_for_others(refusal, decide), current.services.limiter.current.places
    while (wait_s := _named_wait_s(refused)) <= patience_s and places.acquire(blocking=False):
        try:
            time.sleep(wait_s)
        finally:
            places.release()
        current.paused_s += wait_s
        patience_s -= wait_s
        if refused is not None:
            current.choose(choices[refused])  # the last one tried may have a longer wait
        refused = decide()
    return refused


def _named_wait_s(refusal: HTTPException | None) -> float:
    """Return the rest of the wait that a provider has named; infinite after another decision."""
    if not isinstance(refusal, TemporarilyUnavailable):
        return math.inf
    return _wait_ms(refusal) / 1000 if refusal.bound_limit.limit.name == COOL_DOWN else math.inf


def _decide_for_others(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    """Return the decision for another key or for the fallback model if the requested model is
    overloaded; ``None`` admits the request. If none can, the refusal with the shortest wait."""
    current, shortest = current_request(), refusal
    while is_overload(refusal) and current.model_request is not None:  # a page calls no model
        if not current.demand.tiers:
            wait_s = min(_wait_ms(refusal) / 1000, LONGEST_COOL_DOWN_S)
            current.services.router.pause_key(current.wanted.turn.model, wait_s)
        if current.use_other_key() is None:
            return _decide_for_fallback(shortest, decide_again)
        other = decide_again()
        if other is None or not is_overload(other):
            return other
        refusal = other
        shortest = min(shortest, refusal, key=_wait_ms)
    return refusal


def _decide_for_fallback(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    if not _switch_to_fallback(current_request()):
        return refusal
    second = decide_again()
    if second is None or (is_overload(second) and _wait_ms(second) < _wait_ms(refusal)):
        return second
    return refusal


def _wait_ms(refusal: HTTPException) -> float:
    wait_ms: int | None = getattr(refusal, "wait_ms", None)
    return math.inf if wait_ms is None else wait_ms


def _switch_to_fallback(current: CurrentRequest) -> bool:
    """Change the request to its fallback model; False if none can serve it, or it has changed."""
    wanted = current.model_request
    if wanted is None or current.requested_model is not None:  # a page calls no model
        return False
    services, model = current.services, wanted.turn.model
    fallback = services.router.fallback(model)
    if fallback is None or not allowed_models.allows(current, fallback):
        return False
    # A request in a provider's protocol is not translated.
    has_protocol = wanted.raw_request is None or fallback.protocol == model.protocol
    has_history = not wanted.is_tied or fallback.upstream == model.upstream
    takes_files = _takes_files(current, fallback)
    if not (has_protocol and has_history and takes_files and _is_priced(current, fallback)):
        return False
    current.use_fallback(fallback)
    return True


def _cheaper_model(current: CurrentRequest, refusal: HTTPException) -> Model | None:
    """Return the cheapest model that may answer instead, of those that the refusing budget names:
    of the same upstream, and one that the caller may use and did not rule out."""
    wanted = current.model_request
    if not isinstance(refusal, RateLimitExceeded | RequestTooLarge) or wanted is None:
        return None
    bound = refusal.bound_limit
    patterns = dict(bound.keywords).get(AT_LIMIT) if bound else None
    is_refused = request.headers.get(CHEAPER_HEADER, "").strip().lower() == NEVER
    if not patterns or is_refused or current.requested_model is not None:
        return None
    services, model, usage = current.services, wanted.turn.model, current.demand.estimate.usage
    catalogue, available = services.catalogue, services.router.available_models
    prices = {
        slug: catalogue.price(slug, usage)
        for slug, upstream in allowed_models.matching(patterns, catalogue).items()
        if upstream == model.upstream and slug in available
    }
    most = catalogue.price(model.slug, usage)
    for slug in sorted((slug for slug in prices if prices[slug] < most), key=prices.__getitem__):
        with suppress(UnknownModelError, ModelUnavailableError):
            name = slug.removeprefix(f"{model.upstream}/")
            other = services.router.model(f"{model.upstream}/{name}")
            if allowed_models.allows(current, other) and _fits(current, other):
                return other
    return None


def _fits(current: CurrentRequest, other: Model) -> bool:
    """Return whether the model can answer the request as it is, as far as the catalogue knows."""
    wanted, demand, catalogue = current.wanted, current.demand, current.services.catalogue
    slugs = {other.slug, wanted.turn.model.slug}
    context = catalogue.entry(other.slug).context
    return (
        len(slugs.intersection(catalogue.embedding)) in (0, 2)
        and (context is None or demand.estimate.input_tokens < context)
        and (demand.bound is None or catalogue.longest_answer(other, demand.bound) == demand.bound)
        and not (wanted.extras.thinks and not catalogue.may_hide_output(other, thinks=True))
        and _takes_files(current, other)
        and _is_priced(current, other)
    )


def _takes_files(current: CurrentRequest, other: Model) -> bool:
    """Return whether the model takes the files of a conversation at POST /chat."""
    kinds = current.services.catalogue.entry(other.slug).files
    return current.wanted.turn.file_kinds.issubset(kinds)


def _is_priced(current: CurrentRequest, fallback: Model) -> bool:
    wanted, catalogue = current.wanted, current.services.catalogue
    extras = wanted.extras
    if wanted.raw_request is not None and fallback.upstream != wanted.turn.model.upstream:
        extras = current.services.router.extras(fallback, wanted.raw_request)
    return (
        not extras.refused
        and all(catalogue.prices_tier(fallback, tier) for tier in extras.tiers.values())
        and OPEN_TOOLS.union(catalogue.tools.get(fallback.upstream, ())).issuperset(extras.tools)
    )
