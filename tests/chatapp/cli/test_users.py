"""`chat users deactivate`, `activate` and `delete`: users on leave, and those who leave."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from chatapp.accounts.api_key import public_id_of
from chatapp.accounts.store import Accounts, UserChange
from chatapp.database.connection import Database
from chatapp.ledger.reports import Reports
from chatapp.services import services_of
from tests import servers
from tests.chatapp.cli.test_commands import run
from tests.chatapp.cli.test_operators import ask, new_key, ratelimit
from tests.chatapp.conftest import NO_LIMITS, AppMaker


@pytest.fixture
def key(console: Flask) -> str:
    """A key of alice; another user has one, too."""
    new_key(console, "bob")
    return new_key(console)


def forget(app: Flask) -> None:
    """As five seconds later: the worker looks keys up again."""
    authenticator: Any = services_of(app).authenticator
    authenticator._valid.clear()
    authenticator._refused.clear()


def test_a_deactivated_user_is_refused_at_once(worker: Flask, console: Flask, key: str) -> None:
    """Also in a worker that has just seen the key; others learn why. Nothing of the user is lost,
    and their keys are accepted again."""
    run(console, "amounts", "set", "user", "alice", "plan", "7/day")
    assert ask(worker, key).status_code == 200
    done = run(console, "users", "set", "user:alice", "--no-active", "--reason", "on leave").output
    assert done == (
        "alice is deactivated; no worker accepts a call with their keys. Running calls continue.\n"
    )
    for _ in range(2):
        refused = ask(worker, key)
        assert (refused.status_code, refused.json["code"]) == (401, "invalid_api_key")
        assert refused.json["error"] == (
            "The account of alice is deactivated; ask the operator to activate it."
        )
        forget(worker)
    assert (
        "alice  starter  -     plan=7/day  deactivated 20" in run(console, "users", "list").output
    )
    assert "was already" in run(console, "users", "set", "alice", "--no-active").output
    assert "is active again" in run(console, "users", "set", "alice", "--active").output
    assert "was not" in run(console, "users", "set", "alice", "--active").output
    forget(worker)
    assert ask(worker, key).status_code == 200
    assert [each["action"] for each in ratelimit(console, "log")][:3] == [
        *("activate", "deactivate", "amount")
    ]


def test_only_the_holder_of_a_key_learns_of_a_deactivation(
    worker: Flask, console: Flask, key: str
) -> None:
    """A key with another secret is unknown."""
    run(console, "users", "set", "alice", "--no-active")
    wrong = ask(worker, f"{key[:-1]}{'a' if key[-1] != 'a' else 'b'}")
    assert (wrong.status_code, "is unknown" in wrong.json["error"]) == (401, True)


def test_an_operators_block_of_a_key_outlives_an_activation(
    worker: Flask, console: Flask, key: str
) -> None:
    """`activate` ends what `deactivate` has set alone."""
    run(console, "block", "key", key)
    run(console, "users", "set", "alice", "--no-active")
    run(console, "users", "set", "alice", "--active")
    refused = ask(worker, key)
    assert (refused.status_code, refused.json["code"]) == (403, "blocked")


def test_a_deactivated_user_gets_no_key(console: Flask, accounts: Accounts, key: str) -> None:
    """Which would be refused, and says how they would."""
    run(console, "users", "set", "alice", "--no-active")
    refused = run(console, "keys", "create", "--user", "alice", status=1)
    assert "`chat users set --active`" in refused.stderr
    assert len(accounts.all_keys()) == 2


def test_a_deleted_user_leaves_the_ledger(
    worker: Flask, console: Flask, accounts: Accounts, database_url: str, key: str
) -> None:
    """Keys, amounts, override and block are gone, and are not a later user's of that name."""
    run(console, "amounts", "set", "user", "alice", "plan", "7/day")
    ratelimit(console, "override", "set", "alice", "usd-day", "9 usd/day")
    ratelimit(console, "override", "set", public_id_of(key), "key", "9/minute")
    assert ask(worker, key).status_code == 200
    assert services_of(worker).ledger.flush()
    run(console, "block", "user", "alice")
    deleted = run(console, "users", "delete", "alice", "--yes", "--by", "olga").output
    assert deleted.startswith("alice is deleted with all keys; no worker accepts a call with their")
    assert "is unknown" in ask(worker, key).json["error"]  # in a worker that has just seen it
    assert [user.name for user in accounts.users()] == ["bob"]
    assert ratelimit(console, "override", "list") == []
    [former] = [row["user"] for row in Reports(Database(database_url)).calls()]
    assert former.startswith("former:alice (deleted 20")
    assert deleted.endswith(f"The ledger keeps their calls as {former}.\n")
    cut = run(console, "ledger", "days", "--user", "former:alice", status=1)
    assert "no user 'former:alice'" in cut.output
    assert former in run(console, "spend").output
    assert former in run(console, "ledger", "days", "--user", former).output
    assert "limits of 0 users compared" in run(console, "ledger", "check").output
    newer = new_key(console)
    assert ask(worker, newer).status_code == 200
    usage = worker.test_client().get("/usage", headers={"x-api-key": newer}).json
    plan = next(each for each in usage["limits"] if each["name"] == "plan")
    assert (plan["limit"], plan["remaining"]) == (100, 99)  # someone else's usage does not count
    actions = [(each["action"], each["by"]) for each in ratelimit(console, "log")]
    assert ("delete-user", "olga") in actions


