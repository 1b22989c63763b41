"""The expected usage of the current request: for the decision of its limits, and for its call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import g

from chatapp.estimates.estimate import Estimate
from chatapp.providers import Extras, QuotaUnit
from chatapp.services import current_services
from chatapp.web.call_limits import INPUT_QUOTA, SURGE
from chatapp.web.requests.chat import ChatRequest
from chatapp.web.requests.vendor import VendorRequest
from ratelimit_ext import Guess, Limiter

NO_EXTRAS: Final = Extras()
#: The tier of a call whose input is long enough for another price, and other limits.
LONG: Final = "long"


def install(limiter: Limiter) -> None:
    """Charge limits in tokens and dollars with the estimate of the call, and count the provider's
    quotas by model and tier."""
    limiter.estimator("tokens")(_tokens)
    limiter.estimator("input_tokens")(lambda: Guess(current_estimate().input_tokens))
    limiter.estimator("output_tokens")(lambda: Guess(current_estimate().output_tokens))
    limiter.estimator("usd")(_held_dollars)
    limiter.estimator("usd", limit=SURGE)(_dollars)
    limiter.estimator("input_tokens", limit=INPUT_QUOTA)(_counted_input)
    limiter.identity("upstream")(_upstream)


def _upstream() -> str:
    """The model and tiers at the provider. Unlisted models share limits, but not a cool-down."""
    return "/".join([g.chat_request.turn.model.upstream, *current_tiers()])


def _tokens() -> Guess:
    estimate = current_estimate()
    return Guess(estimate.tokens, estimate.least_tokens)


def _dollars() -> Guess:
    return _cost_of(current_estimate())


def _held_dollars() -> Guess:
    """The expected cost, or a higher one that the call holds: more dollars, not more tokens."""
    return _cost_of(g.get("held") or current_estimate())


def _cost_of(estimate: Estimate) -> Guess:
    estimator, slug = current_services().estimator, g.chat_request.turn.model.slug
    return Guess(estimator.cost_usd(estimate, slug), estimator.least_usd(estimate, slug))


def _counted_input() -> int:
    """What the provider will count as input. A cached prompt hardly counts, and how much of it is
    cached is unknown before the answer."""
    chat_request: ChatRequest | VendorRequest = g.chat_request
    if (
        isinstance(chat_request, VendorRequest)
        and b'"cache_control"' in chat_request.raw_request.raw
    ):
        return 0
    estimate = current_estimate()
    return estimate.input_tokens - estimate.cached_input_tokens


def current_estimate() -> Estimate:
    """The estimate of the current request, made once."""
    known: Estimate | None = g.get("estimate")
    if known is None:
        known = g.estimate = _estimate(g.chat_request)
    return known


def current_extras() -> Extras:
    """What changes the price of the current request besides tokens."""
    chat_request = g.chat_request
    return chat_request.extras if isinstance(chat_request, VendorRequest) else NO_EXTRAS


def current_tiers() -> tuple[str, ...]:
    """The tiers of the current request, which have quotas of their own at the provider; none for a
    standard call."""
    tiers = tuple(current_extras().tiers.values())
    model, estimate = g.chat_request.turn.model, current_estimate()
    is_long = current_services().conversation.catalogue.is_long(model, estimate.input_tokens)
    return (*tiers, LONG) if is_long else tiers


def may_hide_output() -> bool:
    """Whether the current call may generate what is billed and not sent."""
    catalogue = current_services().conversation.catalogue
    return catalogue.may_hide_output(g.chat_request.turn.model, thinks=current_extras().thinks)


def current_quota_use() -> dict[QuotaUnit, int]:
    """What the provider counts the current request as before it answers: the prompt, and in a quota
    for both directions also the longest requested output."""
    estimate = current_estimate()
    most = g.chat_request.most_output_tokens
    output = estimate.output_tokens if most is None else most
    return {"tokens": estimate.input_tokens + output, "input_tokens": estimate.input_tokens}


def _estimate(chat_request: ChatRequest | VendorRequest) -> Estimate:
    body: Mapping[str, object] = {
        "messages": [{"role": "user", "content": chat_request.turn.message}]
    }
    choices = 1
    if isinstance(chat_request, VendorRequest):
        body, choices = chat_request.raw_request.fields, chat_request.choices
    return current_services().estimator.estimate(
        chat_request.turn.model,
        body,
        most_output_tokens=chat_request.most_output_tokens,
        choices=choices,
        caller=current_services().limiter.identities["user"](),
        tiers=tuple(current_extras().tiers.values()),
    )
