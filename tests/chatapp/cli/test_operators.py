"""What chatapp's operators do beyond accounts: overrides, states, spending, rotated keys, JSON."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask

import chatapp
import ratelimit_ext
from chatapp.accounts.api_key import parse, public_id_of
from chatapp.accounts.store import Accounts
from chatapp.cli.chat import chat
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.operators import spreadsheet
from chatapp.services import services_of
from tests.called import called
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.calls import begun, finished
from tests.chatapp.web.test_authentication import BODIES


@pytest.fixture
def worker(make_app: AppMaker, uri: str, accounts: Accounts) -> Flask:
    """The application that answers, with accounts on."""
    accounts.create_key("zoe", plan=None, default_plan="starter")
    return make_app(RATELIMIT_STORAGE_URI=uri)


def ratelimit(app: Flask, *words: str, status: int = 0) -> Any:
    """What `flask ratelimit … --json` prints, or its error."""
    result = app.test_cli_runner().invoke(args=["ratelimit", *words, "--json"])
    assert result.exit_code == status, result.output
    return result.stderr if status else json.loads(result.stdout)


def ask(app: Flask, key: str) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return app.test_client().post("/chat", json={"message": "hi"}, headers=headers)


def new_key(app: Flask, user: str = "alice", *words: str) -> str:
    return run(app, "keys", "create", "--user", user, *words).stdout.strip()


# -- overrides ---------------------------------------------------------------------------------


def test_a_users_amount_is_raised_until_tomorrow(worker: Flask, console: Flask) -> None:
    """An override is listed with its end, comes before the account's amount, and `clear-amount`
    removes both."""
    key = new_key(console)
    overrides = services_of(worker).limiter._components.overrides
    run(console, "amounts", "set", "user", "alice", "plan", "1/day")
    assert [ask(worker, key).status_code for _ in range(2)] == [200, 429]
    words = ("override", "set", "alice", "plan", "3/day", "--until", "tomorrow 9:00")
    made = ratelimit(console, *words)
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d} 09:00:00 UTC"
    assert (made["identity"], made["until"][:10]) == ("user:alice", f"{tomorrow[:10]}")
    overrides.refresh()
    assert [ask(worker, key).status_code for _ in range(3)] == [200, 200, 429]
    assert f"plan=3/day until {tomorrow}" in run(console, "users", "list").output
    (listed,) = ratelimit(console, "override", "list")
    assert (listed["identity"], listed["limit"]) == ("user:alice", "plan")
    run(console, "amounts", "clear", "user", "alice", "plan")
    assert ratelimit(console, "override", "list") == []
    assert json.loads(run(console, "users", "list", "--json").stdout)[0]["limits"] == {}
    actions = [entry["action"] for entry in ratelimit(console, "log")]
    assert actions == ["clear-override", "clear-amount", "override", "amount", "create-key"]
    run(console, "amounts", "clear", "user", "alice", "plan", status=1)


def test_a_teams_budget_may_exist_for_some_time(worker: Flask, console: Flask) -> None:
    """It is optional, and applies to the team's calls alone while the override does."""
    run(console, "teams", "create", "research")
    key, other = new_key(console, "alice", "--team", "research"), new_key(console, "bob")
    words = ("team:research", "team-usd-day", "1 usd/day", "--until", "2h")
    ratelimit(console, "override", "set", *words)
    services_of(worker).limiter._components.overrides.refresh()
    assert '"team-usd-day"' in ask(worker, key).headers["RateLimit"]
    assert '"team-usd-day"' not in ask(worker, other).headers["RateLimit"]
    assert "team-usd-day=1 usd/day until " in run(console, "teams", "list").output


