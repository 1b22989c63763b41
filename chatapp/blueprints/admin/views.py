"""What /admin shows: spending, users and keys, limits, and the changes of operators."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from flask import render_template
from flask.typing import ResponseReturnValue

from chatapp.accounts.store import ApiKey
from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import chart, dollars
from chatapp.ledger.reports import SUBJECTS
from chatapp.operators import amounts, blocks, callers
from chatapp.operators.amounts import OwnAmounts
from chatapp.operators.errors import reported_errors
from chatapp.operators.keys import state_of
from chatapp.services import current_services
from chatapp.web.call_limits import COOL_DOWN, QUOTAS
from chatapp.web.current_request import USER, user_identity
from chatapp.web.errors import ApiError
from ratelimit_ext.cli import (
    Block,
    State,
    blocked,
    span_text,
    states_of,
    time_text,
    used_states,
    wait_text,
)

DAYS: Final = (7, 30, 90)
#: How many rows a table has at most.
MOST: Final = 200
NEAR: Final = (50, 80, 95)
#: How many names of the storage a view reads; a command reads more.
MOST_NAMES: Final = 20_000
#: What an operator unblocks, by the limit that blocks it.
BLOCKED: Final[dict[str, blocks.Kind]] = {f"blocked-{kind}": kind for kind in blocks.KINDS}
#: How much is left where no provider has reported a quota.
UNREPORTED: Final = 10**12


@bp.context_processor
def formats() -> dict[str, object]:
    """How templates write amounts and times."""
    return {"dollars": dollars, "span": span_text, "wait": wait_text, "time": time_text}


@bp.get("")
def spending() -> ResponseReturnValue:
    """What was spent, by day and in total."""
    by = _choice("by", list(SUBJECTS), "user")
    days = int(_choice("days", [str(each) for each in DAYS], "30"))
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
        user_prefix=USER,
    )


@bp.get("/users")
def users() -> ResponseReturnValue:
    """The users, with what they have spent this month."""
    services = current_services()
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    searched = query("q").strip()
    with reported_errors():
        everyone = services.accounts.users()
        keys = services.accounts.all_keys()
        spent = services.reports.spending(by="user", since=month)
    now = datetime.now(UTC)
    valid: dict[str, int] = {}
    for key in keys:
        valid[key.user] = valid.get(key.user, 0) + _is_valid(key, now)
    own = OwnAmounts()
    found = [each for each in everyone if searched.lower() in each.name.lower()]
    return render_template(
        "admin/users.html",
        users=[
            (user, valid.get(user.name, 0), own.of("user", user.name, user.limits))
            for user in found[:MOST]
        ],
        count=len(found),
        searched=searched,
        spent={each.subject: each.cost_micro_usd for each in spent},
        identity_of=user_identity,
        plans=services.plans,
        teams=services.accounts.teams(),
        is_first=not keys,
    )


@bp.get("/user")
def user() -> ResponseReturnValue:
    """One user: plan, keys, amounts, and what limits have counted."""
    return user_page(query("name"))


@bp.get("/limits")
def limits() -> ResponseReturnValue:
    """Who is near a limit, what is blocked, and how the providers are."""
    at = int(_choice("at", [str(each) for each in NEAR], "80"))
    near: list[State] = []
    found: list[Block] = []
    upstreams: list[dict[str, Any]] = []
    is_cut = False
    problem = None
    try:
        with reported_errors():
            near, is_cut = used_states(None, least=at / 100, scan=MOST_NAMES)
            found = blocked(scan=MOST_NAMES)
            upstreams = _upstreams()
    except click.ClickException as error:
        problem = error.message
    return render_template(
        "admin/limits.html",
        at=at,
        shares=[(each, f"{each} %") for each in NEAR],
        near=near[:MOST],
        near_count=len(near),
        is_cut=is_cut,
        scan=MOST_NAMES,
        blocks=found,
        kinds=BLOCKED,
        upstreams=[each for each in upstreams if each["pause"] or each["left"]],
        silent=sum(not (each["pause"] or each["left"]) for each in upstreams),
        quotas=[each.removeprefix("provider-") for each in QUOTAS],
        problem=problem,
        user_prefix=USER,
    )


@bp.get("/changes")
def changes() -> ResponseReturnValue:
    """What operators have changed, here and by commands."""
    with reported_errors():
        entries = callers.shared_limiter().overrides.log()
    return render_template("admin/changes.html", entries=entries[:MOST])


def user_page(name: str, *, key: str | None = None, is_first: bool = False) -> ResponseReturnValue:
    services = current_services()
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    with reported_errors():
        found = services.accounts.user(name)
        if found is None:
            raise ApiError(404, "not_found", f"There is no user {name!r}.")
        keys = [each for each in services.accounts.all_keys() if each.user == name]
        spent = services.reports.spent_micro_usd(user_identity(name), month)
    states: list[State] = []
    problem = None
    try:
        with reported_errors():
            public_ids = [each.public_id for each in keys if each.revoked_at is None]
            states = states_of(user_identity(name), *public_ids)
    except click.ClickException as error:
        problem = error.message
    denied = {(each.row.name, each.identity) for each in states if not each.verdict.allowed}
    return render_template(
        "admin/user.html",
        user=found,
        plans=services.plans,
        spent=spent,
        keys=[(each, state_of(each), ("blocked-key", each.public_id) in denied) for each in keys],
        is_blocked=("blocked-user", user_identity(name)) in denied,
        amounts=OwnAmounts().of("user", name, found.limits),
        known=amounts.known_limits("user", plan=found.plan),
        states=[each for each in states if not each.is_guard],
        problem=problem,
        new_key=key,
        is_first=is_first,
    )


def _upstreams() -> list[dict[str, Any]]:
    """For each upstream, until when it pauses, and what is left of its quotas by their names."""
    names = callers.upstreams()
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "pause": None, "left": {}} for name in names
    }
    for state in states_of(*names, kind="upstream"):
        row = rows[state.identity]
        if state.row.limit.name == COOL_DOWN:
            row["pause"] = None if state.verdict.allowed else wait_text(state)
        elif state.verdict.remaining < UNREPORTED:
            row["left"][state.row.limit.name.removeprefix("provider-")] = state.verdict.remaining
    return list(rows.values())


def _is_valid(key: ApiKey, now: datetime) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def _choice(name: str, allowed: list[str], default: str) -> str:
    """The value in the query; the default for any that is not allowed."""
    value = query(name, default)
    return value if value in allowed else default
