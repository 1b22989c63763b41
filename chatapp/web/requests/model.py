"""The models that a vendor's endpoint serves: its own and the offline one. No translation."""

from __future__ import annotations

from typing import Final

from chatapp.catalogue import Model
from chatapp.conversation import ModelUnavailableError, UnknownModelError
from chatapp.services import current_services
from chatapp.web.errors import ApiError

OFFLINE: Final = "offline"
ADDRESSES: Final = {"openai": "POST /v1/chat/completions", "anthropic": "POST /v1/messages"}


def served_model(name: str, *, provider: str) -> Model:
    """The model of that name at the provider's endpoint; ApiError (404) if it does not serve it."""
    conversation = current_services().conversation
    try:
        model = conversation.model(name)
    except ModelUnavailableError as error:
        raise _not_found(str(error)) from error
    except UnknownModelError as error:
        names = ", ".join(conversation.models_of(provider, OFFLINE))
        raise _not_found(f'The model "{name[:100]}" is unknown; known here: {names}.') from error
    if model.provider not in {provider, OFFLINE}:
        raise _not_found(
            f'The model "{name}" belongs to {model.provider}, whose protocol is another; ask for '
            f"it at {ADDRESSES[model.provider]}, or name a model of {provider} here."
        )
    return model


def _not_found(sentence: str) -> ApiError:
    return ApiError(404, "model_not_found", sentence, param="model")
