"""The changes of operators in the database, which outlive the limits' storage."""

import logging
import time
from typing import Any

import pytest
import redis
from flask import Flask
from sqlalchemy import text

from chatapp.database.connection import Database
from chatapp.operators import change_log as module
from chatapp.operators.change_log import DatabaseChangeLog
from chatapp.services import services_of
from ratelimit_ext import LogEntry
from tests.chatapp.cli.test_commands import run
from tests.chatapp.cli.test_operators import ratelimit
from tests.chatapp.conftest import AppMaker


def actions(app: Flask, *words: str) -> list[tuple[str, str]]:
    return [(each["action"], each["identity"]) for each in ratelimit(app, "log", *words)]


def test_changes_outlive_the_storage(console: Flask, redis_client: redis.Redis) -> None:
    """Of chat's commands and of the extension's, each once, the newest first."""
    run(console, "keys", "create", "--user", "alice")
    run(console, "users", "set", "alice", "--plan", "pro")
    words = ("override", "set", "alice", "plan", "3/day", "--until", "friday", "--by", "olga")
    ratelimit(console, *words, "--reason", "launch")
    run(console, "block", "user", "alice")
    before = ratelimit(console, "log")
    assert [each["action"] for each in before] == ["block", "override", "plan", "create-key"]
    redis_client.flushdb()
    assert ratelimit(console, "log") == before
    assert (before[1]["by"], before[1]["reason"]) == ("olga", "launch")


def test_a_change_without_the_storage_is_logged(make_app: AppMaker, console: Flask) -> None:
    """A command that cannot see the workers' limits changes accounts all the same."""
    run(make_app(), "keys", "create", "--user", "alice", "--by", "olga")
    (entry,) = ratelimit(console, "log")
    assert (entry["action"], entry["reason"], entry["by"]) == ("create-key", "of alice", "olga")


def test_the_log_goes_back_to_a_time(console: Flask, database_url: str) -> None:
    """All since then; without one the last 20."""
    changes, now = DatabaseChangeLog(Database(database_url)), time.time()
    for days in range(30):
        changes.write(LogEntry("reset", f"user:u{days}", at=now - days * 86_400 - 60))
    assert len(actions(console)) == 20
    assert len(actions(console, "--since", "25d")) == 25
    assert actions(console, "--since", "2d", "--most", "1") == [("reset", "user:u0")]
    result = console.test_cli_runner().invoke(args=["ratelimit", "log", "--since", "10s"])
    assert (result.stdout, "changed anything since 20" in result.stderr) == ("", True)


def test_the_newest_changes_are_read(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more at once than a log is read for."""
    monkeypatch.setattr(module, "MOST", 2)
    changes = DatabaseChangeLog(Database(database_url))
    for at in (2.0, 3.0, 1.0):
        changes.write(LogEntry("reset", "user:alice", at=at))
    assert [entry.at for entry in changes.read(0)] == [3, 2]


def test_a_change_is_made_although_the_database_cannot_keep_it(
    console: Flask, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the storage, and the log says what is missing."""
    with Database(database_url).writing() as connection:
        connection.execute(text("DROP TABLE changes"))
    with console.app_context(), caplog.at_level(logging.WARNING):
        operators: Any = services_of(console).limiter.operators
        operators.note("reset", "user:alice", by="olga")
    assert "is not in the database" in caplog.text
    assert "user:alice" in caplog.text
