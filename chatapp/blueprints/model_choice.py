"""Which models an endpoint serves: its vendor's and the offline one. Nothing is translated."""

from __future__ import annotations

from typing import Final

from chatapp.blueprints.refusal import Refusal
from chatapp.catalogue import Model
from chatapp.conversation import ModelUnavailableError, UnknownModelError
from chatapp.services import current_services

OFFLINE: Final = "offline"
ADDRESSES: Final = {"openai": "POST /v1/chat/completions", "anthropic": "POST /v1/messages"}


def served(name: str, *, by: str) -> Model:
    """The model of that name, at that provider's endpoint; Refusal (404) where it has none."""
    conversation = current_services().conversation
    try:
        model = conversation.model(name)
    except ModelUnavailableError as error:
        raise _not_found(str(error)) from error
    except UnknownModelError as error:
        names = ", ".join(conversation.models_of(by, OFFLINE))
        raise _not_found(f'The model "{name[:100]}" is unknown; known here: {names}.') from error
    if model.provider not in {by, OFFLINE}:
        raise _not_found(
            f'The model "{name}" belongs to {model.provider}, whose protocol is another; ask for '
            f"it at {ADDRESSES[model.provider]}, or name a model of {by} here."
        )
    return model


def _not_found(sentence: str) -> Refusal:
    return Refusal(404, "model_not_found", sentence, param="model")
