"""What operators ask of the ledger: what was used and spent, and whether the figures are right."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from chatapp.accounts import ADDRESS, EVERYONE, FORMER, TEAM
from chatapp.alerts.alert import Alert
from chatapp.catalogue import providers_file
from chatapp.ledger import billing_report
from chatapp.ledger.audit import Findings
from chatapp.ledger.forecast import Forecast
from chatapp.ledger.reconciliation import compare, problems
from chatapp.ledger.reports import MICRO
from chatapp.ledger.table import CALLS, limits_of
from chatapp.operators import callers
from chatapp.server.valid_files import PROVIDERS, configured_file
from chatapp.services import current_services
from chatapp.web.call_limits import COOL_DOWN, MODELS, remaining_limits, with_forecast
from chatapp.web.current_request import team_identity
from ratelimit_ext import OperatorError, toml_line

# A window without an anchor opens when its first call is admitted, just before the call's time.
BEFORE: Final = timedelta(milliseconds=5)
#: How much is left where no provider has reported a quota.
UNREPORTED: Final = 10**12


def forecasts(identity: str) -> list[tuple[Any, Forecast]]:
    """Return the limits of a user or a team that have a forecast, with it. OperatorError if this
    process does not see what the workers count."""
    callers.shared_operators()
    services = current_services()
    plan = callers.ChatCallers().plan(identity)
    with callers.request_of(identity, plan):
        left = remaining_limits(services.limiter)
    limits = [with_forecast(e, services.reports) for e in left if e.identity == identity]
    return [(limit, limit.forecast) for limit in limits if limit.forecast is not None]


def reconcile(
    provider: str, since: datetime, until: datetime, *, project: str | None = None
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Compare the ledger with a provider's reports; returns what differs, and the problems, which
    raise alerts. OperatorError if a report cannot be read."""
    services, host = current_services(), f"{provider}.com"
    tables = providers_file.read(configured_file(PROVIDERS), toml_line).upstreams.items()
    ours = {n for n, of in tables if of.protocol == provider and host in (of.base_url or host)}
    # Calls of the day before may be reported on the first day.
    calls = services.reports.calls(since=since - timedelta(days=1), until=until)
    mine = (row for row in calls if row["provider"] in ours)
    try:
        lines = list(billing_report.read(provider, since, until, project=project))
    except billing_report.ReportError as error:
        raise OperatorError("no_report", f"{error}.") from error
    rows = list(compare(mine, lines, services.catalogue, provider, since))
    found = list(problems(rows))
    facts: dict[str, Any] = {"identity": EVERYONE, "spent": 0, "amount": 0, "since": since}
    for sentence in found:
        if services.alerts is not None:
            alert = Alert(type="ledger.differs", name=sentence, **facts)
            services.alerts.get().raise_alert(alert)
    return rows, found


def as_traffic(row: Mapping[Any, Any]) -> dict[str, object]:
    """Return a call of the simulation, with the limits of chatapp/policy.toml that are exempt."""
    has_key, team = row["key_id"] is not None, row["team"]
    exempt = ["ip", "address-at-once"] if has_key else ["key"]
    identities = {
        "user": row["user"],
        "api_key": row["key_id"] if has_key else row["user"],
        "team": row["user"] if team is None else team_identity(team),
        "model": row["slug"],
    }
    if row["user"].startswith(ADDRESS):
        identities["ip"] = row["user"].removeprefix(ADDRESS)
    return {
        "time": row["started_at"].isoformat(),
        "endpoint": row["endpoint"],
        "plan": row["plan"],
        **identities,
        "input_tokens": row["input_tokens"] or 0,
        "output_tokens": row["output_tokens"] or 0,
        "usd": f"{row['cost_micro_usd'] / MICRO:.6f}",
        "exempt": exempt if team is not None else [*exempt, "team-at-once"],
    }


