"""What the present application works with, for its blueprints."""

from __future__ import annotations

from typing import Final, cast

from flask import current_app

from chatapp.conversation import Conversation
from ratelimit_ext import Limiter

CONVERSATION_KEY: Final = "chatapp.conversation"
LIMITER_KEY: Final = "chatapp.limiter"
#: How often a provider is asked for one call at most.
ATTEMPTS_KEY: Final = "chatapp.provider_attempts"
#: The largest body of a vendor's endpoint, in bytes.
MOST_BODY_KEY: Final = "chatapp.max_body_bytes"


def present_conversation() -> Conversation:
    """Its models and providers."""
    return cast(Conversation, current_app.extensions[CONVERSATION_KEY])


def present_limiter() -> Limiter:
    """Its limits, also where they are switched off."""
    return cast(Limiter, current_app.extensions[LIMITER_KEY])


def present_attempts() -> int:
    """Its bound on attempts at one call."""
    return cast(int, current_app.extensions[ATTEMPTS_KEY])


def present_most_body_bytes() -> int:
    """How large a body its vendors' endpoints take, in bytes."""
    return cast(int, current_app.extensions[MOST_BODY_KEY])
