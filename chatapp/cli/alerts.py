"""`chat alerts`: the alerts that were raised, and a test of their webhook."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import click
from flask.cli import AppGroup

from chatapp.alerts import table
from chatapp.cli import arguments, output
from chatapp.operators import reports
from chatapp.services import current_services
from ratelimit_ext.operators import printable
from ratelimit_ext.terminal import with_json

HEADS: Final = ("AT", "IDENTITY", "BUDGET", "THRESHOLD", "SPENT", "OF", "RESETS AT")

alerts = AppGroup("alerts", help="List spending alerts, and test their webhook.")


@alerts.command("list")
@click.option("--since", type=arguments.DAY, help="From this day on, by UTC.")
@with_json
def list_alerts(since: datetime | None, *, as_json: bool) -> None:
    """List the alerts that were raised, the newest first, in dollars.

    One without a budget is about unusual usage; OF is a usual day then.
    """
    found = table.alerts(current_services().database, since=since)
    rows = [
        (
            _time(row["at"]),
            printable(row["identity"]),
            row["name"],
            row["threshold"] or None,
            row["spent"] / 1_000_000,
            row["amount"] / 1_000_000,
            row["resets_at"] and _time(row["resets_at"]),
        )
        for row in found
    ]
    output.echo_rows(rows, HEADS, as_json=as_json, empty="There are no alerts.")


@alerts.command()
@with_json
def test(*, as_json: bool) -> None:
    """Send a test to the webhook, once, and show its answer."""
    facts = reports.test_webhook()
    done = f"{facts['host']} accepted it with {facts['status']}."
    output.echo_done(done, as_json=as_json, **facts)


def _time(at: Any) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
