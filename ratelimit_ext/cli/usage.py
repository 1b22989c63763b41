"""``flask ratelimit inspect``, ``top``, ``near`` and ``blocks``: what callers have used."""

from __future__ import annotations

from typing import Any, Final

import click
from flask.cli import with_appcontext

from ratelimit_ext.cli.arguments import with_json
from ratelimit_ext.cli.context import application, reported_errors, shared_limiters
from ratelimit_ext.cli.output import echo_json, echo_table, iso_time, span_text, time_text
from ratelimit_ext.cli.reader import Reader, State, check_name, readers_of_all
from ratelimit_ext.web.overrides import Override

#: How many names of the storage a command reads by default.
MOST_NAMES: Final = 100_000
#: A block that lasts longer has no end.
ENDLESS_US: Final = 5 * 365 * 86_400_000_000


@click.command()
@with_appcontext
@click.argument("identity")
@with_json
def inspect(identity: str, *, as_json: bool) -> None:
    """Show what every limit has counted of IDENTITY; nothing is charged.

    IDENTITY is a user, an address, or what the key function of a limit returns.
    """
    with reported_errors():
        states = [state for reader in readers_of_all() for state in reader.of_identity(identity)]
    if not states:
        raise click.ClickException(
            f"No limit counts {identity!r}; `flask ratelimit show` lists all."
        )
    if as_json:
        echo_json([state.as_json() for state in states])
        return
    heads = ("LIMIT", "IDENTITY", "USED", "LEFT", "OF", "FREE", "FULL", "HOLDS", "NOTE")
    echo_table(heads, [_inspected(state) for state in states])


def _inspected(state: State) -> tuple[str, ...]:
    limit, verdict = state.row.limit, state.verdict
    free = _wait(state)
    if state.is_guard:
        note = "" if verdict.allowed else verdict.reason
        return (state.row.name, state.identity, "-", "-", "-", free, "-", "-", note)
    notes = [
        "" if limit.mode == "enforce" else limit.mode,
        f"plan {state.row.plan}" if state.row.plan else "",
        "" if state.override is None else _described(state.override),
    ]
    return (
        state.row.name,
        state.identity,
        str(limit.outside(state.used)),
        str(limit.outside(verdict.remaining)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        free,
        span_text(verdict.reset_after_us) if state.used else "-",
        str(state.held or "-"),
        ", ".join(filter(None, notes)),
    )


def _wait(state: State) -> str:
    free_us = state.free_us
    if free_us is None or free_us > ENDLESS_US:
        return "never"
    return f"in {span_text(free_us)}" if free_us else "now"


def _described(found: Override) -> str:
    until = f" until {time_text(found.until)}" if found.until is not None else ""
    by = f" by {found.by}" if found.by else ""
    return f"override{until}{by}" + (f": {found.reason}" if found.reason else "")


@click.command()
@with_appcontext
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=20, help="How many lines; default 20.")
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def top(limit: str | None, most: int, scan: int, *, as_json: bool) -> None:
    """List the identities that use the largest share of a limit now."""
    _ranked(limit, 0.0, most, scan, as_json=as_json)


@click.command()
@with_appcontext
@click.option("--at", type=click.IntRange(1, 100), default=80, help="From how many percent on.")
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=100, help="How many lines; default 100.")
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def near(at: int, limit: str | None, most: int, scan: int, *, as_json: bool) -> None:
    """List the identities that have used 80 % of a limit, or more."""
    _ranked(limit, at / 100, most, scan, as_json=as_json)


def _ranked(limit: str | None, least: float, most: int, scan: int, *, as_json: bool) -> None:
    found: list[State] = []
    is_cut = False
    with reported_errors():
        readers = readers_of_all()
        if limit is not None:
            check_name(limit, readers)
        for reader in readers:
            states, has_more = reader.used(limit, scan)
            found += [state for state in states if state.share >= least]
            is_cut = is_cut or has_more
    found.sort(key=lambda state: (-state.share, state.row.name, state.identity))
    if is_cut:
        click.echo(f"Only {scan} names of the storage were read; --scan reads more.", err=True)
    if as_json:
        echo_json([state.as_json() for state in found[:most]])
        return
    if not found:
        what = f"has used {least:.0%} of a limit" if least else "has used a limit"
        click.echo(f"No identity {what}.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "USED", "OF", "SHARE", "FREE", "FULL")
    echo_table(heads, [_ranking(state) for state in found[:most]])


def _ranking(state: State) -> tuple[str, ...]:
    limit = state.row.limit
    return (
        state.row.name if limit.mode == "enforce" else f"{state.row.name} ({limit.mode})",
        state.identity,
        str(limit.outside(state.used)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        f"{state.share:.0%}",
        _wait(state),
        f"in {span_text(state.verdict.reset_after_us)}",
    )


@click.command()
@with_appcontext
@click.option("--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read.")
@with_json
def blocks(scan: int, *, as_json: bool) -> None:
    """List what is blocked, until when, why, and who did it."""
    found: list[dict[str, Any]] = []
    with reported_errors():
        for limiter in shared_limiters():
            log = limiter.overrides.log()
            for state in Reader(limiter, application()).blocked(scan):
                subject = state.row.limit.name, state.identity
                entries = (e for e in log if (e.limit, e.identity) == subject)
                last = next((e for e in entries if e.action == "block"), None)
                free_us = state.free_us
                is_endless = free_us is None or free_us > ENDLESS_US
                until = None if is_endless else (state.now_us + (free_us or 0)) / 1_000_000
                found.append(
                    {
                        "limit": state.row.name,
                        "identity": state.identity,
                        "reason": state.verdict.reason,
                        "until": iso_time(until),
                        "by": last.by if last else None,
                        "note": last.reason if last else "",
                        "at": iso_time(last.at) if last else None,
                    }
                )
    found = list({(each["limit"], each["identity"]): each for each in found}.values())
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo("Nothing is blocked.", err=True)
        return
    heads = ("LIMIT", "IDENTITY", "REASON", "UNTIL", "BY", "NOTE")
    echo_table(
        heads,
        [
            (
                b["limit"],
                b["identity"],
                b["reason"],
                b["until"] or "removed",
                b["by"] or "-",
                b["note"],
            )
            for b in found
        ],
    )
