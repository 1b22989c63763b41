"""`chat keys`, `chat plans`, `chat users` and `chat teams`: who may call, and on which plan."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import (
    ApiKey,
    ExistingTeamError,
    OtherPlanError,
    OtherTeamError,
    UnknownTeamError,
)
from chatapp.cli import arguments, output, own_limits
from chatapp.cli.callers import name_of
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN

HEADS: Final = ("ID", "USER", "NAME", "CREATED", "LAST USED", "STATE")
LIMIT_HELP: Final = (
    'An amount in place of the policy\'s, as in "usd-day=20 usd/day"; may be repeated.'
)
MODEL_HELP: Final = 'Allow only this model, or these, as in "gpt-5*"; may be repeated.'

keys = AppGroup("keys", help="Create, list, change and revoke API keys.")
plans = AppGroup("plans", help="List plans, and change the plan of a user.")
users = AppGroup("users", help="List users, and change their teams and amounts.")
teams = AppGroup("teams", help="Create and list teams, and change their budgets.")
own_limits.add_commands(keys, "key")
own_limits.add_commands(users, "user")
own_limits.add_commands(teams, "team")


# -- keys --------------------------------------------------------------------------------------


@keys.command("create")
@click.option("--user", type=arguments.NEW_USER, required=True, help="The user of the key.")
@click.option("--plan", type=arguments.PLAN, help="The plan of a new user.")
@click.option("--team", type=arguments.TEAM, help="The team of a new user.")
@click.option("--name", type=arguments.KEY_NAME, default="key", help="A name for the key.")
@click.option(
    "--expires", type=click.IntRange(1, 36_500), metavar="DAYS", help="Days until the key expires."
)
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=LIMIT_HELP)
@click.option("--model", "models", type=arguments.MODELS, multiple=True, help=MODEL_HELP)
def create_key(
    *,
    user: str,
    plan: str | None,
    team: str | None,
    name: str,
    expires: int | None,
    limits: tuple[tuple[str, str], ...],
    models: tuple[str, ...],
) -> None:
    """Create a key and print it, this one time.

    The first key turns accounts on: from then on every request needs a key.
    """
    expires_at = None if expires is None else datetime.now(UTC) + timedelta(days=expires)
    with output.reported_errors():
        accounts = current_services().accounts
        is_first = not accounts.any_key()
        known = accounts.user(user)
        own_plan = known.plan if known else plan or DEFAULT_PLAN
        try:
            made = accounts.create_key(
                user,
                plan=plan,
                default_plan=DEFAULT_PLAN,
                team=team,
                name=name,
                expires_at=expires_at,
                limits=own_limits.checked("key", limits, plan=own_plan),
                models=models,
            )
        except OtherPlanError as error:
            raise click.ClickException(
                f"{user} has the plan {error.plan}; no key was created, as all keys of a user have "
                "the user's plan. Leave --plan out, or change the plan first: "
                f"`chat plans set {user} {plan}`."
            ) from None
        except OtherTeamError as error:
            own = "no team" if error.team is None else f"the team {error.team}"
            raise click.ClickException(
                f"{user} has {own}; no key was created, as all keys of a user count toward the "
                "user's team. Leave --team out, or move the user first: "
                f"`chat users set-team {user} {team}`."
            ) from None
        except UnknownTeamError:
            raise click.ClickException(
                f"There is no team {team!r}; `chat teams create {team}` creates it."
            ) from None
    # The key alone on standard output, for scripts.
    click.echo(made.text)
    until = "without expiry" if expires_at is None else f"until {expires_at:%Y-%m-%d}"
    click.echo(f"Key {made.public_id} of {user}, {until}. It is shown only this once.", err=True)
    if is_first:
        click.echo("Accounts are on: every request now needs a key.", err=True)


@keys.command("list")
@click.option("--user", type=arguments.USER, help="Only keys of this user.")
def list_keys(user: str | None) -> None:
    """List keys, without their secrets."""
    name = None if user is None else name_of(user)
    with output.reported_errors():
        accounts = current_services().accounts
        found = [key for key in accounts.all_keys() if name in {None, key.user}]
        if not found and accounts.any_key():
            raise click.ClickException(
                f"There is no key of user {name!r}; `chat users list` lists the users."
            )
    if not found:
        click.echo("There are no keys yet; `chat keys create --user NAME` creates one.", err=True)
        return
    output.echo_table(HEADS, map(_row, found))


@keys.command()
@click.argument("key")
def revoke(key: str) -> None:
    """Revoke KEY: its public part, or the whole key."""
    public_id = public_id_of(key)
    with output.reported_errors():
        accounts = current_services().accounts
        before = accounts.find(public_id)
        revoked = accounts.revoke(public_id)
    if before is not None and (since := before[0].revoked_at) is not None:
        click.echo(f"Key {public_id} of {revoked.user} was already revoked on {since:%Y-%m-%d}.")
        return
    click.echo(f"Key {public_id} of {revoked.user} is revoked; all workers apply it within 5 s.")


@keys.command("set-models")
@click.argument("key")
@click.argument("models", type=arguments.MODELS, nargs=-1)
def set_models(key: str, models: tuple[str, ...]) -> None:
    """Allow KEY only MODELS, as in "gpt-5*"; without any, all.

    What its plan does not allow stays forbidden.
    """
    public_id = public_id_of(key)
    with output.reported_errors():
        current_services().accounts.set_models(public_id, models)
    allowed = ", ".join(models) or "all models of its plan"
    click.echo(f"Key {public_id} allows {allowed}; all workers apply it within 5 s.")


def _row(key: ApiKey) -> tuple[str, ...]:
    used = str(key.last_used_on) if key.last_used_on else "never"
    state = "; ".join(filter(None, (_state(key), own_limits.listed(key.limits), _models(key))))
    return key.public_id, key.user, key.name, f"{key.created_at:%Y-%m-%d}", used, state


def _models(key: ApiKey) -> str:
    return f"models {', '.join(key.models)}" if key.models else ""


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if expired else 'valid until'} {key.expires_at:%Y-%m-%d}"


# -- plans -------------------------------------------------------------------------------------


@plans.command("set")
@click.argument("user", type=arguments.USER)
@click.argument("plan", type=arguments.PLAN)
def set_plan(user: str, plan: str) -> None:
    """Change the plan of USER to PLAN; usage is kept."""
    user = name_of(user)
    with output.reported_errors():
        current_services().accounts.set_plan(user, plan)
    click.echo(f"{user} has the plan {plan}; all workers apply it within 5 s.")


@plans.command("list")
def list_plans() -> None:
    """List the plans of the policy, each with its users."""
    with output.reported_errors():
        found = current_services().accounts.users()
    defined = current_services().plans
    for plan in (*defined, *sorted({user.plan for user in found} - set(defined))):
        names = ", ".join(user.name for user in found if user.plan == plan)
        unknown = "" if plan in defined else " (not in the policy; its users get the default plan)"
        click.echo(f"{plan}{unknown}: {names or 'no users'}")


# -- users -------------------------------------------------------------------------------------


@users.command("list")
def list_users() -> None:
    """List the users with their plans, teams and own amounts."""
    with output.reported_errors():
        found = current_services().accounts.users()
    if not found:
        click.echo("There are no users yet; `chat keys create --user NAME` creates one.", err=True)
        return
    output.echo_table(
        ("USER", "PLAN", "TEAM", "LIMITS"),
        [
            (user.name, user.plan, user.team_name or "-", own_limits.listed(user.limits) or "-")
            for user in found
        ],
    )


@users.command("set-team")
@click.argument("user", type=arguments.USER)
@click.argument("team", type=arguments.TEAM)
def set_team(user: str, team: str) -> None:
    """Move USER to TEAM.

    Calls from then on count toward its budgets.
    """
    _move(user, team)
    click.echo(f"{name_of(user)} has the team {team}; all workers apply it within 5 s.")


@users.command("clear-team")
@click.argument("user", type=arguments.USER)
def clear_team(user: str) -> None:
    """Remove USER from their team."""
    _move(user, None)
    click.echo(f"{name_of(user)} has no team; all workers apply it within 5 s.")


def _move(user: str, team: str | None) -> None:
    with output.reported_errors():
        current_services().accounts.set_team(name_of(user), team)


# -- teams -------------------------------------------------------------------------------------


@teams.command("create")
@click.argument("name", metavar="TEAM", type=arguments.TEAM)
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=LIMIT_HELP)
def create_team(name: str, limits: tuple[tuple[str, str], ...]) -> None:
    """Create TEAM, without members."""
    with output.reported_errors():
        amounts = own_limits.checked("team", limits, plan=None)
        try:
            current_services().accounts.create_team(name, limits=amounts)
        except ExistingTeamError:
            raise click.ClickException(
                f"There is a team {name!r} already; `chat teams set-limit` changes its budgets."
            ) from None
    with_what = f"with {own_limits.listed(amounts)}" if amounts else "without budgets"
    click.echo(f"Team {name} is created {with_what}.")


@teams.command("list")
def list_teams() -> None:
    """List the teams with their budgets and members."""
    with output.reported_errors():
        accounts = current_services().accounts
        found, everyone = accounts.teams(), accounts.users()
    if not found:
        click.echo("There are no teams yet; `chat teams create NAME` creates one.", err=True)
        return
    members = {
        team.name: [user.name for user in everyone if user.team_name == team.name] for team in found
    }
    output.echo_table(
        ("TEAM", "LIMITS", "USERS"),
        [
            (team.name, own_limits.listed(team.limits) or "-", ", ".join(members[team.name]) or "-")
            for team in found
        ],
    )
