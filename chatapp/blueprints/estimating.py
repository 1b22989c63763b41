"""What the present request is expected to use: asked when its limits are decided, and once more
when its provider is dispatched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import g

from chatapp.blueprints.chat_request import ChatRequest
from chatapp.blueprints.compatible_request import CompatibleRequest
from chatapp.blueprints.gate import INPUT_QUOTA, SURGE
from chatapp.estimates.estimate import Estimate
from chatapp.providers import Extras, QuotaUnit
from chatapp.services import current_services
from ratelimit_ext import Guess, Limiter

NO_EXTRAS: Final = Extras()
#: The tier of a call whose input is long enough for another price, and other limits.
LONG: Final = "long"


def install(limiter: Limiter) -> None:
    """Let limits in tokens and dollars take the estimate of a call, and count the provider's own
    limits by its model and tier."""
    limiter.estimator("tokens")(_tokens)
    limiter.estimator("input_tokens")(lambda: Guess(present_estimate().input_tokens))
    limiter.estimator("output_tokens")(lambda: Guess(present_estimate().output_tokens))
    limiter.estimator("usd")(_held_dollars)
    limiter.estimator("usd", limit=SURGE)(_dollars)
    limiter.estimator("input_tokens", limit=INPUT_QUOTA)(_counted_input)
    limiter.identity("upstream")(_upstream)


def _upstream() -> str:
    """Models that the catalogue does not list share an allowance, but not a provider's pause:
    nothing is kept under a name before it is asked."""
    return "/".join([g.chat_request.turn.model.upstream, *present_tiers()])


def _tokens() -> Guess:
    estimate = present_estimate()
    return Guess(estimate.tokens, estimate.least_tokens)


def _dollars() -> Guess:
    return _cost_of(present_estimate())


def _held_dollars() -> Guess:
    """What is expected, or what Dispatch holds beyond that: more dollars, and not more tokens."""
    return _cost_of(g.get("held") or present_estimate())


def _cost_of(estimate: Estimate) -> Guess:
    estimator, slug = current_services().estimator, g.chat_request.turn.model.slug
    return Guess(estimator.cost_usd(estimate, slug), estimator.least_usd(estimate, slug))


def _counted_input() -> int:
    """What the provider will count as input: of a prompt that is cached next to nothing, and how
    much of it is cached is not known before the answer."""
    asked: ChatRequest | CompatibleRequest = g.chat_request
    if isinstance(asked, CompatibleRequest) and b'"cache_control"' in asked.passage.raw:
        return 0
    estimate = present_estimate()
    return estimate.input_tokens - estimate.cached_input_tokens


def present_estimate() -> Estimate:
    """The estimate of the present request, made once."""
    known: Estimate | None = g.get("estimate")
    if known is None:
        known = g.estimate = _estimate(g.chat_request)
    return known


def present_extras() -> Extras:
    """What of the present request changes its price beside tokens."""
    asked = g.chat_request
    return asked.extras if isinstance(asked, CompatibleRequest) else NO_EXTRAS


def present_tiers() -> tuple[str, ...]:
    """The tiers, with limits of their own at the provider, that the present request is served in;
    none for a standard call."""
    tiers = tuple(present_extras().tiers.values())
    model, estimate = g.chat_request.turn.model, present_estimate()
    is_long = current_services().conversation.catalogue.is_long(model, estimate.input_tokens)
    return (*tiers, LONG) if is_long else tiers


def may_hide_output() -> bool:
    """Whether the present call may generate what is billed and not sent."""
    catalogue = current_services().conversation.catalogue
    return catalogue.may_hide_output(g.chat_request.turn.model, thinks=present_extras().thinks)


def present_needs() -> dict[QuotaUnit, int]:
    """What the provider counts the present request as before it answers: the prompt, and in one
    quota for both as much output as it is asked for."""
    estimate = present_estimate()
    most = g.chat_request.most_output_tokens
    output = estimate.output_tokens if most is None else most
    return {"tokens": estimate.input_tokens + output, "input_tokens": estimate.input_tokens}


def _estimate(asked: ChatRequest | CompatibleRequest) -> Estimate:
    body: Mapping[str, object] = {"messages": [{"role": "user", "content": asked.turn.message}]}
    choices = 1
    if isinstance(asked, CompatibleRequest):
        body, choices = asked.passage.fields, asked.choices
    return current_services().estimator.estimate(
        asked.turn.model,
        body,
        most_output_tokens=asked.most_output_tokens,
        choices=choices,
        caller=current_services().limiter.identities["user"](),
        tiers=tuple(present_extras().tiers.values()),
    )
