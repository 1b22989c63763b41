"""What the present request is expected to use: asked when its limits are decided, and once more
when its provider is dispatched."""

from __future__ import annotations

from decimal import Decimal
from typing import cast

from flask import current_app, g

from chatapp.blueprints.chat_request import ChatRequest
from chatapp.blueprints.compatible_request import CompatibleRequest
from chatapp.blueprints.gate import INPUT_QUOTA
from chatapp.estimates.estimate import EXTENSION_KEY, Estimate, Estimator
from chatapp.providers import QuotaUnit
from ratelimit_ext import Limiter


def install(limiter: Limiter) -> None:
    """Let limits in tokens and dollars take the estimate of a call."""
    limiter.estimator("tokens")(lambda: present_estimate().tokens)
    limiter.estimator("input_tokens")(lambda: present_estimate().input_tokens)
    limiter.estimator("output_tokens")(lambda: present_estimate().output_tokens)
    limiter.estimator("usd")(_dollars)
    limiter.estimator("input_tokens", limit=INPUT_QUOTA)(_counted_input)


def _counted_input() -> int:
    """What the provider will count as input: of a prompt that is cached next to nothing, and how
    much of it is cached nobody knows before the answer."""
    asked: ChatRequest | CompatibleRequest = g.chat_request
    if isinstance(asked, CompatibleRequest) and b'"cache_control"' in asked.passage.raw:
        return 0
    return present_estimate().input_tokens


def present_estimator() -> Estimator:
    """The estimator of the present application."""
    return cast(Estimator, current_app.extensions[EXTENSION_KEY])


def present_estimate() -> Estimate:
    """The estimate of the present request, made once."""
    known: Estimate | None = g.get("estimate")
    if known is None:
        known = g.estimate = _estimate(g.chat_request)
    return known


def present_needs() -> dict[QuotaUnit, int]:
    """What the provider counts the present request as before it answers: the prompt, and in one
    quota for both as much output as it is asked for."""
    estimate = present_estimate()
    most = g.chat_request.most_output_tokens
    output = estimate.output_tokens if most is None else most
    return {"tokens": estimate.input_tokens + output, "input_tokens": estimate.input_tokens}


def _estimate(asked: ChatRequest | CompatibleRequest) -> Estimate:
    estimator, model = present_estimator(), asked.turn.model
    if isinstance(asked, CompatibleRequest):
        return estimator.estimate(
            model,
            asked.passage.fields,
            most_output_tokens=asked.most_output_tokens,
            choices=asked.choices,
        )
    message = {"messages": [{"role": "user", "content": asked.turn.message}]}
    return estimator.estimate(model, message, most_output_tokens=asked.most_output_tokens)


def _dollars() -> Decimal:
    return present_estimator().cost_usd(present_estimate(), g.chat_request.turn.model.slug)
