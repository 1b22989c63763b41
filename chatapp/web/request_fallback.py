"""Switches the current request to its fallback model."""

from __future__ import annotations

from dataclasses import replace

from flask import g

from chatapp.calls.fallback import fallback_model
from chatapp.catalogue import Model
from chatapp.services import current_services
from chatapp.web.request_estimate import current_extras
from chatapp.web.requests.chat import ChatRequest
from chatapp.web.requests.vendor import VendorRequest
from ratelimit_ext import Limiter


def install(limiter: Limiter) -> None:
    """Decide a request again for its fallback model if the requested model cools down."""
    limiter.second_choice(switch_to_fallback)


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
