"""Who pays: the names that `key = …` in policy.toml may say, and the plan of a request.

There are no API keys yet, so a user is whoever the body says. That can be spoofed: whoever invents
a new user_id gets a new allowance, and only the limit by IP holds him. `create_app` logs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import g

from chatapp.blueprints.chat_request import ChatRequest
from ratelimit_ext import Limiter, client_ip

DEFAULT_PLAN: Final = "starter"
SPOOFING_WARNING: Final = (
    "No API keys are configured: a caller is the user_id it sends, which can be spoofed, and only "
    "the limit by IP holds somebody who invents new ones. Do not offer this to the open internet."
)


def install(limiter: Limiter, plans: Mapping[str, str]) -> None:
    """Teach the limiter chatapp's identities; ``plans`` are plan names by user id."""

    @limiter.identity("user")
    def user() -> str:
        user_id = _user_id()
        # The prefix keeps a user who calls himself 10.0.0.1 apart from that address.
        return f"ip:{client_ip()}" if user_id is None else f"user:{user_id}"

    @limiter.identity("model")
    def model() -> str:
        request: ChatRequest = g.chat_request
        return request.turn.model.slug

    @limiter.plan_loader
    def plan() -> str:
        return plans.get(_user_id() or "", DEFAULT_PLAN)


def _user_id() -> str | None:
    request: ChatRequest | None = g.get("chat_request")
    return None if request is None else request.user_id
