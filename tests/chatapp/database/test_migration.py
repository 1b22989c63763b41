"""The schema's way to its newest version."""

from __future__ import annotations

import fcntl
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import chatapp.accounts.tables
import chatapp.ledger.table  # noqa: F401 - both put their tables into METADATA
from chatapp.database import migration
from chatapp.database.connection import Database
from chatapp.database.schema import METADATA

ROOT = Path(__file__).resolve().parents[3]
# Waits for a line on its input, so that all processes begin at once.
MIGRATE = """
import sys
from chatapp.database import migration
from chatapp.database.connection import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(migration.upgrade(database))
"""


def test_the_head_is_the_newest_revision() -> None:
    """The constant that spares alembic's import names what is there."""
    assert ScriptDirectory(str(migration.MIGRATIONS)).get_heads() == [migration.HEAD]


def test_the_migrations_make_what_the_code_expects(database: Database) -> None:
    """Tables, columns and indexes, on each kind of database."""
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_an_upgrade_is_done_once(database: Database) -> None:
    """Again it changes nothing, and says so."""
    assert migration.revision(database) == migration.HEAD
    assert migration.upgrade(database) is False


def test_processes_that_start_together_make_one_schema(tmp_path: Path) -> None:
    """Four on a file that is not there yet: one makes it, the others find it, none fails."""
    url = f"sqlite:///{tmp_path / 'instance' / 'chat.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE, url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    assert sorted(out.strip() for out, _ in ends) == ["False"] * 3 + ["True"]


def test_a_start_waits_for_the_one_that_migrates(tmp_path: Path) -> None:
    """It does not even open the file before that one is done."""
    file = tmp_path / "chat.db"
    starting = threading.Thread(target=migration.upgrade, args=(Database(f"sqlite:///{file}"),))
    with (tmp_path / "chat.db.migrating").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        starting.start()
        starting.join(0.2)
        assert starting.is_alive()
        assert not file.exists()
    starting.join(10)
    assert migration.revision(Database(f"sqlite:///{file}")) == migration.HEAD


def test_a_migration_that_fails_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is there, and the next attempt begins where this one did."""
    database = Database(f"sqlite:///{tmp_path / 'chat.db'}")
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE calls (in_the_way INTEGER)"))
    with pytest.raises(Exception, match="calls"):
        migration.upgrade(database)
    with database.writing() as connection:
        names = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        assert names.all() == ["calls"]
        connection.execute(text("DROP TABLE calls"))
    assert migration.upgrade(database) is True
    database.close()


def test_a_newer_schema_is_not_touched(database: Database) -> None:
    """A version that was rolled back says what it found, and changes nothing."""
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migration.UnknownSchemaError, match="schema 9999"):
        migration.upgrade(database)
    assert migration.revision(database) == "9999"


def test_a_server_is_looked_at_and_left_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A start that finds another schema there changes nothing, and names the command."""
    if database.is_sqlite:
        pytest.skip("DATABASE_URL_TEST names no PostgreSQL")
    with database.writing() as connection:
        connection.execute(text("DROP TABLE alembic_version, calls, api_keys, users"))
    with caplog.at_level(logging.ERROR):
        migration.prepare(database)
    assert "chat db upgrade" in caplog.text
    assert migration.revision(database) is None
    assert migration.upgrade(database) is True


def test_a_server_that_is_away_stops_no_start(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so; what needs it says 503 until it is back."""
    pytest.importorskip("psycopg")
    with caplog.at_level(logging.ERROR):
        migration.prepare(Database("postgresql://chat:swordfish@127.0.0.1:1/chat"))
    assert "gives no answer" in caplog.text
    assert "swordfish" not in caplog.text
