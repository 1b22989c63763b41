"""Callers as an operator writes them: `NAME`, `user:NAME` or `ip:ADDRESS`; and their limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
from flask import current_app
from limits.storage import MemoryStorage

from chatapp.accounts.authentication import Principal
from chatapp.accounts.store import own_limits
from chatapp.services import current_services
from chatapp.web.current_request import USER, current_request, user_identity
from chatapp.web.identities import DEFAULT_PLAN, TEAM
from ratelimit_ext import Limiter, address_identity

ADDRESS: Final = "ip:"
NOT_SHARED: Final = (
    "they are in the memory of each worker, which commands cannot read. Run it beside gunicorn, "
    "whose embedded server it finds, or set RATELIMIT_STORAGE_URI to the storage of the workers."
)


def name_of(text: str) -> str:
    """The name of a user, without `user:`."""
    return text.removeprefix(USER)


def identity_of(text: str) -> str:
    """The identity of the user's limits and calls. `ip:` stays: it is a caller without a name."""
    if text.startswith(ADDRESS):
        return f"{ADDRESS}{address_identity(text.removeprefix(ADDRESS))}"
    return user_identity(name_of(text))


def known_identity(text: str | None) -> str | None:
    """The identity of a user with an account or a call; None for None.

    ClickException for any other user: for a misspelt name, an empty result would look like good
    news.
    """
    if text is None:
        return None
    if text.startswith(ADDRESS):
        return identity_of(text)
    name, identity = name_of(text), identity_of(text)
    reports = current_services().reports
    if name not in plans_by_name() and not reports.totals(user=identity, since=None):
        raise click.ClickException(
            f"There is no user {name!r}: no account and no call has this name. "
            "`chat users list` and `chat ledger show` list the users."
        )
    return identity


def plans_by_name() -> dict[str, str]:
    """The plan of each account."""
    return {user.name: user.plan for user in current_services().accounts.users()}


def plan_of(identity: str, plans: dict[str, str]) -> str:
    """The user's plan: from the accounts' ``plans``, CHATAPP_PLANS or the default."""
    name = name_of(identity)
    return plans.get(name) or current_services().settings.plans.get(name, DEFAULT_PLAN)


@contextmanager
def request_of(identity: str, plan: str) -> Iterator[None]:
    """A request of that user or team, for reading limits. Nothing is charged."""
    if identity.startswith(ADDRESS):
        address = identity.removeprefix(ADDRESS).partition("/")[0]
        with current_app.test_request_context(environ_base={"REMOTE_ADDR": address}):
            yield
        return
    accounts = current_services().accounts
    is_team = identity.startswith(TEAM)
    user = None if is_team else accounts.user(name_of(identity))
    team = accounts.team(identity.removeprefix(TEAM)) if is_team else user and user.team
    with current_app.test_request_context():
        current_request().principal = Principal(
            name_of(identity),
            plan,
            key_id="-",
            team=None if team is None else team.name,
            limits=own_limits(team, user),
        )
        yield


def limits_are_shared(limiter: Limiter) -> bool:
    """Whether this process sees the workers' limits."""
    return bool(limiter.enabled) and not isinstance(limiter.storage, MemoryStorage)
