"""flask --app wsgi chat …"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import text

from chatapp.accounts.api_key import parse
from chatapp.accounts.store import Accounts
from chatapp.catalogue import load
from chatapp.catalogue.usage import Usage
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.operators.errors import operator_error
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import NOON, begun, finished


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    return make_app()


def run(app: Flask, *words: str, status: int = 0) -> Result:
    result = app.test_cli_runner().invoke(args=["chat", *words])
    assert result.exit_code == status, result.output
    return result


def test_a_key_is_shown_once(app: Flask, accounts: Accounts) -> None:
    """Alone on standard output, and in no later command."""
    made = run(app, "keys", "create", "--user", "alice", "--plan", "pro", "--name", "laptop")
    key = parse(made.stdout.removesuffix("\n"))
    assert key is not None
    assert "only once" in made.stderr
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


def test_a_key_for_unknown_models_is_made_with_a_warning(app: Flask) -> None:
    """An upstream may serve models that are not listed."""
    words = ("keys", "create", "--user", "alice", "--model", "gpt-99*", "--model", "gpt-4o")
    made = run(app, *words)
    assert parse(made.stdout.removesuffix("\n"))
    assert "No model in models.toml matches 'gpt-99*'. Unless" in made.stderr
    assert "'gpt-4o'" not in made.stderr


def test_setting_a_key_to_unknown_models_warns_as_well(app: Flask) -> None:
    """A misspelt pattern would refuse every call."""
    key = parse(run(app, "keys", "create", "--user", "alice").stdout.removesuffix("\n"))
    assert key is not None
    done = run(app, "keys", "set", key.public_id, "--model", "gtp-5*", "--model", "gpt-4o").output
    assert "allows gtp-5*, gpt-4o; " in done
    assert "No model in models.toml matches 'gtp-5*'. Unless" in done
    assert "matches" not in run(app, "keys", "set", key.public_id, "--model", "gpt-4o").output


#: What a command says about what was typed, in part.
SAID = {
    ("users list", "--key", "x"): "There are no users that match these options.",
    ("keys list", "--user", "bob"): "There are no keys that match these options.",
    ("users list", "--query", "zzz"): "There are no users that match these options.",
    ("amounts set", "user", "bob", "usd-day", "20"): "allowed: '5 usd/day' with another amount",
    ("amounts set", "user", "bob", "usd-day", "9/day"): "allowed: '5 usd/day' with another amount",
    ("block user", "10.0.0.1"): "There is no user '10.0.0.1'; an address is ip:10.0.0.1.",
    ("amounts set", "--help"): "Make it an override that ends then",
}


@pytest.mark.parametrize("words", SAID, ids=" ".join)
def test_what_was_meant_is_said(app: Flask, words: tuple[str, ...]) -> None:
    """A list, an error and a help are about what was typed."""
    run(app, "users", "create", "bob")
    command, *others = words
    answer = app.test_cli_runner().invoke(args=["chat", *command.split(), *others])
    assert " ".join(SAID[words].split()) in " ".join(answer.output.split())


def test_the_amounts_in_help_are_of_limits_that_exist(app: Flask) -> None:
    """What a reader copies works."""
    for owner, limit in (("users", "usd-day"), ("keys", "key-usd-day"), ("teams", "team-usd-day")):
        command = ("keys", "create", "--user", "bob") if owner == "keys" else (owner, "create", "x")
        shown = "".join(run(app, *command[:2], "--help").output.split())
        assert f'suchas{limit}="20usd/day"' in shown
        run(app, *command, "--limit", f"{limit}=20 usd/day")


def test_a_key_changes_no_plan(app: Flask, accounts: Accounts) -> None:
    """The error names the plan of the user and how to change it; no key is created."""
    run(app, "keys", "create", "--user", "alice", "--plan", "pro")
    refused = run(app, "keys", "create", "--user", "alice", "--plan", "starter", status=1)
    assert refused.stdout == ""
    assert "alice has the plan pro" in refused.stderr
    assert "`chat users set`" in refused.stderr
    for same in ((), ("--plan", "pro")):
        run(app, "keys", "create", "--user", "alice", *same)
    assert len(accounts.all_keys()) == 3
    assert [user.plan for user in accounts.users()] == ["pro"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("keys create --user x --user-header X-User", "--user-header needs --acts-for-users"),
        ("keys create --user x --acts-for-users --most-new x", "--most-new is a string; send"),
        ("keys list --limit 0", "--limit is 0; send at least 1."),
        ("keys create --user x --acts-for-users --plan-of-new x", "--plan-of-new: Unknown plan"),
        ("users set alice --limit usd-day", "--limit: 'usd-day' has no amount"),
        ("amounts set user alice usd-day 5", "AMOUNT: usd-day: found '5'"),
        ("users set alice --limit plan=9/day --limit plan=8/day", "name a limit twice; write it"),
        ("keys create --user x --model a,b --model a\tb", "--model: 'a\\tb' is not a model name"),
        ("keys create --user x --acts-for-users --user-header Cookie", "--user-header: 'Cookie'"),
        (f"users set alice --reason {'r' * 201}", '"reason" is too long; send at most 200'),
        (
            "credit 1e9 --user alice",
            "USD: '1e9' is not an amount of dollars above 0, up to 1000000, with",
        ),
        ("credit 5", "Name exactly one of --user, --key and --team."),
        ("ledger prune", "Send --keep-days, or set CHATAPP_LEDGER_KEEP_DAYS."),
    ],
)
def test_a_mistake_names_the_option(
    app: Flask, accounts: Accounts, words: str, sentence: str
) -> None:
    """Not the field of the management API."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    assert sentence in run(app, *words.split(" "), status=2).output


