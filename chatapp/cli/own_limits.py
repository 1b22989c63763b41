"""Amounts of single users, keys and teams in place of the policy's: `--limit`, `set-limit` and
`clear-limit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import Owner
from chatapp.cli import arguments, callers, output
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN
from ratelimit_ext import ConfigurationError

#: The identity that the limits of an owner count, by the policy's name.
COUNTED: Final[Mapping[Owner, str]] = {"user": "user", "key": "api_key", "team": "team"}


def checked(
    owner: Owner, amounts: Iterable[tuple[str, str]], *, plan: str | None
) -> dict[str, str]:
    """The amounts by name. ClickException for a name that the plan does not have, which lists its
    names, and for an amount in another unit or period."""
    services = current_services()
    if plan is not None and plan not in services.plans:
        plan = DEFAULT_PLAN  # the plan that its users get
    known = services.policy.overridable(key=COUNTED[owner], plan=plan) if services.policy else {}
    for name, amount in amounts:
        if name not in known:
            listed = ", ".join(f"{each} ({limit.text})" for each, limit in known.items()) or "none"
            near = get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            where = "The policy" if plan is None else f"The plan {plan}"
            raise click.ClickException(
                f"{where} has no limit {name!r} that counts {owner}s; it has: {listed}.{meant}"
            )
        try:
            known[name].check_amount(amount)
        except ConfigurationError as error:
            raise click.ClickException(f"{name}: {error}") from None
    return dict(amounts)


def listed(limits: Mapping[str, str] | None) -> str:
    """The amounts in one line; empty without any."""
    return ", ".join(f"{name}={amount}" for name, amount in (limits or {}).items())


def add_commands(group: AppGroup, owner: Owner) -> None:
    """Add `set-limit` and `clear-limit` to the commands of that kind of owner."""

    @group.command("set-limit")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @click.argument("amount")
    def set_limit(limit: str, amount: str, **named: str) -> None:
        """Set the amount of LIMIT, as in "20 usd/day"; usage is kept."""
        name = _name_of(owner, named[owner])
        with output.reported_errors():
            plan = _plan_of(owner, name)
            checked(owner, [(limit, amount)], plan=plan)
            current_services().accounts.set_limit(owner, name, limit, amount)
        click.echo(f"{name} has {limit}={amount}; all workers apply it within 5 s.")

    @group.command("clear-limit")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    def clear_limit(limit: str, **named: str) -> None:
        """Remove the amount of LIMIT; the policy's applies again.

        An optional limit no longer applies then.
        """
        name = _name_of(owner, named[owner])
        with output.reported_errors():
            cleared = current_services().accounts.set_limit(owner, name, limit, None)
        if not cleared:
            raise click.ClickException(
                f"{name} has no amount of {limit!r}; `chat {owner}s list` lists the amounts."
            )
        click.echo(f"{name} has the policy's {limit} again; all workers apply it within 5 s.")


def _name_of(owner: Owner, text: str) -> str:
    match owner:
        case "user":
            return callers.name_of(text)
        case "key":
            return public_id_of(text)
        case _:
            return text


def _plan_of(owner: Owner, name: str) -> str | None:
    """The plan of an owner; None for a team. ClickException if there is no such owner."""
    accounts = current_services().accounts
    match owner:
        case "user":
            if (user := accounts.user(name)) is not None:
                return user.plan
        case "key":
            if (found := accounts.find(name)) is not None:
                return found[1].plan
        case _:
            if accounts.team(name) is not None:
                return None
    raise output.unknown(owner, name)
