"""The schema's version, and the way to the newest one.

Alembic is imported only where there is something to do: its import is a tenth of a worker's start.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from chatapp.database.connection import Database, create_private

log = logging.getLogger(__name__)

COMMAND: Final = "flask --app wsgi chat db upgrade"
# The newest revision under chatapp/migrations/versions (a test compares them).
HEAD: Final = "0003"
MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"
# PostgreSQL's lock for it: any number that nobody else uses.
ADVISORY_LOCK: Final = 0x63686174617070


class UnknownSchemaError(SQLAlchemyError):
    """The database has a schema that this version has never heard of: a newer one made it."""


def revision(database: Database) -> str | None:
    """The version of the schema as it is; None where there is none yet."""
    with database.reading() as connection:
        return _revision(connection)


def prepare(database: Database) -> None:
    """What a starting process does: bring SQLite to HEAD, and look whether a server is there.

    A server's schema is nobody's to change in passing; the log names the command that does it.
    """
    if database.is_sqlite:
        upgrade(database)
        return
    try:
        found = revision(database)
    except SQLAlchemyError as error:
        log.error("The database gives no answer: %s", error)
        return
    if found != HEAD:
        log.error(
            "The database has the schema %s, and this needs %s; run `%s`", found, HEAD, COMMAND
        )


def upgrade(database: Database) -> bool:
    """Bring the schema to HEAD; whether there was something to do.

    Any number of processes may do this at once: one does it, the others wait for that one.
    """
    if _is_ready(database):
        return False
    with _alone(database), database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        found = _revision(connection)
        if found == HEAD:
            return False
        _run(connection, found)
        return True


def _is_ready(database: Database) -> bool:
    """Whether there is nothing to do, seen without waiting for anybody."""
    if database.file is None or not database.file.exists() or not database.file.stat().st_size:
        return False
    try:
        return revision(database) == HEAD
    except OperationalError:
        return False  # somebody is making it at the moment


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def _run(connection: Connection, found: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - see the module's docstring
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, HEAD)
    except CommandError as error:
        raise UnknownSchemaError(
            f"the database has the schema {found}, and this version knows none after {HEAD}; "
            "run the version that made it, or name another database"
        ) from error


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Only one process at a time, where the database is a file.

    Beside the transaction, because several that turn a new file into a WAL database at once get
    an error instead of a turn. The system lets the lock go when its holder dies.
    """
    if database.file is None:
        yield
        return
    lock = database.file.with_name(f"{database.file.name}.migrating")
    create_private(lock)
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
