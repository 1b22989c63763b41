"""The version of the schema, and its upgrade.

Alembic is imported only for an upgrade: the import takes a tenth of a worker's start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from chatapp.database import METADATA
from chatapp.database.connection import Database

log = logging.getLogger(__name__)

COMMAND: Final = "flask --app wsgi chat db upgrade"
# The newest revision under chatapp/migrations/versions (a test compares them).
HEAD: Final = "0017"
# The oldest one that is upgraded.
OLDEST: Final[str] = "0013"
MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"


class UnknownSchemaError(SQLAlchemyError):
    """The schema is unknown to this version: it is newer than HEAD, or older than OLDEST."""


def revision(database: Database) -> str | None:
    """Return the version of the schema; None for an empty database."""
    with database.reading() as connection:
        return _revision(connection)


def unreadable(schema: str) -> str:
    """Say of a schema that this version cannot read it, and what to do."""
    schemas = " to ".join(sorted({OLDEST, HEAD}))
    to_do = (
        "Upgrade it with an earlier version first, as CHANGELOG.md says"
        if schema < OLDEST
        else "Use the version that made it"
    )
    return f"schema {schema}; this version reads {schemas}. {to_do}, or use another database."


def prepare(database: Database) -> None:
    """At a start: upgrade SQLite, or check the schema of a server.

    A start never upgrades a server's schema; the log names the command that does.
    """
    if database.is_sqlite:
        upgrade(database)
        return
    try:
        if (schema := revision(database)) != HEAD:
            says = "The database has schema %s, but this version needs %s; run `%s`"
            log.error(says, schema, HEAD, COMMAND)
    except SQLAlchemyError as error:
        log.error("The database is unavailable: %s", error)


def upgrade(database: Database) -> bool:
    """Upgrade the schema to HEAD; returns whether it changed.

    May run in several processes at once: one upgrades, the others wait.
    """
    if _is_ready(database):
        return False
    # SQLite's transaction is not enough: two processes at once cannot turn a file into a WAL one.
    with database.alone("migrating"), database.writing() as connection:
        schema = _revision(connection)
        if schema == HEAD:
            return False
        _run(connection, schema)
        return True


def _is_ready(database: Database) -> bool:
    """Return whether the file is at HEAD, checked without waiting for a lock."""
    if database.file is None or not database.file.exists() or not database.file.stat().st_size:
        return False
    try:
        return revision(database) == HEAD
    except OperationalError:
        return False  # another process is creating it


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    schema = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if schema is None else str(schema)


def _run(connection: Connection, schema: str | None) -> None:
    """Upgrade that schema, or make the newest one in an empty database."""
    from alembic import command, config, util  # noqa: PLC0415 - see the module's docstring

    settings = config.Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    if schema is None:  # the package has imported all tables
        METADATA.create_all(connection, checkfirst=False)
        command.stamp(settings, HEAD)
        return
    try:
        command.upgrade(settings, HEAD)
    except util.CommandError as error:
        raise UnknownSchemaError(f"the database has {unreadable(str(schema))}") from error
