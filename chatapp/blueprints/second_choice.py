"""The model that is asked where the one that was asked for has no room."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from flask import g

from chatapp.blueprints.chat_request import ChatRequest
from chatapp.blueprints.compatible_request import CompatibleRequest
from chatapp.catalogue import Model
from chatapp.conversation import Conversation
from chatapp.services import current_services
from ratelimit_ext import Limiter


def install(limiter: Limiter) -> None:
    """Let a request whose model cools down be decided for its second choice."""
    limiter.second_choice(lambda: take(current_services().conversation) is not None)


def take(conversation: Conversation) -> Model | None:
    """Change the present request to the second choice of its model, and tell which that is.

    None where its model has none, or has it already, or where its protocol is another's.
    """
    asked: ChatRequest | CompatibleRequest | None = g.get("chat_request")
    if asked is None:  # a page that asks no model
        return None
    model = asked.turn.model
    chosen = conversation.fallback(model)
    if chosen is None or "model_asked_for" in g:
        return None
    if isinstance(asked, CompatibleRequest) and chosen.provider != model.provider:
        return None
    if not all(conversation.catalogue.prices_tier(chosen, tier) for tier in _tiers(asked)):
        return None
    g.model_asked_for = model.name
    g.chat_request = replace(asked, turn=replace(asked.turn, model=chosen))
    g.pop("estimate", None)
    g.pop("held", None)
    return chosen


def _tiers(asked: ChatRequest | CompatibleRequest) -> Collection[str]:
    return asked.extras.tiers.values() if isinstance(asked, CompatibleRequest) else ()


def asked_for(model: Model) -> str:
    """The name that the caller has given, whichever model is asked."""
    name: str = g.get("model_asked_for", model.name)
    return name
