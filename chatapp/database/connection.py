"""The connection to the database: one engine in each process, made after the fork."""

from __future__ import annotations

import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from chatapp.per_process import PerProcess

# How long a writer waits for another process's transaction on SQLite, in milliseconds.
BUSY_TIMEOUT_MS: Final = 5_000
# How long connecting to a server may take, and how long a thread waits for a free connection.
CONNECT_TIMEOUT_S: Final = 3


class DatabaseUrlError(ValueError):
    """The URL of the database is invalid; the message says why, without the password."""


class Database:
    """A database by its URL: SQLite in a file, or PostgreSQL.

    Nothing is opened before the first query of a process, so that no connection crosses a fork.
    """

    def __init__(self, url: str) -> None:
        self.url = _url(url)
        self._engine = PerProcess(self._create_engine)
        self._writers = PerProcess(self._create_writers)
        self._alone = PerProcess(lambda: defaultdict[str, threading.Lock](threading.Lock))

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)!r})"

    @property
    def file(self) -> Path | None:
        return Path(self.url.database or "") if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def insert(self) -> Callable[[Table], Any]:
        """The dialect's INSERT, which has ON CONFLICT. Only this dialect is imported."""
        dialect = import_module(f"sqlalchemy.dialects.{self.url.get_backend_name()}")
        return cast(Callable[[Table], Any], dialect.insert)

    def reading(self) -> Connection:
        return self._engine.get().connect()

    def writing(self, *, autocommit: bool = False) -> AbstractContextManager[Connection]:
        """A transaction that writes; committed at the end, rolled back by an exception.

        ``autocommit``: SQLite commits each statement. Between two of a transaction, a thread would
        hold SQLite's lock while it waits for Python's, for seconds beside a thousand streams.
        """
        return self._writers.get()[autocommit].begin()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Let one thread of all processes at a time in, for each name: by a file beside SQLite's,
        or an advisory lock of the server. It is free when its holder dies."""
        if self.file is None:
            # Those who wait for the server have a connection each, and calls would get none.
            with self._alone.get()[name], self.writing() as connection:
                lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
                connection.execute(lock, {"name": name})
                yield
            return
        file = self.file.with_name(f"{self.file.name}.{name}")
        create_private(file)
        with file.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Close this process's idle connections."""
        self._engine.get().dispose()

    def _create_writers(self) -> tuple[Engine, Engine]:
        """Return what commits all at once, and each statement; both keep their events looked up."""
        engine = self._engine.get()
        return engine.execution_options(begin="BEGIN IMMEDIATE"), engine.execution_options(begin="")

    def _create_engine(self) -> Engine:
        if self.file is None:
            engine = create_engine(
                self.url,
                hide_parameters=True,  # no values in logged errors
                pool_pre_ping=True,  # a restarted server does not fail the next query
                pool_timeout=CONNECT_TIMEOUT_S,
                # Days by UTC, whatever the server's time zone.
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": "-c timezone=UTC"},
            )
            event.listen(engine, "before_cursor_execute", _replace_nul, retval=True)
            return engine
        create_private(self.file)
        engine = create_engine(
            self.url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine


def create_private(file: Path) -> None:
    """Create the file and its directory, readable by this user only, unless they exist.

    SQLite gives its journals the permissions of the file.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _url(text: str) -> URL:
    try:
        # Hosting providers still use this scheme, and SQLAlchemy no longer accepts it.
        url = make_url(text.replace("postgres://", "postgresql://", 1))
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() not in {"sqlite", "postgresql"}:
            raise DatabaseUrlError(
                f"{url.get_backend_name()!r} is unsupported; use sqlite or postgresql"
            )
        url.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError) as error:
        raise DatabaseUrlError("not the URL of a database") from error
    except ImportError as error:
        raise DatabaseUrlError(f'{error}; pip install "psycopg[binary]"') from error
    if url.get_backend_name() == "sqlite" and not url.database:
        raise DatabaseUrlError("a SQLite database needs a file, as sqlite:////var/lib/chat.db")
    if url.get_backend_name() == "sqlite" and url.database == ":memory:":
        raise DatabaseUrlError("a database in memory is not shared by the workers; name a file")
    return url


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # otherwise sqlite3 begins transactions by its own rules
    connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait
    connection.execute("PRAGMA synchronous = NORMAL")  # safe in WAL: a power cut loses some rows
    connection.execute("PRAGMA foreign_keys = ON")


def _replace_nul(_: Any, _cursor: Any, statement: str, values: Any, *_more: Any) -> tuple[str, Any]:
    """PostgreSQL has no NUL in texts. Callers can send one: an id with it is unknown, no error."""
    return statement, _without_nul(values)


def _without_nul(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [*map(_without_nul, value)]
    if isinstance(value, dict):
        return {name: _without_nul(each) for name, each in value.items()}
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _begin_sqlite(connection: Connection) -> None:
    """Lock for writing at once: a transaction that has read first would fail instead of waiting."""
    if begin := connection.get_execution_options().get("begin", "BEGIN"):
        connection.exec_driver_sql(begin)
