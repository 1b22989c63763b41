"""`chat users import` and `chat users export`."""

import csv
import io
import json
from pathlib import Path

import pytest
from flask import Flask

from chatapp.accounts.api_key import parse
from chatapp.accounts.store import Accounts, User
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker

MEMBERS = """user,plan,team,limits
alice,pro,research,usd-day=20 usd/day; plan=50/day
bob,,,
"""


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    app = make_app()
    run(app, "teams", "create", "research")
    return app


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "users.csv"
    file.write_bytes(text.encode())
    return str(file)


def test_a_terminal_shows_the_progress_of_an_import(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that reads the output does not."""
    assert run(app, "users", "import", written(tmp_path, MEMBERS)).stderr == ""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    shown = run(app, "users", "import", written(tmp_path, MEMBERS))
    assert "Writing" in shown.stderr
    assert "2/2" in shown.stderr
    assert shown.stdout == "Users: 0 created, 0 changed, 2 unchanged.\n"


def shown(accounts: Accounts) -> dict[str, tuple[object, ...]]:
    def columns(user: User) -> tuple[object, ...]:
        return user.plan, user.team_name, user.limits

    return {user.name: columns(user) for user in accounts.users()}


ALICE = ("pro", "research", {"usd-day": "20 usd/day", "plan": "50/day"})
BOB = ("starter", None, None)


def test_a_file_creates_users(app: Flask, accounts: Accounts, tmp_path: Path) -> None:
    """With plan, team and amounts; a second time nothing changes."""
    file = written(tmp_path, MEMBERS)
    output = run(app, "users", "import", file).output
    assert output == "Users: 2 created, 0 changed, 0 unchanged.\n"
    assert shown(accounts) == {"alice": ALICE, "bob": BOB}
    assert "0 created, 0 changed, 2 unchanged" in run(app, "users", "import", file).output
    assert not accounts.any_key()


def test_amounts_fit_the_plans_of_a_file(
    app: Flask, accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 of 60 USD a day would be more than the 5 of the next plan. The keys are read once, not for
    each user."""
    for name in ("carol", "dora", "erin"):
        accounts.create_key(name, plan="pro", default_plan="starter")
        accounts.set_amount("user", name, "usd-day", "15 usd/day")
    reads, all_keys = [], Accounts.all_keys
    monkeypatch.setattr(Accounts, "all_keys", lambda self: reads.append(1) or all_keys(self))
    file = written(tmp_path, "user,plan\ncarol,starter\ndora,starter\nerin,pro\n")
    assert "2 changed, 1 unchanged" in run(app, "users", "import", file).output
    assert [shown(accounts)[name][2] for name in ("carol", "dora")] == [None, None]
    assert shown(accounts)["erin"] == ("pro", None, {"usd-day": "15 usd/day"})
    assert len(reads) == 1


def test_new_users_may_get_keys(app: Flask, accounts: Accounts, tmp_path: Path) -> None:
    """Printed once, as CSV alone on standard output; users who exist get none."""
    run(app, "users", "import", written(tmp_path, "user\nbob\n"))
    made = run(app, "users", "import", written(tmp_path, MEMBERS), "--keys")
    heads, row = csv.reader(io.StringIO(made.stdout))
    assert heads == ["user", "key"]
    assert row[0] == "alice"
    key = parse(row[1])
    assert key is not None
    found = accounts.find(key.public_id)
    assert found is not None
    assert key.has_secret(found[0].secret_sha256)
    assert found[1].name == "alice"
    assert len(accounts.all_keys()) == 1


def test_a_dry_run_changes_nothing(app: Flask, accounts: Accounts, tmp_path: Path) -> None:
    """It says what would change, and finds mistakes."""
    output = run(app, "users", "import", written(tmp_path, MEMBERS), "--dry-run", "--keys").output
    assert output == "Users (dry run): 2 created, 0 changed, 0 unchanged.\n"
    assert shown(accounts) == {}
    file = written(tmp_path, "user,plan\nann,gold\n")
    run(app, "users", "import", file, "--dry-run", status=2)


def test_a_missing_column_changes_nothing_and_an_empty_cell_does(
    app: Flask, accounts: Accounts, tmp_path: Path
) -> None:
    """It removes team and amounts; a plan stays, as everybody has one."""
    run(app, "users", "import", written(tmp_path, MEMBERS))
    run(app, "users", "import", written(tmp_path, "user,limits\nalice,usd-day=9 usd/day\n"))
    assert shown(accounts)["alice"] == ("pro", "research", {"usd-day": "9 usd/day"})
    output = run(
        app, "users", "import", written(tmp_path, "team,user,limits,plan\n,alice,,\n")
    ).output
    assert "1 changed" in output
    assert shown(accounts)["alice"] == ("pro", None, None)


MISTAKES = {
    "an unknown plan": ("ann,gold,,", "line 3: plan: unknown plan 'gold'; choose one of starter"),
    "an unknown team": ("ann,,x,", "line 3: team: there is no team 'x'"),
    "an unknown limit": (
        "ann,,,usd-dya=3 usd/day",
        "line 3: limits: The plan starter has no limit",
    ),
    "a wrong unit": ("ann,,,usd-day=3/day", "line 3: limits: usd-day: found '3/day'"),
    "no amount": ("ann,,,usd-day", "line 3: limits: 'usd-day' has no amount"),
    "no equals sign": (
        "ann,,,usd-day 5 usd/day",
        "has no amount; write it as usd-day='20 usd/day'",
    ),
    "no name": (",pro,,", "line 3: user: '' is blank"),
    "an address": ("ip:10.0.0.1,,,", "line 3: user: 'ip:10.0.0.1' begins with"),
    "a control character": ("a\x1bn,,,", "line 3: user: 'a\\x1bn' contains a control character"),
    "a user twice": ("alice,,,", "line 3: user: 'alice' is also in line 2"),
    "too few cells": ("ann,pro", "line 3: more or fewer cells than columns"),
    "too many cells": ("ann,,,,,", "than columns. Quote cells with commas."),
    "an open quote": ('"ann,,,', "line 3: is not valid CSV"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_line_is_reported_with_its_number(
    app: Flask, accounts: Accounts, tmp_path: Path, name: str
) -> None:
    """And nothing of the file is done."""
    line, message = MISTAKES[name]
    file = written(tmp_path, f"user,plan,team,limits\nalice,pro,,\n{line}\n")
    refused = run(app, "users", "import", file, "--keys", status=2)
    assert message in refused.stderr
    assert "1 mistake in csv; nothing was changed." in refused.stderr
    assert shown(accounts) == {}
    assert not accounts.any_key()


def test_the_advice_about_an_amount_can_be_followed(
    app: Flask, accounts: Accounts, tmp_path: Path
) -> None:
    """In a file as in a shell, which takes the quotes off."""
    refused = run(app, "users", "import", written(tmp_path, "user,limits\nann,usd-day\n"), status=2)
    advice = refused.stderr.partition("write it as ")[2].splitlines()[0]
    run(app, "users", "import", written(tmp_path, f"user,limits\nann,{advice}\n"))
    assert shown(accounts)["ann"][2] == {"usd-day": "20 usd/day"}


def test_every_bad_line_is_reported(app: Flask, tmp_path: Path) -> None:
    """Not only the first."""
    file = written(tmp_path, "user,plan,team\nann,gold,x\nbo,silver,\n")
    refused = run(app, "users", "import", file, status=2)
    assert refused.stderr.count("line 2: ") == 2
    assert refused.stderr.count("line 3: ") == 1
    assert "3 mistakes" in refused.stderr


@pytest.mark.parametrize("head", ["name,plan", "user;plan", "user,plan,user", "", "plan,team"])
def test_unknown_columns_are_refused(app: Flask, tmp_path: Path, head: str) -> None:
    """With the columns that are allowed."""
    refused = run(app, "users", "import", written(tmp_path, f"{head}\n"), status=2)
    assert "line 1: found the columns" in refused.stderr
    allowed = "user and any of plan, team, limits, each once, with commas between them."
    assert f"allowed: {allowed}" in refused.stderr


def test_bytes_that_are_no_text_are_refused(app: Flask, accounts: Accounts, tmp_path: Path) -> None:
    """A file of a spreadsheet program is no CSV; one with a byte order mark is."""
    file = tmp_path / "users.csv"
    file.write_bytes(b"PK\x03\x04\xff\xfe")
    refused = run(app, "users", "import", str(file), status=2)
    assert "line 1: the file is not UTF-8. Save it as UTF-8." in refused.stderr
    file.write_bytes("user\r\nzoë\r\n".encode("utf-8-sig"))
    run(app, "users", "import", str(file))
    assert [*shown(accounts)] == ["zoë"]


def test_an_export_is_what_an_import_takes(app: Flask, accounts: Accounts, tmp_path: Path) -> None:
    """No cell is a formula for a spreadsheet, and every name survives."""
    names = {"'=1+1": "=1+1", "'+a": "+a", "'-b": "-b", "'@c": "@c", "''=d": "'=d", "'i": "'i"}
    names |= {f"'{sign}1+1": f"{sign}1+1" for sign in "\uff1d\uff0b\uff0d\uff20"}
    names |= {"j;'=1+1": "j;=1+1", "k;''=1": "k;'=1", "l;'\"=1": 'l;"=1', "m;n": "m;n"}
    text = io.StringIO()
    csv.writer(text).writerows([["user"], *([cell] for cell in names), ["e,f"], ['g"h']])
    run(app, "users", "import", written(tmp_path, text.getvalue()))
    run(app, "users", "import", written(tmp_path, MEMBERS))
    before = shown(accounts)
    assert {*before} == {*names.values(), "e,f", 'g"h', "alice", "bob"}
    exported = run(app, "users", "export").stdout
    cells = [cell for row in csv.reader(io.StringIO(exported)) for cell in row]
    cells += [part for line in exported.splitlines() for part in line.split(";")]
    begins = {cell.lstrip('"')[:1] for cell in cells}
    assert not begins & {*"=+-@\t\r\uff1d\uff0b\uff0d\uff20"}
    run(app, "users", "import", written(tmp_path, exported))
    assert shown(accounts) == before
    as_json = json.loads(run(app, "users", "export", "--json").stdout)
    assert {row["user"] for row in as_json} == {*before}
