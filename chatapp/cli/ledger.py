"""`chat ledger`: what was spent, and whether the figures are right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
from flask import current_app
from flask.cli import AppGroup

from chatapp import settings
from chatapp.cli import arguments, failures
from chatapp.cli.present import present_catalogue, present_records
from chatapp.identities import user_identity
from chatapp.ledger.check import check as checked

ledger = AppGroup("ledger", help="What was used and spent.")


@ledger.command()
@click.option("--user", type=arguments.USER, help="Only this user's calls (ip:… for an address).")
@click.option("--since", type=arguments.DAY, help="Only from this day on, by UTC.")
def show(user: str | None, since: datetime | None) -> None:
    """Calls, tokens and dollars by day and user, the newest day first."""
    with failures.told():
        totals = present_records().totals(user=_identity(user), since=since)
    for total in totals:
        tokens = f"{total.input_tokens} in  {total.output_tokens} out"
        dollars = in_dollars(total.cost_micro_usd)
        click.echo(f"{total.day}  {total.user}  {total.calls} calls  {tokens}  {dollars}")


@ledger.command()
@click.option("--user", type=arguments.USER, help="Only this user's calls.")
@click.option("--since", type=arguments.DAY, help="Only from this day on, by UTC.")
def check(user: str | None, since: datetime | None) -> None:
    """Look for calls that never finished and for costs that are not the price of their tokens.

    Exit status 1 where there are some.
    """
    models = present_catalogue()
    timeout_s = settings.from_config(current_app.config).provider_timeout_s
    with failures.told():
        found = checked(
            present_records().calls(user=_identity(user), since=since),
            models,
            now=datetime.now(UTC),
            lease=timedelta(seconds=2 * timeout_s),
            priced_since=datetime(
                models.as_of.year, models.as_of.month, models.as_of.day, tzinfo=UTC
            ),
        )
    for (name, month), micro_usd in sorted(found.spent_micro_usd.items()):
        click.echo(f"{month}  {name}  {in_dollars(micro_usd)}")
    old = found.older_than_the_prices
    click.echo(
        f"{found.calls} calls, {found.running} under way, {old} from before the prices of "
        f"{models.as_of} (their costs were not checked), {len(found.problems)} problems."
    )
    for problem in found.problems:
        click.echo(problem, err=True)
    if found.problems:
        click.get_current_context().exit(1)


def in_dollars(micro_usd: int) -> str:
    """An amount to the micro-dollar."""
    return f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06d} USD"


def _identity(user: str | None) -> str | None:
    if user is None or user.startswith("ip:"):
        return user
    return user_identity(user)
