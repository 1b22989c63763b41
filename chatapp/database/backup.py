"""Backups of a SQLite database, made and restored while workers use it.

SQLite copies between open databases under its own locks; a copy of the file alone would miss what
its journal holds.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from chatapp.database import migration
from chatapp.database.connection import Database, create_private

HEADER: Final = b"SQLite format 3\0"
SERVER: Final = (
    "PostgreSQL has commands of its own: `pg_dump --format=custom --file=FILE` makes a backup, "
    "`pg_restore --clean --if-exists` restores one. docs/operate/data.md has both."
)


class BackupError(ValueError):
    """The backup cannot be made or restored; the message says why."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a backup. ``latest_call`` is when its newest call began, by UTC."""

    schema: str
    users: int
    keys: int
    calls: int
    latest_call: str | None

    def __str__(self) -> str:
        until = f" until {self.latest_call} UTC" if self.latest_call else ""
        counts = (("user", self.users), ("key", self.keys), ("call", self.calls))
        users, keys, calls = (f"{n} {thing}{'s' * (n != 1)}" for thing, n in counts)
        return f"{users}, {keys} and {calls}{until}"


def backup(database: Database, to: Path) -> Contents:
    """Write the database to the file and check it. A former backup there is replaced only then."""
    source = _file_of(database)
    if to.is_dir():
        raise BackupError(f"{to} is a directory; name a file in it.")
    if to.exists() and (to.samefile(source) or not _is_sqlite(to)):
        raise BackupError(f"{to} is not a backup and would be lost; name another file.")
    if not to.parent.is_dir():
        raise BackupError(f"There is no directory {to.parent}.")
    part = to.with_name(f"{to.name}.part")
    part.unlink(missing_ok=True)
    try:
        create_private(part)
        _copy(source, part, alone=True)
        contents = contents_of(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(to)
    except OSError as error:
        raise BackupError(f"{to} cannot be written ({error.strerror}); name another.") from error
    finally:
        part.unlink(missing_ok=True)
    return contents


def restore(database: Database, backup_file: Path, *, without_keys: bool = False) -> Path:
    """Replace the whole database with the backup, and upgrade its schema; returns the file in which
    the former database is kept. BackupError for a backup without any key, which would turn accounts
    off, if there are keys now, unless ``without_keys``."""
    file = _file_of(database)
    if not backup_file.is_file() or backup_file.samefile(file):
        raise BackupError(f"{backup_file} is not a backup; name a file of `chat db backup`.")
    contents = contents_of(backup_file)
    if not without_keys and not contents.keys and contents_of(file).keys:
        raise BackupError(
            f"{backup_file} has no API keys: restoring it would let everyone in. Choose another "
            "backup, or pass --without-keys."
        )
    kept = file.with_name(f"{file.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    backup(database, kept)
    database.close()
    _copy(backup_file, file, alone=False)
    migration.upgrade(database)
    return kept


def contents_of(file: Path) -> Contents:
    """Check the file, and return what is in it. Raises BackupError."""
    try:
        with closing(_opened(file)) as connection:
            (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise BackupError(f"{file} is damaged: {state}")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            schema = str(row[0]) if row else "none"
            if not migration.OLDEST <= schema <= migration.HEAD:
                raise BackupError(f"{file} has {migration.unreadable(schema)}")
            users, keys, calls, latest = connection.execute(
                "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM api_keys), "
                "count(*), max(started_at) FROM calls"
            ).fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{file} is not a backup of chatapp: {error}") from error
    return Contents(schema, users, keys, calls, latest and latest[:19])


def _file_of(database: Database) -> Path:
    if database.file is None:
        raise BackupError(SERVER)
    return database.file


def _is_sqlite(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(HEADER)) in {HEADER, b""}


def _copy(source: Path, to: Path, *, alone: bool) -> None:
    """Copy a database in one step, which other processes' transactions do not interrupt.
    ``alone``: into one file, without a journal."""
    with closing(_opened(source)) as read, closing(sqlite3.connect(to)) as written:
        read.backup(written)
        if alone:
            written.execute("PRAGMA journal_mode = DELETE")


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
