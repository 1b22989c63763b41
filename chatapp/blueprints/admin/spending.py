"""What the ledger has: what was spent, with the alerts about it, of all, a user or a team; a call;
and how slow the providers are, which is how long their answers took to begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final

from flask import g
from flask.typing import ResponseReturnValue

from chatapp.alerts.table import alerts
from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import MOST, Chart, chart
from chatapp.blueprints.admin.formats import choice, page_of, shown
from chatapp.ledger.reports import DAY, HOUR, SUBJECTS, Latency, Selection, midnight, month_start
from chatapp.operators import arguments, reports
from chatapp.services import current_services
from chatapp.web.current_request import team_identity, user_identity
from chatapp.web.errors import ApiError

#: The times to choose from: days back from today, and calendar months by UTC.
SPANS: Final[Mapping[str, str]] = {
    **{str(days): f"{days} days" for days in (7, 30, 90)},
    "this": "This month",
    "last": "Last month",
}
MOST_ALERTS: Final = 20
#: Of latencies: the days to choose from, one of which is shown by the hour, and kinds of answers.
LATENCY_SPANS: Final = {"1": "24 hours", "7": "7 days", "30": "30 days"}
KINDS: Final = {"streamed": "Streamed", "whole": "Whole"}
SECOND_MS: Final = 1000


@bp.get("")
def spending() -> ResponseReturnValue:
    operator = g.admin.operator
    user, team = query("user") or None, query("team") or operator.team
    operator.check_team(team)
    if user is not None:
        operator.check_user(user)
    of = {"user": user, "team": team}
    by = choice("by", list(SUBJECTS), "key" if user else "user")
    days = choice("days", list(SPANS), "30")
    today = midnight()
    since, until = today - timedelta(days=int(days) - 1) if days.isdigit() else month_start(), None
    if month := query("month") or ("last" if days == "last" else ""):
        since, until = arguments.month(month)
    last = min(until - timedelta(days=1), today) if until else today
    services = current_services()
    identity = user and user_identity(user)
    whose = identity or (team and team_identity(team))
    calls: Selection = {"user": identity, "team": team, "since": since, "until": until}
    rows = services.reports.spending(by=by, **calls)
    dearest = [row.subject for row in rows[:MOST]]
    totals = services.reports.totals(by=by, among=dearest, **calls)
    keys = services.accounts.all_keys() if by == "key" else ()
    raised = [
        alert
        for alert in alerts(services.database, since=since)
        if (whose is None or whose in (alert["identity"], alert["user"]))
        and (until is None or alert["at"] < until)
    ]
    return shown(
        "admin/spending.html",
        {
            "spending": (reports.with_dollars(asdict(row)) for row in rows),
            "alerts": map(reports.alert_in_dollars, raised),
        },
        by=by,
        of=of,
        subjects=[(subject, subject) for subject in SUBJECTS if not of.get(subject)],
        days=days,
        month=query("month"),
        spans=SPANS.items(),
        chart=chart(totals, first=since.date(), last=last.date(), by=by),
        keys={key.public_id: key for key in keys},
        page=page_of(rows),
        alerts=raised[:MOST_ALERTS],
        spent=sum(row.cost_micro_usd for row in rows),
        calls=sum(row.calls for row in rows),
        tokens=sum(row.input_tokens + row.output_tokens for row in rows),
    )


@bp.get("/call")
def call() -> ResponseReturnValue:
    row = current_services().reports.call(query("id").strip())
    if row is None:
        raise ApiError(404, "not_found", "There is no such call. Refused calls are in Denials.")
    g.admin.operator.check_team(row["team"])
    call = reports.call_as_json(row)
    return shown("admin/call.html", {"limits": call["limits"]}, call=call)


@bp.get("/latency")
def latency() -> ResponseReturnValue:
    days, kind = choice("days", [*LATENCY_SPANS], "1"), choice("kind", [*KINDS], "streamed")
    slot, step, form, name = DAY, timedelta(days=1), "%Y-%m-%d", "%d %b"
    if days == "1":
        slot, step, form, name = HOUR, timedelta(hours=1), "%Y-%m-%d %H", "%H:%M"
    now, is_streamed = datetime.now(UTC), kind == "streamed"
    since = now - timedelta(days=int(days))
    every = reports.latencies(since)
    rows = [row for row in every if row["streamed"] == is_streamed]
    model = next((row["model"] for row in rows if row["model"] == query("model")), None)
    only = {"streamed": is_streamed, **({"slug": model} if model else {})}
    found = current_services().reports.latencies(slot, since=since, **only)
    slots = [f"{since + number * step:{form}}" for number in range((now - since) // step + 1)]
    known = {text: found.get((text,), Latency(0, 0, 0)) for text in slots}
    amounts = {
        "half within": {text: row.p50_ms for text, row in known.items()},
        "extra time to 95 %": {text: row.p95_ms - row.p50_ms for text, row in known.items()},
    }
    title = f"How long {kind} answers of {model or 'all models'} took to begin"
    drawn = Chart(title, amounts, slots, _text, lambda at: f"{datetime.fromisoformat(at):{name}}")
    return shown(
        "admin/latency.html",
        {"latency": every},
        rows=rows,
        days=days,
        kind=kind,
        model=model,
        spans=LATENCY_SPANS.items(),
        kinds=KINDS.items(),
        chart=drawn,
    )


def _text(ms: int) -> str:
    return f"{ms / SECOND_MS:g} s" if ms >= SECOND_MS else f"{ms} ms"
