"""What Claude Code asks of the gateway at which its person has signed in, and with no other key."""

from __future__ import annotations

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
from chatapp.web.formats.anthropic import UNIFIED
from chatapp.web.formats.errors import FormatErrors
from chatapp.web.middleware import forbid_caching

bp = Blueprint("claude_code", __name__)
bp.after_request(forbid_caching)
FormatErrors(lambda: ANTHROPIC).install(bp)

#: What Claude Code calls a budget of such a part of the calendar.
PERIODS: Final = {"day": "daily", "week": "weekly", "month": "monthly"}
#: By the percent of a budget from which on Claude Code warns; 0 is not one.
SEVERITIES: Final = {95: "critical", 75: "warning", 0: "normal"}
ENABLED: Final = {"is_enabled": True, "currency": "USD"}
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
    budgets = _own_budgets(readable_limits(services.limiter), principal)
    fullest = max(budgets, key=_percent, default=None)
    rows = [
        {
            "kind": "spend",
            "group": PERIODS[str(limit.anchor)],
            "percent": _percent(limit),
            "resets_at": f"{datetime.fromtimestamp(_ends_at(limit), UTC):%Y-%m-%dT%H:%M:%SZ}",
            "severity": SEVERITIES[_passed(limit)],
            "is_active": limit is fullest,
        }
        for limit in budgets
    ]
    if fullest is not None:  # called monthly for any period
        amounts = {"monthly_limit": fullest.amount // CENT, "utilization": _percent(fullest)}
        amounts["used_credits"] = (fullest.amount - fullest.remaining) // CENT
        return jsonify(limits=rows, extra_usage={**ENABLED, **amounts})
    dollars = services.reports.spent_usd(principal.user)
    if dollars is None:
        raise unavailable("ledger_unavailable", "The ledger cannot be read.")
    month, day, week = (
        {"limit": None, "used_credits": int(dollars[f"{word}_usd"] * 100), "utilization": None}
        for word in ("month", "today", "week")
    )
    month["monthly_limit"] = month.pop("limit")
    return jsonify(limits=rows, extra_usage={**ENABLED, **month, "daily": day, "weekly": week})


def add_budget(response: Response) -> Response:
    """Add the fullest of the person's own budgets to an answer, for Claude Code's warning."""
    current = current_request()
    principal, limits = current.principal, current.services.limiter.current.limits
    if principal is None or principal.key_name != SIGN_IN or response.status_code != 200:
        return response
    budgets = _own_budgets([RemainingLimit(shown, 0.0) for shown in limits], principal)
    if fullest := max(budgets, key=_percent, default=None):
        passed, ends_at = _passed(fullest), str(_ends_at(fullest))
        status = "allowed_warning" if passed else "allowed"
        facts = {
            "status": status,
            "representative-claim": "overage",
            "reset": ends_at,
            "overage-status": status,
            "overage-reset": ends_at,
            "overage-utilization": f"{min(_percent(fullest), 99) / 100:.2f}",
            **({"overage-surpassed-threshold": f"{passed / 100}"} if passed else {}),
        }
        response.headers.extend({f"{UNIFIED}-{name}": value for name, value in facts.items()})
    return response


def _own_budgets(limits: list[RemainingLimit], principal: Principal) -> list[RemainingLimit]:
    own = {f"{USER}{principal.user}", principal.key_id}
    return [
        limit
        for limit in limits
        if limit.unit == "usd" and limit.anchor in PERIODS and limit.identity in own
        if MODELS not in limit.keywords and limit.since is not None
    ]


def _ends_at(limit: RemainingLimit) -> int:
    return round((limit.since or 0) + limit.period_s)


def _percent(limit: RemainingLimit) -> int:
    return (limit.amount - limit.remaining) * 100 // limit.amount if limit.amount else 100


def _passed(limit: RemainingLimit) -> int:
    """Return the highest percent of which Claude Code warns and that is passed; 0 without one."""
    return next((percent for percent in SEVERITIES if _percent(limit) > percent), 0)
