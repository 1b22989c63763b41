"""Accounts and ledger under gunicorn: several workers with one database, and workers that die."""

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import flask, run
from tests.gunicorn_master import Master, gunicorn
from tests.servers import alive, eventually

KEY_LINE_CHARACTERS = len("sk-chat-") + 16 + 1 + 43


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """The application with four workers, on a database that does not exist yet. Without limits,
    because a test sends many requests."""
    with gunicorn("wsgi:app", tmp_path, workers=4, RATELIMIT_ENABLED="false") as master:
        yield master


def kept(tmp_path: Path) -> list[tuple[str, str]]:
    """User and status of every call in the ledger."""
    connection = sqlite3.connect(tmp_path / "chatapp.db")
    try:
        return connection.execute("SELECT user, status FROM calls").fetchall()
    finally:
        connection.close()


@pytest.mark.slow
def test_workers_that_start_together_serve_one_database(master: Master, tmp_path: Path) -> None:
    """Four create the schema at once; all calls of all workers are in one ledger."""
    eventually(lambda: len(master.workers()) == 4)
    for number in range(12):
        answer = master.request("/chat", {"message": "hi", "user_id": f"user{number}"})
        assert answer.status == 200
    eventually(lambda: len(kept(tmp_path)) == 12)
    assert {status for _, status in kept(tmp_path)} == {"answered"}
    assert "Traceback" not in master.log


def test_a_key_works_and_ends_in_every_worker(master: Master, tmp_path: Path) -> None:
    """The first key turns accounts on at once, and a revoked key is refused by all workers."""
    assert master.request("/chat", {"message": "hi"}).status == 200
    text = flask(tmp_path, "chat", "keys", "create", "--user", "alice").strip()
    assert len(text) == KEY_LINE_CHARACTERS

    shown = {"Authorization": f"Bearer {text}"}

    def statuses(headers: dict[str, str]) -> set[int]:
        return {master.request("/usage", headers=headers).status for _ in range(12)}

    assert statuses({}) == {401}  # no worker serves another call without a key
    assert statuses(shown) == {200}
    assert text not in master.log
    assert text not in flask(tmp_path, "chat", "keys", "list")
    flask(tmp_path, "chat", "keys", "revoke", text)
    eventually(lambda: statuses(shown) == {401})
    assert master.request("/healthz").status == 200


@pytest.mark.slow
@pytest.mark.parametrize("case", ["an older copy", "another database"])
def test_a_database_that_has_lost_its_keys_lets_nobody_in(case: str, tmp_path: Path) -> None:
    """Marks beside the file and in the limits' storage say that accounts were on. An operator can
    turn them off."""
    keys = ("flask", "--app", "wsgi", "chat", "keys")
    file, older = tmp_path / "chatapp.db", tmp_path / "older.db"
    with gunicorn("wsgi:app", tmp_path, workers=1) as master:
        assert master.request("/chat", {"message": "hi"}).status == 200
        shutil.copy(file, older)
        assert run(tmp_path, *keys, "create", "--user", "alice").returncode == 0
        assert master.request("/chat", {"message": "hi"}).status == 401
    url = f"sqlite:///{older}"
    if case == "an older copy":
        older.replace(file)
        for journal in tmp_path.glob("chatapp.db-*"):
            journal.unlink()
        shutil.rmtree(tmp_path / "state")
        url = f"sqlite:///{file}"
    with gunicorn("wsgi:app", tmp_path, workers=1, DATABASE_URL=url) as master:
        answer = master.request("/chat", {"message": "hi"})
        assert (answer.status, answer.body["code"]) == (503, "accounts_unavailable")
        assert "Accounts were on, but the database has no API key" in master.log
        assert run(tmp_path, *keys, "off", DATABASE_URL=url).returncode == 0
        assert master.request("/chat", {"message": "hi"}).status == 200


def test_a_worker_that_ends_writes_its_calls_first(master: Master, tmp_path: Path) -> None:
    """Calls that were answered just before a worker stops are in the ledger."""
    for number in range(10):
        master.request("/chat", {"message": "hi", "user_id": f"user{number}"})
    workers = master.workers()
    master.signal(signal.SIGTERM)
    eventually(lambda: not any(map(alive, workers)))
    assert len(kept(tmp_path)) == 10
