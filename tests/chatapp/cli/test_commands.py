"""flask --app wsgi chat …"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from click.testing import Result
from flask import Flask

from chatapp.accounts.api_key import parse
from chatapp.accounts.store import Accounts
from chatapp.catalogue import load
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.providers import Usage
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import NOON, begun, finished


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    return make_app()


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    return Accounts(Database(database_url))


def run(app: Flask, *words: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["chat", *words])
    assert result.exit_code == status, result.output
    return result


def test_a_key_is_shown_once(app: Flask, accounts: Accounts) -> None:
    """Alone on standard output, and in no command after that."""
    made = run(app, "keys", "create", "--user", "alice", "--plan", "pro", "--name", "laptop")
    key = parse(made.stdout.removesuffix("\n"))
    assert key is not None
    assert "only this once" in made.stderr
    assert "Accounts are on" in made.stderr
    found = accounts.find(key.public_id)
    assert found is not None
    assert key.has_secret(found[0].secret_sha256)
    assert found[1].plan == "pro"
    listed = run(app, "keys", "list")
    assert key.public_id in listed.output
    assert "laptop" in listed.output
    assert key.secret not in listed.output
    assert "Accounts are on" not in run(app, "keys", "create", "--user", "bob").stderr


def test_a_key_changes_no_plan(app: Flask, accounts: Accounts) -> None:
    """Who names another plan than the user's is told his, and how to change it; nothing is made."""
    run(app, "keys", "create", "--user", "alice", "--plan", "pro")
    refused = run(app, "keys", "create", "--user", "alice", "--plan", "starter", status=1)
    assert refused.stdout == ""
    assert "alice has the plan pro" in refused.stderr
    assert "`chat plans set alice starter`" in refused.stderr
    for same in ((), ("--plan", "pro")):
        run(app, "keys", "create", "--user", "alice", *same)
    assert len(accounts.all_keys()) == 3
    assert [user.plan for user in accounts.users()] == ["pro"]


