"""How slow the providers are: how long their answers took to begin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import Chart
from chatapp.blueprints.admin.formats import choice, shown
from chatapp.ledger.reports import DAY, HOUR
from chatapp.operators import reports
from chatapp.services import current_services

#: The days to choose from; one of them is shown by the hour.
SPANS: Final = {"1": "24 hours", "7": "7 days", "30": "30 days"}
SECOND_MS: Final = 1000
KINDS: Final = {"streamed": "Streamed", "whole": "Whole"}


@bp.get("/latency")
def latency() -> ResponseReturnValue:
    days, kind, model = choice("days", [*SPANS], "1"), choice("kind", [*KINDS], "streamed"), None
    now, count = datetime.now(UTC), int(days)
    since = now - timedelta(days=count)
    every = reports.latencies(since)
    rows = [row for row in every if row["streamed"] == (kind == "streamed")]
    if query("model") in {row["model"] for row in rows}:
        model = query("model")
    slot, step, form, shown_as = HOUR, timedelta(hours=1), "%Y-%m-%d %H", "%H:%M"
    if count > 1:
        slot, step, form, shown_as = DAY, timedelta(days=1), "%Y-%m-%d", "%d %b"
    only = {"streamed": kind == "streamed", **({"slug": model} if model else {})}
    found = current_services().reports.latencies(slot, since=since, **only)
    slots = [f"{since + number * step:{form}}" for number in range((now - since) // step + 1)]
    halves = {name: found[name,].p50_ms if (name,) in found else 0 for name in slots}
    later = {name: found[name,].p95_ms - halves[name] if (name,) in found else 0 for name in slots}
    title = f"How long {kind} answers of {model or 'all models'} took to begin"
    amounts = {"half within": halves, "95 % within so much more": later}
    return shown(
        "admin/latency.html",
        {"latency": every},
        rows=rows,
        days=days,
        kind=kind,
        model=model,
        spans=SPANS.items(),
        kinds=KINDS.items(),
        chart=Chart(
            title,
            amounts,
            slots,
            lambda ms: f"{ms / 1000:g} s" if ms >= SECOND_MS else f"{ms} ms",
            lambda text: f"{datetime.fromisoformat(text):{shown_as}}",
        ),
    )
