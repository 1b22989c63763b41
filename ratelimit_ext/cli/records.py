"""``flask ratelimit why`` and ``shadow report``: what workers have written of their decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from flask.cli import AppGroup, with_appcontext

from ratelimit_ext.cli.parameters import SPAN
from ratelimit_ext.operators.api import all_operators
from ratelimit_ext.operators.denials import explained, record_as_json
from ratelimit_ext.operators.shadow import advice_text
from ratelimit_ext.operators.texts import printable, span_text
from ratelimit_ext.records.denials import DenialRecord
from ratelimit_ext.terminal import echo_json, echo_list, with_json


@click.command()
@click.argument("identity")
@click.option("--since", type=SPAN, default="1d", help="How far back: 15m, 1h, 2d; default 1d.")
@with_json
@with_appcontext
def why(identity: str, since: int, *, as_json: bool) -> None:
    """Show why IDENTITY was denied recently, and when its next call is free.

    IDENTITY is written as for `inspect`, or is the id of a denied request. Times are in UTC.
    """
    records, unkept = all_operators().shared().denials(identity, since=since)
    if as_json:
        echo_json([record_as_json(record) for record in records])
    else:
        for record in records:
            click.echo(printable(_sentence(record)))
    span = span_text(since * 1_000_000)
    if not records:
        click.echo(f"{identity} was not denied in the last {span}.", err=True)
    if unkept:
        click.echo(
            f"In the last {span}, {unkept} more denials, of all callers, were not kept.", err=True
        )


def _sentence(record: DenialRecord) -> str:
    said = explained(record)
    counted = f" of {record.identity}" if "," in record.identity else ""  # of several identities
    causes = ", ".join(filter(None, (said.cause, said.free, said.degraded)))
    request = f" (request {record.request_id})" if record.request_id else ""
    more = f"; {said.more}" if said.more else ""
    denied = f"{said.at} denied by {said.limit}{counted} at {record.endpoint or '-'}"
    return f"{denied}: {causes}{request}{more}"


# -- limits in shadow and candidates -------------------------------------------------------------

shadow = AppGroup("shadow", help="Compare limits in shadow, and candidates, with the traffic.")


@shadow.command()
@click.option("--limit", help="Only the limit of this name.")
@with_json
def report(limit: str | None, *, as_json: bool) -> None:
    """Show what limits in shadow and candidates would have denied.

    Covers the last hour and the last day, in whole hours. Counts only admitted requests, and only
    callers without an amount of their own.
    """
    shown = all_operators().shared().shadow_report(limit)
    heads = ("LIMIT", "TRIED", "ENFORCED", "LAST", "REQUESTS", "DENIED", "IDENTITIES", "WORST HIT")
    empty = "No request of the last day has met a limit in shadow or a candidate."
    echo_list(shown, heads, _line, as_json=as_json, fields=dict, empty=empty)
    for result in shown:
        if result["period"] == "day" and not as_json:
            click.echo(printable(f"{result['limit']}, {result['amount']}: {advice_text(result)}"))


def _line(result: Mapping[str, Any]) -> tuple[str, ...]:
    about = "about " if result["is_estimate"] else ""
    worst = (f"{caller['identity']} {about}{caller['denied']}" for caller in result["worst"][:3])
    return (
        result["limit"],
        result["amount"],
        result["enforced"] or "shadow",
        result["period"],
        str(result["requests"]),
        str(result["denied"]),
        f"{'at least ' if result['is_estimate'] else ''}{result['identities_denied']}",
        ", ".join(worst) or "-",
    )
