"""Callers as an operator writes them: `NAME`, `user:NAME` or `ip:ADDRESS`; and their limits."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final

from flask import current_app

from chatapp.accounts import ADDRESS, EVERYONE, FORMER, SESSION, TEAM, USER
from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.authentication import Principal
from chatapp.accounts.store import ApiKey, User, amounts_of
from chatapp.operators.change_log import DatabaseChangeLog
from chatapp.operators.errors import unknown
from chatapp.services import current_services
from chatapp.web.current_request import current_request, team_identity, user_identity
from ratelimit_ext import Callers, LogEntry, OperatorError, StorageUnavailable, address_identity
from ratelimit_ext.operators import Operators

PUBLIC_ID: Final = re.compile("[0-9a-f]{16}")


def name_of(text: str) -> str:
    """Return the name of a user, without `user:`."""
    return text.removeprefix(USER)


def identity_of(text: str) -> str:
    """Return the identity of the user's limits; `ip:` stays, for a caller without a name."""
    if text.startswith(ADDRESS):
        return f"{ADDRESS}{address_identity(text.removeprefix(ADDRESS))}"
    return user_identity(name_of(text))


def known_identity(text: str | None) -> str | None:
    """Return the identity of a user with an account or a call; None for None. OperatorError for any
    other: for a misspelt name, an empty result would look like good news."""
    if text is None:
        return None
    if text.startswith(ADDRESS):
        return identity_of(text)
    name, services = name_of(text), current_services()
    identity = text if text.startswith(FORMER) else identity_of(text)
    if not (services.accounts.user(name) or services.reports.totals(user=identity, since=None)):
        raise OperatorError(
            "unknown_caller", f"There is no user {name!r}: no account and no call has this name."
        )
    return identity


@contextmanager
def request_of(identity: str, plan: str, *, key: ApiKey | None = None) -> Iterator[None]:
    """A request of that user or team, and with that key, for reading limits. Nothing is charged."""
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
            key_id="-" if key is None else key.public_id,
            team=None if team is None else team.name,
            limits=amounts_of(team, user, key),
        )
        yield


class ChatCallers(Callers):
    """What `flask ratelimit` asks of the callers: see `ratelimit_ext.Callers`. ``users`` are those
    that have been read, None if unknown."""

    def __init__(self, users: Mapping[str, User | None] | None = None) -> None:
        self._users = users or {}

    def _user(self, identity: str) -> User | None:
        name, read = name_of(identity), self._users
        return read[name] if name in read else current_services().accounts.user(name)

    def batch(self, identities: Collection[str]) -> ChatCallers:
        names = [name_of(identity) for identity in identities if identity.startswith(USER)]
        users = current_services().accounts.users(*names) if names else ()
        return ChatCallers(dict.fromkeys(names) | {user.name: user for user in users})

    def identity(self, kind: str, text: str) -> str:
        """A user is a name or `user:NAME`, a team its name or `team:NAME`, a key its public id; an
        address may have `ip:` before it."""
        services = current_services()
        if is_address(text):
            text = f"{ADDRESS}{text}"
        identity: str | None = None
        match kind:
            case "user" if not text.startswith((TEAM, SESSION)) and public_id(text) is None:
                identity = identity_of(text)
            case "api_key":
                identity = public_id(text)
            case "team" if services.accounts.team(name := text.removeprefix(TEAM)) is not None:
                identity = team_identity(name)
            case "session" if text.startswith(SESSION):
                identity = text
            case "model":
                identity = services.catalogue.slug_of(text)
            case "upstream" if text in slugs_by_upstream():
                identity = text
            case "ip" if text.startswith(ADDRESS):
                identity = address_identity(text.removeprefix(ADDRESS))
            case "global" if text == EVERYONE:
                identity = text
        return identity or ""

    def check(self, kind: str, identity: str) -> None:
        """Without accounts, callers choose their names."""
        accounts = current_services().accounts
        if identity.startswith(ADDRESS) or not accounts.any_key():
            return
        if kind == "user" and accounts.user(name_of(identity)) is None:
            raise unknown("user", name_of(identity))
        if kind == "api_key" and accounts.find(identity) is None:
            raise unknown("key", identity)

    def plan(self, identity: str) -> str:
        """Return the user's plan: of the account, from CHATAPP_PLANS, or the default."""
        user, services = self._user(identity), current_services()
        plans = services.settings.plans
        return user.plan if user else plans.get(name_of(identity), services.default_plan)

    def amounts(self, identity: str) -> Mapping[str, str]:
        accounts = current_services().accounts
        if identity.startswith(TEAM):
            return amounts_of(accounts.team(identity.removeprefix(TEAM)))
        if identity.startswith(USER):
            return amounts_of(self._user(identity))
        row = accounts.find(identity)
        return {} if row is None else amounts_of(row[0])


def is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def slugs_by_upstream(name: str | None = None) -> dict[str, str]:
    """Return a configured model of each upstream, or of the one of that name, by its identity: what
    cool-downs and quotas count, in the catalogue's order. Calls of special tiers have others."""
    services = current_services()
    slugs: dict[str, str] = {}
    for slug, upstream in services.router.available_models.items():
        if name not in {None, upstream}:
            continue
        model = services.catalogue.model(slug, upstream)
        slugs |= dict.fromkeys(services.router.quota_identities(model), slug)
    return slugs


def public_id(text: str) -> str | None:
    """Return the public id of a whole key, or of its public part alone; None for other text."""
    id_ = public_id_of(text)
    return id_ if PUBLIC_ID.fullmatch(id_) else None


def shared_operators() -> Operators:
    """Return what operators see and change. OperatorError if that is not what workers count."""
    return current_services().limiter.operators.shared()


def note(action: str, identity: str, **facts: Any) -> None:
    """Write a change to the log; to the database alone if the limits' storage is away."""
    try:
        shared_operators().note(action, identity, **facts)
    except (OperatorError, StorageUnavailable):
        entry = LogEntry(action, identity, **facts, at=time.time())
        DatabaseChangeLog(current_services().database).write(entry)
