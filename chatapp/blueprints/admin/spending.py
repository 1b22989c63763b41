"""What was spent, by day and in total."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from flask import render_template
from flask.typing import ResponseReturnValue

from chatapp.blueprints.admin.access import bp
from chatapp.blueprints.admin.chart import chart
from chatapp.blueprints.admin.formats import MOST, choice
from chatapp.ledger.reports import SUBJECTS
from chatapp.operators.errors import reported_errors
from chatapp.services import current_services

DAYS: Final = (7, 30, 90)


@bp.get("")
def spending() -> ResponseReturnValue:
    by = choice("by", list(SUBJECTS), "user")
    days = int(choice("days", [str(each) for each in DAYS], "30"))
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    since = today - timedelta(days=days - 1)
    reports = current_services().reports
    with reported_errors():
        totals = reports.totals(user=None, since=since, by=by)
        found = reports.spending(by=by, since=since)
    return render_template(
        "admin/spending.html",
        by=by,
        subjects=[(each, each) for each in SUBJECTS],
        days=days,
        spans=[(each, f"{each} days") for each in DAYS],
        chart=chart(totals, first=since.date(), last=today.date(), by=by),
        rows=found[:MOST],
        count=len(found),
        spent=sum(each.cost_micro_usd for each in found),
        calls=sum(each.calls for each in found),
        tokens=sum(each.input_tokens + each.output_tokens for each in found),
    )
