"""`chat plans`: which user has which plan."""

from __future__ import annotations

import click
from flask.cli import AppGroup

from chatapp.accounts.store import UnknownUserError
from chatapp.cli import arguments, errors, users
from chatapp.services import current_services

plans = AppGroup("plans", help="See and change users' plans.")


@plans.command("set")
@click.argument("user", type=arguments.USER)
@click.argument("plan", type=arguments.PLAN)
def set_(user: str, plan: str) -> None:
    """Give USER another PLAN; what he has used stays used."""
    user = users.name_of(user)
    with errors.reported():
        try:
            current_services().accounts.set_plan(user, plan)
        except UnknownUserError:
            raise click.ClickException(
                f"There is no user {user!r}; `chat keys create --user` makes one."
            ) from None
    click.echo(f"{user} has the plan {plan}; all workers know within 5 s.")


@plans.command("list")
def list_() -> None:
    """List the plans of the policy, each with its users."""
    with errors.reported():
        users = current_services().accounts.users()
    defined = current_services().plans
    for plan in (*defined, *sorted({user.plan for user in users} - set(defined))):
        names = ", ".join(user.name for user in users if user.plan == plan)
        unknown = "" if plan in defined else " (not in the policy: the default plan applies)"
        click.echo(f"{plan}{unknown}: {names or 'nobody'}")