def compare_limits(result: Findings) -> tuple[str, bool]:
    """Compare the dollar limits with the spending of this month and the last, and add problems;
    returns what was compared, and whether any differs. Users and teams with running calls, which
    are held as estimates, or a credit, which a short window may have had less of, are left out."""
    services = current_services()
    if not services.limiter.operators.is_shared:
        return "limits not compared: set RATELIMIT_STORAGE_URI to their storage", False
    now = datetime.now(UTC)
    months = {f"{now:%Y-%m}", f"{now.replace(day=1) - timedelta(days=1):%Y-%m}"}
    identities = {user for user, month in result.spent_micro_usd if month in months}
    identities -= {*result.running, *result.credited}
    identities = {name for name in identities if not name.startswith(FORMER)}
    plan_of, differences = callers.ChatCallers().plan, []
    for identity in sorted(identities):
        differences += _differences(identity, plan_of(identity))
    omitted = {*result.running_teams, *(name.removeprefix(TEAM) for name in result.credited)}
    teams = [team.name for team in services.accounts.teams() if team.name not in omitted]
    for team in teams:
        differences += _differences(team_identity(team), services.default_plan, team=team)
    result.problems += differences
    compared = [counted(len(identities), "user")]
    if teams:
        compared.append(counted(len(teams), "team"))
    return f"limits of {' and '.join(compared)} compared", bool(differences)


def _differences(identity: str, plan: str, *, team: str | None = None) -> list[str]:
    """Return a sentence for each dollar limit with fixed windows that does not hold the spending
    of the user or team. A call of the window before may have left an excess in this one."""
    services = current_services()
    with callers.request_of(identity, plan):
        left = remaining_limits(services.limiter)
    in_dollars = [limit for limit in left if limit.unit == "usd" and limit.identity == identity]
    # A budget of some calls alone, and a share of a team's, hold something else.
    limits = [limit for limit in in_dollars if MODELS not in limit.keywords and limit.share is None]
    user = identity if team is None else None
    sentences = []
    for limit in limits:
        if limit.since is None:
            continue
        since = datetime.fromtimestamp(limit.since, UTC)
        if limit.anchor is None:
            since -= BEFORE
        spent = services.reports.settled_micro_usd(user, since, team=team)
        most = services.reports.settled_micro_usd(user, since - services.lease, team=team)
        held = limit.amount - limit.remaining
        # An excess over the amount is held, but shows only as nothing left.
        if not min(spent, limit.amount) <= held <= min(most, limit.amount):
            sentences.append(
                f"{identity} spent {spent} micro-dollars in the window of {limit.name!r} since "
                f"{since:%Y-%m-%d %H:%M:%S} UTC, but the limit holds {held}"
            )
    return sentences


def with_dollars(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "cost_usd": row["cost_micro_usd"] / MICRO}


def call_as_json(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**with_dollars(row), "limits": list(limits_of(row))}


def latencies(since: datetime) -> list[dict[str, object]]:
    columns = CALLS.c.provider, CALLS.c.slug, CALLS.c.streamed
    rows = current_services().reports.latencies(*columns, since=since)
    names = "upstream", "model", "streamed"
    return [dict(zip(names, row, strict=True)) | rows[row]._asdict() for row in rows]


def alert_in_dollars(alert: Mapping[str, Any]) -> dict[str, Any]:
    return {**alert, **{name: alert[name] / MICRO for name in ("spent", "amount")}}


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def upstreams() -> list[dict[str, Any]]:
    """Return each upstream, until when it pauses, and what is left of its quotas by name."""
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "pause": None, "left": {}} for name in callers.slugs_by_upstream()
    }
    for state in callers.shared_operators().states(*rows, kind="upstream"):
        row = rows[state.identity]
        if state.row.limit.name == COOL_DOWN:
            row["pause"] = None if state.verdict.allowed else state.free_text
        elif state.verdict.remaining < UNREPORTED:
            row["left"][state.row.limit.name.removeprefix("provider-")] = state.verdict.remaining
    return list(rows.values())
