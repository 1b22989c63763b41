"""The files of a host. A killed process loses its descriptors, and with them its locks and the
transactions that it had begun; what it has written stays."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.simulator.scheduler import Scheduler, instead_of

#: How long a busy machine may stop a process in the middle of a write, in seconds.
STALLS_S = (0.0, 0.3, 4.0)


class Descriptors:
    """What one process has open. Nothing is opened, written or closed after its end."""

    def __init__(self) -> None:
        self.numbers = set[int]()
        self.databases = list[sqlite3.Connection]()
        self.is_over = False

    def close(self) -> None:
        self.is_over = True
        for number in self.numbers:
            _close(number)
        self.numbers.clear()
        for database in self.databases:
            with suppress(sqlite3.Error):
                database.close()  # which rolls back


_open, _close, _write, _connect = os.open, os.close, os.pwrite, sqlite3.connect


class Files:
    """``at_write`` is called where a process may be stopped or killed: before it writes."""

    def __init__(self, scheduler: Scheduler, at_write: Callable[[], object]) -> None:
        self.scheduler = scheduler
        self.at_write = at_write

    def _descriptors(self) -> Descriptors | None:
        own: Descriptors | None = getattr(self.scheduler.owner, "descriptors", None)
        if own is not None and own.is_over:
            raise OSError(errno.EBADF, "the process has ended")
        if own is None and self.scheduler.is_over:
            raise OSError(errno.EBADF, "the run is over")
        return own

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        own = self._descriptors()
        number = _open(path, flags, mode, **more)
        if own is not None:
            own.numbers.add(number)
        return number

    def close(self, number: int) -> None:
        own = self._descriptors()
        if own is not None and number not in own.numbers:
            raise OSError(errno.EBADF, "not open")
        _close(number)
        if own is not None:
            own.numbers.discard(number)

    def write(self, number: int, data: bytes, offset: int) -> int:
        if self._descriptors() is not None:
            self.at_write()
        return _write(number, data, offset)

    def connect(self, name: str, **how: Any) -> Any:
        own = self._descriptors()
        database = _connect(name, **{**how, "timeout": 0.0})
        if own is None:
            return database
        own.databases.append(database)
        return Database(self, database, shared=name != ":memory:")

    @contextmanager
    def instead_of_the_systems(self) -> Iterator[None]:
        new = {(os, "open"): self.open, (os, "close"): self.close, (os, "pwrite"): self.write}
        new[sqlite3, "connect"] = self.connect
        names = itertools.count()
        new[secrets, "token_hex"] = lambda size: f"{next(names):0{2 * size}x}"
        with instead_of(new):
            yield


class Database:
    """A connection of a process, which may be stopped or killed where a transaction ends."""

    def __init__(self, files: Files, database: sqlite3.Connection, *, shared: bool) -> None:
        self._files = files
        self._database = database
        self._is_shared = shared

    def execute(self, statement: str, words: Any = ()) -> Any:
        if self._is_shared and statement == "COMMIT":
            self._files.at_write()
        result = self._run(lambda: self._database.execute(statement, words))
        if self._is_shared and statement == "COMMIT":
            self._files.at_write()
        return result

    def executemany(self, statement: str, rows: Any) -> Any:
        return self._run(lambda: self._database.executemany(statement, rows))

    def executescript(self, script: str) -> Any:
        return self._run(lambda: self._database.executescript(script))

    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    def close(self) -> None:
        self._database.close()

    def _run(self, call: Callable[[], Any]) -> Any:
        self._files._descriptors()
        return call()
