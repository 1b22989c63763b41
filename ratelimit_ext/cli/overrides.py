"""``flask ratelimit reset``, ``override`` and ``log``: what operators change."""

from __future__ import annotations

import click
from flask.cli import AppGroup, with_appcontext

from ratelimit_ext.cli.parameters import SINCE, UNTIL
from ratelimit_ext.operators.api import all_operators
from ratelimit_ext.operators.texts import time_text, with_times
from ratelimit_ext.records.overrides import LogEntry, Override
from ratelimit_ext.terminal import by_operator, echo_json, echo_list, with_json

override = AppGroup("override", help="Give single identities another amount for some time.")


@click.command()
@with_appcontext
@click.argument("identity")
@click.option("--limit", help="Only the limit of this name; default: all but guards.")
@by_operator
@with_json
def reset(identity: str, limit: str | None, reason: str, by: str, *, as_json: bool) -> None:
    """Forget what limits have counted for IDENTITY."""
    cleared = all_operators().shared().reset(identity, limit, reason=reason, by=by)
    if as_json:
        echo_json({"identity": identity, "reset": cleared})
        return
    click.echo(f"Reset {', '.join(cleared)} of {identity}.")


@override.command("set")
@click.argument("identity")
@click.argument("limit")
@click.argument("amount")
@click.option("--until", type=UNTIL, help="When it ends, in UTC: 2h, 17:30, 'friday 9:00'.")
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
    """Set the amount of LIMIT for IDENTITY, such as "50 usd/day"; usage is kept.

    All workers apply it within 5 s. Without --until, it holds until `override clear`. Keep lasting
    amounts in the application's accounts, if it has any: `flask chat amounts set` does that.
    """
    made = (
        all_operators()
        .shared()
        .override(limit, identity, amount, until=until, reason=reason, by=by, as_written=True)
    )
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
    removed = all_operators().shared().clear_override(limit, identity, reason=reason, by=by)
    if not removed:
        raise click.ClickException(
            f"{identity} has no override of {limit!r}; `flask ratelimit override list` lists them."
        )
    if as_json:
        echo_json({"identity": removed, "limit": limit})
        return
    click.echo(f"Removed the override of {limit} from {removed}; all workers apply it within 5 s.")


@override.command("list")
@with_json
def list_overrides(*, as_json: bool) -> None:
    """List the overrides that apply."""
    overrides = all_operators().shared().overrides()
    heads = ("LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "BY", "SET", "REASON")
    empty = "There are no overrides."
    echo_list(overrides, heads, _row, as_json=as_json, fields=with_times, empty=empty)


def _row(entry: Override) -> tuple[str, ...]:
    until, at = time_text(entry.until), time_text(entry.at)
    return entry.limit, entry.identity, entry.amount, until, entry.by or "-", at, entry.reason


@click.command("log")
@with_appcontext
@click.option("--most", type=click.IntRange(1), help="How many lines; default 20.")
@click.option("--since", type=SINCE, help="Only changes since then, in UTC: 2h, yesterday.")
@with_json
def log(most: int | None, since: float | None, *, as_json: bool) -> None:
    """List the latest changes by operators: overrides, resets and blocks."""
    most = most or (20 if since is None else None)
    entries = all_operators().shared().log(since=since or 0.0)[:most]
    heads = ("TIME", "BY", "CHANGE", "LIMIT", "IDENTITY", "AMOUNT", "UNTIL", "REASON")
    when = "" if since is None else f" since {time_text(since)}"
    empty = f"No operator has changed anything{when}."
    echo_list(entries, heads, _entry, as_json=as_json, fields=with_times, empty=empty)


def _entry(entry: LogEntry) -> tuple[str, ...]:
    subject = entry.limit or "all", entry.identity, entry.amount or "-", time_text(entry.until)
    return time_text(entry.at), entry.by or "-", entry.action, *subject, entry.reason
