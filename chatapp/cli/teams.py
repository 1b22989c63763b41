"""`chat teams` and `chat users`: teams with shared budgets, and their members."""

from __future__ import annotations

import click
from flask.cli import AppGroup

from chatapp.accounts.store import ExistingTeamError, UnknownTeamError, UnknownUserError
from chatapp.cli import arguments, errors, own_limits
from chatapp.cli import users as names
from chatapp.cli.table import echo_table
from chatapp.services import current_services

teams = AppGroup("teams", help="Teams, whose members share budgets.")
users = AppGroup("users", help="Users, their teams, and amounts of their own.")
own_limits.add_commands(teams, "team")
own_limits.add_commands(users, "user")


@teams.command()
@click.argument("name", type=arguments.TEAM)
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=arguments.LIMITS)
def create(name: str, limits: tuple[tuple[str, str], ...]) -> None:
    """Create a team without members."""
    with errors.reported():
        amounts = own_limits.checked("team", limits, plan=None)
        try:
            current_services().accounts.create_team(name, limits=amounts)
        except ExistingTeamError:
            raise click.ClickException(
                f"There is a team {name!r} already; `chat teams set-limit` changes its budgets."
            ) from None
    with_what = f"with {own_limits.listed(amounts)}" if amounts else "without budgets"
    click.echo(f"Team {name}, {with_what}.")


@teams.command("list")
def list_teams() -> None:
    """List the teams with their budgets and members."""
    with errors.reported():
        accounts = current_services().accounts
        found, everyone = accounts.teams(), accounts.users()
    if not found:
        click.echo("There are no teams yet; `chat teams create NAME` creates one.", err=True)
        return
    members = {
        team.name: [user.name for user in everyone if user.team_name == team.name] for team in found
    }
    echo_table(
        ("TEAM", "LIMITS", "USERS"),
        [
            (team.name, own_limits.listed(team.limits) or "-", ", ".join(members[team.name]) or "-")
            for team in found
        ],
    )


@users.command("list")
def list_users() -> None:
    """List the users with their plans, teams and own amounts."""
    with errors.reported():
        found = current_services().accounts.users()
    if not found:
        click.echo("There are no users yet; `chat keys create --user NAME` creates one.", err=True)
        return
    echo_table(
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
    """Move USER to TEAM; calls from then on count toward its budgets."""
    _move(user, team)
    click.echo(f"{names.name_of(user)} has the team {team}; all workers apply it within 5 s.")


@users.command("clear-team")
@click.argument("user", type=arguments.USER)
def clear_team(user: str) -> None:
    """Remove USER from their team."""
    _move(user, None)
    click.echo(f"{names.name_of(user)} has no team; all workers apply it within 5 s.")


def _move(user: str, team: str | None) -> None:
    name = names.name_of(user)
    with errors.reported():
        try:
            current_services().accounts.set_team(name, team)
        except UnknownTeamError:
            raise click.ClickException(
                f"There is no team {team!r}; `chat teams list` lists the teams."
            ) from None
        except UnknownUserError:
            raise click.ClickException(
                f"There is no user {name!r}; `chat users list` lists the users."
            ) from None