@pytest.fixture
def failing(make_app: AppMaker) -> Iterator[tuple[Flask, servers.Server]]:
    """A console with bob and alice, who has an override and a block, and its storage."""
    with servers.standalone() as server:
        console = make_app(RATELIMIT_STORAGE_URI=server.uri)
        new_key(console, "bob")
        new_key(console)
        ratelimit(console, "override", "set", "alice", "usd-day", "9 usd/day")
        run(console, "block", "user", "alice")
        yield console, server


def test_without_the_limits_nothing_is_deleted(
    failing: tuple[Flask, servers.Server], accounts: Accounts
) -> None:
    """A new user of that name would have the override and the block."""
    console, server = failing
    server.kill()
    refused = run(console, "users", "delete", "alice", "--yes", status=1).stderr
    assert "The limits cannot be reached" in refused
    assert "alice was not deleted" in refused
    assert "deactivate alice meanwhile" in refused
    assert len(accounts.all_keys()) == 2
    assert "is deactivated" in run(console, "users", "set", "alice", "--no-active").output


def test_limits_that_fail_during_a_deletion_are_an_error(
    failing: tuple[Flask, servers.Server], accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to remove the override and the block."""
    console, server = failing
    delete_user = Accounts.delete_user

    def delete_and_fail(*about: Any, **also: Any) -> None:
        delete_user(*about, **also)
        server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(Accounts, "delete_user", delete_and_fail)
        refused = run(console, "users", "delete", "alice", "--yes", status=1).stderr
    assert "alice is deleted with all keys" in refused
    assert "Create a user alice and delete them again" in refused
    assert [user.name for user in accounts.users()] == ["bob"]


def test_a_deletion_needs_no_switch(make_app: AppMaker, console: Flask, key: str, uri: str) -> None:
    """Overrides are gone also if no limit blocks users."""
    ratelimit(console, "override", "set", "alice", "usd-day", "9 usd/day")
    without = make_app(RATELIMIT_STORAGE_URI=uri, **NO_LIMITS)
    run(without, "users", "delete", "alice", "--yes")
    assert ratelimit(console, "override", "list") == []


def test_users_of_limits_in_memory_are_deleted(make_app: AppMaker, accounts: Accounts) -> None:
    """No command sets overrides or blocks there."""
    console = make_app(RATELIMIT_STORAGE_URI="memory://")
    new_key(console, "bob")
    new_key(console)
    assert "alice is deleted" in run(console, "users", "delete", "alice", "--yes").output
    assert [user.name for user in accounts.users()] == ["bob"]


def test_a_deletion_is_asked_for(console: Flask, accounts: Accounts, key: str) -> None:
    """No is the default, and an unknown user is an error."""
    assert "Delete alice" in run(console, "users", "delete", "alice", status=1).output
    assert len(accounts.users()) == 2
    unknown = run(console, "users", "delete", "zoe", "--yes", status=1)
    assert "There is no user 'zoe'" in unknown.stderr


def test_the_last_keys_stay(console: Flask, accounts: Accounts) -> None:
    """A database without keys would be taken for a lost one, and refuse everybody."""
    key = new_key(console)
    refused = run(console, "users", "delete", "alice", "--yes", status=1)
    assert "alice has the only keys; nothing was deleted." in refused.stderr
    assert accounts.find(public_id_of(key)) is not None


def test_a_user_without_a_key_is_deleted_though_there_is_none(
    console: Flask, accounts: Accounts
) -> None:
    """Accounts are off before and after."""
    accounts.import_users([UserChange("carol", {})], default_plan="starter")
    run(console, "users", "delete", "carol", "--yes")
    assert not accounts.users()


def test_answers_of_a_deleted_user_are_nobodys(console: Flask, key: str) -> None:
    """A later user of that name cannot continue them, nor can others."""
    answers = services_of(console).stored_answers
    answers.note(["resp_1"], user="user:alice", provider="openai")
    assert answers.flush()
    run(console, "users", "delete", "alice", "--yes")
    assert answers.find(["resp_1"], user="user:alice") == {}
    assert answers.of_others(["resp_1"], user="user:alice", provider="openai") == {"resp_1"}
