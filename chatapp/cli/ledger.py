"""`chat ledger` and `chat usage`: what was used and spent, and whether the figures are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, time, timedelta
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

import click
from flask import json
from flask.cli import AppGroup, with_appcontext

from chatapp.accounts import ADDRESS, TEAM
from chatapp.cli import arguments, output
from chatapp.ledger.audit import Findings, audit
from chatapp.ledger.reports import MICRO, TAG, month_start
from chatapp.ledger.retention import LEAST_DAYS
from chatapp.ledger.retention import prune as delete_calls
from chatapp.ledger.table import CALLS
from chatapp.operators import callers, restoration
from chatapp.services import current_services
from chatapp.web.call_limits import MODELS, remaining_limits
from chatapp.web.current_request import team_identity
from ratelimit_ext.operators import NOT_SHARED, printable
from ratelimit_ext.terminal import echo_json, with_json

F = TypeVar("F", bound=Callable[..., Any])

USER_HELP: Final = "Only calls of this user: NAME, or ip:ADDRESS."
SINCE_HELP: Final = "Only from this day on, by UTC."
# A window without an anchor opens when its first call is admitted, just before the call's time.
BEFORE: Final = timedelta(milliseconds=5)

RESTORE: Final = (
    "If the limits' storage has lost its data, `chat ledger restore` shows what is missing, and "
    "charges it with --apply."
)

by_subject = click.option(
    "--by",
    type=arguments.SUBJECT,
    default="user",
    help="user (default), key, team, model or tag:NAME.",
)
ledger = AppGroup("ledger", help="Report and check usage and spending.")


class Period(NamedTuple):
    """The calls that began in a time, by UTC; ``until`` is no part of it."""

    since: datetime | None = None
    until: datetime | None = None

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d}" if self.since else ""
        return since + (f" before {self.until:%Y-%m-%d}" if self.until else "")


def of_period(command: F) -> F:
    """Give a command --since, --until, --month and --week, which it gets as ``period``."""

    @click.option("--since", type=arguments.DAY, help=SINCE_HELP)
    @click.option("--until", type=arguments.DAY, help="Only to the end of this day.")
    @click.option("--month", type=arguments.MONTH, help="Only of this month: 2026-10, or last.")
    @click.option("--week", type=arguments.WEEK, help="Only of this week: 2026-W48, this or last.")
    @wraps(command)
    def with_period(
        *words: Any,
        since: datetime | None,
        until: datetime | None,
        month: tuple[datetime, datetime] | None,
        week: tuple[datetime, datetime] | None,
        **others: Any,
    ) -> Any:
        if [bool(month), bool(week), bool(since or until)].count(True) > 1:
            raise click.UsageError("Pass --month, --week, or --since and --until.")
        if since and until and until < since:
            raise click.UsageError("--until is before --since.")
        period = Period(since, until and until + timedelta(days=1))
        calendar = month or week
        return command(*words, period=Period(*calendar) if calendar else period, **others)

    return cast(F, with_period)


@click.command()
@click.argument("user", type=arguments.USER)
@click.option("--json", is_flag=True, expose_value=False, help="It is JSON without it, too.")
@with_appcontext
def usage(user: str) -> None:
    """Show what USER has left and has spent, as JSON.

    It is what GET /usage answers. USER is a name, or ip:ADDRESS for callers without a name.
    """
    services = current_services()
    limiter = services.limiter
    is_readable = not limiter.enabled or limiter.operators.is_shared
    identity = callers.known_identity(user)
    assert identity is not None
    plan = callers.plan_of(identity, callers.plans_by_name())
    with callers.request_of(identity, plan):
        limits, team = None, limiter.identities["team"]()
        own = {identity, team}
        if is_readable:
            # Addresses and keys have limits of their own.
            left = remaining_limits(limiter)
            limits = [limit.as_json() for limit in left if limit.identity in own]
        plan = limiter.current.plan
    shown = {
        "user": callers.name_of(identity),
        "plan": plan,
        "team": team.removeprefix(TEAM) if team != identity else None,
        "limits": limits,
        "spent": services.reports.spent_usd(identity),
    }
    click.echo(json.dumps(shown, indent=2, sort_keys=False))
    if not is_readable:
        click.echo(f"The limits are missing. {NOT_SHARED}", err=True)


@click.command()
@by_subject
@of_period
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@with_json
@with_appcontext
def spend(by: str, period: Period, top: int | None, *, as_csv: bool, as_json: bool) -> None:
    """Show who has spent most: calls, tokens and dollars, this month or in that time."""
    if as_csv and as_json:
        raise click.UsageError("Pass --csv or --json, not both.")
    if period == Period():
        period = Period(month_start())
    found = current_services().reports.spending(by=by, **period._asdict(), top=top)
    name = by.removeprefix(TAG)
    rows = [
        (each.subject, each.calls, each.input_tokens, each.output_tokens, each.cost_micro_usd)
        for each in found
    ]
    heads = (name.upper(), "CALLS", "INPUT TOKENS", "OUTPUT TOKENS", "USD")
    if as_csv:
        output.echo_csv(
            [head.lower().replace(" ", "_") for head in heads],
            [(*row[:-1], row[-1] / MICRO) for row in rows],
        )
    elif as_json:
        echo_json([_with_dollars({by: each.subject, **asdict(each)}) for each in found])
    elif not rows:
        _report_nothing("calls", None, period)
    else:
        output.echo_rows(
            [(*row[:-1], f"{row[-1] / MICRO:.6f}") for row in rows], heads, as_json=False
        )


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@of_period
def traffic(user: str | None, period: Period) -> None:
    """Print the calls as traffic for `flask ratelimit simulate` and `suggest`, one line each.

    The ledger has no denied calls.
    """
    identity = callers.known_identity(user)
    for row in current_services().reports.calls(user=identity, **period._asdict()):
        click.echo(json.dumps(_as_traffic(row), sort_keys=False))


def _as_traffic(row: Mapping[Any, Any]) -> dict[str, object]:
    """Return a row as a call of the simulation, with the limits of chatapp/policy.toml that are
    exempt."""
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


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@of_period
@with_json
def calls(user: str | None, period: Period, *, as_json: bool) -> None:
    """Print the calls as CSV, the oldest first, one line each."""
    identity = callers.known_identity(user)
    found = current_services().reports.calls(user=identity, **period._asdict())
    rows = map(_with_dollars, found)
    if as_json:
        echo_json([{**row, "started_at": row["started_at"].isoformat()} for row in rows])
        return
    heads = [*CALLS.c.keys(), "cost_usd"]
    output.echo_csv(heads, ([row[head] for head in heads] for row in rows))


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@of_period
@by_subject
@with_json
def show(user: str | None, period: Period, by: str, *, as_json: bool) -> None:
    """Show calls, tokens and dollars by day, the newest first."""
    identity = callers.known_identity(user)
    totals = current_services().reports.totals(user=identity, **period._asdict(), by=by)
    if as_json:
        echo_json([_with_dollars(asdict(total)) for total in totals])
        return
    if not totals:
        _report_nothing("calls", identity, period)
    for total in totals:
        tokens = f"{total.input_tokens} in  {total.output_tokens} out"
        dollars = _dollars(total.cost_micro_usd)
        calls = _counted(total.calls, "call")
        subject = printable(total.subject or "-")
        click.echo(f"{total.day}  {subject}  {calls}  {tokens}  {dollars}")


@ledger.command()
@click.option("--since", type=arguments.DAY, help=SINCE_HELP)
@with_json
def estimates(since: datetime | None, *, as_json: bool) -> None:
    """Compare usage with its estimates, by model.

    The figure is usage as a multiple of the estimate: below 1 too much was held, above 1 too
    little. "over" is the share of calls that used more than estimated. Only answered calls with a
    reported usage count.
    """
    models = current_services().reports.estimates(since=since)
    if as_json:
        echo_json([asdict(model) for model in models])
        return
    if not models:
        _report_nothing("answered calls with a reported usage", None, Period(since))
    for model in models:
        columns = [model.slug, _counted(model.calls, "call")]
        for name, tokens in (("in", model.input), ("out", model.output)):
            columns += [f"{name} {tokens.ratio:.3f}", f"{tokens.calls_over / model.calls:.1%} over"]
        click.echo("  ".join(columns))


@ledger.command()
@click.option("--since", type=arguments.DURATION, default="1h", help="How far back: 15m, 1h, 2d.")
@with_json
def outcomes(since: timedelta, *, as_json: bool) -> None:
    """Show how calls ended, by upstream and model; those with the most failures first.

    A request that its provider rejected as wrong is not a failure.
    """
    rows = [
        (each.provider, each.slug, each.total, sum(each.failures.values()), each.failures)
        for each in current_services().reports.outcomes(since=datetime.now(UTC) - since, top=50)
    ]
    heads = ("UPSTREAM", "MODEL", "CALLS", "FAILED", "HOW")
    output.echo_rows(rows, heads, as_json=as_json, empty="No upstream was called in this time.")


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@click.option("--since", type=arguments.DAY, help=SINCE_HELP)
@with_json
def check(user: str | None, since: datetime | None, *, as_json: bool) -> None:
    """Find unfinished calls, wrong costs and limits that disagree.

    A cost is wrong if it is not the price of the call's tokens; a dollar limit disagrees if it does
    not hold what the ledger has. Exits with 1 if there are any.
    """
    services = current_services()
    models = services.catalogue
    found = audit(
        services.reports.calls(user=callers.known_identity(user), since=since),
        models,
        now=datetime.now(UTC),
        lease=services.lease,
        priced_since=datetime.combine(models.as_of, time(), UTC),
    )
    compared = _compare_limits(found)
    if as_json:
        spent = [
            {"month": month, "user": name, "cost_usd": micro_usd / MICRO}
            for (name, month), micro_usd in sorted(found.spent_micro_usd.items())
        ]
        counts = {"calls": found.calls, "running": len(found.running), "unpriced": found.unpriced}
        echo_json({**counts, "spent": spent, "limits": compared, "problems": found.problems})
        click.get_current_context().exit(1 if found.problems else 0)
    for (name, month), micro_usd in sorted(found.spent_micro_usd.items()):
        click.echo(f"{month}  {printable(name)}  {_dollars(micro_usd)}")
    calls, problems = _counted(found.calls, "call"), _counted(len(found.problems), "problem")
    click.echo(
        f"{calls}, {len(found.running)} running, {found.unpriced} from before the prices of "
        f"{models.as_of} (their costs were not checked); {compared}; {problems}."
    )
    for problem in found.problems:
        click.echo(printable(problem), err=True)
    if found.problems:
        click.get_current_context().exit(1)


@ledger.command()
@click.option(
    "--keep-days",
    type=click.IntRange(min=LEAST_DAYS),
    help="Days to keep; default: CHATAPP_LEDGER_KEEP_DAYS.",
)
@with_json
def prune(keep_days: int | None, *, as_json: bool) -> None:
    """Delete old calls, in small batches, while the server runs."""
    services = current_services()
    days = keep_days or services.settings.ledger_keep_days
    if days is None:
        raise click.UsageError("Pass --keep-days, or set CHATAPP_LEDGER_KEEP_DAYS.")
    before = datetime.now(UTC) - timedelta(days=days)
    deleted = delete_calls(services.database, before=before)
    done = f"Deleted {_counted(deleted, 'call')} older than {days} days."
    output.echo_done(done, as_json=as_json, deleted=deleted, days=days)


@ledger.command()
@click.option(
    "--user", type=arguments.USER, help="Only the limits of this user: NAME, or ip:ADDRESS."
)
@click.option("--apply", is_flag=True, help="Charge them; without it, only show what is missing.")
@with_json
def restore(user: str | None, *, apply: bool, as_json: bool) -> None:
    """Rebuild limits in dollars and tokens from the ledger.

    For a storage that has lost its data: each limit that counts less than the ledger has is charged
    the difference. Others are left alone, and a second time changes nothing.
    """
    found = restoration.restore(callers.known_identity(user), apply=apply)

    def amount(unit: str, units: int) -> float | str:
        if unit != "usd":
            return units
        return units / MICRO if as_json else f"{units / MICRO:.6f}"

    heads = ("IDENTITY", "LIMIT", "UNIT", "COUNTS", "LEDGER", "MISSING")
    rows = [
        (each.identity, each.limit, each.unit, *(amount(each.unit, n) for n in each.usage))
        for each in found
    ]
    output.echo_rows(rows, heads, as_json=as_json, empty="No limit counts less than the ledger.")
    if found and not as_json:
        limits = _counted(len(found), "limit")
        end = "charged." if apply else "to charge. Nothing was changed; run it with --apply."
        click.echo(f"{limits} {end}")


def _compare_limits(found: Findings) -> str:
    """Compare the dollar limits with the spending of this month and the last, and add problems;
    returns what was compared. Running calls are held as estimates, so their users are left out."""
    services = current_services()
    if not services.limiter.operators.is_shared:
        return "limits not compared, as RATELIMIT_STORAGE_URI does not name their storage"
    now = datetime.now(UTC)
    months = {f"{now:%Y-%m}", f"{now.replace(day=1) - timedelta(days=1):%Y-%m}"}
    identities = {user for user, month in found.spent_micro_usd if month in months}
    identities -= set(found.running)
    plans = callers.plans_by_name()
    differences = []
    for identity in sorted(identities):
        differences += _differences(identity, callers.plan_of(identity, plans))
    teams = [t.name for t in services.accounts.teams() if t.name not in found.running_teams]
    for team in teams:
        plan = services.default_plan
        differences += _differences(team_identity(team), plan, team=team)
    found.problems += differences
    if differences:
        click.echo(RESTORE, err=True)
    compared = [_counted(len(identities), "user")]
    if teams:
        compared.append(_counted(len(teams), "team"))
    return f"limits of {' and '.join(compared)} compared"


def _differences(identity: str, plan: str, *, team: str | None = None) -> list[str]:
    """Return a sentence for each dollar limit of the user or team that does not hold their
    spending.

    A call that began in the window before, within a lease of its end, may have left an excess
    in this one.
    """
    services = current_services()
    with callers.request_of(identity, plan):
        left = remaining_limits(services.limiter)
    own = [limit for limit in left if limit.unit == "usd" and limit.identity == identity]
    # A budget of some calls alone, and a share of a team's, hold something else.
    limits = [each for each in own if MODELS not in each.keywords and each.share is None]
    user = identity if team is None else None
    found = []
    for limit in limits:
        since = datetime.fromtimestamp(limit.reset_at - limit.period_s, UTC)
        if limit.anchor is None:
            since -= BEFORE
        spent = services.reports.settled_micro_usd(user, since, team=team)
        most = services.reports.settled_micro_usd(user, since - services.lease, team=team)
        held = limit.amount - limit.remaining
        # An excess over the amount is held, but shows only as nothing left.
        if not min(spent, limit.amount) <= held <= min(most, limit.amount):
            found.append(
                f"{identity} spent {spent} micro-dollars in the window of {limit.name!r} since "
                f"{since:%Y-%m-%d %H:%M:%S}, but the limit holds {held}"
            )
    return found


def _with_dollars(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, "cost_usd": row["cost_micro_usd"] / MICRO}


def _dollars(micro_usd: int) -> str:
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d} USD"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _report_nothing(what: str, identity: str | None, period: Period) -> None:
    """On standard error: standard output stays empty for scripts."""
    whose = "" if identity is None else f" of {identity}"
    click.echo(f"There are no {what}{whose}{period}.", err=True)
