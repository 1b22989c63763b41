"""Users by what an operator calls them: a name, or as limits and ledger write it, `user:NAME` and
`ip:ADDRESS`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
from flask import current_app, g

from chatapp.accounts.principal import Principal
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN, USER, user_identity
from ratelimit_ext import address_identity

ADDRESS: Final = "ip:"


def name_of(text: str) -> str:
    """The name of a user, written with or without `user:` before it."""
    return text.removeprefix(USER)


def identity_of(text: str) -> str:
    """What that user's limits and calls are counted under; `ip:` stays, for who says no name."""
    if text.startswith(ADDRESS):
        return f"{ADDRESS}{address_identity(text.removeprefix(ADDRESS))}"
    return user_identity(name_of(text))


def found(text: str | None) -> str | None:
    """The same of somebody who is known: who has an account, or has called. None for everybody.

    ClickException where nobody is: to find nothing of a misspelt name would look like good news.
    """
    if text is None:
        return None
    if text.startswith(ADDRESS):
        return identity_of(text)
    name, identity = name_of(text), identity_of(text)
    if name not in plans_by_name() and not current_services().reports.totals(
        user=identity, since=None
    ):
        raise click.ClickException(
            f"There is no user {name!r}: no account has this name, and no call is of such a user. "
            "`chat plans list` and `chat ledger show` name those that there are."
        )
    return identity


def plans_by_name() -> dict[str, str]:
    """The plan of each account."""
    return {user.name: user.plan for user in current_services().accounts.users()}


def plan_of(identity: str, plans: dict[str, str]) -> str:
    """The plan of that user: by ``plans``, which are the accounts', the setting, or the default."""
    name = name_of(identity)
    return plans.get(name) or current_services().settings.plans.get(name, DEFAULT_PLAN)


@contextmanager
def request_of(identity: str, plan: str) -> Iterator[None]:
    """A request as that user would make it, for the limits to look at. Nothing is charged."""
    if identity.startswith(ADDRESS):
        address = identity.removeprefix(ADDRESS).partition("/")[0]
        with current_app.test_request_context(environ_base={"REMOTE_ADDR": address}):
            yield
        return
    with current_app.test_request_context():
        g.principal = Principal(name_of(identity), plan, key_id="-")
        yield
