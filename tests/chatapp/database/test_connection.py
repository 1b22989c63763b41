"""The way to the database."""

import os
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chatapp.database import Instant
from chatapp.database.connection import Database, DatabaseUrlError

SECRET = "swordfish"
BAD_URLS = {
    "chat.db": "not the URL",
    "sqlite://": "needs a file",
    "sqlite:///:memory:": "not shared",
    "mysql://chat@localhost/chat": "unsupported",
    f"nonsense://chat:{SECRET}@localhost/chat": "unsupported",
    f"postgresql+nodriver://chat:{SECRET}@localhost/chat": "not the URL",
}


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    """At once, with the reason and without the password."""
    with pytest.raises(DatabaseUrlError, match=BAD_URLS[url]) as caught:
        Database(url)
    assert SECRET not in str(caught.value)


def test_a_database_prints_without_its_password() -> None:
    """Tracebacks do not show the password."""
    pytest.importorskip("psycopg")
    database = Database(f"postgres://chat:{SECRET}@localhost/chat")
    assert SECRET not in repr(database)
    assert database.url.drivername == "postgresql+psycopg"


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The file, its directory and SQLite's journals, whatever the umask."""
    old = os.umask(0)
    try:
        database = Database(f"sqlite:///{tmp_path / 'new' / 'chat.db'}")
        with database.writing() as connection:
            connection.execute(text("CREATE TABLE t (a)"))
            files = sorted((tmp_path / "new").iterdir())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        database.close()
    finally:
        os.umask(old)
    assert modes == {"chat.db": 0o600, "chat.db-shm": 0o600, "chat.db-wal": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_transaction_is_whole_or_not_at_all(database: Database) -> None:
    """A failed transaction changes nothing, including DDL."""
    with suppress(ZeroDivisionError), database.writing() as connection:
        connection.execute(text("CREATE TABLE half (a INTEGER)"))
        connection.execute(text("INSERT INTO half VALUES (1)"))
        _ = 1 / 0
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE half (a INTEGER)"))
        assert connection.scalar(text("SELECT count(*) FROM half")) == 0
        connection.execute(text("DROP TABLE half"))


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """A long transaction does not delay a request."""
    with database.writing() as writer:
        writer.execute(text("DELETE FROM calls"))
        with database.reading() as reader:
            assert reader.scalar(text("SELECT count(*) FROM calls")) == 0


def test_writers_take_turns(database: Database) -> None:
    """A writer that reads first sees the last commit, and does not fail."""
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE tally (number INTEGER)"))
        connection.execute(text("INSERT INTO tally VALUES (0)"))
    entered = [threading.Event(), threading.Event()]
    failures: list[Exception] = []

    def count(turn: int) -> None:
        try:
            with database.writing() as connection:
                if database.is_sqlite:
                    number = connection.scalar(text("SELECT number FROM tally"))
                else:
                    number = connection.scalar(text("SELECT number FROM tally FOR UPDATE"))
                entered[turn].set()
                entered[1].wait(0.3)  # the other, who comes in only if turns are not kept
                connection.execute(text("UPDATE tally SET number = :n"), {"n": number + 1})
        except SQLAlchemyError as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(turn,)) for turn in (0, 1)]
    threads[0].start()
    assert entered[0].wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with database.writing() as connection:
        assert connection.scalar(text("SELECT number FROM tally")) == 2
        connection.execute(text("DROP TABLE tally"))


def test_those_who_wait_to_be_alone_leave_connections_to_others(database: Database) -> None:
    """More than there are connections: the one that is in needs another one, as calls do."""
    seen: list[int] = []

    def count() -> None:
        with database.alone("testing"), database.writing() as connection:
            seen.append(connection.scalar(text("SELECT count(*) FROM calls")))

    threads = [threading.Thread(target=count) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [0] * 30


def test_who_is_alone_may_also_be_so_by_another_name(database: Database) -> None:
    """As a change of an operator that gives a credit. Another thread waits for neither, but for
    the one that it needs."""
    entered: list[str] = []

    def nest() -> None:
        with database.alone("testing"), database.alone("nested"):
            entered.append("nested")

    def enter() -> None:
        with database.alone("other"):
            entered.append("other")

    with database.alone("nested"):
        threads = [threading.Thread(target=each, daemon=True) for each in (nest, enter)]
        threads[0].start()
        threads[1].start()
        threads[1].join(60)
        assert entered == ["other"]
    threads[0].join(60)
    assert entered == ["other", "nested"]


def test_an_instant_is_the_same_everywhere() -> None:
    """Stored in UTC from any zone; refused without a zone."""
    kind, dialect = Instant(), None
    noon = datetime(2026, 11, 25, 12, tzinfo=timezone(timedelta(hours=5)))
    stored = kind.process_bind_param(noon, dialect)
    assert stored is not None
    assert (stored.hour, stored.tzinfo) == (7, UTC)
    assert kind.process_result_value(stored.replace(tzinfo=None), dialect) == noon
    with pytest.raises(ValueError, match="no time zone"):
        kind.process_bind_param(datetime(2026, 11, 25), dialect)  # noqa: DTZ001 - it is the point
