"""``flask ratelimit inspect``, ``top``, ``near`` and ``blocks``: what callers have used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from flask.cli import with_appcontext

from ratelimit_ext.operators.api import all_operators
from ratelimit_ext.operators.denials import uncounted
from ratelimit_ext.operators.texts import listed, span_text, time_text
from ratelimit_ext.operators.usage import LONGEST_S, MOST_NAMES, Block, State
from ratelimit_ext.records.overrides import Override
from ratelimit_ext.terminal import echo_json, echo_list, echo_table, progress_bar, with_json

F = TypeVar("F", bound=Callable[..., Any])

SCAN: Final = click.option(
    "--scan", type=click.IntRange(1), default=MOST_NAMES, help="How many names to read at most."
)


@click.command()
@with_appcontext
@click.argument("identity")
@with_json
def inspect(identity: str, *, as_json: bool) -> None:
    """Show what every limit has counted for IDENTITY; nothing is charged.

    IDENTITY is a user, an address, or what the key function of a limit returns.
    """
    states = all_operators().shared().states(identity)
    if not states:
        raise uncounted(identity)
    if as_json:
        echo_json([state.as_json() for state in states])
        return
    if all(state.verdict.allowed and (state.is_guard or not state.used) for state in states):
        click.echo(f"No limit has counted anything for {identity!r}. Is the name right?", err=True)
    heads = ("LIMIT", "IDENTITY", "USED", "LEFT", "OF", "FREE", "FULL", "HOLDS", "NOTE")
    echo_table(heads, [_inspected(state) for state in states])


def _inspected(state: State) -> tuple[str, ...]:
    limit, verdict = state.row.limit, state.verdict
    if state.is_guard:
        note = "" if verdict.allowed else verdict.reason
        return (state.row.name, state.identity, "-", "-", "-", state.free_text, "-", "-", note)
    notes = [
        "" if limit.mode == "enforce" else limit.mode,
        f"plan {state.row.plan}" if state.row.plan else "",
        limit.keep_text,
        f"{state.in_line} in line" if state.in_line else "",
        *[f"{word} {listed(value)}" for word, value in state.row.keywords.items()],
        limit.fair_text,
        "" if state.override is None else _described(state.override),
    ]
    return (
        state.row.name,
        state.identity,
        str(limit.outside(state.used)),
        str(limit.outside(verdict.remaining)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        state.free_text,
        f"in {span_text(verdict.reset_after_us)}" if state.used else "-",
        str(state.held or "-"),
        ", ".join(filter(None, notes)),
    )


def _described(override: Override) -> str:
    until = f" until {time_text(override.until)}" if override.until is not None else ""
    by = f" by {override.by}" if override.by else ""
    return f"override{until}{by}" + (f": {override.reason}" if override.reason else "")


def of_search(command: F) -> F:
    """Give a command the options that bound a search of the storage, and ``--json``."""
    seconds = click.option(
        "--seconds",
        type=click.FloatRange(0),
        default=LONGEST_S,
        help="How many seconds to read at most; default 30.",
    )
    return SCAN(seconds(with_json(command)))


@click.command()
@with_appcontext
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=20, help="How many lines; default 20.")
@of_search
def top(limit: str | None, most: int, **search: Any) -> None:
    """List the identities that use the largest share of a limit now."""
    _ranked(limit, 0.0, most, **search)


@click.command()
@with_appcontext
@click.option("--at", type=click.IntRange(1, 100), default=80, help="Least percent; default 80.")
@click.option("--limit", help="Only the limit of this name.")
@click.option("--most", type=click.IntRange(1), default=100, help="How many lines; default 100.")
@of_search
def near(at: int, limit: str | None, most: int, **search: Any) -> None:
    """List the identities that have used at least 80 % of a limit."""
    _ranked(limit, at / 100, most, **search)


def _ranked(
    limit: str | None, least: float, most: int, *, scan: int, seconds: float, as_json: bool
) -> None:
    pieces: list[int] = []
    with progress_bar("Reading", scan) as bar:

        def progress(names: int) -> None:
            pieces.append(names)
            bar(names)

        operators = all_operators().shared()
        states, is_cut = operators.used(
            limit, least=least, scan=scan, seconds=seconds, progress=progress
        )
    if is_cut:
        click.echo(
            f"Only {sum(pieces):,} names of the storage were read, a random part. Raise --scan or "
            "--seconds to read more.",
            err=True,
        )
    heads = ("LIMIT", "IDENTITY", "USED", "OF", "SHARE", "FREE", "FULL")
    empty = f"No identity has used {f'{least:.0%} of ' if least else ''}a limit."
    fields = State.as_json
    echo_list(states[:most], heads, _ranking, as_json=as_json, fields=fields, empty=empty)


def _ranking(state: State) -> tuple[str, ...]:
    limit = state.row.limit
    return (
        state.row.name if limit.mode == "enforce" else f"{state.row.name} ({limit.mode})",
        state.identity,
        str(limit.outside(state.used)),
        f"{limit.outside(limit.capacity)} {limit.unit}",
        f"{state.share:.0%}",
        state.free_text,
        f"in {span_text(state.verdict.reset_after_us)}",
    )


@click.command()
@with_appcontext
@SCAN
@with_json
def blocks(scan: int, *, as_json: bool) -> None:
    """List what is blocked: by whom, why, since when and until when."""
    blocked = all_operators().shared().blocks(scan=scan)
    heads = ("LIMIT", "IDENTITY", "REASON", "UNTIL", "BY", "SET", "NOTE")
    empty = "Nothing is blocked."
    echo_list(blocked, heads, _blocked, as_json=as_json, fields=Block.as_json, empty=empty)


def _blocked(b: Block) -> tuple[str, ...]:
    until = "removed" if b.until is None else time_text(b.until)
    return b.limit, b.identity, b.reason, until, b.by or "-", time_text(b.at), b.note
