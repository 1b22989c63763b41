"""flask --app wsgi chat usage"""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_limiter.commands import cli as limiter_commands

from chatapp.accounts.api_key import PresentedKey
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.services import services_of
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.upstream_server import UpstreamServer

CALL = {"message": "ping", "model": "gpt-4o"}


@pytest.fixture
def key(database_url: str) -> PresentedKey:
    """A key of alice."""
    return Accounts(Database(database_url)).create_key("alice", plan="pro", default_plan="starter")


@pytest.fixture
def app(
    make_app: AppMaker, provider: UpstreamServer, redis_client: Any, redis_server: Any
) -> Flask:
    """The application on a shared storage."""
    return make_app(RATELIMIT_STORAGE_URI=str(redis_server.uri))


def ask(app: Flask, key: PresentedKey | None = None) -> dict[str, Any]:
    """A call, and GET /usage after it."""
    client = app.test_client()
    if key is not None:
        client.environ_base["HTTP_X_API_KEY"] = key.text
    assert client.post("/chat", json=CALL).status_code == 200
    assert services_of(app).ledger.flush()
    usage: dict[str, Any] = client.get("/usage").json
    return usage


def settled(usage: dict[str, Any]) -> dict[str, Any]:
    """Without values that change with time, and without limits of other identities."""
    edge, refilled = {"ip", "key", "address-at-once"}, {"user", "tokens", "count-tokens"}
    limits = [
        {**limit, "reset_after": 0, "remaining": limit["name"] in refilled or limit["remaining"]}
        for limit in usage["limits"]
        if limit["name"] not in edge
    ]
    return {**usage, "limits": limits}


def test_it_prints_what_the_user_sees(key: PresentedKey, app: Flask) -> None:
    """By NAME and by user:NAME; nothing is charged."""
    usage = ask(app, key)
    for name in ("alice", "user:alice"):
        printed = json.loads(run(app, "usage", name, "--json").stdout)
        assert settled(printed) == settled(usage)
    assert printed["limits"]
    assert printed["spent"]["today_usd"] > 0
    head, _, table = run(app, "usage", "alice").stdout.partition("\n\n")
    assert head.splitlines()[:2] == ["user: alice", "plan: pro"]
    assert "today_usd=0.0" in head
    assert re.search(r"^NAME +LIMIT +REMAINING +UNIT +FULL AGAIN$", table, re.MULTILINE)
    assert re.search(r"^plan +2000 +1999 +requests +1 d$", table, re.MULTILINE)


def test_it_tells_of_an_address(app: Flask) -> None:
    """For callers without a name."""
    usage = ask(app)
    printed = json.loads(run(app, "usage", "ip:127.0.0.1", "--json").stdout)
    assert printed["user"] == "ip:127.0.0.1"
    assert settled(printed)["limits"] == settled(usage)["limits"]
    assert (printed["plan"], printed["spent"]) == (usage["plan"], usage["spent"])


def test_flask_limiters_commands_know_the_identity(key: PresentedKey, app: Flask) -> None:
    """`flask limiter clear` by `user:NAME` resets what `chat usage` has shown."""
    ask(app, key)

    def left() -> int:
        limits = json.loads(run(app, "usage", "alice", "--json").stdout)["limits"]
        return next(limit["remaining"] for limit in limits if limit["name"] == "plan")

    assert left() == 1999
    words = ["clear", "--key", "user:alice", "-y"]
    cleared = app.test_cli_runner().invoke(limiter_commands, args=words)
    assert cleared.exit_code == 0, cleared.output
    assert left() == 2000


def test_forecasts_are_listed(
    key: PresentedKey, app: Flask, accounts: Accounts, database_url: str
) -> None:
    """Of users or teams, as the guide says, as JSON or CSV; not for other subjects or times."""
    accounts.create_team("red")
    accounts.change("user", "alice", team_name="red")
    accounts.set_amount("team", "red", "team-usd-month", "0.009 usd/month")
    now = datetime.now(UTC)
    past = [
        finished(begun(started_at=now - timedelta(days=days), team="red"), cost_micro_usd=50)
        for days in range(1, 20)
    ]
    table.write(Database(database_url), past)
    assert run(app, "forecast").stderr == "There are no forecasts.\n"
    ask(app, key)
    heads, *rows = run(app, "forecast", "--csv").stdout.splitlines()
    assert heads == "subject,budget,spent,of,used_up_at,sure,resets_at"
    assert [row.split(",")[:2] for row in rows] == [
        ["user:alice", "usd-day"],
        ["user:alice", "usd-month"],
    ]
    (row,) = json.loads(run(app, "forecast", "--by", "team", "--json").stdout)
    assert (row["subject"], row["budget"], row["of"]) == ("red", "team-usd-month", 0.009)
    assert 0 < row["spent"] < 0.009
    assert 0 <= row["sure"] <= 1
    page = (Path(__file__).parents[3] / "docs" / "gateway" / "spending.md").read_text()
    _, command, _, shown, *_ = re.split("```.*\n", page.partition("## A forecast")[2])
    printed = run(app, *command.split()[4:]).stdout
    assert re.split("  +", printed.splitlines()[0]) == re.split("  +", shown.splitlines()[0])
    for other in (["--by", "model"], ["--month", "last"]):
        run(app, "forecast", *other, status=2)


def test_limits_in_memory_are_left_out(key: PresentedKey, make_app: AppMaker) -> None:
    """The command's own limits would be unused ones."""
    app = make_app()
    assert json.loads(run(app, "usage", "alice", "--json").stdout)["limits"] is None
    result = run(app, "usage", "alice")
    assert result.stdout.startswith("user: alice\nplan: pro\n")
    assert "the memory of each worker" in result.stderr
