"""`chat ledger`: what was spent, how well that was estimated, and whether the figures are right."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import click
from flask.cli import AppGroup

from chatapp.cli import arguments, dollar_limits, errors, users
from chatapp.ledger.audit import Findings
from chatapp.ledger.audit import check as checked
from chatapp.ledger.model_estimates import model_estimates
from chatapp.ledger.retention import LEAST_DAYS
from chatapp.ledger.retention import prune as pruned
from chatapp.services import current_services

WHOSE = "Only this user's calls: NAME, or ip:ADDRESS."

ledger = AppGroup("ledger", help="What was used and spent.")


@ledger.command()
@click.option("--user", type=arguments.USER, help=WHOSE)
@click.option("--since", type=arguments.DAY, help="Only from this day on, by UTC.")
def show(user: str | None, since: datetime | None) -> None:
    """Calls, tokens and dollars by day and user, the newest day first."""
    with errors.reported():
        identity = users.found(user)
        totals = current_services().reports.totals(user=identity, since=since)
    if not totals:
        _tell_that_there_are_none("calls", identity, since)
    for total in totals:
        tokens = f"{total.input_tokens} in  {total.output_tokens} out"
        dollars = in_dollars(total.cost_micro_usd)
        calls = counted(total.calls, "call")
        click.echo(f"{total.day}  {total.user}  {calls}  {tokens}  {dollars}")


@ledger.command()
@click.option("--since", type=arguments.DAY, help="Only from this day on, by UTC.")
def estimates(since: datetime | None) -> None:
    """What calls used, as a multiple of what was estimated for them, by model.

    Below 1 too much was held, above 1 too little; "over" is the share of calls that used more than
    was estimated. Only answers count whose provider told the usage.
    """
    with errors.reported():
        models = model_estimates(current_services().database, since=since)
    if not models:
        _tell_that_there_are_none("answered calls whose usage is known", None, since)
    for model in models:
        columns = [model.slug, counted(model.calls, "call")]
        for name, tokens in (("in", model.input), ("out", model.output)):
            columns += [f"{name} {tokens.ratio:.3f}", f"{tokens.calls_over / model.calls:.1%} over"]
        click.echo("  ".join(columns))


@ledger.command()
@click.option("--user", type=arguments.USER, help=WHOSE)
@click.option("--since", type=arguments.DAY, help="Only from this day on, by UTC.")
def check(user: str | None, since: datetime | None) -> None:
    """Look for calls that never finished, for costs that are not the price of their tokens, and
    for limits in dollars that do not hold what was spent.

    Exit status 1 where there are some.
    """
    services = current_services()
    models, chosen = services.catalogue, services.settings
    lease = timedelta(seconds=2 * chosen.provider_timeout_s)
    with errors.reported():
        found = checked(
            services.reports.calls(user=users.found(user), since=since),
            models,
            now=datetime.now(UTC),
            lease=lease,
            priced_since=datetime.combine(models.as_of, time(), UTC),
        )
        compared = _compared(found, lease=lease)
    for (name, month), micro_usd in sorted(found.spent_micro_usd.items()):
        click.echo(f"{month}  {name}  {in_dollars(micro_usd)}")
    old = found.older_than_the_prices
    calls, problems = counted(found.calls, "call"), counted(len(found.problems), "problem")
    click.echo(
        f"{calls}, {len(found.running)} under way, {old} from before the prices of {models.as_of} "
        f"(their costs were not checked); {compared}; {problems}."
    )
    for problem in found.problems:
        click.echo(problem, err=True)
    if found.problems:
        click.get_current_context().exit(1)


@ledger.command()
@click.option(
    "--keep-days",
    type=click.IntRange(min=LEAST_DAYS),
    help="How many days stay; default: CHATAPP_LEDGER_KEEP_DAYS.",
)
def prune(keep_days: int | None) -> None:
    """Delete calls that are older, a few hundred at a time, while the server runs."""
    days = keep_days or current_services().settings.ledger_keep_days
    if days is None:
        raise click.UsageError("Say --keep-days, or set CHATAPP_LEDGER_KEEP_DAYS.")
    with errors.reported():
        deleted = pruned(
            current_services().database, before=datetime.now(UTC) - timedelta(days=days)
        )
    click.echo(f"{counted(deleted, 'call')} deleted, of more than {days} days ago.")


def _compared(found: Findings, *, lease: timedelta) -> str:
    """Compare the users of this month and the last with their limits; what was done, in words."""
    services = current_services()
    limiter = services.limiter
    if not dollar_limits.can_be_read(limiter):
        return "limits not compared, as RATELIMIT_STORAGE_URI does not say where they are kept"
    now = datetime.now(UTC)
    months = {f"{now:%Y-%m}", f"{now.replace(day=1) - timedelta(days=1):%Y-%m}"}
    spenders = {user for user, month in found.spent_micro_usd if month in months}
    spenders -= set(found.running)
    plans = users.plans_by_name()
    for identity in sorted(spenders):
        found.problems += dollar_limits.differences(
            limiter,
            services.reports,
            identity=identity,
            plan=users.plan_of(identity, plans),
            lease=lease,
        )
    return f"limits of {counted(len(spenders), 'user')} compared"


def in_dollars(micro_usd: int) -> str:
    """An amount to the micro-dollar."""
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d} USD"


def counted(number: int, thing: str) -> str:
    """A number of things: "1 call", "2 calls"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _tell_that_there_are_none(what: str, identity: str | None, since: datetime | None) -> None:
    """Beside standard output, which a script may read, and which stays empty."""
    whose = "" if identity is None else f" of {identity}"
    when = "" if since is None else f" since {since:%Y-%m-%d}"
    click.echo(f"There are no {what}{whose}{when}.", err=True)
