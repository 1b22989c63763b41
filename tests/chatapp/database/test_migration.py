"""The schema's way to its newest version."""

from __future__ import annotations

import fcntl
import json
import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

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
import chatapp.operators.changes  # noqa: F401 - all put their tables into METADATA
from chatapp.accounts.store import Accounts
from chatapp.database import METADATA, migration
from chatapp.database.connection import Database
from chatapp.migrations.versions import (
    r0007_files,
    r0008_changes,
    r0009_people,
    r0010_admin_keys,
    r0011_bound_keys,
    r0012_spending,
    r0013_basis,
)
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import SERVER_URL, AppMaker, drop_tables
from tests.upgrades.record import RECORDED

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
# A user with a key, as the version before has them.
USER_OF_BEFORE = (
    "INSERT INTO users (name, plan, created_at) VALUES (:name, 'pro', '2026-11-25 12:00:00')",
    """INSERT INTO api_keys (public_id, "user", secret_sha256, name, created_at)
       VALUES (:id, :name, 'x', 'key', '2026-11-25 12:00:00')""",
)


def test_the_head_is_the_newest_revision() -> None:
    """The constant HEAD equals the newest revision."""
    assert ScriptDirectory(str(migration.MIGRATIONS)).get_heads() == [migration.HEAD]


def test_the_migrations_make_what_the_code_expects(database: Database) -> None:
    """Tables, columns and indexes, on each kind of database."""
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_an_upgrade_is_done_once(database: Database) -> None:
    """A second upgrade changes nothing and returns False."""
    assert migration.revision(database) == migration.HEAD
    assert migration.upgrade(database) is False


def test_keys_of_the_version_before_may_name_no_files(database: Database) -> None:
    """They stay as they are, and a worker of that version can still write."""
    with database.writing() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            r0013_basis.downgrade()
            r0012_spending.downgrade()
            r0011_bound_keys.downgrade()
            r0010_admin_keys.downgrade()
            r0009_people.downgrade()
            r0008_changes.downgrade()
            r0007_files.downgrade()
        connection.execute(text("UPDATE alembic_version SET version_num = '0006'"))
        for statement in USER_OF_BEFORE:
            connection.execute(text(statement), {"name": "alice", "id": "a" * 16})
    assert migration.upgrade(database) is True
    with database.writing() as connection:
        for statement in USER_OF_BEFORE:
            connection.execute(text(statement), {"name": "bob", "id": "b" * 16})
    accounts = Accounts(database)
    for id_, name in (("a", "alice"), ("b", "bob")):
        found = accounts.find(id_ * 16)
        assert found is not None
        key, user = found
        assert (user.name, user.team_name, user.limits) == (name, None, None)
        assert (user.deactivated_at, user.brought_by) == (None, None)
        assert (key.limits, key.models, key.files, key.people) == (None, None, None, None)
        assert key.bound_team is None


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
    starting.join(10)
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


@pytest.mark.parametrize("schema", ["9999", "0005"])
def test_an_unknown_schema_is_not_touched(database: Database, schema: str) -> None:
    """A newer one, or one from before the first release. The error says which are known."""
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :s"), {"s": schema})
    with pytest.raises(migration.UnknownSchemaError, match=f"schema {schema}; this version reads"):
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


def test_the_database_of_the_last_release_is_read(database_url: str, make_app: AppMaker) -> None:
    """Its key opens, with its team, amounts, models, and the ledger with its tags."""
    state = json.loads(RECORDED.read_text())
    file = Path(database_url.removeprefix("sqlite:///"))
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("\n".join(state["database"]))
    app = make_app()
    assert f"was already at {migration.HEAD}" in run(app, "db", "upgrade").output
    with Database(database_url).reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    headers = {"Authorization": f"Bearer {state['key']}"}
    found = app.test_client().get("/usage", headers=headers).get_json()
    assert (found["user"], found["plan"], found["team"]) == ("alice", "pro", "research")
    assert {"key-usd-day", "team-usd-month"} <= {each["name"] for each in found["limits"]}
    models = app.test_client().get("/v1/models", headers=headers).get_json()
    assert all(each["id"].startswith(("gpt-", "openai/gpt-")) for each in models["data"])
    shown = run(app, "ledger", "days", "--by", "tag:project").output
    row = ["2026-11-25", "a", "1", "1000", "200", "0.001485"]
    assert row in [line.split() for line in shown.splitlines()]
