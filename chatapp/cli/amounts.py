"""`set-limit` and `clear-limit` of users, keys and teams: see chatapp/operators/amounts.py."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import Owner
from chatapp.cli import output
from chatapp.operators import amounts, arguments, callers
from chatapp.operators.errors import reported_errors
from ratelimit_ext.cli import UNTIL, by_operator, with_json


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
        with reported_errors():
            done = amounts.set_amount(owner, name, limit, amount, until=until, reason=reason, by=by)
        output.echo_done(
            done,
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
        with reported_errors():
            done = amounts.clear_amount(owner, name, limit, reason=reason, by=by)
        output.echo_done(done, as_json=as_json, **{owner: name}, limit=limit)


def _name_of(owner: Owner, text: str) -> str:
    match owner:
        case "user":
            return callers.name_of(text)
        case "key":
            return public_id_of(text)
        case _:
            return text
