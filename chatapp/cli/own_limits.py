"""Amounts of single users, keys and teams in place of the policy's: `--limit`, `set-limit` and
`clear-limit`.

An amount without an end is a part of the account, in the database. One with `--until` is an
override, in the limits' storage, and comes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Final

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import Owner
from chatapp.cli import arguments, callers, output
from chatapp.services import current_services
from chatapp.web.current_request import user_identity
from chatapp.web.identities import DEFAULT_PLAN, team_identity
from ratelimit_ext import ConfigurationError, Override, StorageUnavailable
from ratelimit_ext.cli import UNTIL, by_operator, with_json

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


class OwnAmounts:
    """The amounts of owners, with the overrides that apply now as far as they can be read."""

    def __init__(self) -> None:
        limiter = current_services().limiter
        self._overrides: list[Override] = []
        with contextlib.suppress(ValueError, StorageUnavailable):
            if callers.limits_are_shared(limiter):
                self._overrides = limiter.overrides.all()

    def of(self, owner: Owner, name: str, limits: Mapping[str, str] | None) -> dict[str, str]:
        """An owner's amounts by the names of limits, each with its end if it has one."""
        identity = identity_of(owner, name)
        own = {each.limit: _shown(each) for each in self._overrides if each.identity == identity}
        return {**(limits or {}), **own}


def identity_of(owner: Owner, name: str) -> str:
    """The identity of an owner in limits."""
    match owner:
        case "user":
            return user_identity(name)
        case "team":
            return team_identity(name)
        case _:
            return name


def add_commands(group: AppGroup, owner: Owner) -> None:
    """Add `set-limit` and `clear-limit` to the commands of that kind of owner."""

    @group.command("set-limit")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @click.argument("amount")
    @click.option("--until", type=UNTIL, help="Only until then: 2h, 17:30, '2026-11-27 09:00'.")
    @by_operator
    @with_json
    def set_limit(
        *,
        limit: str,
        amount: str,
        until: float | None,
        reason: str,
        by: str,
        as_json: bool,
        **named: str,
    ) -> None:
        """Set the amount of LIMIT, as in "20 usd/day"; usage is kept.

        With --until, by UTC, the present amount returns at that time.
        """
        name = _name_of(owner, named[owner])
        identity = identity_of(owner, name)
        with output.reported_errors():
            checked(owner, [(limit, amount)], plan=_plan_of(owner, name))
            if until is None:
                current_services().accounts.set_limit(owner, name, limit, amount)
                callers.note("amount", identity, limit=limit, amount=amount, reason=reason, by=by)
            else:
                limiter = callers.shared_limiter()
                limiter.override(limit, identity, amount, until=until, reason=reason, by=by)
        end = "" if until is None else f" until {_time(until)}"
        output.echo_done(
            f"{name} has {limit}={amount}{end}; all workers apply it within 5 s.",
            as_json=as_json,
            **{owner: name},
            limit=limit,
            amount=amount,
            until=None if until is None else datetime.fromtimestamp(until, UTC).isoformat(),
        )

    @group.command("clear-limit")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @by_operator
    @with_json
    def clear_limit(*, limit: str, reason: str, by: str, as_json: bool, **named: str) -> None:
        """Remove the amount of LIMIT; the policy's applies again.

        An optional limit no longer applies then.
        """
        name = _name_of(owner, named[owner])
        identity = identity_of(owner, name)
        limiter = current_services().limiter
        with output.reported_errors():
            cleared = current_services().accounts.set_limit(owner, name, limit, None)
            if cleared:
                callers.note("clear-amount", identity, limit=limit, reason=reason, by=by)
            if callers.limits_are_shared(limiter):
                cleared = limiter.overrides.clear(limit, identity, reason=reason, by=by) or cleared
        if not cleared:
            raise click.ClickException(
                f"{name} has no amount of {limit!r}; `chat {owner}s list` lists the amounts."
            )
        output.echo_done(
            f"{name} has the policy's {limit} again; all workers apply it within 5 s.",
            as_json=as_json,
            **{owner: name},
            limit=limit,
        )


def _shown(override: Override) -> str:
    end = "" if override.until is None else f" until {_time(override.until)}"
    return f"{override.amount}{end}"


def _time(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


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
