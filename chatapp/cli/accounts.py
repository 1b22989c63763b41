"""`chat keys` and `chat plans`: API keys, and the plans of users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import (
    ApiKey,
    OtherPlanError,
    OtherTeamError,
    UnknownKeyError,
    UnknownTeamError,
    UnknownUserError,
)
from chatapp.cli import arguments, errors, own_limits, users
from chatapp.cli.table import echo_table
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN

MODELS_HELP = 'Only such models, as "gpt-5*"; may be repeated.'
HEADS = ("ID", "USER", "NAME", "CREATED", "LAST USED", "STATE")

keys = AppGroup("keys", help="Create, list, change and revoke API keys.")
own_limits.add_commands(keys, "key")
plans = AppGroup("plans", help="List and change users' plans.")


@keys.command()
@click.option("--user", type=arguments.NEW_USER, required=True, help="The user of the key.")
@click.option("--plan", type=arguments.PLAN, help="The plan of a new user.")
@click.option("--team", type=arguments.TEAM, help="The team of a new user.")
@click.option("--name", type=arguments.KEY_NAME, default="key", help="A name for the key.")
@click.option("--expires", type=click.IntRange(1, 36_500), help="Days until the key expires.")
@click.option("--limit", "limits", type=arguments.OWN_LIMIT, multiple=True, help=arguments.LIMITS)
@click.option("--model", "models", type=arguments.MODELS, multiple=True, help=MODELS_HELP)
def create(
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
    with errors.reported():
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
    name = None if user is None else users.name_of(user)
    with errors.reported():
        accounts = current_services().accounts
        found = [key for key in accounts.all_keys() if name in {None, key.user}]
        if not found and accounts.any_key():
            raise click.ClickException(
                f"There is no key of user {name!r}; `chat plans list` lists the users."
            )
    if not found:
        click.echo("There are no keys yet; `chat keys create --user NAME` creates one.", err=True)
        return
    echo_table(HEADS, map(_row, found))


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke a key; KEY_ID is its public part, or the whole key."""
    public_id = public_id_of(key_id)
    with errors.reported():
        accounts = current_services().accounts
        before = accounts.find(public_id)
        try:
            key = accounts.revoke(public_id)
        except UnknownKeyError:
            raise _unknown_key(public_id) from None
    if before is not None and (since := before[0].revoked_at) is not None:
        click.echo(f"Key {key.public_id} of {key.user} was already revoked on {since:%Y-%m-%d}.")
        return
    click.echo(f"Key {key.public_id} of {key.user} is revoked; all workers apply it within 5 s.")


@keys.command("set-models")
@click.argument("key_id")
@click.argument("models", type=arguments.MODELS, nargs=-1)
def set_models(key_id: str, models: tuple[str, ...]) -> None:
    """Of the models of its plan, allow a key only MODELS, such as "gpt-5*"; without any, all."""
    public_id = public_id_of(key_id)
    with errors.reported():
        try:
            current_services().accounts.set_models(public_id, models)
        except UnknownKeyError:
            raise _unknown_key(public_id) from None
    allowed = ", ".join(models) or "all models of its plan"
    click.echo(f"Key {public_id} allows {allowed}; all workers apply it within 5 s.")


@plans.command("set")
@click.argument("user", type=arguments.USER)
@click.argument("plan", type=arguments.PLAN)
def set_plan(user: str, plan: str) -> None:
    """Change the plan of USER to PLAN; usage is kept."""
    user = users.name_of(user)
    with errors.reported():
        try:
            current_services().accounts.set_plan(user, plan)
        except UnknownUserError:
            raise click.ClickException(
                f"There is no user {user!r}; `chat keys create --user` creates one."
            ) from None
    click.echo(f"{user} has the plan {plan}; all workers apply it within 5 s.")


@plans.command("list")
def list_plans() -> None:
    """List the plans of the policy, each with its users."""
    with errors.reported():
        found = current_services().accounts.users()
    defined = current_services().plans
    for plan in (*defined, *sorted({user.plan for user in found} - set(defined))):
        names = ", ".join(user.name for user in found if user.plan == plan)
        unknown = "" if plan in defined else " (not in the policy; its users get the default plan)"
        click.echo(f"{plan}{unknown}: {names or 'no users'}")


def _row(key: ApiKey) -> tuple[str, ...]:
    used = str(key.last_used_on) if key.last_used_on else "never"
    state = "; ".join(filter(None, (_state(key), own_limits.listed(key.limits), _models(key))))
    return key.public_id, key.user, key.name, f"{key.created_at:%Y-%m-%d}", used, state


def _models(key: ApiKey) -> str:
    return f"models {', '.join(key.models)}" if key.models else ""


def _unknown_key(public_id: str) -> click.ClickException:
    return click.ClickException(
        f"There is no key {public_id[:16]}; `chat keys list` lists the keys."
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if expired else 'valid until'} {key.expires_at:%Y-%m-%d}"
