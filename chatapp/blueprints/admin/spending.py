"""What was spent, by day and in total, and the alerts about it: of all, or of a user or a team."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from flask import g
from flask.typing import ResponseReturnValue

from chatapp.alerts.table import alerts
from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import chart
from chatapp.blueprints.admin.formats import choice, page_of, shown
from chatapp.ledger.reports import MICRO, SUBJECTS, midnight
from chatapp.services import current_services
from chatapp.web.current_request import team_identity, user_identity

DAYS: Final = (7, 30, 90)
MOST_ALERTS: Final = 20


@bp.get("")
def spending() -> ResponseReturnValue:
    operator = g.admin.operator
    user, team = query("user") or None, query("team") or operator.team
    operator.check_team(team)
    if user is not None:
        operator.check_user(user)
    of = {"user": user, "team": team}
    by = choice("by", list(SUBJECTS), "key" if user else "user")
    days = int(choice("days", [str(each) for each in DAYS], "30"))
    today = midnight()
    since = today - timedelta(days=days - 1)
    services = current_services()
    identity = user and user_identity(user)
    whose = identity or (team and team_identity(team))
    totals = services.reports.totals(user=identity, team=team, since=since, by=by)
    found = services.reports.spending(user=identity, team=team, since=since, by=by)
    keys = services.accounts.all_keys() if by == "key" else ()
    raised = [
        each
        for each in alerts(services.database, since=since)
        if whose is None or whose in (each["identity"], each["user"])
    ]
    return shown(
        "admin/spending.html",
        {
            "spending": (
                {
                    by: each.subject,
                    "calls": each.calls,
                    "input_tokens": each.input_tokens,
                    "output_tokens": each.output_tokens,
                    "usd": each.cost_micro_usd / MICRO,
                }
                for each in found
            ),
            "alerts": (
                {**each, "spent": each["spent"] / MICRO, "amount": each["amount"] / MICRO}
                for each in raised
            ),
        },
        by=by,
        of=of,
        subjects=[(each, each) for each in SUBJECTS if not of.get(each)],
        days=days,
        spans=[(each, f"{each} days") for each in DAYS],
        chart=chart(totals, first=since.date(), last=today.date(), by=by),
        keys={each.public_id: each for each in keys},
        page=page_of(found),
        alerts=raised[:MOST_ALERTS],
        spent=sum(each.cost_micro_usd for each in found),
        calls=sum(each.calls for each in found),
        tokens=sum(each.input_tokens + each.output_tokens for each in found),
    )
