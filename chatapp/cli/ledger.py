"""`chat ledger`, `usage`, `spend`, `credit` and `alerts`: what was used and spent, the alerts about
it, and whether the figures are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

import click
from flask import json
from flask.cli import AppGroup, with_appcontext

from chatapp.accounts.store import Owner
from chatapp.alerts import table
from chatapp.cli import arguments, output
from chatapp.ledger.reports import MICRO, TAG, month_start
from chatapp.ledger.retention import LEAST_DAYS
from chatapp.ledger.table import CALLS
from chatapp.operators import amounts, callers, reports, restoration
from chatapp.operators.credit import credit
from chatapp.services import current_services
from ratelimit_ext.operators import NOT_SHARED, printable
from ratelimit_ext.terminal import echo_json, with_json

F = TypeVar("F", bound=Callable[..., Any])

USER_HELP: Final = "Only calls of this user: NAME, or ip:ADDRESS."
SINCE_HELP: Final = "Only from this day on, by UTC: 2026-11-25, friday, 7d."

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
ALERT_HEADS: Final = ("AT", "IDENTITY", "BUDGET", "THRESHOLD", "SPENT", "OF", "RESETS AT")

ledger = AppGroup("ledger", help="Report and check usage and spending.")
alerts = AppGroup("alerts", help="List spending alerts, and test their webhook.")


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
    shown = reports.usage(user)
    click.echo(json.dumps(shown, indent=2, sort_keys=False))
    if shown["limits"] is None:
        click.echo(f"The limits are missing. {NOT_SHARED}", err=True)


@click.command("credit")
@click.argument("name", type=arguments.USER)
@click.argument("usd", type=arguments.DOLLARS)
@click.option(
    "--of",
    "owner",
    type=click.Choice(amounts.OWNERS),
    default="user",
    help="What NAME is: a user (default), a key or a team.",
)
@output.changes
@with_appcontext
def give_credit(name: str, usd: Decimal, *, owner: Owner, as_json: bool, **why: str) -> None:
    """Give NAME back USD dollars, as if they had spent less: for a call that went wrong, say.

    All their budgets in dollars count less in the present windows, at least nothing. The ledger,
    reports and invoices have the credit. That of a key counts for its user, too, unless it acts for
    others.
    """
    name = amounts.named(owner, name)
    done = credit(owner, name, usd, **why)
    output.echo_done(done, as_json=as_json, **{owner: name}, usd=float(usd))


@click.command()
@by_subject
@of_period
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the first N.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--forecast", "ahead", is_flag=True, help="Show when budgets will be used up.")
@with_json
@with_appcontext
def spend(by: str, period: Period, top: int | None, *, ahead: bool, **form: bool) -> None:
    """Show who has spent most: calls, tokens and dollars, this month or in that time."""
    as_csv, as_json = form["as_csv"], form["as_json"]
    if as_csv and as_json:
        raise click.UsageError("Pass --csv or --json, not both.")
    if ahead:
        if period != Period() or by not in ("user", "team"):
            raise click.UsageError("--forecast is --by user or team, and of no other time.")
        _forecast(by, top, as_csv=as_csv, as_json=as_json)
        return
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
        echo_json([reports.with_dollars({by: each.subject, **asdict(each)}) for each in found])
    elif not rows:
        _report_nothing("calls", None, period)
    else:
        output.echo_rows(
            [(*row[:-1], f"{row[-1] / MICRO:.6f}") for row in rows], heads, as_json=False
        )


def _forecast(by: str, top: int | None, *, as_csv: bool, as_json: bool) -> None:
    rows = [tuple(each.values()) for each in reports.forecasts_by(by, top=top)]
    heads = (by.upper(), "BUDGET", "SPENT", "OF", "USED UP AT", "SURE", "RESETS AT")
    if as_csv:
        output.echo_csv([head.lower().replace(" ", "_") for head in heads], rows)
    else:
        output.echo_rows(rows, heads, as_json=as_json, empty="No budget has a forecast.")


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@of_period
def traffic(user: str | None, period: Period) -> None:
    """Print the calls as traffic for `flask ratelimit simulate` and `suggest`, one line each.

    The ledger has no denied calls.
    """
    identity = callers.known_identity(user)
    for each in reports.traffic(
        current_services().reports.calls(user=identity, **period._asdict())
    ):
        click.echo(json.dumps(each, sort_keys=False))


@ledger.command()
@click.option("--user", type=arguments.USER, help=USER_HELP)
@of_period
@with_json
def calls(user: str | None, period: Period, *, as_json: bool) -> None:
    """Print the calls as CSV, the oldest first, one line each."""
    identity = callers.known_identity(user)
    found = current_services().reports.calls(user=identity, **period._asdict())
    rows = map(reports.with_dollars, found)
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
        echo_json([reports.with_dollars(asdict(total)) for total in totals])
        return
    if not totals:
        _report_nothing("calls", identity, period)
    for total in totals:
        tokens = f"{total.input_tokens} in  {total.output_tokens} out"
        dollars = _dollars(total.cost_micro_usd)
        calls = reports.counted(total.calls, "call")
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
        columns = [model.slug, reports.counted(model.calls, "call")]
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
    not hold what the ledger has. Limits of keys are not compared, nor those of users and teams with
    calls in flight or a credit. Exits with 1 if there are any problems.
    """
    found, compared, differ = reports.check(callers.known_identity(user), since)
    if differ:
        click.echo(RESTORE, err=True)
    if as_json:
        echo_json(reports.findings_as_json(found, compared))
        click.get_current_context().exit(1 if found.problems else 0)
    for (name, month), micro_usd in sorted(found.spent_micro_usd.items()):
        click.echo(f"{month}  {printable(name)}  {_dollars(micro_usd)}")
    calls = reports.counted(found.calls, "call")
    problems = reports.counted(len(found.problems), "problem")
    click.echo(
        f"{calls}, {len(found.running)} running, {found.unpriced} from before the prices of "
        f"{current_services().catalogue.as_of} (their costs were not checked); {compared}; "
        f"{problems}."
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
@output.changes
def prune(keep_days: int | None, *, as_json: bool, **why: str) -> None:
    """Delete old calls, in small batches, while the server runs. A SQLite file keeps its size."""
    days = keep_days or current_services().settings.ledger_keep_days
    if days is None:
        raise click.UsageError("Pass --keep-days, or set CHATAPP_LEDGER_KEEP_DAYS.")
    deleted = reports.prune_ledger(days, **why)
    done = f"Deleted {reports.counted(deleted, 'call')} older than {days} days."
    output.echo_done(done, as_json=as_json, deleted=deleted, days=days)


@ledger.command()
@click.option(
    "--user", type=arguments.USER, help="Only the limits of this user: NAME, or ip:ADDRESS."
)
@click.option("--apply", is_flag=True, help="Charge them; without it, only show what is missing.")
@output.changes
def restore(user: str | None, *, apply: bool, as_json: bool, **why: str) -> None:
    """Rebuild limits in dollars and tokens from the ledger.

    For a storage that has lost its data: each limit that counts less than the ledger has is charged
    the difference. Others are left alone, and a second time changes nothing.
    """
    identity = callers.known_identity(user)
    found = restoration.restore(identity, apply=apply, **why)

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
        limits = reports.counted(len(found), "limit")
        end = "charged." if apply else "to charge. Nothing was changed; run it with --apply."
        click.echo(f"{limits} {end}")


@alerts.command("list")
@click.option("--since", type=arguments.DAY, help="From this day on, by UTC.")
@with_json
def list_alerts(since: datetime | None, *, as_json: bool) -> None:
    """List the alerts that were raised, the newest first, in dollars.

    One without a budget is about unusual usage; OF is a usual day then.
    """
    found = table.alerts(current_services().database, since=since)
    rows = [
        (
            _time(row["at"]),
            printable(row["identity"]),
            row["name"],
            row["threshold"] or None,
            row["spent"] / MICRO,
            row["amount"] / MICRO,
            row["resets_at"] and _time(row["resets_at"]),
        )
        for row in found
    ]
    output.echo_rows(rows, ALERT_HEADS, as_json=as_json, empty="There are no alerts.")


@alerts.command()
@with_json
def test(*, as_json: bool) -> None:
    """Send a test to the webhook, once, and show its answer."""
    facts = reports.test_webhook()
    done = f"{facts['host']} accepted it with {facts['status']}."
    output.echo_done(done, as_json=as_json, **facts)


def _dollars(micro_usd: int) -> str:
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d} USD"


def _report_nothing(what: str, identity: str | None, period: Period) -> None:
    """On standard error: standard output stays empty for scripts."""
    whose = "" if identity is None else f" of {identity}"
    click.echo(f"There are no {what}{whose}{period}.", err=True)


def _time(at: Any) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
