"""Who pays: the names that `key = …` in policy.toml may say, and the plan of a request.

There are no API keys yet, so a user is whoever the body says. That can be spoofed: whoever invents
a new user_id gets a new allowance, and only the limit by IP holds him. `create_app` logs it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flask import g

from chatapp.blueprints.chat_request import ChatRequest
from chatapp.settings import SettingsError
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


def check_plans(plans: Mapping[str, str], policy_file: str) -> None:
    """SettingsError where a plan that somebody has is not in the policy: at the start, and not in
    the first request of that user."""
    known = tomllib.loads(Path(policy_file).read_text("utf-8")).get("plans", {})
    allowed = ", ".join(map(repr, known)) or "none"
    for user_id, plan in plans.items():
        if plan not in known:
            raise SettingsError(
                f"CHATAPP_PLANS: {user_id!r} has the plan {plan!r}, which {policy_file} does not "
                f"define; allowed are {allowed}: name one of them, or define it there"
            )
    if known and DEFAULT_PLAN not in known:
        raise SettingsError(
            f"{policy_file}: plans are {allowed}, and {DEFAULT_PLAN!r} is missing, which everybody "
            "has who is not in CHATAPP_PLANS: define it there"
        )


def _user_id() -> str | None:
    request: ChatRequest | None = g.get("chat_request")
    return None if request is None else request.user_id
