"""What was used and spent, alerts, and the state of the providers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from chatapp.accounts import ADDRESS, EVERYONE, TEAM, USER
from chatapp.actions.action import Action, Call, Change, Duration, FieldError, Fields, Listed
from chatapp.actions.pages import instant_of
from chatapp.alerts.alert import Alert
from chatapp.alerts.table import alerts
from chatapp.alerts.webhook import UnreachableError
from chatapp.catalogue import providers_file
from chatapp.ledger.audit import audit
from chatapp.ledger.billing_report import ADDRESSES, admin_key
from chatapp.ledger.forecast import TIME
from chatapp.ledger.reports import CREDITED, MICRO, midnight, month_start
from chatapp.ledger.retention import LEAST_DAYS, prune
from chatapp.operators import amounts, arguments, blocks, callers, reports, restoration
from chatapp.operators.amounts import OWNERS
from chatapp.operators.credit import credit
from chatapp.server.valid_files import PROVIDERS, configured_file
from chatapp.services import current_services
from chatapp.upstreams.keys import Keys
from chatapp.web.call_limits import COOL_DOWN, remaining_limits, with_forecast
from chatapp.web.current_request import team_identity
from ratelimit_ext import OperatorError, toml_line
from ratelimit_ext.operators import printable, time_text

Day = Annotated[str, AfterValidator(arguments.day)]
Month = Annotated[str, AfterValidator(arguments.month)]
Week = Annotated[str, AfterValidator(arguments.week)]
Subject = Annotated[str, AfterValidator(arguments.subject)]
Top = Annotated[int | None, Field(ge=1, le=1_000_000, description="Only the first N rows.")]


class Since(Listed):
    since: Day | None = Field(None, description="Only from this day on: 2026-11-25, friday, 7d.")


class Period(Since):
    """By UTC; ``until`` is the last day of it."""

    until: Day | None = Field(None, description="Only to the end of this day.")
    month: Month | None = Field(None, description="Only of this month: 2026-10, or last.")
    week: Week | None = Field(None, description="Only of this week: 2026-W48, this or last.")
    user: str | None = Field(None, description="Only calls of this user: NAME, or ip:ADDRESS.")
    team: str | None = Field(None, description="Only calls of this team.")


class Summed(Period):
    by: Subject = Field(
        "user", description="By user, key, team, model, agent or tag:NAME; default user."
    )


class Spent(Summed):
    top: Top = None


class Ahead(Listed):
    by: Literal["user", "team"] = Field("user", description="By user or team; default user.")
    top: Top = None


class Ago(Listed):
    since: Duration = Field(
        "1h", validate_default=True, description="How far back: 15m, 1h, 2d; default 1h."
    )


class OfUser(Fields):
    since: Day | None = Field(None, description="Only from this day on: 2026-11-25, friday, 7d.")
    user: str | None = Field(None, description="Only of this user: NAME, or ip:ADDRESS.")


class Reconciled(Fields):
    since: Day = Field("30d", validate_default=True, description="From this day on; default 30d.")
    until: Day = Field("0d", validate_default=True, description="To this day's end; default today.")
    provider: Literal["openai", "anthropic"] | None = Field(None, description="Only this provider.")
    project: str | None = Field(None, description="Only this project, or Anthropic's workspace.")


class Pruning(Change):
    keep_days: int | None = Field(
        None,
        ge=LEAST_DAYS,
        le=36_500,
        description="Days to keep; default: CHATAPP_LEDGER_KEEP_DAYS.",
    )


class Credit(Change):
    """Dollars for a user, a key or a team."""

    user: str | None = Field(None, description="The user who gets the dollars.")
    key: str | None = Field(None, description="The key that gets the dollars.")
    team: str | None = Field(None, description="The team that gets the dollars.")
    usd: Annotated[str, AfterValidator(arguments.dollars)] = Field(description="Such as 0.25.")


class Restoring(Change):
    user: str | None = Field(None, description="Only limits of this user: NAME, or ip:ADDRESS.")
    apply: bool = Field(default=False, description="Charge what is missing instead of showing it.")


class PauseFields(Change):
    length: Duration = Field(alias="for", description="How long: 90s, 15m, 2h.")


def _calls_of(call: Call) -> dict[str, Any]:
    """Return which calls the query means, as far as the operator sees them."""
    query = call.query
    spans = [name for name in ("week", "month") if getattr(query, name)]
    if len(spans) + bool(query.since or query.until) > 1:
        raise FieldError(spans[0], "Send one of month, week, or since and until.")
    if query.since and query.until and query.until < query.since:
        raise FieldError("until", '"until" is before "since"; send a later day.')
    team = query.team or call.operator.team
    call.operator.check_team(team)
    if query.user is not None:
        call.operator.check_user(callers.name_of(query.user))
    since, until = query.since, query.until and query.until + timedelta(days=1)
    since, until = query.month or query.week or (since, until)
    user = callers.known_identity(query.user)
    return {"user": user, "team": team, "since": since, "until": until}


@Action("GET /usage/<path:user>", "read", of_team=True, command="usage USER")
def get_usage(call: Call, user: str) -> dict[str, Any]:
    """Show what a caller has left and has spent."""
    call.operator.check_user(callers.name_of(user))
    services = current_services()
    limiter = services.limiter
    # Another process may not see what the workers count.
    is_readable = not limiter.enabled or limiter.operators.is_shared
    identity = callers.known_identity(user)
    assert identity is not None
    with callers.request_of(identity, callers.ChatCallers().plan(identity)):
        limits, team = None, limiter.identities["team"]()
        identities = {identity, team}
        if is_readable:
            # Addresses and keys have limits of their own.
            left = [limit for limit in remaining_limits(limiter) if limit.identity in identities]
            limits = [with_forecast(limit, services.reports).as_json() for limit in left]
        plan = limiter.current.plan
    return {
        "user": callers.name_of(identity),
        "plan": plan,
        "team": team.removeprefix(TEAM) if team != identity else None,
        "limits": limits,
        "spent": services.reports.spent_usd(identity),
        **blocks.shown("user", identity),
    }


@Action(
    "GET /spending",
    "read",
    query=Spent,
    of_team=True,
    order="-cost_micro_usd -calls subject",
    command="spend",
    empty="There are no calls",
    columns="subject calls input_tokens output_tokens cost_usd",
)
def list_spending(call: Call) -> Iterable[dict[str, Any]]:
    """List who has spent most, this month or in a period: calls, tokens and dollars."""
    period, query = _calls_of(call), call.query
    if period["since"] is None and period["until"] is None:
        period["since"] = month_start()
    rows = current_services().reports.spending(by=query.by, top=query.top, **period)
    return [reports.with_dollars(asdict(row)) for row in rows]


@Action(
    "GET /spending/forecast",
    "read",
    query=Ahead,
    of_team=True,
    order="subject budget",
    command="forecast",
    columns="subject budget spent of used_up_at sure resets_at",
    empty="There are no forecasts",
)
def list_forecasts(call: Call) -> Iterable[dict[str, Any]]:
    """Forecast when budgets will be used up, and how likely that is, for those who have spent most
    this week."""
    by, top, team = call.query.by, call.query.top, call.operator.team
    week_ago = midnight() - timedelta(days=7)
    rows = current_services().reports.spending(by=by, since=week_ago, top=top, team=team)
    names = [row.subject or "" for row in rows]
    if by == "user":  # a team or a key may have had a credit
        names = [name for name in names if name.startswith((USER, ADDRESS))]
        if team is not None:  # former members have called for it, too
            members = {callers.identity_of(user.name) for user in call.operator.visible_users()}
            names = [name for name in names if name in members]
    return [
        {
            "subject": name,
            "budget": limit.name,
            "spent": forecast.spent / MICRO,
            "of": limit.amount / MICRO,
            **forecast.as_json(),
            "resets_at": f"{datetime.fromtimestamp(limit.reset_at, UTC):{TIME}}",
        }
        for name in names
        for limit, forecast in reports.forecasts(team_identity(name) if by == "team" else name)
    ]


@Action(
    "GET /ledger/days",
    "read",
    query=Summed,
    of_team=True,
    order="day subject",
    command="ledger days",
    empty="There are no calls",
    columns="day subject calls input_tokens output_tokens cost_usd",
)
def list_days(call: Call) -> Iterable[dict[str, Any]]:
    """List calls, tokens and dollars by day, the oldest first."""
    rows = current_services().reports.totals(by=call.query.by, **_calls_of(call))
    return [reports.with_dollars(asdict(row)) for row in rows]


@Action(
    "GET /ledger/calls",
    "read",
    query=Period,
    of_team=True,
    order="started_at id",
    command="ledger calls",
    empty="There are no calls",
    columns="started_at id user team slug status input_tokens output_tokens cost_usd",
)
def list_calls(call: Call) -> Iterable[dict[str, Any]]:
    """List the calls, the oldest first."""
    period = _calls_of(call)
    if call.query.cursor:  # the pages before it are not read again
        period["since"] = max(filter(None, [period["since"], instant_of(call.query.cursor)]))
    return map(reports.call_as_json, current_services().reports.calls(**period, paged=True))


@Action("GET /ledger/calls/<id>", "read", of_team=True, command="trace ID")
def get_call(call: Call, id: str) -> dict[str, Any]:  # noqa: A002 - the name in the address
    """Show a call by the x-call-id of its answer: its limits, model, tokens, cost and times."""
    row = current_services().reports.call(id)
    if row is None:
        raise OperatorError(
            "unknown_call",
            f"The ledger has no call {id!r}; write an answer's x-call-id. `flask ratelimit why` "
            "takes the user or the x-request-id of a refused request.",
        )
    call.operator.check_team(row["team"])
    return reports.call_as_json(row)


@Action("GET /ledger/traffic", "read", query=Period, order="time", command="ledger traffic")
def list_traffic(call: Call) -> Iterable[dict[str, Any]]:
    """Print the calls as traffic for simulations."""
    rows = current_services().reports.calls(**_calls_of(call), paged=True)
    return (reports.as_traffic(row) for row in rows if row["status"] != CREDITED)


@Action(
    "GET /ledger/estimates",
    "read",
    query=Since,
    order="slug",
    command="ledger estimates",
    columns="slug calls input_ratio input_over output_ratio output_over",
    empty="There are no answered calls with a reported usage",
)
def list_estimates(call: Call) -> Iterable[dict[str, Any]]:
    """Compare usage with its estimates, by model.

    A ratio is usage as a multiple of the estimate: below 1 too much was held, above 1 too little.
    "Over" is the share of calls that used more than estimated. Only answered calls with a reported
    usage count.
    """
    return current_services().reports.estimates(since=call.query.since)


@Action(
    "GET /ledger/outcomes",
    "read",
    query=Ago,
    order="-failed -calls upstream model",
    command="ledger outcomes",
    empty="There are no calls to upstreams in this period",
)
def list_outcomes(call: Call) -> Iterable[dict[str, Any]]:
    """List how calls ended, by upstream and model, the most failures first."""
    since = datetime.now(UTC) - call.query.since
    rows = current_services().reports.outcomes(since=since, top=1000)
    return [{name: row[name] for name in row if name != "statuses"} for row in rows]


@Action(
    "GET /ledger/latency",
    "read",
    query=Ago,
    order="upstream model streamed",
    command="latency",
    columns="upstream model streamed calls p50_ms p95_ms",
    empty="There are no answers from upstreams in this period",
)
def list_latencies(call: Call) -> Iterable[dict[str, Any]]:
    """Show how slow providers are: how long their answers took to begin, by upstream and model.

    Half of the answers took at most p50, and 95 % of them at most p95. A streamed answer begins
    with its first byte, any other when all of it is generated.
    """
    return reports.latencies(datetime.now(UTC) - call.query.since)


@Action("GET /ledger/check", "read", query=OfUser, command="ledger check")
def check_ledger(call: Call) -> dict[str, Any]:
    """Check for unfinished calls, wrong costs and limits that disagree."""
    services, identity = current_services(), callers.known_identity(call.query.user)
    result = audit(
        services.reports.calls(user=identity, since=call.query.since),
        services.catalogue,
        now=datetime.now(UTC),
        lease=services.lease,
        priced_since=services.catalogue.priced_since,
    )
    compared, differ = reports.compare_limits(result)
    spent = [
        {"month": month, "user": name, "cost_usd": micro_usd / MICRO}
        for (name, month), micro_usd in sorted(result.spent_micro_usd.items())
    ]
    counts = {"calls": result.calls, "running": len(result.running), "unpriced": result.unpriced}
    found = {"limits": compared, "problems": result.problems, "differ": differ}
    return {**counts, "spent": spent, **found}


@Action("GET /ledger/reconcile", "read", query=Reconciled, command="ledger reconcile")
def reconcile_ledger(call: Call) -> dict[str, Any]:
    """Compare the ledger with the providers' reports, by day and model, and say why they differ.

    OPENAI_ADMIN_KEY and ANTHROPIC_ADMIN_KEY need the right to read usage and costs. Problems raise
    alerts.
    """
    query, end = call.query, call.query.until + timedelta(days=1)
    if end <= query.since:
        raise FieldError("until", '"until" is before "since"; send a later day.')
    if query.project and not query.provider:
        raise FieldError("provider", 'Send "provider", to which the project belongs.')
    known = [name for name in ADDRESSES if admin_key(name)] or ADDRESSES
    chosen = [query.provider] if query.provider else known
    compared = [reports.reconcile(n, query.since, end, project=query.project) for n in chosen]
    days = [row for rows, _ in compared for row in rows]
    return {
        **{f"{of}_usd": sum(row[f"{of}_usd"] for row in days) for of in ("ledger", "reported")},
        "unexplained_usd": sum(row["causes"].get("unexplained", 0) for row in days),
        "days": days,
        "problems": [sentence for _, found in compared for sentence in found],
    }


@Action("POST /ledger/prune", "all", body=Pruning, command="ledger prune")
def prune_ledger(call: Call) -> dict[str, Any]:
    """Delete old calls."""
    days = call.body.keep_days or current_services().settings.ledger_keep_days
    if days is None:
        raise FieldError("keep_days", 'Send "keep_days", or set CHATAPP_LEDGER_KEEP_DAYS.')
    deleted = prune(current_services().database, before=datetime.now(UTC) - timedelta(days=days))
    callers.note("prune-ledger", EVERYONE, amount=f"{days} days", **call.why)
    done = f"Deleted {reports.counted(deleted, 'call')} older than {days} days."
    return {"deleted": deleted, "days": days, "done": done}


@Action("POST /ledger/restore", "all", body=Restoring, command="ledger restore")
def restore_limits(call: Call) -> dict[str, Any]:
    """Restore limits in dollars and tokens from the ledger. Without ``apply``, compare only."""
    body = call.body
    identity = callers.known_identity(body.user)
    restored = restoration.restore(identity, apply=body.apply, **call.why)
    return {"limits": [asdict(limit) for limit in restored], "applied": body.apply}


@Action("POST /ledger/credit", "limits", body=Credit, command="credit USD")
def give_credit(call: Call) -> dict[str, Any]:
    """Give dollars back, at most what was spent in the current windows of the budgets."""
    named = {owner: getattr(call.body, owner) for owner in OWNERS if getattr(call.body, owner)}
    if len(named) != 1:
        raise FieldError("user", 'Name exactly one of "user", "key" and "team".')
    [(owner, text)] = named.items()
    call.operator.check_kind(owner)
    return {"done": credit(owner, amounts.named(owner, text), call.body.usd, **call.why)}


@Action(
    "GET /alerts",
    "read",
    query=Since,
    order="at id",
    command="alerts list",
    columns="at identity name threshold spent amount resets_at",
    empty="There are no alerts",
)
def list_alerts(call: Call) -> Iterable[dict[str, Any]]:
    """List the alerts that were raised, the oldest first, in dollars."""
    rows = alerts(current_services().database, since=call.query.since)
    return list(map(reports.alert_in_dollars, rows))


@Action("POST /alerts/test", "all", body=Change, command="alerts test")
def send_test_alert(_call: Call) -> dict[str, Any]:
    """Send a test alert to the webhook."""
    current = current_services().alerts
    if current is None or current.webhook is None:
        raise OperatorError(
            "no_webhook",
            "Set CHATAPP_ALERT_WEBHOOK_URL and CHATAPP_ALERT_WEBHOOK_SECRET, and do not switch "
            "all alerts off.",
        )
    host, now = current.webhook.host, datetime.now(UTC)
    alert = Alert(type="alert.test", identity=EVERYONE, spent=0, amount=0, since=now)
    try:
        answer = current.webhook.post(alert)
    except UnreachableError as error:
        raise OperatorError("webhook_failed", f"{host} did not answer: {error}") from error
    if not answer.has_arrived:
        answered = printable(answer.text) or "(no text)"
        raise OperatorError("webhook_failed", f"{host} refused it with {answer.status}: {answered}")
    done = f"{host} accepted it with {answer.status}."
    return {"host": host, "status": answer.status, "id": alert.id, "done": done}


@Action("GET /providers", "read", order="name", command="providers list")
def list_providers(_call: Call) -> Iterable[dict[str, Any]]:
    """List the upstreams: their number of keys, which keys are missing, which are paused, and
    what is left of their quotas."""
    tables = providers_file.read(configured_file(PROVIDERS), toml_line).upstreams
    states = {state["name"]: state for state in reports.upstreams()}
    rows = []
    for name, table in tables.items():
        keys, parts = Keys(name, table.keys), [states[e] for e in callers.slugs_by_upstream(name)]
        rows.append(
            {
                "name": name,
                "keys": len(keys.names),
                "missing": keys.missing,
                "pauses": {state["name"]: state["pause"] for state in parts if state["pause"]},
                "left": {state["name"]: state["left"] for state in parts if state["left"]},
            }
        )
    return rows


@Action(
    "POST /providers/<name>/pause", "providers", body=PauseFields, command="providers pause NAME"
)
def pause_provider(call: Call, name: str) -> dict[str, Any]:
    """Send no calls to an upstream for some time, for example in an incident: fallbacks serve its
    models."""
    operators, length = callers.shared_operators(), call.body.length
    pause = partial(operators.block, COOL_DOWN, for_s=length.total_seconds(), reason="overloaded")
    changed = [pause(identity) for identity in blocks.identities_of(name)]
    until = datetime.now(UTC) + length
    end_s = until.timestamp()
    if not any(changed):
        done = f"{name} already pauses for at least that time."
        return {"done": done, "changed": False, "until": None}
    callers.note("pause", name, limit=COOL_DOWN, until=end_s, **call.why)
    done = f"{name} pauses until {time_text(end_s)}, in all workers."
    return {"done": done, "changed": True, "until": until}


@Action("POST /providers/<name>/resume", "providers", command="providers resume NAME")
def resume_provider(call: Call, name: str) -> dict[str, Any]:
    """End the pauses of an upstream: those by operators, and those that it asked for."""
    operators = callers.shared_operators()
    names = blocks.identities_of(name)
    lifted = [blocks.unblocked(operators, COOL_DOWN, identity) for identity in names]
    if any(lifted):
        callers.note("resume", name, limit=COOL_DOWN, **call.why)
    done = f"{name} {'no longer pauses' if any(lifted) else 'did not pause'}."
    return {"done": done, "changed": any(lifted)}