def test_create_and_set_say_what_they_refuse(app: Flask) -> None:
    """They are one act."""
    for words in (("users", "create"), ("teams", "set")):
        help_ = " ".join(run(app, *words, "--help").output.split())
        assert "`create` fails if the name exists, and `set` if it does not." in help_


def test_a_key_expires_when_it_was_said(app: Flask, accounts: Accounts) -> None:
    """Days from now."""
    run(app, "keys", "create", "--user", "alice", "--expires", "30d")
    expires_at = accounts.all_keys()[0].expires_at
    assert expires_at is not None
    assert abs(expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert "valid until" in run(app, "keys", "list").output


def test_a_key_is_revoked_by_its_id_or_itself(app: Flask, accounts: Accounts) -> None:
    """By its public part or whole; again is no error."""
    for whole in (False, True):
        text = run(app, "keys", "create", "--user", "alice").stdout.strip()
        key = parse(text)
        assert key is not None
        named = text if whole else key.public_id
        revoked = run(app, "keys", "revoke", named)
        assert key.secret not in revoked.output
        assert "was already revoked on 20" in run(app, "keys", "revoke", named).output
        found = accounts.find(key.public_id)
        assert found is not None
        assert found[0].revoked_at is not None
    assert "no key" in run(app, "keys", "revoke", "0" * 16, status=1).output


def test_keys_are_listed_for_one_user(app: Flask) -> None:
    """Or of all users."""
    for user in ("alice", "bob"):
        run(app, "keys", "create", "--user", user)
    heads, *rows = run(app, "keys", "list").output.splitlines()
    assert heads.split() == ["ID", "USER", "NAME", "CREATED", "STATE"]
    assert [row.split()[1] for row in rows] == ["alice", "bob"]
    assert {row.index("valid") for row in rows} == {heads.index("STATE")}
    for name in ("bob", "user:bob"):
        _, only = run(app, "keys", "list", "--user", name).output.splitlines()
        assert only.split() == rows[1].split()
    unknown = run(app, "keys", "list", "--user", "zoe", status=2)
    assert "There is no user 'zoe'" in unknown.stderr


def test_an_empty_result_is_reported(app: Flask) -> None:
    """On standard error: standard output stays empty for scripts."""
    for words, says in {
        ("keys", "list"): "There are no keys yet",
        ("ledger", "days"): "There are no calls.",
        ("ledger", "days", "--user", "ip:192.0.2.7"): "There are no calls that match",
        ("ledger", "calls", "--since", "2026-11-25"): "There are no calls that match",
        ("spend",): "There are no calls.",
        ("users", "list"): "There are no users yet",
        ("ledger", "estimates"): "There are no answered calls with a reported usage.",
    }.items():
        result = run(app, *words)
        assert result.stdout == ""
        assert says in result.stderr


@pytest.mark.parametrize(
    "words", [("ledger", "days", "--user"), ("ledger", "check", "--user"), ("usage",)]
)
def test_an_unknown_user_is_not_a_user_without_calls(
    app: Flask, accounts: Accounts, words: tuple[str, ...]
) -> None:
    """A misspelt name does not look like good news."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    refused = run(app, *words, "zoe", status=1)
    assert "There is no user 'zoe'" in refused.stderr
    assert refused.stdout == ""
    for alice in ("alice", "user:alice"):
        run(app, *words, alice)


def test_a_plan_is_set(app: Flask) -> None:
    """For a user who exists, to a plan that exists; the list shows it."""
    run(app, "keys", "create", "--user", "alice")
    run(app, "users", "set", "user:alice", "--plan", "pro")
    assert ["pro", "yes", "alice"] in [
        line.split() for line in run(app, "plans", "list").output.splitlines()
    ]
    assert "no user" in run(app, "users", "set", "bob", "--plan", "pro", status=1).output


def test_an_empty_csv_says_so(app: Flask) -> None:
    """On standard error: standard output stays empty for scripts."""
    for words in (("spend", "--month", "last"), ("ledger", "calls", "--user", "ip:192.0.2.7")):
        printed = run(app, *words, "--csv")
        assert (printed.stdout, printed.stderr) == ("", run(app, *words).stderr)
        assert printed.stderr == "There are no calls that match these options.\n"


def test_a_long_cell_is_cut(app: Flask, tmp_path: Path) -> None:
    """A table shows as many users as have room, and how many more there are; JSON has all."""
    names = [f"user{number:03}" for number in range(200)]
    (tmp_path / "users.csv").write_text("\n".join(["user", *names]))
    run(app, "users", "import", str(tmp_path / "users.csv"))
    [line] = [line for line in run(app, "plans", "list").output.splitlines() if "user000" in line]
    assert line.split(maxsplit=2)[2].split(", ") == [*names[:13], "187 more"]
    listed = json.loads(run(app, "plans", "list", "--json").output)
    assert [row["users"] for row in listed if row["users"]] == [names]


def test_a_plan_that_the_policy_lost_is_shown(app: Flask, accounts: Accounts) -> None:
    """The list marks it as missing in the policy."""
    accounts.create_key("alice", plan="gold", default_plan="starter")
    assert ["gold", "no", "alice"] in [
        line.split() for line in run(app, "plans", "list").output.splitlines()
    ]


BAD_WORDS = {
    "no user": ("keys", "create"),
    "a blank user": ("keys", "create", "--user", " "),
    "a long user": ("keys", "create", "--user", "u" * 257),
    "a user with a line": ("keys", "create", "--user", "a\nb"),
    "a user like an identity": ("keys", "create", "--user", "user:alice"),
    "a user like an address": ("keys", "create", "--user", "ip:192.0.2.7"),
    "a long name": ("keys", "create", "--user", "a", "--name", "n" * 101),
    "an unknown plan": ("keys", "create", "--user", "a", "--plan", "gold"),
    "no days": ("keys", "create", "--user", "a", "--expires", "0d"),
    "days that are none": ("keys", "create", "--user", "a", "--expires", "soon"),
    "an unknown plan to set": ("users", "set", "a", "--plan", "gold"),
    "no day": ("ledger", "days", "--since", "someday"),
    "no month": ("ledger", "days", "--month", "2026-13"),
    "the last month of all": ("ledger", "days", "--month", "9999-12"),
    "no week of its year": ("ledger", "days", "--week", "2027-W53"),
    "a month and a week": ("ledger", "days", "--month", "last", "--week", "last"),
    "a month and a day": ("ledger", "days", "--month", "last", "--since", "7d"),
    "a time without days": ("ledger", "days", "--since", "7d", "--until", "8d"),
    "no day to compare from": ("ledger", "estimates", "--since", "2026-13-01"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_a_wrong_argument_changes_nothing(app: Flask, accounts: Accounts, name: str) -> None:
    """Status 2; a sentence, and no user or key."""
    assert "Error: " in run(app, *BAD_WORDS[name], status=2).output
    assert not accounts.users()


def test_the_ledger_is_shown(app: Flask, database_url: str) -> None:
    """By day and user, in dollars; with options of one user and from a day on."""
    table.write(
        Database(database_url),
        [finished(begun()), begun(user="ip:198.51.100.7", started_at=NOON - timedelta(days=1))],
    )

    def days(*words: str) -> list[list[str]]:
        return [line.split() for line in run(app, "ledger", "days", *words).output.splitlines()]

    heads, *shown = days()
    assert " ".join(heads) == "DAY SUBJECT CALLS INPUT TOKENS OUTPUT TOKENS COST USD"
    assert shown == [
        ["2026-11-24", "ip:198.51.100.7", "1", "0", "0", "0.0034"],
        ["2026-11-25", "user:alice", "1", "1000", "200", "0.001485"],
    ]
    for alice in ("alice", "user:alice"):
        assert days("--user", alice)[1:] == shown[1:]
    [address] = days("--user", "ip:198.51.100.7")[1:]
    assert address == shown[0]
    for of_day in (("--since", "2026-11-25"), ("--since", "2026-11-25", "--until", "2026-11-25")):
        assert days(*of_day)[1:] == shown[1:]
    assert [row[0] for row in days("--until", "2026-11-24")] == ["DAY", "2026-11-24"]
    assert days("--month", "2026-11") == [heads, *shown]
    none = run(app, "ledger", "days", "--month", "2026-10").stderr
    assert none == "There are no calls that match these options.\n"


def test_estimates_are_compared_with_bills(app: Flask, database_url: str) -> None:
    """By model, with an option from a day on; the estimate of each call is 900 and 500 tokens."""
    yesterday = NOON - timedelta(days=1)
    calls = [
        finished(begun()),  # 1000 and 200
        finished(begun(started_at=yesterday), usage=Usage(800, 100)),
        finished(begun(slug="gpt-4o", started_at=yesterday), usage=Usage(900, 600)),
        begun(),
    ]
    table.write(Database(database_url), calls)
    heads, *rows = [line.split() for line in run(app, "ledger", "estimates").output.splitlines()]
    assert " ".join(heads) == "SLUG CALLS INPUT RATIO INPUT OVER OUTPUT RATIO OUTPUT OVER"
    assert rows == [
        ["claude-haiku-4-5", "2", "1", "0.5", "0.3", "0"],
        ["gpt-4o", "1", "1", "0", "1.2", "1"],
    ]
    output = run(app, "ledger", "estimates", "--since", "2026-11-25").output
    assert output.splitlines()[1].split() == [
        *("claude-haiku-4-5", "1", "1.111111", "1", "0.4", "0")
    ]
    assert run(app, "ledger", "estimates", "--since", "2026-11-26").stdout == ""


def test_a_ledger_that_is_right_passes(app: Flask, database_url: str) -> None:
    """Status 0, with the sums."""
    just_now = begun(started_at=datetime.now(UTC))
    table.write(Database(database_url), [finished(begun()), just_now])
    output = run(app, "ledger", "check").output
    assert "2 calls, 1 running" in output
    assert "0 problems" in output


def test_a_ledger_that_is_wrong_fails(app: Flask, database_url: str) -> None:
    """Status 1: a dead worker's call, and a wrong cost."""
    as_of = load().as_of
    old = datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC)
    wrong = finished(begun(started_at=old), cost_micro_usd=1)
    dead = begun(started_at=old)
    table.write(Database(database_url), [dead, wrong])
    output = run(app, "ledger", "check", status=1).output
    assert f"{dead.id} of user:alice began at" in output
    assert f"{wrong.id} of user:alice cost 1 micro-dollars" in output
    assert "2 problems" in output


