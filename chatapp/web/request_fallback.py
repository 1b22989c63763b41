"""Switches the current request to its fallback model."""

from __future__ import annotations

import math
from dataclasses import replace

from flask import g
from werkzeug.exceptions import HTTPException

from chatapp.calls.fallback import fallback_model
from chatapp.catalogue import Model
from chatapp.services import current_services
from chatapp.web.request_estimate import current_extras
from chatapp.web.requests.chat import ChatRequest
from chatapp.web.requests.vendor import VendorRequest
from ratelimit_ext import DecideAgain, Limiter, TemporarilyUnavailable


def install(limiter: Limiter) -> None:
    """Decide a request again for its fallback model if the requested model cools down."""
    limiter.refusal_handler(use_fallback)


def use_fallback(refusal: HTTPException, decide_again: DecideAgain) -> HTTPException | None:
    """The decision for the fallback model, if the requested model is overloaded: ``None`` if the
    fallback is admitted. If neither is, the refusal with the shorter wait."""
    if not _is_overload(refusal) or not switch_to_fallback():
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


def switch_to_fallback() -> bool:
    """Change the current request to the fallback of its model; False if there is none, or if it
    has changed already."""
    chat_request: ChatRequest | VendorRequest | None = g.get("chat_request")
    if chat_request is None or "requested_model" in g:  # a page calls no model
        return False
    model = chat_request.turn.model
    is_vendors = isinstance(chat_request, VendorRequest)
    fallback = fallback_model(
        current_services().conversation,
        model,
        same_provider=is_vendors,
        tiers=current_extras().tiers.values(),
    )
    if fallback is None:
        return False
    g.requested_model = model.name
    g.chat_request = replace(chat_request, turn=replace(chat_request.turn, model=fallback))
    g.pop("estimate", None)
    g.pop("held", None)
    return True


def requested_model(model: Model) -> str:
    """The name that the caller sent, whichever model is called."""
    name: str = g.get("requested_model", model.name)
    return name
