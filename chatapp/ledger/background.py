"""The ledger that the application has: a writer in each worker, ended with its process."""

from __future__ import annotations

import atexit
from datetime import timedelta
from functools import partial

from chatapp.database.connection import Database
from chatapp.ledger import rows
from chatapp.ledger.call import Call
from chatapp.ledger.retention import Retention
from chatapp.ledger.writer import Writer
from chatapp.per_process import PerProcess


class BackgroundLedger:
    """Keeps calls in a database, without anybody waiting for it."""

    def __init__(self, database: Database, *, keep: timedelta | None = None) -> None:
        """``keep`` is how long a call stays in the ledger; ``None``: for ever."""
        self._database = database
        self._keep = keep
        self._writer = PerProcess(self._started)

    def begin(self, call: Call) -> None:
        """A row with the estimates; it stays as it is if the worker dies."""
        self._writer.get().put(call)

    def finish(self, call: Call) -> None:
        """The same row with what became of the call."""
        self._writer.get().put(call)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until this process has written all it was told; whether it has."""
        return self._writer.get().flush(timeout_s)

    def _started(self) -> Writer:
        writer = Writer(partial(rows.write, self._database))
        atexit.register(writer.close)
        if self._keep is not None:
            atexit.register(Retention(self._database, keep=self._keep).close)
        return writer