def test_changes_of_accounts_are_in_the_log(console: Flask) -> None:
    """Keys, plans, teams and users, with who did it and why; in the words of the admin page."""
    key = public_id_of(new_key(console, "alice", "--by", "olga", "--reason", "new laptop"))
    run(console, "teams", "create", "research")
    run(console, "users", "set", "alice", "--team", "research")
    run(console, "users", "set", "alice", "--team", "")
    run(console, "users", "set", "alice", "--plan", "pro", "--reason", "launch")
    run(console, "keys", "set", key, "--model", "gpt-5*")
    new = public_id_of(run(console, "keys", "rotate", key).stdout.strip())
    run(console, "keys", "revoke", key, new)
    runner = console.test_cli_runner()
    for words in (("--dry-run",), ()):
        args = ["chat", "users", "import", "-", "--keys", *words]
        assert runner.invoke(args=args, input="user\nbob\n").exit_code == 0
    log = ratelimit(console, "log")
    assert [(each["action"], each["identity"], each["amount"], each["reason"]) for each in log] == [
        ("import-users", "*", "", "1 created, 0 changed, 1 keys"),
        ("revoke-key", new, "", "of alice"),
        ("revoke-key", key, "", "of alice"),
        ("rotate-key", key, "", f"of alice, replaced by {new}"),
        ("models", key, "gpt-5*", ""),
        ("plan", "user:alice", "pro", "launch"),
        ("team", "user:alice", "none", ""),
        ("team", "user:alice", "research", ""),
        ("create-team", "team:research", "", ""),
        ("create-key", key, "", "new laptop"),
    ]
    assert log[-1]["by"] == "olga"
    assert log[3]["until"] is not None
    assert key not in {each["reason"] for each in log}


def test_accounts_change_without_the_log(make_app: AppMaker, accounts: Accounts) -> None:
    """While the storage is down, or where no worker shares it."""
    for uri in ("redis://127.0.0.1:1", "memory://"):
        console = make_app(RATELIMIT_STORAGE_URI=uri)
        run(console, "keys", "revoke", public_id_of(new_key(console)))
    assert [each.revoked_at is None for each in accounts.all_keys()] == [False, False]


def test_an_override_is_for_someone_who_exists(console: Flask) -> None:
    """A misspelt name would get nothing. Users, teams and keys are known by their names."""
    key = new_key(console)
    run(console, "teams", "create", "research")
    for identity, limit, amount, known in (
        ("alice", "usd-day", "9 usd/day", "user:alice"),
        ("user:alice", "usd-day", "9 usd/day", "user:alice"),
        ("research", "team-usd-day", "9 usd/day", "team:research"),
        (key, "key-usd-day", "9 usd/day", public_id_of(key)),
        ("ip:10.0.0.7", "usd-day", "9 usd/day", "ip:10.0.0.7"),
    ):
        assert ratelimit(console, "override", "set", identity, limit, amount)["identity"] == known
    for identity, limit, amount, message in (
        ("alcie", "usd-day", "9 usd/day", "There is no user 'alcie'"),
        ("f" * 16, "key-usd-day", "9 usd/day", f"There is no key {'f' * 16}"),
        ("sales", "team-usd-day", "9 usd/day", "team-usd-day counts team; 'sales' cannot be one"),
    ):
        assert message in ratelimit(console, "override", "set", identity, limit, amount, status=1)


def test_an_override_is_set_in_few_calls(console: Flask) -> None:
    """Of both packages' functions: only the limits of that name are compiled, once."""
    new_key(console)
    with called(chatapp, ratelimit_ext) as codes:
        ratelimit(console, "override", "set", "alice", "usd-day", "50 usd/day")
    assert 0 < len(codes) <= 1500, len(codes)


def test_an_override_needs_the_workers_storage(make_app: AppMaker) -> None:
    """A permanent amount does not: it is in the database."""
    app = make_app()
    new_key(app)
    words = ("alice", "usd-day", "9 usd/day")
    refused = ratelimit(app, "override", "set", *words, "--until", "2h", status=1)
    assert "no command can see or change" in refused
    run(app, "amounts", "set", "user", *words)


# -- states ------------------------------------------------------------------------------------


def test_inspect_shows_the_limits_of_a_callers_plan(worker: Flask, console: Flask) -> None:
    """With their amounts, in dollars, and no other plan's."""
    key = new_key(console, "alice", "--plan", "pro")
    run(console, "amounts", "set", "user", "alice", "usd-day", "7 usd/day")
    assert ask(worker, key).status_code == 200
    states = {state["limit"]: state for state in ratelimit(console, "inspect", "alice")}
    assert {state["plan"] for state in states.values()} == {"pro", None}
    assert (states["plan"]["used"], states["plan"]["amount"]) == (1, 2000)
    assert (states["usd-day"]["unit"], states["usd-day"]["amount"]) == ("usd", 7)
    assert "team-usd-day" not in states
    of_key = {state["limit"]: state for state in ratelimit(console, "inspect", key)}
    assert of_key["key"]["amount"] == 200
    assert key not in json.dumps(of_key)
    assert ratelimit(console, "top", "--limit", "plan")[0]["amount"] == 2000


