"""`chat admin-keys`: keys of operators, for /admin and the management API."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import click
from flask.cli import AppGroup

from chatapp.accounts.api_key import public_id_of
from chatapp.cli import arguments, output
from chatapp.cli.arguments import with_overlap
from chatapp.operators import admin_keys as known
from chatapp.services import current_services
from chatapp.settings import SCOPES
from ratelimit_ext.terminal import echo_json, with_json

EMPTY: Final = (
    "There are no keys of operators yet, only the server's token; "
    "`chat admin-keys create` creates one."
)

admin_keys = AppGroup("admin-keys", help="Create, list and revoke keys of operators.")


@admin_keys.command("create")
@click.argument("name", type=arguments.KEY_NAME)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    required=True,
    help="What it may do; may be repeated.",
)
@click.option("--team", type=arguments.TEAM, help="Only this team: for its administrator.")
@click.option("--expires", type=arguments.END, help="When it expires: 90d, 2026-11-27.")
@output.changes
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    team: str | None,
    expires: datetime | None,
    as_json: bool,
    **why: str,
) -> None:
    """Create a key of an operator and print it, this one time.

    NAME is what the log of changes has.
    """
    made = known.create(name, scopes, team=team, expires_at=expires, **why)
    if as_json:
        echo_json({"key": made.text, "id": made.public_id, "scopes": sorted(scopes), "team": team})
        return
    click.echo(made.text)
    click.echo(f"Key {made.public_id} of {name}. It is shown only this once.", err=True)


@admin_keys.command("list")
@with_json
def list_keys(*, as_json: bool) -> None:
    """List the keys of operators, without their secrets. The token of the server is not here."""
    rows = [list(known.as_json(each).values()) for each in current_services().admin_keys.all()]
    heads = ("ID", "NAME", "SCOPES", "TEAM", "CREATED", "EXPIRES", "REVOKED")
    output.echo_rows(rows, heads, as_json=as_json, empty=EMPTY)


@admin_keys.command()
@click.argument("key")
@output.changes
def revoke(key: str, *, as_json: bool, **why: str) -> None:
    """Revoke KEY: its public part, or the whole key. It opens nothing from then on."""
    public_id = public_id_of(key)
    revoked = known.revoke(public_id, **why)
    done = f"Key {public_id} of {revoked.name} is revoked."
    output.echo_done(done, as_json=as_json, id=public_id, name=revoked.name)


@admin_keys.command()
@click.argument("key")
@with_overlap
@output.changes
def rotate(key: str, overlap: timedelta, *, as_json: bool, **why: str) -> None:
    """Create a key like KEY and print it, this one time; KEY expires after the overlap."""
    public_id = public_id_of(key)
    made, old = known.rotate(public_id, overlap=overlap, **why)
    assert old.expires_at is not None
    end = old.expires_at.isoformat(timespec="seconds")
    if as_json:
        echo_json({"key": made.text, "id": made.public_id, "replaces": public_id, "expires": end})
        return
    click.echo(made.text)
    click.echo(f"Key {made.public_id} replaces {public_id}, which is valid until {end}.", err=True)
