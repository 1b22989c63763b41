"""What Claude Code asks of the gateway at which its person has signed in, and with no other key."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from flask import Blueprint, Response, jsonify, request

from chatapp.accounts import USER, managed_settings
from chatapp.accounts.authentication import Principal
from chatapp.operators.keys import SIGN_IN
from chatapp.web.call_limits import MICRO, MODELS, RemainingLimit, readable_limits
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError, unavailable
from chatapp.web.formats import ANTHROPIC
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.middleware import forbid_caching

bp = Blueprint("claude_code", __name__)
bp.after_request(forbid_caching)
FormatErrors(lambda: ANTHROPIC).install(bp)

#: What Claude Code calls a budget of such a part of the calendar.
PERIODS: Final = {"day": "daily", "week": "weekly", "month": "monthly"}
#: Micro-dollars.
CENT: Final = MICRO // 100


def _signed_in() -> Principal:
    principal = current_request().principal
    if principal is None or principal.key_name != SIGN_IN:
        raise ApiError(404, "no_sign_in", "This is for Claude Code after a sign-in here.")
    return principal


@bp.get("/managed/settings")
def settings() -> Response:
    """The settings that the operator manages on the person's machine. A client that has them sends
    their checksum."""
    principal, services = _signed_in(), current_request().services
    plan = services.known_plan(principal.plan) or principal.plan
    answer = managed_settings.answer(services.managed_settings, plan, principal.team)
    if answer is None:
        raise ApiError(404, "no_settings", "No settings are managed for you.")
    response = jsonify(answer)
    response.set_etag(str(answer["checksum"]))
    response.make_conditional(request)
    return response


@bp.get("/api/oauth/usage")
def usage() -> Response:
    """The fullest of the person's own budgets, in cents; without one, what they have spent."""
    principal, services = _signed_in(), current_request().services
    own = {f"{USER}{principal.user}", principal.key_id}
    budgets = [
        limit
        for limit in readable_limits(services.limiter)
        if limit.unit == "usd" and limit.anchor in PERIODS and limit.identity in own
        if MODELS not in limit.keywords and limit.since is not None
    ]
    spent = services.reports.spent_usd(principal.user) if not budgets else {}
    if spent is None:
        raise unavailable("ledger_unavailable", "The ledger cannot be read.")
    fullest = max(budgets, key=_percent, default=None)
    rows = [
        {
            "kind": "spend",
            "group": PERIODS[str(limit.anchor)],
            "percent": percent,
            "resets_at": f"{datetime.fromtimestamp(ends_at, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "severity": "critical" if percent > 95 else "warning" if percent > 75 else "normal",
            "is_active": limit is fullest,
        }
        for limit in budgets
        for percent, ends_at in [(_percent(limit), round((limit.since or 0) + limit.period_s))]
    ]
    return jsonify(limits=rows, extra_usage=_budget(fullest) if fullest else _spent(spent))


def _percent(limit: RemainingLimit) -> int:
    return (limit.amount - limit.remaining) * 100 // limit.amount if limit.amount else 100


def _budget(limit: RemainingLimit) -> dict[str, object]:
    """Return an amount, called monthly for any period, and what is used."""
    return {
        "is_enabled": True,
        "currency": "USD",
        "monthly_limit": limit.amount // CENT,
        "used_credits": (limit.amount - limit.remaining) // CENT,
        "utilization": _percent(limit),
    }


def _spent(dollars: Mapping[str, float]) -> dict[str, object]:
    """Return what was spent this month, today and this week, without a limit."""
    month, day, week = (int(dollars[f"{word}_usd"] * 100) for word in ("month", "today", "week"))
    return {
        "is_enabled": True,
        "currency": "USD",
        "monthly_limit": None,
        "used_credits": month,
        "utilization": None,
        "daily": {"limit": None, "used_credits": day, "utilization": None},
        "weekly": {"limit": None, "used_credits": week, "utilization": None},
    }