def test_a_key_expires_when_it_was_said(app: Flask, accounts: Accounts) -> None:
    """In days from now."""
    run(app, "keys", "create", "--user", "alice", "--expires", "30")
    expires_at = accounts.all_keys()[0].expires_at
    assert expires_at is not None
    assert abs(expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert "valid until" in run(app, "keys", "list").output


def test_a_key_is_revoked_by_its_id_or_itself(app: Flask, accounts: Accounts) -> None:
    """Whichever is at hand; twice is no error."""
    for whole in (False, True):
        text = run(app, "keys", "create", "--user", "alice").stdout.strip()
        key = parse(text)
        assert key is not None
        named = text if whole else key.public_id
        revoked = run(app, "keys", "revoke", named)
        assert key.secret not in revoked.output
        assert "was revoked already, on 20" in run(app, "keys", "revoke", named).output
        found = accounts.find(key.public_id)
        assert found is not None
        assert found[0].revoked_at is not None
    assert "no key" in run(app, "keys", "revoke", "0" * 16, status=1).output


def test_keys_are_listed_for_one_user(app: Flask) -> None:
    """Or for all."""
    for user in ("alice", "bob"):
        run(app, "keys", "create", "--user", user)
    heads, *rows = run(app, "keys", "list").output.splitlines()
    assert heads.split() == ["ID", "USER", "NAME", "MADE", "LAST", "USED", "STATE"]
    assert [row.split()[1] for row in rows] == ["alice", "bob"]
    assert {row.index("never") for row in rows} == {heads.index("LAST USED")}
    for name in ("bob", "user:bob"):
        _, only = run(app, "keys", "list", "--user", name).output.splitlines()
        assert only.split() == rows[1].split()
    nobody = run(app, "keys", "list", "--user", "nobody", status=1)
    assert "There is no key of a user 'nobody'" in nobody.stderr


def test_nothing_is_said_to_be_nothing(app: Flask) -> None:
    """Beside standard output, which stays empty for scripts."""
    for words, says in {
        ("keys", "list"): "There are no keys yet",
        ("ledger", "show"): "There are no calls.",
        ("ledger", "show", "--user", "ip:192.0.2.7"): "There are no calls of ip:192.0.2.7.",
        ("ledger", "show", "--since", "2026-11-25"): "There are no calls since 2026-11-25.",
        ("ledger", "estimates"): "There are no answered calls whose usage is known.",
    }.items():
        result = run(app, *words)
        assert result.stdout == ""
        assert says in result.stderr


@pytest.mark.parametrize(
    "words", [("ledger", "show", "--user"), ("ledger", "check", "--user"), ("usage",)]
)
def test_nobody_is_told_from_somebody_who_spent_nothing(
    app: Flask, accounts: Accounts, words: tuple[str, ...]
) -> None:
    """A misspelt name must not look like good news."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    refused = run(app, *words, "nobody", status=1)
    assert "There is no user 'nobody'" in refused.stderr
    assert refused.stdout == ""
    for alice in ("alice", "user:alice"):
        run(app, *words, alice)


def test_a_plan_is_set(app: Flask) -> None:
    """For a user who exists, to a plan that exists; the list shows it."""
    run(app, "keys", "create", "--user", "alice")
    run(app, "plans", "set", "user:alice", "pro")
    assert "pro: alice" in run(app, "plans", "list").output
    assert "no user" in run(app, "plans", "set", "bob", "pro", status=1).output


def test_a_plan_that_the_policy_lost_is_shown(app: Flask, accounts: Accounts) -> None:
    """Whoever has it is told from the others."""
    accounts.create_key("alice", plan="gold", default_plan="starter")
    assert "gold (not in the policy" in run(app, "plans", "list").output


BAD_WORDS = {
    "no user": ("keys", "create"),
    "a blank user": ("keys", "create", "--user", " "),
    "a long user": ("keys", "create", "--user", "u" * 257),
    "a user with a line": ("keys", "create", "--user", "a\nb"),
    "a user like an identity": ("keys", "create", "--user", "user:alice"),
    "a user like an address": ("keys", "create", "--user", "ip:192.0.2.7"),
    "a long name": ("keys", "create", "--user", "a", "--name", "n" * 101),
    "an unknown plan": ("keys", "create", "--user", "a", "--plan", "gold"),
    "no days": ("keys", "create", "--user", "a", "--expires", "0"),
    "days that are none": ("keys", "create", "--user", "a", "--expires", "soon"),
    "an unknown plan to set": ("plans", "set", "a", "gold"),
    "no day": ("ledger", "show", "--since", "yesterday"),
    "no day to compare from": ("ledger", "estimates", "--since", "2026-13-01"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_a_mistake_is_told_and_does_nothing(app: Flask, accounts: Accounts, name: str) -> None:
    """Status 2, a sentence, and no user or key."""
    assert "Error: " in run(app, *BAD_WORDS[name], status=2).output
    assert not accounts.users()


def test_the_ledger_is_shown(app: Flask, database_url: str) -> None:
    """By day and user, in dollars; of one user and from a day on where that is asked."""
    table.write(
        Database(database_url),
        [finished(begun()), begun(user="ip:198.51.100.7", started_at=NOON - timedelta(days=1))],
    )
    shown = run(app, "ledger", "show").output.splitlines()
    assert shown == [
        "2026-11-25  user:alice  1 call  1000 in  200 out  0.001485 USD",
        "2026-11-24  ip:198.51.100.7  1 call  0 in  0 out  0.003400 USD",
    ]
    for alice in ("alice", "user:alice"):
        assert run(app, "ledger", "show", "--user", alice).output.splitlines() == shown[:1]
    assert run(app, "ledger", "show", "--user", "ip:198.51.100.7").output.splitlines() == shown[1:]
    assert run(app, "ledger", "show", "--since", "2026-11-25").output.splitlines() == shown[:1]


def test_estimates_are_compared_with_bills(app: Flask, database_url: str) -> None:
    """By model, from a day on where that is asked: 900 and 500 tokens were expected of each."""
    yesterday = NOON - timedelta(days=1)
    calls = [
        finished(begun()),  # 1000 and 200
        finished(begun(started_at=yesterday), usage=Usage(800, 100)),
        finished(begun(slug="gpt-4o", started_at=yesterday), usage=Usage(900, 600)),
        begun(),
    ]
    table.write(Database(database_url), calls)
    assert run(app, "ledger", "estimates").output.splitlines() == [
        "claude-haiku-4-5  2 calls  in 1.000  50.0% over  out 0.300  0.0% over",
        "gpt-4o  1 call  in 1.000  0.0% over  out 1.200  100.0% over",
    ]
    assert run(app, "ledger", "estimates", "--since", "2026-11-25").output.splitlines() == [
        "claude-haiku-4-5  1 call  in 1.111  100.0% over  out 0.400  0.0% over",
    ]
    assert run(app, "ledger", "estimates", "--since", "2026-11-26").stdout == ""


def test_a_ledger_that_is_right_passes(app: Flask, database_url: str) -> None:
    """Status 0, with the sums."""
    just_now = begun(started_at=datetime.now(UTC))
    table.write(Database(database_url), [finished(begun()), just_now])
    output = run(app, "ledger", "check").output
    assert "2 calls, 1 under way" in output
    assert "0 problems" in output


def test_a_ledger_that_is_wrong_fails(app: Flask, database_url: str) -> None:
    """Status 1: a dead worker's call, and a cost that is no price."""
    as_of = load().as_of
    old = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)
    wrong = finished(begun(started_at=old), cost_micro_usd=1)
    dead = begun(started_at=old)
    table.write(Database(database_url), [dead, wrong])
    output = run(app, "ledger", "check", status=1).output
    assert f"{dead.id} of user:alice began at" in output
    assert f"{wrong.id} of user:alice cost 1 micro-dollars" in output
    assert "2 problems" in output


def test_the_schema_is_upgraded_as_often_as_one_likes(app: Flask) -> None:
    """The second time it says that there was nothing to do."""
    assert "was already at" in run(app, "db", "upgrade").output


def test_a_database_that_fails_is_a_sentence(make_app: AppMaker) -> None:
    """Status 1, the reason, the remedy, and no traceback."""
    pytest.importorskip("psycopg")
    app = make_app(CHATAPP_DATABASE_URL="postgresql://chat:swordfish@127.0.0.1:1/chat")
    for words in (
        ("keys", "list"),
        ("db", "upgrade"),
        ("ledger", "check"),
        ("ledger", "estimates"),
    ):
        result = run(app, *words, status=1)
        assert result.output.startswith("Error: The database does not do it")
        assert "chat db upgrade" in result.output
        assert "swordfish" not in result.output


def test_the_ledger_is_pruned_by_command(app: Flask, make_app: AppMaker, database_url: str) -> None:
    """With a number of days, said or set; never less than budgets read."""
    database = Database(database_url)
    old = begun(started_at=datetime.now(UTC) - timedelta(days=101))
    table.write(database, [old, begun(started_at=datetime.now(UTC))])
    run(app, "ledger", "prune", "--keep-days", "30", status=2)
    assert "CHATAPP_LEDGER_KEEP_DAYS" in run(app, "ledger", "prune", status=2).stderr
    told = run(app, "ledger", "prune", "--keep-days", "100").output
    assert told == "1 call deleted, of more than 100 days ago.\n"
    app = make_app(CHATAPP_LEDGER_KEEP_DAYS=100)
    assert run(app, "ledger", "prune").output.startswith("0 calls deleted")
