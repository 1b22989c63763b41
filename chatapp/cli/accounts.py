"""`chat keys`: make, list and revoke API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import OtherPlanError, UnknownKeyError
from chatapp.accounts.tables import ApiKey
from chatapp.cli import arguments, errors, users
from chatapp.services import current_services
from chatapp.web.identities import DEFAULT_PLAN

HEADS = ("ID", "USER", "NAME", "MADE", "LAST USED", "STATE")

keys = AppGroup("keys", help="Make, list and revoke API keys.")


@keys.command()
@click.option("--user", type=arguments.NEW_USER, required=True, help="Who the key is for.")
@click.option("--plan", type=arguments.PLAN, help="The plan of a user who is new.")
@click.option("--name", type=arguments.KEY_NAME, default="key", help="What the key is for.")
@click.option("--expires", type=click.IntRange(1, 36_500), help="Days that the key is good for.")
def create(user: str, plan: str | None, name: str, expires: int | None) -> None:
    """Make a key, and print it: now, and never again.

    The first key turns accounts on: from then on every request needs one.
    """
    expires_at = None if expires is None else datetime.now(UTC) + timedelta(days=expires)
    with errors.reported():
        accounts = current_services().accounts
        is_first = not accounts.any_key()
        try:
            made = accounts.create_key(
                user, plan=plan, default_plan=DEFAULT_PLAN, name=name, expires_at=expires_at
            )
        except OtherPlanError as error:
            raise click.ClickException(
                f"{user} has the plan {error.plan}, and no key was made: a plan is the user's, "
                f"and all keys have it. Leave --plan out to make one with {error.plan}, or first "
                f"change it for all of them: `chat plans set {user} {plan}`."
            ) from None
    # The key alone on standard output, so that a script can take it from there.
    click.echo(made.text)
    until = "without expiry" if expires_at is None else f"until {expires_at:%Y-%m-%d}"
    click.echo(f"Key {made.public_id} of {user}, {until}. It is shown only this once.", err=True)
    if is_first:
        click.echo("Accounts are on: every request needs a key now.", err=True)


@keys.command("list")
@click.option("--user", type=arguments.USER, help="Only this user's.")
def list_(user: str | None) -> None:
    """List keys, without their secrets."""
    name = None if user is None else users.name_of(user)
    with errors.reported():
        accounts = current_services().accounts
        found = [key for key in accounts.all_keys() if name in {None, key.user}]
        if not found and accounts.any_key():
            raise click.ClickException(
                f"There is no key of a user {name!r}; `chat plans list` names the users."
            )
    if not found:
        click.echo("There are no keys yet; `chat keys create --user NAME` makes one.", err=True)
        return
    rows = [HEADS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@keys.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """End a key; KEY_ID is its public part, or the whole key."""
    public_id = public_id_of(key_id)
    with errors.reported():
        accounts = current_services().accounts
        before = accounts.find(public_id)
        try:
            key = accounts.revoke(public_id)
        except UnknownKeyError:
            raise click.ClickException(
                f"There is no key {public_id[:16]}; `chat keys list` shows them."
            ) from None
    if before is not None and (since := before[0].revoked_at) is not None:
        click.echo(f"Key {key.public_id} of {key.user} was revoked already, on {since:%Y-%m-%d}.")
        return
    click.echo(f"Key {key.public_id} of {key.user} is revoked; all workers know within 5 s.")


def _row(key: ApiKey) -> tuple[str, ...]:
    used = str(key.last_used_on) if key.last_used_on else "never"
    return key.public_id, key.user, key.name, f"{key.created_at:%Y-%m-%d}", used, _state(key)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if expired else 'valid until'} {key.expires_at:%Y-%m-%d}"
