"""The schema's way to its newest version."""

import fcntl
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import text

import chatapp.accounts.admin_keys
import chatapp.accounts.store
import chatapp.alerts.table
import chatapp.ledger.stored_answers
import chatapp.ledger.table
import chatapp.operators.change_log  # noqa: F401 - all put their tables into METADATA
from chatapp.accounts.store import Accounts
from chatapp.database import METADATA, migration
from chatapp.database.connection import Database
from tests.chatapp.conftest import SERVER_URL, drop_tables
from tests.chatapp.database import schema_0013

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
    """The constant HEAD equals the newest revision."""
    assert ScriptDirectory(str(migration.MIGRATIONS)).get_heads() == [migration.HEAD]


def differences(database: Database) -> list[Any]:
    """What the database lacks of the tables, columns and indexes that the code expects."""
    with database.reading() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))


def test_every_start_makes_all_tables() -> None:
    """Whatever is configured: a new database has the tables that have been imported."""

    def tables(modules: Iterable[str]) -> str:
        source = f"import {', '.join(modules)}; print(sorted(chatapp.database.METADATA.tables))"
        command = [sys.executable, "-c", source]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "chatapp").rglob("*.py")
        if path.stem.strip("_").isidentifier() and "migrations" not in path.parts
    ]
    assert "sign_ins" in tables(["chatapp"])
    assert tables(["chatapp"]) == tables(modules)


def test_a_new_database_has_what_the_code_expects(database: Database) -> None:
    """Tables, columns and indexes, on each kind of database."""
    assert METADATA.tables
    assert differences(database) == []


def test_the_migrations_make_what_the_code_expects(database: Database) -> None:
    """A database that began with the first schema is like a new one, on each kind of database."""
    drop_tables(database)
    with database.writing() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            schema_0013.create()
        context.stamp(ScriptDirectory(str(migration.MIGRATIONS)), migration.OLDEST)
    assert migration.revision(database) == migration.OLDEST
    assert migration.upgrade(database) is True
    assert migration.revision(database) == migration.HEAD
    assert differences(database) == []


def test_an_upgrade_is_done_once(database: Database) -> None:
    """A second upgrade changes nothing and returns False."""
    assert migration.revision(database) == migration.HEAD
    assert migration.upgrade(database) is False


def test_the_next_version_upgrades_a_database_in_use(
    database: Database, next_version: Callable[[], str]
) -> None:
    """Its rows stay, and a worker of the version before can still read and write."""
    accounts = Accounts(database)
    before = accounts.create_key("alice", plan="pro", default_plan="starter")
    schema = next_version()
    assert migration.upgrade(database) is True
    assert migration.revision(database) == schema
    after = accounts.create_key("bob", plan="pro", default_plan="starter")
    for made in (before, after):
        found = accounts.find(made.public_id)
        assert found is not None
        assert found[1].plan == "pro"


def test_processes_that_start_together_make_one_schema(database: Database, tmp_path: Path) -> None:
    """Four processes on a new file, or an empty server: one creates the schema, none fails."""
    drop_tables(database)
    url = database.url.render_as_string(hide_password=False)
    if database.is_sqlite:
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
    """It does not open the file before the other has finished."""
    file = tmp_path / "chat.db"
    starting = threading.Thread(target=migration.upgrade, args=(Database(f"sqlite:///{file}"),))
    with (tmp_path / "chat.db.migrating").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        starting.start()
        starting.join(0.2)
        assert starting.is_alive()
        assert not file.exists()
    starting.join(60)
    assert migration.revision(Database(f"sqlite:///{file}")) == migration.HEAD


def test_a_migration_that_fails_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays, and the next attempt starts from the same version."""
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


@pytest.mark.parametrize(
    ("schema", "to_do"),
    [
        ("9999", "Use the version that made it, or use another database."),
        ("0012", "Upgrade it with an earlier version first, as CHANGELOG.md says, or use another"),
    ],
)
def test_an_unknown_schema_is_not_touched(database: Database, schema: str, to_do: str) -> None:
    """A newer one, or one from before the first release. The error says which is known."""
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :s"), {"s": schema})
    says = f"the database has schema {schema}; this version reads 0013 to 0017. {to_do}"
    with pytest.raises(migration.UnknownSchemaError, match=re.escape(says)):
        migration.upgrade(database)
    assert migration.revision(database) == schema


def test_the_oldest_revision_is_the_first(database: Database) -> None:
    """The constant OLDEST equals the base of the revisions."""
    assert ScriptDirectory(str(migration.MIGRATIONS)).get_bases() == [migration.OLDEST]


@pytest.mark.skipif(SERVER_URL is None, reason="DATABASE_URL_TEST names no PostgreSQL")
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_server_is_looked_at_and_left_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A start with another schema changes nothing and names the command."""
    drop_tables(database)
    with caplog.at_level(logging.ERROR):
        migration.prepare(database)
    assert "chat db upgrade" in caplog.text
    assert migration.revision(database) is None
    assert migration.upgrade(database) is True


def test_a_server_that_is_away_stops_no_start(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; requests that need it get 503 meanwhile."""
    pytest.importorskip("psycopg")
    with caplog.at_level(logging.ERROR):
        migration.prepare(Database("postgresql://chat:swordfish@127.0.0.1:1/chat"))
    assert "is unavailable" in caplog.text
    assert "swordfish" not in caplog.text
