"""`set-amount` and `clear-amount` of users, keys and teams: see chatapp/operators/amounts.py."""

from __future__ import annotations

import click
from flask.cli import AppGroup

from chatapp.accounts.store import Owner
from chatapp.cli import arguments, output
from chatapp.operators import amounts
from ratelimit_ext.terminal import by_operator, with_json


def add_commands(group: AppGroup, owner: Owner) -> None:
    """Add `set-amount` and `clear-amount` to the commands of that kind of owner."""

    @group.command("set-amount")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @click.argument("amount")
    @by_operator
    @with_json
    def set_amount(
        *,
        limit: str,
        amount: str,
        reason: str,
        by: str,
        as_json: bool,
        **named: str,
    ) -> None:
        """Set the amount of LIMIT, as in "20 usd/day"; usage is kept.

        The account keeps it. For some time alone, use `flask ratelimit override set`, which
        comes before it.
        """
        name = amounts.named(owner, named[owner])
        done = amounts.set_amount(owner, name, limit, amount, until=None, reason=reason, by=by)
        output.echo_done(
            done,
            as_json=as_json,
            **{owner: name},
            limit=limit,
            amount=amount,
        )

    @group.command("clear-amount")
    @click.argument(owner, type=arguments.USER)
    @click.argument("limit")
    @by_operator
    @with_json
    def clear_amount(*, limit: str, reason: str, by: str, as_json: bool, **named: str) -> None:
        """Remove the amount of LIMIT, and its override; the policy's applies again.

        An optional limit no longer applies then.
        """
        name = amounts.named(owner, named[owner])
        done = amounts.clear_amount(owner, name, limit, reason=reason, by=by)
        output.echo_done(done, as_json=as_json, **{owner: name}, limit=limit)
