"""The model that answers a request if the requested one is overloaded."""

from __future__ import annotations

from collections.abc import Collection

from chatapp.catalogue import Model
from chatapp.conversation import Conversation


def fallback_model(
    conversation: Conversation, model: Model, *, same_provider: bool, tiers: Collection[str]
) -> Model | None:
    """The configured fallback of a model; None if it cannot serve the request.

    ``same_provider``: the request is in the provider's own protocol. ``tiers`` are those that it
    asks for; a fallback without a price for one of them cannot serve it.
    """
    fallback = conversation.fallback(model)
    if fallback is None or (same_provider and fallback.provider != model.provider):
        return None
    if not all(conversation.catalogue.prices_tier(fallback, tier) for tier in tiers):
        return None
    return fallback
