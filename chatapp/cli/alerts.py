"""`chat alerts`: the alerts that were raised, and a test of their webhook."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import click
from flask.cli import AppGroup

from chatapp.accounts import EVERYONE
from chatapp.alerts import table
from chatapp.alerts.alert import Alert
from chatapp.alerts.webhook import UnreachableError
from chatapp.cli import arguments, output
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
    current = current_services().alerts
    if current is None or current.webhook is None:
        raise click.ClickException(
            "Set CHATAPP_ALERT_WEBHOOK_URL and CHATAPP_ALERT_WEBHOOK_SECRET, and do not switch "
            "all alerts off."
        )
    host, now = current.webhook.host, datetime.now(UTC)
    alert = Alert(type="alert.test", identity=EVERYONE, spent=0, amount=0, since=now)
    try:
        answer = current.webhook.post(alert)
    except UnreachableError as error:
        raise click.ClickException(f"{host} did not answer: {error}") from error
    if not answer.has_arrived:
        raise click.ClickException(
            f"{host} refused it with {answer.status}: {printable(answer.text) or '(no text)'}"
        )
    done = f"{host} accepted it with {answer.status}."
    output.echo_done(done, as_json=as_json, host=host, status=answer.status, id=alert.id)


def _time(at: Any) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
