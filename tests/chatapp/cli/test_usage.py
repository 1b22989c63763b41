"""flask --app wsgi chat usage"""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask
from flask_limiter.commands import cli as limiter_commands

from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.services import services_of
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import ProviderServer

CALL = {"message": "ping", "model": "gpt-4o"}


@pytest.fixture
def key(database_url: str) -> PresentedKey:
    """A key of alice."""
    return Accounts(Database(database_url)).create_key("alice", plan="pro", default_plan="starter")


@pytest.fixture
def app(
    make_app: AppMaker, provider: ProviderServer, redis_client: Any, redis_server: Any
) -> Flask:
    """The application on a storage that its commands reach."""
    return make_app(RATELIMIT_STORAGE_URI=str(redis_server.uri))


def ask(app: Flask, key: PresentedKey | None = None) -> dict[str, Any]:
    """A call, and what GET /usage says after it."""
    client = app.test_client()
    if key is not None:
        client.environ_base["HTTP_X_API_KEY"] = key.text
    assert client.post("/chat", json=CALL).status_code == 200
    assert services_of(app).ledger.flush()
    told: dict[str, Any] = client.get("/usage").json
    return told


def settled(told: dict[str, Any]) -> dict[str, Any]:
    """Without what time changes, and without limits that are not of the user."""
    edge = {"ip", "key", "address-at-once"}
    limits = [{**limit, "reset_after": 0} for limit in told["limits"] if limit["name"] not in edge]
    return {**told, "limits": limits}


def test_it_tells_what_the_user_is_told(key: PresentedKey, app: Flask) -> None:
    """By his name, as the commands or as the ledger write it; and takes nothing for it."""
    told = ask(app, key)
    for name in ("alice", "user:alice"):
        said = json.loads(run(app, "usage", name).stdout)
        assert settled(said) == settled(told)
    assert said["limits"]
    assert said["spent"]["today_usd"] > 0


def test_it_tells_of_an_address(app: Flask) -> None:
    """Whose callers say no name."""
    told = ask(app)
    said = json.loads(run(app, "usage", "ip:127.0.0.1").stdout)
    assert said["user"] == "ip:127.0.0.1"
    assert settled(said)["limits"] == settled(told)["limits"]
    assert (said["plan"], said["spent"]) == (told["plan"], told["spent"])


def test_flask_limiters_commands_know_the_identity(key: PresentedKey, app: Flask) -> None:
    """`flask limiter clear` gives back what `chat usage` showed to be used, by `user:NAME`."""
    ask(app, key)

    def left() -> int:
        limits = json.loads(run(app, "usage", "alice").stdout)["limits"]
        return next(limit["remaining"] for limit in limits if limit["name"] == "user")

    assert left() == 9
    words = ["clear", "--key", "user:alice", "-y"]
    cleared = app.test_cli_runner().invoke(limiter_commands, args=words)
    assert cleared.exit_code == 0, cleared.output
    assert left() == 10


def test_limits_in_memory_are_not_told(key: PresentedKey, make_app: AppMaker) -> None:
    """Those of the command's own would be full ones, and nobody's."""
    result = run(make_app(), "usage", "alice")
    assert json.loads(result.stdout)["limits"] is None
    assert "each worker's own memory" in result.stderr
