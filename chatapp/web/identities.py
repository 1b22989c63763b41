"""Identities: the names that `key = …` in policy.toml may use, and the plan and class of a request.

With accounts on, the user is the owner of the request's API key, and the body's user_id is ignored.
With accounts off, the user is the user_id of the body. Clients can invent new ones, so only the
limit by IP protects the server, and `create_app` logs a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from flask import request

from chatapp.catalogue.providers_file import CLASS_NAME
from chatapp.guards_file import CALLS
from chatapp.settings import SettingsError
from chatapp.web import current_request
from chatapp.web.current_request import (
    has_no_team,
    has_no_valid_key,
    has_valid_key,
    is_named_by_key,
    names_no_model,
)
from chatapp.web.tags import is_unattended
from ratelimit_ext import Limiter, Policy

#: What a policy names as `exempt_when = "chatapp.web.identities:…"`.
__all__ = ["has_no_team", "has_no_valid_key", "has_valid_key", "is_named_by_key", "names_no_model"]

#: The identity that says a request's class of traffic, and the keyword of a plan.
CLASS: Final = "class"
#: The class of an agent's request, which may be lower: only as a `priority`.
REQUEST_CLASS: Final = "request_class"
#: The class of a plan without one.
HIGHEST: Final = "interactive"
#: By this header a caller asks for the lowest class, which comes after all that a policy can list.
CLASS_HEADER: Final = "X-Traffic-Class"
LOWEST: Final = "lowest"
LAST: Final = ""
#: The service tier of calls that OpenAI answers when it has room, at half the price.
FLEX: Final = "flex"
SPOOFING_WARNING: Final = (
    "No API keys exist, so callers can claim any user_id. Keep this server off the internet, or "
    "create a key: flask --app wsgi chat keys create --user NAME"
)


def install(limiter: Limiter) -> None:
    """Register chatapp's identities, and what is known of a caller, with the limiter."""
    limiter.identity("user")(current_request.user)
    limiter.identity("api_key")(current_request.api_key)
    limiter.identity("session")(current_request.session)
    limiter.identity("team", common=True)(current_request.team)
    limiter.identity("model", common=True)(current_request.model)
    limiter.identity("upstream", common=True)(current_request.upstream)
    limiter.identity(CLASS, common=True)(traffic_class)
    limiter.identity(REQUEST_CLASS, common=True)(request_class)
    limiter.plan_keyword(CLASS)(checked_class)
    limiter.plan_loader(current_request.plan)
    limiter.amount_loader(current_request.amounts)


def checked_class(value: object) -> str:
    """Return the name of a class of traffic; ValueError for anything else."""
    if not (isinstance(value, str) and CLASS_NAME.fullmatch(value)):
        raise ValueError(f'found {value!r}; allowed: a name such as "batch".')
    return value


def traffic_class() -> str:
    """Return the class of the request: its key's, else its plan's. A caller can only lower it."""
    current = current_request.current_request()
    fields = None if current.model_request is None else current.model_request.fields
    is_flexible = fields is not None and fields.get("service_tier") == FLEX
    if is_flexible or request.headers.get(CLASS_HEADER) == LOWEST:
        return LAST
    principal, policy = current.principal, current.services.policy
    if principal is not None and principal.traffic_class is not None:
        return principal.traffic_class
    plan = policy and policy.plans.get(current.services.limiter.current.plan or "")
    name: str = plan.keywords.get(CLASS, HIGHEST) if plan else HIGHEST
    return name


def request_class() -> str:
    """Return the class of the caller, or the lowest for a request of a subagent. Whatever a header
    says, it is the one or the other."""
    return LAST if is_unattended(request.environ) else traffic_class()


def without_plan(policy: Policy, endpoints: Collection[str]) -> str | None:
    """Return a warning if the policy has plans and none applies to some of these endpoints."""
    group = policy.groups.get(CALLS)
    covered = {*policy.plan_blueprints, *policy.plan_routes, *policy.plan_targets}
    unlimited = [e for e in endpoints if not covered & {e, e.rpartition(".")[0]}]
    if not (policy.plans and unlimited) or (group and group.plans):
        return None
    return (
        f"No plan applies to {', '.join(sorted(unlimited))}: their calls have no limits by plan. "
        f"Write plans = true in [groups.{CALLS}]."
    )


def check_plans(
    plans: Mapping[str, str], defined: Collection[str], *, policy_file: str, of: str = "PLANS"
) -> None:
    """Raise SettingsError if the plan of a user is not among the ``defined`` ones of the policy, or
    that of a group or row, in the setting ``of`` groups or rows."""
    allowed = ", ".join(map(repr, defined)) or "none"
    whose = {"PLANS": "user", "SIGN_IN_GROUPS": "group"}.get(of, "row")
    for owner, name in plans.items():
        if name not in defined:
            raise SettingsError(
                f"CHATAPP_{of}: unknown plan {name!r} of the {whose} {owner!r}. Choose one of "
                f"{allowed}, or define it in {policy_file}."
            )