def test_who_passes_is_not_blocked(make_app: AppMaker, uri: str) -> None:
    """A block by a guard in shadow denies nothing."""
    tried = {"name": "tried", "limit": "unless blocked", "key": "user", "mode": "shadow"}
    config = {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_BLUEPRINTS": {"chat": [tried]}}
    app = make_app(**config)
    key = new_key(app)
    with app.app_context():
        services_of(app).limiter.operators.block("tried", "user:alice", for_s=3600)
    assert ask(app, key).status_code == 200
    assert ratelimit(app, "blocks") == []


def test_blocks_are_listed_with_who_set_them(console: Flask) -> None:
    """`chat block` writes to the log."""
    new_key(console)
    run(console, "block", "user", "alice", "--for", "1h", "--by", "olga", "--reason", "leaked key")
    run(console, "block", "all")
    found = {each["limit"]: each for each in ratelimit(console, "blocks")}
    assert (found["blocked-user"]["by"], found["blocked-user"]["note"]) == ("olga", "leaked key")
    assert found["blocked-all"]["until"] is None
    run(console, "unblock", "all")
    assert [each["limit"] for each in ratelimit(console, "blocks")] == ["blocked-user"]


# -- spending ----------------------------------------------------------------------------------


@pytest.fixture
def spent(worker: Flask, database_url: str) -> Iterator[Flask]:
    """The application after calls of two users, one of whom is named like a formula."""
    now = datetime.now(UTC)
    calls = [
        finished(begun(started_at=now, user="user:=cmd()", team="research", slug="gpt-4o")),
        finished(begun(started_at=now), cost_micro_usd=3),
        finished(begun(started_at=now), cost_micro_usd=4),
        finished(begun(started_at=now - timedelta(days=70)), cost_micro_usd=9_000_000),
    ]
    database = Database(database_url)
    table.write(database, calls)
    yield worker
    database.close()


def test_spend_lists_the_dearest_first(spent: Flask) -> None:
    """Of this month, or since a day; by user, key, model, team or tag."""
    lines = run(spent, "spend").output.splitlines()
    assert " ".join(lines[0].split()) == "SUBJECT CALLS INPUT TOKENS OUTPUT TOKENS COST USD"
    assert lines[1].split() == ["user:=cmd()", "1", "1000", "200", "0.001485"]
    assert lines[2].split() == ["user:alice", "2", "2000", "400", "0.000007"]
    assert len(run(spent, "spend", "--top", "1").output.splitlines()) == 2
    old = f"{datetime.now(UTC) - timedelta(days=80):%Y-%m-%d}"
    for since in (old, "80d"):
        assert "9.000007" in run(spent, "spend", "--since", since).output.splitlines()[1]
    assert "9.000007" not in run(spent, "spend", "--since", "60d").output
    for by, first in (
        ("team", "research"),
        ("model", "gpt-4o"),
        ("key", "0123456789abcdef"),
        ("tag:project", None),
    ):
        rows = json.loads(run(spent, "spend", "--by", by, "--json").stdout)
        assert rows[0]["subject"] == first
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(0.001492)


def test_spend_as_csv_is_safe_for_spreadsheets(spent: Flask, database_url: str) -> None:
    """Callers choose tags, and a cell must not be a formula."""
    tagged = finished(begun(started_at=datetime.now(UTC), tags=(("project", '=HYPERLINK("x")'),)))
    table.write(Database(database_url), [tagged])
    rows = list(csv.reader(io.StringIO(run(spent, "spend", "--by", "tag:project", "--csv").stdout)))
    assert rows[0] == [
        *("subject", "calls", "input_tokens", "output_tokens", "cost_micro_usd", "cost_usd")
    ]
    assert ['\'=HYPERLINK("x")', "1", "1000", "200", "1485", "0.001485"] in rows


def test_the_last_month_is_a_calendar_month(worker: Flask, database_url: str) -> None:
    """From its first instant to its last, by UTC, also by its number."""
    this = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last = (this - timedelta(days=1)).replace(day=1)
    calls = [
        finished(begun(started_at=this - timedelta(microseconds=1)), cost_micro_usd=5),
        finished(begun(started_at=last), cost_micro_usd=7),
        finished(begun(started_at=this), cost_micro_usd=100),
        finished(begun(started_at=last - timedelta(microseconds=1)), cost_micro_usd=1000),
    ]
    table.write(Database(database_url), calls)
    until = f"{this - timedelta(days=1):%Y-%m-%d}"
    for words in (
        ("--month", "last"),
        ("--month", f"{last:%Y-%m}"),
        ("--since", f"{last:%Y-%m-%d}", "--until", until),
    ):
        (row,) = json.loads(run(worker, "spend", *words, "--json").stdout)
        assert (row["calls"], row["cost_micro_usd"]) == (2, 12)


def test_a_week_of_the_ledger_is_that_of_a_limit(worker: Flask, database_url: str) -> None:
    """From Monday on, by UTC: in `spend`, in `spent`, and in a window anchored to the week."""
    now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    begin_us, end_us = ratelimit_ext.calendar_window(now_us, "week", "UTC")
    this, after = (datetime.fromtimestamp(us / 1e6, UTC) for us in (begin_us, end_us))
    last = this - timedelta(days=7)
    calls = [
        finished(begun(started_at=this), cost_micro_usd=5),
        finished(begun(started_at=after - timedelta(microseconds=1)), cost_micro_usd=7),
        finished(begun(started_at=this - timedelta(microseconds=1)), cost_micro_usd=100),
        finished(begun(started_at=last), cost_micro_usd=1000),
        finished(begun(started_at=last - timedelta(microseconds=1)), cost_micro_usd=10_000),
    ]
    table.write(Database(database_url), calls)
    year, number, _ = this.isocalendar()
    for word, cost in (("this", 12), (f"{year}-W{number:02}", 12), ("last", 1100)):
        (row,) = json.loads(run(worker, "spend", "--week", word, "--json").stdout)
        assert (row["calls"], row["cost_micro_usd"]) == (2, cost)
    spent = services_of(worker).reports.spent_usd(calls[0].user)
    assert spent is not None
    assert spent["week_usd"] == 12 / 1e6


def test_calls_are_exported(spent: Flask) -> None:
    """One line each, the oldest first, with every column; no cell is a formula."""
    heads, *rows = csv.reader(io.StringIO(run(spent, "ledger", "calls", "--csv").stdout))
    found = [dict(zip(heads, row, strict=True)) for row in rows]
    costs = [each["cost_usd"] for each in found]
    assert costs[0] == "9.000000"
    assert sorted(costs[1:]) == ["0.000003", "0.000004", "0.001485"]
    [formula] = [each for each in found if each["cost_usd"] == "0.001485"]
    assert (formula["user"], formula["team"]) == ("user:=cmd()", "research")
    assert datetime.fromisoformat(found[0]["started_at"]).tzinfo is not None
    words = ("ledger", "calls", "--user", "alice", "--since", "1d", "--json")
    shown = json.loads(run(spent, *words).stdout)
    assert {each["cost_micro_usd"] for each in shown} == {3, 4}
    assert run(spent, "ledger", "calls", "--until", "80d", "--csv").stdout == ""


def test_a_callers_words_are_no_formulas_in_an_export(worker: Flask, database_url: str) -> None:
    """As in models and tags, which callers choose."""
    formula = '=HYPERLINK("http://evil")'
    table.write(Database(database_url), [finished(begun(model=formula, tags={"a": formula}))])
    (line,) = csv.DictReader(io.StringIO(run(worker, "ledger", "calls", "--csv").stdout))
    assert line["model"] == f"'{formula}"
    assert json.loads(line["tags"]) == {"a": formula}


@pytest.mark.parametrize("separator", [";", "\t", "\n", "\r"])
def test_a_callers_words_are_no_formulas_to_other_separators(
    worker: Flask, database_url: str, separator: str
) -> None:
    """Where a comma is in numbers, spreadsheets split lines at semicolons, also within quotation
    marks that do not begin there."""
    words = f'a{separator}=1+1{separator}"=1+1'
    table.write(Database(database_url), [finished(begun(model=words, tags={"a": words}))])
    text = run(worker, "ledger", "calls", "--csv").stdout
    parts = [part.lstrip('"')[:1] for part in re.split("[;\t\r\n]", text)]
    assert "=" not in parts
    (line,) = csv.DictReader(io.StringIO(text, newline=""))
    assert spreadsheet.read(line["model"]) == words
    assert json.loads(line["tags"]) == {"a": words}


def test_outcomes_begin_with_what_fails(spent: Flask, database_url: str) -> None:
    """By upstream and model, of the last hour or longer; a wrong request is no failure."""
    now = datetime.now(UTC)
    statuses = ("timeout", "overloaded", "overloaded", "bad_request")
    ended = [finished(begun(started_at=now), status=each) for each in statuses]
    old = finished(begun(started_at=now - timedelta(hours=2)), status="timeout")
    table.write(Database(database_url), [*ended, old])
    head, *rows = run(spent, "ledger", "outcomes").output.splitlines()
    assert head.split() == ["UPSTREAM", "MODEL", "CALLS", "FAILED", "HOW"]
    assert [row.split(maxsplit=4) for row in rows] == [
        ["anthropic", "claude-haiku-4-5", "6", "3", "overloaded=2, timeout=1"],
        ["anthropic", "gpt-4o", "1", "0", "-"],
    ]
    [worst, _] = json.loads(run(spent, "ledger", "outcomes", "--since", "1d", "--json").stdout)
    assert worst["how"] == {"timeout": 2, "overloaded": 2}


def test_an_empty_report_says_so(worker: Flask) -> None:
    """On standard error; JSON is an empty list."""
    empty = run(worker, "spend")
    assert (empty.stdout, "There are no calls." in empty.stderr) == ("", True)
    assert json.loads(run(worker, "spend", "--json").stdout) == []
    assert run(worker, "spend", "--csv").stdout == ""
    assert "not both" in run(worker, "spend", "--csv", "--json", status=2).stderr
    assert "choose one of" in run(worker, "spend", "--by", "colour", status=2).stderr


# -- keys --------------------------------------------------------------------------------------


def test_a_rotated_key_works_for_the_overlap(worker: Flask, accounts: Accounts) -> None:
    """Both keys do, and the new one is like the old one; afterwards it alone."""
    words = ("--name", "ci", "--limit", "key-usd-day=2 usd/day", "--model", "gpt-5*")
    old = new_key(worker, "alice", *words)
    run(worker, "keys", "set", old, "--files")
    made = run(worker, "keys", "rotate", old, "--overlap", "2h")
    new = parse(made.stdout.strip())
    assert new is not None
    assert f"replaces {public_id_of(old)}, which is valid until" in made.stderr
    keys = {key.public_id: key for key in accounts.all_keys()}
    before, after = keys[public_id_of(old)], keys[new.public_id]
    for name in ("user", "name", "limits", "models", "files"):
        assert getattr(after, name) == getattr(before, name)
    assert after.expires_at is None
    assert before.expires_at is not None
    assert abs(before.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
    assert [ask(worker, key).status_code for key in (old, new.text)] == [403, 403]  # of a model
    shown = json.loads(
        run(worker, "keys", "rotate", new.public_id, "--overlap", "0s", "--json").stdout
    )
    assert shown["replaces"] == new.public_id
    refused = run(worker, "keys", "rotate", new.public_id, status=1)
    assert "is revoked or has expired" in refused.stderr


def test_an_overlap_does_not_prolong_a_key(console: Flask, accounts: Accounts) -> None:
    """The new key ends when the old one would have."""
    old = new_key(console, "alice", "--expires", "1d")
    run(console, "keys", "rotate", old, "--overlap", "3d")
    ends = {key.expires_at for key in accounts.all_keys()}
    assert len(ends) == 1


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_a_key_that_ends_now_serves_no_further_call(
    worker: Flask, console: Flask, command: str
) -> None:
    """Although the worker has just checked it: its limits stop the key, and it is looked up again.
    Other keys go on."""
    key, other = new_key(console), new_key(console)
    assert [ask(worker, each).status_code for each in (key, other)] == [200, 200]
    words = () if command == "revoke" else ("--overlap", "0s")
    done = run(console, "keys", command, key, *words)
    assert "no worker accepts a call with it." in done.output
    refused = ask(worker, key)
    assert (refused.status_code, refused.json["code"]) == (401, "invalid_api_key")
    assert refused.headers["x-should-retry"] == "false"
    assert ask(worker, other).status_code == 200
    services_of(worker).authenticator._valid.clear()
    assert ask(worker, key).status_code == 401


def test_a_revocation_says_when_it_acts(
    make_app: AppMaker, worker: Flask, accounts: Accounts
) -> None:
    """Later, if the command cannot reach the workers' limits; also as JSON."""
    apart = make_app()
    keys = [new_key(worker) for _ in range(3)]
    assert (
        "is revoked; all workers apply it within 5 s."
        in run(apart, "keys", "revoke", keys[0]).output
    )
    for app, key, is_immediate in ((apart, keys[1], False), (worker, keys[2], True)):
        shown = json.loads(run(app, "keys", "revoke", key, "--json").stdout)
        assert shown["immediate"] is is_immediate
        assert public_id_of(key) in shown["done"]


@pytest.mark.parametrize("path", BODIES)
def test_a_key_that_was_just_revoked_is_401(worker: Flask, console: Flask, path: str) -> None:
    """At once and in each protocol, also in a worker that knows the key as valid, and also if the
    operator had blocked the key; a key that is blocked and valid is refused as that."""
    client, key = worker.test_client(), new_key(console)

    def status() -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return client.post(path, json=BODIES[path], headers=headers).status_code

    assert status() == 200
    run(console, "keys", "revoke", key)
    assert [status() for _ in range(3)] == [401] * 3
    key = new_key(console)
    assert status() == 200
    run(console, "block", "key", key, "--for", "1h")
    assert [status() for _ in range(2)] == [429] * 2


def test_a_restore_brings_back_the_keys(worker: Flask, console: Flask, tmp_path: Path) -> None:
    """Those that were valid in the backup are valid at once: those revoked since, and those of a
    user who was deactivated since. A key that was made since is unknown."""
    keys = {name: new_key(console, name) for name in ("alice", "bob", "eve")}
    backup = str(tmp_path / "backup.db")
    run(console, "db", "backup", backup)
    keys["new"] = new_key(console, "new")
    assert {ask(worker, key).status_code for key in keys.values()} == {200}
    run(console, "keys", "revoke", keys["alice"])
    run(console, "users", "set", "bob", "--no-active")
    run(console, "block", "key", keys["eve"], "--for", "1h")
    run(console, "db", "restore", backup, "--yes")
    services_of(worker).authenticator._valid.clear()
    found = {name: ask(worker, key).status_code for name, key in keys.items()}
    assert found == {"alice": 200, "bob": 200, "eve": 429, "new": 401}


def test_all_keys_of_a_user_are_revoked(console: Flask, accounts: Accounts) -> None:
    """By the user's name, alone: of one who leaves."""
    for _ in range(2):
        new_key(console)
    for words in (("revoke",), ("revoke", "--user", "alice"), ("revoke-all",)):
        run(console, "keys", *words, status=2)
    assert "no user 'eve'" in run(console, "keys", "revoke-all", "--user", "eve", status=1).stderr
    done = run(console, "keys", "revoke-all", "--user", "user:alice").stdout
    assert done.count(" of alice is revoked;") == 2
    assert {each.user for each in accounts.all_keys() if each.revoked_at} == {"alice"}
    assert "no key to revoke" in run(console, "keys", "revoke-all", "--user", "alice").stdout


def test_several_keys_are_revoked_at_once(console: Flask, accounts: Accounts) -> None:
    """All, or none if one is unknown."""
    keys = [new_key(console) for _ in range(3)]
    run(console, "keys", "revoke", *keys, "0" * 16, status=1)
    assert not [key for key in accounts.all_keys() if key.revoked_at]
    assert run(console, "keys", "revoke", *keys).output.count("is revoked") == 3
    assert all(key.revoked_at for key in accounts.all_keys())


# -- programs ----------------------------------------------------------------------------------


def commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command of the group, with its path."""
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield " ".join(path), group


def test_every_command_has_json(worker: Flask) -> None:
    """For programs, beside the tables for people."""
    from ratelimit_ext.cli import ratelimit as group

    found = {**dict(commands(chat)), **dict(commands(group))}
    assert len(found) > 35
    without = [
        path
        for path, command in found.items()
        if not any("--json" in option.opts for option in command.params)
    ]
    assert not without


JSON = [
    ("keys", "list"),
    ("plans", "list"),
    ("teams", "list"),
    ("users", "list"),
    ("users", "export"),
    ("ledger", "days"),
    ("ledger", "estimates"),
    ("ledger", "check"),
    ("ledger", "prune", "--keep-days", "90"),
    ("providers", "check"),
    ("db", "upgrade"),
    ("users", "set", "alice", "--team", "research"),
    ("users", "set", "alice", "--team", ""),
    ("users", "set", "alice", "--plan", "pro"),
    ("teams", "create", "sales"),
    ("block", "user", "alice"),
    ("unblock", "user", "alice"),
    ("keys", "create", "--user", "alice"),
    ("amounts", "set", "user", "alice", "usd-day", "9 usd/day"),
]


def test_json_alone_is_on_standard_output(console: Flask) -> None:
    """Also of commands that change something."""
    new_key(console)
    run(console, "teams", "create", "research")
    for words in JSON:
        assert isinstance(json.loads(run(console, *words, "--json").stdout), dict | list), words


def test_the_ledger_is_traffic_of_a_simulation(worker: Flask, accounts: Accounts) -> None:
    """Calls of a key and of an address, with the limits that did not apply to them: replayed under
    the policy, all of them pass."""
    key = accounts.create_key("ada", plan="pro", default_plan="starter")
    for _ in range(3):
        assert ask(worker, key.text).status_code == 200
    services_of(worker).ledger.flush()
    lines = run(worker, "ledger", "traffic").stdout
    calls = [json.loads(line) for line in lines.splitlines()]
    assert [call["user"] for call in calls] == ["user:ada"] * 3
    assert calls[0]["api_key"] == key.public_id
    assert calls[0]["exempt"] == ["ip", "address-at-once", "team-at-once"]
    assert calls[0]["input_tokens"] > 0
    result = worker.test_cli_runner().invoke(
        args=["ratelimit", "simulate", "--traffic", "-", "--json"], input=lines
    )
    assert result.exit_code == 0, result.output
    [found] = json.loads(result.output)["policies"]
    assert (found["admitted"], found["denied"]) == (3, 0)
    assert found["calls_without"] == {}


# -- denials -----------------------------------------------------------------------------------


def test_a_denial_has_the_request_id_of_its_answer(
    worker: Flask, console: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """In the record, by the name, address or key of the caller, and in the line of the log."""
    caplog.set_level("INFO")
    key = new_key(console)
    run(console, "amounts", "set", "user", "alice", "user", "1/minute")
    answers = [ask(worker, key) for _ in range(12)]
    denied = next(answer for answer in answers if answer.status_code == 429)
    request_id = denied.headers["x-request-id"]
    services_of(worker).limiter._components.recorder.flush()
    (shown,) = ratelimit(console, "why", "alice")
    assert (shown["request_id"], shown["identity"]) == (request_id, "user:alice")
    assert any(f"(request {request_id})" in message for message in caplog.messages)
    assert ratelimit(console, "why", request_id) == [shown]
    error = ratelimit(console, "why", "alise", status=1)
    assert "alise" in error


def test_denials_are_not_remembered_if_that_is_switched_off(make_app: AppMaker, uri: str) -> None:
    """And the command says how to switch it on."""
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_REMEMBER_DENIALS="false")
    error = ratelimit(app, "why", "alice", status=1)
    assert error.startswith("Error: Denials are not remembered")
