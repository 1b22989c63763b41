"""`chat db`: the schema."""

from __future__ import annotations

import click
from flask.cli import AppGroup

from chatapp.cli import errors
from chatapp.database import migration
from chatapp.services import current_services

db = AppGroup("db", help="The database of accounts and ledger.")


@db.command()
def upgrade() -> None:
    """Bring the schema to this version's; it may be run any number of times."""
    with errors.reported():
        changed = migration.upgrade(current_services().database)
    state = "is now at" if changed else "was already at"
    click.echo(f"The schema {state} {migration.HEAD}.")
