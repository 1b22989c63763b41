"""Identities: the names that `key = …` in policy.toml may use, and the plan of a request.

With accounts on, the user is the owner of the request's API key, and the body's user_id is ignored.
With accounts off, the user is the user_id of the body. Clients can invent new ones, so only the
limit by IP protects the server, and `create_app` logs a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

from flask import current_app, g

from chatapp.accounts.authentication import Principal
from chatapp.settings import SettingsError
from chatapp.web.requests import ModelRequest
from ratelimit_ext import Limiter, client_ip

log = logging.getLogger(__name__)

DEFAULT_PLAN: Final = "starter"
USER: Final = "user:"
SPOOFING_WARNING: Final = (
    "No API keys exist, so callers can claim any user_id. Keep this server off the internet, or "
    "create a key: flask --app wsgi chat keys create --user NAME"
)


def install(limiter: Limiter, plans: Mapping[str, str]) -> None:
    """Register chatapp's identities with the limiter. ``plans`` are plan names by user id, used
    while accounts are off."""

    @limiter.identity("user")
    def user() -> str:
        user_id = _user_id()
        # The prefix keeps a user with the name 10.0.0.1 apart from that address.
        return f"ip:{client_ip()}" if user_id is None else user_identity(user_id)

    @limiter.identity("api_key")
    def api_key() -> str:
        principal = _principal()
        return user() if principal is None else principal.key_id

    @limiter.identity("model")
    def model() -> str:
        request: ModelRequest = g.model_request
        return request.turn.model.slug

    @limiter.plan_loader
    def plan() -> str:
        principal = _principal()
        if principal is None:
            return plans.get(_user_id() or "", DEFAULT_PLAN)
        known = limiter.plan_names(current_app)
        if known and principal.plan not in known:
            # The policy no longer defines it. Without a plan, the caller would have no limits.
            log.error("API key %s has the unknown plan %s", principal.key_id, principal.plan)
            return DEFAULT_PLAN
        return principal.plan


def has_valid_key() -> bool:
    """Whether the request has been authenticated. False for limits that are decided before, such
    as that of a 401."""
    return _principal() is not None


def has_no_valid_key() -> bool:
    """The opposite, also for every request while accounts are off."""
    return _principal() is None


def user_identity(name: str) -> str:
    """The identity of a user in limits and in the ledger."""
    return f"{USER}{name}"


def check_plans(plans: Mapping[str, str], known: Collection[str], *, policy_file: str) -> None:
    """Raise SettingsError if a user's plan is not among the ``known`` ones of the policy."""
    allowed = ", ".join(map(repr, known)) or "none"
    for user_id, plan in plans.items():
        if plan not in known:
            raise SettingsError(
                f"CHATAPP_PLANS: unknown plan {plan!r} of the user {user_id!r}. Choose one of "
                f"{allowed}, or define it in {policy_file}."
            )
    if known and DEFAULT_PLAN not in known:
        raise SettingsError(
            f"{policy_file}: the plan {DEFAULT_PLAN!r} is missing. Define it for users without "
            f"another plan. Found: {allowed}."
        )


def _principal() -> Principal | None:
    principal: Principal | None = g.get("principal")
    return principal


def _user_id() -> str | None:
    if (principal := _principal()) is not None:
        return principal.user
    request: ModelRequest | None = g.get("model_request")
    return None if request is None else request.user_id