def test_the_schema_may_be_upgraded_again(app: Flask) -> None:
    """The second time, nothing is to be done."""
    assert "was already at" in run(app, "db", "upgrade").output


def test_the_first_upgrade_says_what_it_did(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own start has neither made the tables before it, nor logged that it has to be run."""
    monkeypatch.setattr(sys, "argv", ["flask", "chat", "db", "upgrade"])
    app = make_app(CHATAPP_DATABASE_URL=f"sqlite:///{tmp_path / 'new.db'}")
    assert "is now at" in run(app, "db", "upgrade").output
    with Database(f"sqlite:///{tmp_path / 'new.db'}").writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    refused = run(app, "db", "upgrade", status=1).output
    assert refused.startswith("Error: DATABASE_URL: the database has schema 9999; this version")
    assert refused.endswith("use another database.\n")


def test_an_unavailable_database_is_one_sentence(make_app: AppMaker) -> None:
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
        assert result.output.startswith("Error: The database failed")
        assert "chat db upgrade" in result.output
        assert "swordfish" not in result.output


def test_a_reader_that_stops_is_no_error_of_the_database() -> None:
    """As in `chat ledger traffic | head`."""
    assert operator_error(BrokenPipeError()) is None
    assert operator_error(OSError("no space")) is not None


def test_the_ledger_is_pruned_by_command(app: Flask, make_app: AppMaker, database_url: str) -> None:
    """By an option or a setting; never the days that budgets read."""
    database = Database(database_url)
    old = begun(started_at=datetime.now(UTC) - timedelta(days=101))
    table.write(database, [old, begun(started_at=datetime.now(UTC))])
    run(app, "ledger", "prune", "--keep-days", "30", status=2)
    assert "CHATAPP_LEDGER_KEEP_DAYS" in run(app, "ledger", "prune", status=2).stderr
    output = run(app, "ledger", "prune", "--keep-days", "100").output
    assert output == "Deleted 1 call older than 100 days.\n"
    app = make_app(CHATAPP_LEDGER_KEEP_DAYS=100)
    assert run(app, "ledger", "prune").output.startswith("Deleted 0 calls")
