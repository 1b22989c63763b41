"""The ledger that writes in the background: each process has a thread, which ends with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from chatapp.background import BackgroundSender, Patience
from chatapp.database.connection import Database
from chatapp.ledger.call import Call
from chatapp.ledger.retention import Retention
from chatapp.ledger.table import as_json, write
from chatapp.per_process import PerProcess

log = logging.getLogger(__name__)

BATCH: Final = 500
MOST_WAITING: Final = 10_000
#: Calls are written together; a crash loses at most the calls of this time.
LINGER_S: Final = 0.05
UNAVAILABLE: Final = (OperationalError, InterfaceError, PoolTimeoutError, OSError)
#: Drivers raise their own, too: sqlite3 an OverflowError for what has more than 63 bits.
IN_A_ROW: Final = (SQLAlchemyError, ArithmeticError, ValueError, TypeError)
LOST: Final = "The ledger could not be written; this call is only here: %s"

Write = Callable[[Sequence[Call]], None]
Writer = BackgroundSender[str, Call]


class BackgroundLedger:
    """Keeps calls in a database. No request waits for it.

    A call that cannot be written goes to the log as JSON, at ERROR. ``keep`` is how long a call
    stays in the ledger; ``None``: for ever. ``listeners`` are called with each call from its
    beginning to its end, ``readers`` with those that have been written; neither may wait.
    """

    def __init__(
        self,
        database: Database,
        *,
        keep: timedelta | None = None,
        listeners: Sequence[Callable[[Call], None]] = (),
        readers: Sequence[Callable[[Sequence[Call]], None]] = (),
    ) -> None:
        self._database = database
        self._listeners = listeners
        self._readers = readers
        self._writer = PerProcess(self._new_writer, close=Writer.close)
        self._retention = keep and PerProcess(
            partial(Retention, database, keep=keep), close=Retention.close
        )

    def begin(self, call: Call) -> None:
        """A row with the estimates; it stays as it is if the worker dies."""
        self._writer.get().put(call.id, call)
        for listener in self._listeners:
            listener(call)

    #: The same row with the outcome of the call.
    finish = begin

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until this process has written its calls; returns whether it has."""
        return self._writer.get().flush(timeout_s)

    def close(self) -> None:
        """As at the end of the process."""
        self._writer.close()
        if self._retention:
            self._retention.close()

    def _new_writer(self) -> Writer:
        if self._retention:
            self._retention.get()
        return new_writer(self._write)

    def _write(self, calls: Sequence[Call]) -> None:
        write(self._database, calls)
        for read in self._readers:
            read(calls)


def new_writer(
    write: Write,
    *,
    most: int = MOST_WAITING,
    linger_s: float = LINGER_S,
    patience: Patience | None = None,
) -> Writer:
    def send(calls: Mapping[str, Call]) -> bool:
        return _written(write, list(calls.values()))

    return BackgroundSender(
        "ledger",
        send,
        merge=lambda _begun, finished: finished,
        lose=_lose,
        batch=BATCH,
        most=most,
        linger_s=linger_s,
        patience=patience or Patience(),
    )


def _written(write: Write, calls: Sequence[Call]) -> bool:
    """Write the calls; returns False if the database is unavailable."""
    try:
        write(calls)
    except UNAVAILABLE as error:
        log.warning("The ledger's database is unavailable; %d calls wait: %s", len(calls), error)
        return False
    except IN_A_ROW as error:
        if len(calls) > 1:  # write the others
            written = [_written(write, [call]) for call in calls]
            return all(written)
        log.error("The ledger's database refuses a call: %s", error)
        _lose(calls[0].id, calls[0])
    return True


def _lose(_id: str, call: Call) -> None:
    log.error(LOST, as_json(call))
