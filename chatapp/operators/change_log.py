"""What operators change, kept in the database: the limits' storage keeps the latest alone, and may
lose them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from sqlalchemy import Column, Double, Integer, String, Table, Text, insert, select
from sqlalchemy.exc import SQLAlchemyError

from chatapp.database import METADATA
from chatapp.database.connection import Database
from ratelimit_ext import LogEntry

log = logging.getLogger(__name__)

#: How many are read at once, the newest ones.
MOST: Final = 10_000

CHANGES: Final = Table(
    "changes",
    METADATA,
    Column("id", Integer, primary_key=True),
    # In seconds since 1970, to the digit as in the storage.
    Column("at", Double, nullable=False, index=True),
    Column("until", Double),
    Column("action", String(64), nullable=False),
    Column("identity", Text, nullable=False),
    Column("limit", Text, nullable=False),
    Column("amount", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", Text, nullable=False),
)


class DatabaseChangeLog:
    """See `ratelimit_ext.ChangeLog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, entry: LogEntry) -> None:
        """Keep the entry; a failure is only logged, because the change is made."""
        try:
            with self._database.writing() as connection:
                connection.execute(insert(CHANGES).values(asdict(entry)))
        except (SQLAlchemyError, OSError) as error:
            log.warning("%s is not in the database: %s", entry, error)

    def read(self, since: float) -> Iterable[LogEntry]:
        columns = [column for column in CHANGES.c if column.name != "id"]
        query = select(*columns).where(CHANGES.c.at >= since)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(CHANGES.c.at.desc()).limit(MOST)).mappings()
            return [LogEntry(**row) for row in rows]
