"""How long rows stay in the database. Older ones are deleted in small batches, by a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from sqlalchemy import Column, Table, delete, select, text
from sqlalchemy.exc import SQLAlchemyError

from chatapp.database.connection import Database
from chatapp.ledger.table import CALLS

log = logging.getLogger(__name__)

#: Budgets and audits read this month and the last.
LEAST_DAYS: Final = 62
#: Rows deleted in one transaction. The ledger's writers wait for it: some milliseconds.
BATCH: Final = 500
PAUSE_S: Final = 0.05
EVERY_S: Final = 3600.0


def prune(
    database: Database,
    *,
    before: datetime,
    began_at: Column[datetime] = CALLS.c.started_at,
    pause: Callable[[float], object] = time.sleep,
) -> int:
    """Delete the rows that began before then, by that column; returns their number. ``pause`` is
    called between batches; if it returns a true value, the rest stays."""
    deleted, table = 0, began_at.table
    assert isinstance(table, Table)
    oldest = select(table.c.id).where(began_at < before).order_by(began_at).limit(BATCH)
    batch = delete(table).where(table.c.id.in_(oldest.scalar_subquery()))
    while True:
        with database.writing() as connection:
            if not database.is_sqlite and not connection.scalar(
                text("SELECT pg_try_advisory_xact_lock(hashtextextended('retention', 0))")
            ):
                return deleted  # another process is deleting
            rows = connection.execute(batch).rowcount
        deleted += rows
        if rows < BATCH or pause(PAUSE_S):
            return deleted


class Retention:
    """A thread that prunes a table every hour, in each process that writes to it."""

    def __init__(
        self,
        database: Database,
        *,
        keep: timedelta,
        began_at: Column[datetime] = CALLS.c.started_at,
        every_s: float = EVERY_S,
    ) -> None:
        self._keep = keep
        self._began_at = began_at
        self._every_s = every_s
        self._ending = threading.Event()
        self._prune = partial(prune, database, began_at=began_at, pause=self._ending.wait)
        self._thread = threading.Thread(target=self._run, name="ledger-retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the current batch."""
        self._ending.set()
        self._thread.join(1)

    def _run(self) -> None:
        while True:
            try:
                deleted = self._prune(before=datetime.now(UTC) - self._keep)
            except (SQLAlchemyError, OSError) as error:
                log.warning("%s could not be pruned: %s", self._began_at.table, error)
            except Exception:  # a thread that ends would delete nothing any more
                log.exception("%s could not be pruned", self._began_at.table)
            else:
                if deleted:
                    what = self._began_at.table, self._keep.days
                    log.info("Deleted %d rows of %s older than %d days", deleted, *what)
            if self._ending.wait(self._every_s):
                return
