"""``flask ratelimit reset``, ``override`` and ``log``: what operators change."""

from __future__ import annotations

import click
from flask.cli import AppGroup, with_appcontext

from ratelimit_ext.cli.arguments import UNTIL, by_operator, with_json
from ratelimit_ext.cli.output import echo_json, echo_table
from ratelimit_ext.operators.context import application, reported_errors, shared_limiters
from ratelimit_ext.operators.texts import time_text, with_times
from ratelimit_ext.operators.usage import check_name, named_limits, readers_of_all

override = AppGroup("override", help="Give single identities another amount for some time.")


@click.command()
@with_appcontext
@click.argument("identity")
@click.option("--limit", help="Only the limit of this name; default: all but guards.")
@by_operator
@with_json
def reset(identity: str, limit: str | None, reason: str, by: str, *, as_json: bool) -> None:
    """Forget what limits have counted of IDENTITY."""
    cleared: list[str] = []
    with reported_errors():
        readers = readers_of_all()
        if limit is not None:
            check_name(limit, readers)
        for limiter, reader in zip(shared_limiters(), readers, strict=True):
            for state in reader.of_identities(identity):
                wanted = state.row.limit.visible if limit is None else state.row.name == limit
                key = state.verdict.charge.key
                if wanted and limiter.engine.clear([key]):
                    cleared.append(state.row.name)
            if cleared:
                limiter.overrides.note("reset", identity, limit=limit or "", reason=reason, by=by)
    if not cleared:
        raise click.ClickException(f"Nothing was counted of {identity!r}.")
    if as_json:
        echo_json({"identity": identity, "reset": cleared})
        return
    click.echo(f"Reset {', '.join(cleared)} of {identity}.")


@override.command("set")
@click.argument("identity")
@click.argument("limit")
@click.argument("amount")
@click.option("--until", type=UNTIL, help="When it ends, by UTC: 2h, 17:30, '2026-11-27 09:00'.")
@by_operator
@with_json
def set_override(
    *,
    identity: str,
    limit: str,
    amount: str,
    until: float | None,
    reason: str,
    by: str,
    as_json: bool,
) -> None:
    """Give IDENTITY the AMOUNT of LIMIT, as in "50 usd/day"; usage is kept.

    All workers apply it within 5 s. Without --until, it holds until `override clear`. An amount
    for good is the account's, if the application keeps some, as `flask chat users set-amount`.
    """
    with reported_errors():
        named = named_limits(limit, identity, amount)
        overrides, identity = named.limiter.overrides, named.identity
        made = overrides.set(limit, identity, amount, until=until, reason=reason, by=by)
    if as_json:
        echo_json(with_times(made))
        return
    end = "until `flask ratelimit override clear`" if until is None else f"until {time_text(until)}"
    click.echo(f"{made.identity} has {limit}={amount} {end}; all workers apply it within 5 s.")


@override.command("clear")
@click.argument("identity")
@click.argument("limit")
@by_operator
@with_json
def clear_override(identity: str, limit: str, reason: str, by: str, *, as_json: bool) -> None:
    """Remove the override of LIMIT from IDENTITY."""
    removed = ""
    with reported_errors():
        for limiter in shared_limiters():
            rows = limiter.inventory.named(application(), limit)
            kinds = dict.fromkeys(row.key for row in rows)  # of a removed limit: as it was written
            meant = [limiter.callers.identity(kind, identity) for kind in kinds]
            for each in dict.fromkeys([*meant, identity]):
                if each and limiter.overrides.clear(limit, each, reason=reason, by=by):
                    removed = each
    if not removed:
        raise click.ClickException(
            f"{identity} has no override of {limit!r}; `flask ratelimit override list` lists them."
        )
    if as_json:
        echo_json({"identity": removed, "limit": limit})
        return
    click.echo(f"{removed} has the usual {limit} again; all workers apply it within 5 s.")


@override.command("list")
@with_json
def list_overrides(*, as_json: bool) -> None:
    """List the overrides that apply."""
    with reported_errors():
        found = [each for limiter in shared_limiters() for each in limiter.overrides.all()]
    if as_json:
        echo_json([with_times(each) for each in found])
        return
    if not found:
        click.echo("There are no overrides.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "BY", "SET", "REASON")
    echo_table(
        heads,
        [
            (
                o.limit,
                o.identity,
                o.amount,
                time_text(o.until),
                o.by or "-",
                time_text(o.at),
                o.reason,
            )
            for o in found
        ],
    )


@click.command("log")
@with_appcontext
@click.option("--most", type=click.IntRange(1), default=20, help="How many lines; default 20.")
@with_json
def show_log(most: int, *, as_json: bool) -> None:
    """List the latest changes by operators: overrides, resets and blocks."""
    with reported_errors():
        entries = [each for limiter in shared_limiters() for each in limiter.overrides.log()]
    entries = sorted(entries, key=lambda entry: -entry.at)[:most]
    if as_json:
        echo_json([with_times(each) for each in entries])
        return
    if not entries:
        click.echo("No operator has changed anything.", err=True)
        return
    heads = ("TIME", "BY", "CHANGE", "LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "REASON")
    echo_table(
        heads,
        [
            (
                time_text(e.at),
                e.by or "-",
                e.action,
                e.limit or "all",
                e.identity,
                e.amount or "-",
                time_text(e.until),
                e.reason,
            )
            for e in entries
        ],
    )
