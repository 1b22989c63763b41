"""Backups: `chat db backup` and `chat db restore`."""

import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import insert, text

from chatapp.accounts.store import Accounts
from chatapp.database import migration
from chatapp.database.backup import SERVER, BackupError, backup, contents_of, restore
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.reports import Reports
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished


@pytest.fixture
def live(database_url: str, accounts: Accounts) -> Database:
    """A database with a key and a call, open in this process: its journal has the rows."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    database = Database(database_url)
    table.write(database, [finished(begun())])
    return database


@pytest.fixture
def app(live: Database, make_app: AppMaker) -> Flask:
    return make_app()


def test_a_backup_has_what_the_journal_has(live: Database, tmp_path: Path) -> None:
    """A copy of the file does not; the backup is one file, for its user only."""
    assert live.file is not None
    copied = Path(shutil.copy(live.file, tmp_path / "copy.db"))
    assert contents_of(copied).calls == 0
    made = backup(live, tmp_path / "backup.db")
    assert (made.schema, made.users, made.keys, made.calls) == (migration.HEAD, 1, 1, 1)
    assert str(made) == "1 user, 1 key and 1 call until 2026-11-25 12:00:00 UTC"
    assert [file.name for file in tmp_path.glob("backup.db*")] == ["backup.db"]
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600


def test_a_backup_is_of_one_moment(live: Database, tmp_path: Path) -> None:
    """A worker writes pairs in a transaction meanwhile: each backup has whole pairs."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            with live.writing() as connection:
                connection.execute(
                    insert(table.CALLS), [table.row_of(begun()), table.row_of(begun())]
                )

    worker = threading.Thread(target=work)
    worker.start()
    try:
        counts = [backup(live, tmp_path / "backup.db").calls for _ in range(20)]
    finally:
        ended.set()
        worker.join()
    assert all(count % 2 == 1 for count in counts)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_restore_brings_back_the_backup(app: Flask, live: Database, tmp_path: Path) -> None:
    """While a worker has the database open: it goes on with the restored one. What was there before
    is kept beside it."""
    file = tmp_path / "backup.db"
    assert "1 user, 1 key and 1 call" in run(app, "db", "backup", str(file)).output
    table.write(live, [finished(begun(user="bob"))])
    output = run(app, "db", "restore", str(file), "--yes").output
    assert "accounts are on" in output
    reports = Reports(live)
    assert [row["user"] for row in reports.calls()] == ["user:alice"]
    (kept,) = tmp_path.glob("chatapp.db.before-restore-*")
    assert contents_of(kept).calls == 2
    table.write(live, [finished(begun(user="zoe"))])
    assert len(list(reports.calls())) == 2


def test_a_restore_asks(app: Flask, live: Database, tmp_path: Path) -> None:
    """No changes nothing, and is status 1."""
    backup(live, tmp_path / "backup.db")
    asked = app.test_cli_runner().invoke(
        args=["chat", "db", "restore", str(tmp_path / "backup.db")], input="n\n"
    )
    assert asked.exit_code == 1
    assert "Replace the database?" in asked.output
    assert not list(tmp_path.glob("*before-restore*"))


def test_a_backup_of_the_version_before_is_upgraded(
    live: Database, tmp_path: Path, next_version: Callable[[], str]
) -> None:
    """The schema is the newest after a restore."""
    backup(live, tmp_path / "backup.db")
    schema = next_version()
    restore(live, tmp_path / "backup.db")
    assert migration.revision(live) == schema


def test_a_restore_keeps_accounts_on(live: Database, tmp_path: Path) -> None:
    """A backup from before the first key would let everybody in."""
    early = Database(f"sqlite:///{tmp_path / 'early.db'}")
    migration.upgrade(early)
    backup(early, tmp_path / "backup.db")
    with pytest.raises(BackupError, match="would let everyone in"):
        restore(live, tmp_path / "backup.db")
    assert Accounts(live).any_key()
    restore(live, tmp_path / "backup.db", without_keys=True)
    assert not Accounts(live).any_key()


def damage(file: Path) -> None:
    """Overwrite all after the first page."""
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\1" * (len(content) - 4096))


def of_schema(number: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", [number])

    return change


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage, "damaged|not a backup"),
        (
            of_schema("9999"),
            "schema 9999; this version reads 0013 to 0017. Use the version that made it",
        ),
        (
            of_schema("0012"),
            "schema 0012; this version reads 0013 to 0017. Upgrade it with an earlier",
        ),
        (lambda file: file.write_text("no database"), "not a backup of chatapp"),
        (lambda file: file.write_bytes(b""), "not a backup of chatapp"),
    ],
)
def test_a_spoilt_backup_changes_nothing(
    app: Flask, live: Database, tmp_path: Path, spoil: object, says: str
) -> None:
    """One sentence that says why, and status 1."""
    file = tmp_path / "backup.db"
    backup(live, file)
    spoil(file)  # type: ignore[operator]
    output = run(app, "db", "restore", str(file), "--yes", status=1).output
    with pytest.raises(BackupError, match=says):
        contents_of(file)
    assert output.startswith("Error: ")
    assert contents_of(live.file or Path()).calls == 1


def test_a_backup_replaces_only_a_backup(app: Flask, live: Database, tmp_path: Path) -> None:
    """Not the database itself, nor a file of another kind; a former backup stays if the new one
    cannot be made."""
    notes = tmp_path / "notes.txt"
    notes.write_text("keep me")
    for file in (notes, live.file, tmp_path / "nowhere" / "backup.db"):
        assert run(app, "db", "backup", str(file), status=1).output.startswith("Error: ")
    assert notes.read_text() == "keep me"
    file = tmp_path / "backup.db"
    before = backup(live, file)
    with live.writing() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(BackupError, match="not a backup of chatapp"):
        backup(live, file)
    assert contents_of(file) == before
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_cannot_be_written_is_not_the_databases_fault(app: Flask) -> None:
    """The error names the file, and no upgrade of the schema."""
    output = run(app, "db", "backup", "/proc/backup.db", status=1).output
    assert output == (
        "Error: /proc/backup.db cannot be written (No such file or directory); name another.\n"
    )


def test_a_server_has_its_own_commands(tmp_path: Path) -> None:
    """The sentence names them."""
    pytest.importorskip("psycopg")
    database = Database("postgresql://chat:swordfish@127.0.0.1:1/chat")
    assert "pg_dump" in SERVER
    for attempt in (backup, restore):
        with pytest.raises(BackupError, match="pg_restore"):
            attempt(database, tmp_path / "backup.db")


def test_the_json_of_a_backup(app: Flask, tmp_path: Path) -> None:
    """It has the counts, for a monitor."""
    file = tmp_path / f"{datetime.now(UTC):%F}.db"
    output = run(app, "db", "backup", str(file), "--json").output
    assert '"calls": 1' in output
    assert '"schema"' in output
