"""The management API: that each command has an address, with the same effect or the same report;
lists, errors, and two operators at once."""

import base64
import csv
import io
import itertools
import json
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import pytest
import redis
from flask import Flask
from sqlalchemy.exc import OperationalError

from chatapp import POLICY_FILE
from chatapp.accounts import store
from chatapp.accounts.store import Accounts
from chatapp.actions.table import ACTIONS, Action
from chatapp.alerts.alert import Alert
from chatapp.alerts.table import remember
from chatapp.alerts.webhook import Webhook
from chatapp.blueprints.management.access import DOCUMENT
from chatapp.blueprints.management.routes import bp
from chatapp.catalogue.usage import Usage
from chatapp.cli.chat import chat
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.billing_report import ADDRESSES, variable
from chatapp.ledger.reports import Reports
from chatapp.services import services_of
from chatapp.settings import signing_key
from ratelimit_ext import cli as ratelimit
from tests.chatapp.alerts.receiver import SECRET, Receiver
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.management.conftest import Api
from tests.chatapp.blueprints.management.description import text
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.ledger.biller import Biller, reporting
from tests.chatapp.ledger.calls import begun, finished
from tests.promise import promised
from tests.servers import eventually

#: They read or write files of the host, or need none of its state.
OF_THE_HOST = {
    *("chat db upgrade", "chat db backup", "chat db restore"),
    *("ratelimit simulate", "ratelimit suggest", "chat prices check"),
}
PREFIX = bp.url_prefix
#: What stands for a part of an address.
PARTS = {"user": "alice", "name": "alice", "owner": "user", "limit": "usd-day", "kind": "user"}
PARTS |= {"team": "research", "identity": "alice"}


def commands(group: click.Group, words: str) -> Iterator[str]:
    for name, command in group.commands.items():
        path = f"{words} {name}"
        if isinstance(command, click.Group):
            yield from commands(command, path)
        else:
            yield path


def key_of(accounts: Accounts, user: str = "alice") -> str:
    return next(each.public_id for each in accounts.all_keys() if each.user == user)


def changes(app: Flask) -> list[Any]:
    return services_of(app).limiter.operators.log()


def state(app: Flask) -> Any:
    """What operators can change, without times."""
    services = services_of(app)
    accounts, operators = services.accounts, services.limiter.operators
    users = [
        (u.name, u.plan, u.team_name, u.limits, bool(u.deactivated_at)) for u in accounts.users()
    ]
    keys = [
        (
            *(k.user, k.name, k.limits, k.models, k.files, k.traffic_class, k.people, k.bound_team),
            *(bool(k.expires_at), bool(k.revoked_at)),
        )
        for k in accounts.all_keys()
    ]
    with app.app_context():
        overrides = [(o.limit, o.identity, o.amount) for o in operators.overrides()]
        blocks = {(b.limit, b.identity, b.reason) for b in operators.blocks()}
        log = [(e.action, e.identity, e.limit, e.amount, e.reason) for e in operators.log()]
    teams = [(each.name, each.limits) for each in accounts.teams()]
    admin_keys = [
        (k.name, k.scopes, k.team, bool(k.expires_at), bool(k.revoked_at))
        for k in services.admin_keys.all()
    ]
    columns = ("user", "team", "key_id", "cost_micro_usd")
    calls = [tuple(each[name] for name in columns) for each in services.reports.calls()]
    is_on = accounts.any_key() or services.authenticator.accounts_on.is_set()
    others = overrides, sorted(blocks), sorted(admin_keys, key=str), calls, is_on
    return users, sorted(keys, key=str), teams, *others, log[::-1]


def used(app: Flask) -> Any:
    """What budgets have counted."""
    services = services_of(app)
    with app.app_context():
        keyed = [each.public_id for each in services.accounts.all_keys()]
        found = services.limiter.operators.states("alice", "team:research", *keyed)
    money = [each for each in found if each.row.limit.unit == "usd" and not each.is_guard]
    return sorted((each.row.name, each.identity, each.used) for each in money)


# -- the table -----------------------------------------------------------------------------------


def test_the_document_and_the_routes_are_the_table(app: Flask, api: Api) -> None:
    """The checked-in description is made of it, and has the addresses of the application's map."""
    assert DOCUMENT.read_text() == text(), (
        "python -m tests.chatapp.blueprints.management.description"
    )
    document = api("GET", "/openapi.json").json
    assert document == json.loads(text())
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    routes = {
        (method, re.sub(r"<(?:[^<>:]*:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("management.") and rule.endpoint != "management.description"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == routes
    assert len(routes) == len(ACTIONS)
    assert all(each.function.__doc__ for each in ACTIONS)


#: /admin draws it.
WITHOUT_COMMAND = {"get_decisions"}
COMMANDS = {*commands(chat, "chat"), *commands(ratelimit.ratelimit, "ratelimit")}


def words_of(lines: str) -> Iterator[str]:
    """Yield the command in each of these lines, without its arguments."""
    for line in lines.split("; "):
        yield max((each for each in COMMANDS if f"{line} ".startswith(f"{each} ")), key=len)


def test_every_command_and_every_address_is_compared(app: Flask) -> None:
    """What changes something, by its effect; what reports, by what it reports. So each command has
    an address, but for those of the host."""
    lines = [*(words for words, _, _ in SAME), *(words for words, _, _ in REPORTS)]
    assert {each for line in lines for each in words_of(line)} | OF_THE_HOST == COMMANDS
    calls = [each for _, calls, _ in SAME for each in calls.split("; ")]
    calls += [f"GET {path}" for _, path, _ in REPORTS]
    reached = set()
    for each in calls:
        method, path = each.partition("?")[0].split(" ", 1)
        endpoint, _ = app.url_map.bind("localhost").match(f"{PREFIX}{path}", method)
        reached.add(endpoint.removeprefix("management."))
    assert reached | WITHOUT_COMMAND == {each.name for each in ACTIONS}


# -- the same effect -----------------------------------------------------------------------------

CSV = "user,plan,team,limits\ndora,pro,sales,usd-day=9 usd/day\nalice,,,\n"
#: A command, and the call that does the same. {key} is a key of alice's, {admin} a management key,
#: {file} has the CSV.
SAME = [
    ("chat users set carol --team sales", "PUT /users/carol", {"team": "sales"}),
    ("chat users set alice --team ''", "PUT /users/alice", {"team": None}),
    (
        "chat users set alice --plan pro --reason launch",
        "PUT /users/alice",
        {"plan": "pro", "reason": "launch"},
    ),
    ("chat users set alice --no-active", "PUT /users/alice", {"active": False}),
    (
        "chat users set alice --no-active; chat users set alice --active",
        "PUT /users/alice; PUT /users/alice",
        [{"active": False}, {"active": True}],
    ),
    ("chat users delete alice --yes", "DELETE /users/alice", None),
    (
        "chat amounts set user alice usd-day '9 usd/day'",
        "PUT /amounts/user/usd-day/alice",
        {"amount": "9 usd/day"},
    ),
    (
        "chat amounts set user alice usd-day '9 usd/day'",
        "PUT /users/alice",
        {"limits": {"usd-day": "9 usd/day"}},
    ),
    (
        "chat amounts set user alice usd-day '9 usd/day'; chat amounts clear user alice usd-day",
        "PUT /amounts/user/usd-day/alice; DELETE /amounts/user/usd-day/alice",
        [{"amount": "9 usd/day"}, None],
    ),
    (
        "chat amounts set team research team-usd-day '9 usd/day'",
        "PUT /teams/research",
        {"limits": {"team-usd-day": "9 usd/day"}},
    ),
    (
        "chat amounts clear team research team-usd-day",
        "DELETE /amounts/team/team-usd-day/research",
        None,
    ),
    (
        "chat teams create new --limit 'team-usd-day=9 usd/day'",
        "PUT /teams/new",
        {"limits": {"team-usd-day": "9 usd/day"}},
    ),
    (
        "chat amounts set key {key} key-usd-day '2 usd/day'",
        "PUT /keys/{key}",
        {"limits": {"key-usd-day": "2 usd/day"}},
    ),
    (
        "chat keys set {key} --model gpt-5* --model o3",
        "PUT /keys/{key}",
        {"models": ["gpt-5*", "o3"]},
    ),
    ("chat keys set {key} --files", "PUT /keys/{key}", {"files": True}),
    (
        "chat keys set {key} --acts-for-users --user-header X-Mail --plan-of-new pro --most-new 9",
        "PUT /keys/{key}",
        {"people": {"headers": ["X-Mail"], "plan": "pro", "most_new": 9}},
    ),
    (
        (
            "chat keys set {key} --acts-for-users --user-header ''; "
            "chat keys set {key} --no-acts-for-users"
        ),
        "PUT /keys/{key}; PUT /keys/{key}",
        [{"people": {"headers": []}}, {"people": None}],
    ),
    ("chat keys set {key} --class batch", "PUT /keys/{key}", {"class": "batch"}),
    (
        "chat keys set {key} --class batch; chat keys set {key} --class ''",
        "PUT /keys/{key}; PUT /keys/{key}",
        [{"class": "batch"}, {"class": None}],
    ),
    ("chat keys revoke {key}", "DELETE /keys/{key}", None),
    ("chat keys revoke-all --user alice", "DELETE /keys?user=alice", None),
    (
        "chat keys create --user dora --plan pro --team sales --name ci --model o3 --reason r",
        "POST /keys",
        {
            "user": "dora",
            "plan": "pro",
            "team": "sales",
            "name": "ci",
            "models": ["o3"],
            "reason": "r",
        },
    ),
    (
        "chat keys create --user dora --class batch --files",
        "POST /keys",
        {"user": "dora", "class": "batch", "files": True},
    ),
    (
        "chat keys rotate {key} --overlap 2h --reason r",
        "POST /keys/{key}/rotate",
        {"overlap": "2h", "reason": "r"},
    ),
    (
        "chat block user alice --for 2h --reason r",
        "PUT /blocks/user/alice",
        {"for": "2h", "reason": "r"},
    ),
    ("chat block key {key} --abnormal", "PUT /blocks/key/{key}", {"abnormal": True}),
    ("chat block model gpt-5.4-mini", "PUT /blocks/model/gpt-5.4-mini", {}),
    ("chat block all", "PUT /blocks/all", {}),
    *(
        (
            f"chat block {words}; chat unblock {words}",
            f"PUT /blocks/{path}; DELETE /blocks/{path}",
            [{}, None],
        )
        for words, path in (
            *(("user alice", "user/alice"), ("all", "all")),
            *(("model gpt-5.4-mini", "model/gpt-5.4-mini"), ("key {key}", "key/{key}")),
        )
    ),
    (
        "ratelimit override set alice usd-day '9 usd/day' --until 2099-01-01",
        "PUT /overrides/usd-day/alice",
        {"amount": "9 usd/day", "until": "2099-01-01"},
    ),
    (
        "ratelimit override set alice usd-day '9 usd/day'; ratelimit override clear alice usd-day",
        "PUT /overrides/usd-day/alice; DELETE /overrides/usd-day/alice",
        [{"amount": "9 usd/day"}, None],
    ),
    (
        (
            "chat amounts set key {key} key-usd-day '2 usd/day'; "
            "chat amounts clear key {key} key-usd-day"
        ),
        "PUT /amounts/key/key-usd-day/{key}; DELETE /amounts/key/key-usd-day/{key}",
        [{"amount": "2 usd/day"}, None],
    ),
    ("chat users import {file}", "POST /users", {"csv": CSV}),
    ("chat users import {file} --dry-run", "POST /users", {"csv": CSV, "dry_run": True}),
    (
        "chat users import {file} --keys --reason hired",
        "POST /users",
        {"csv": CSV, "keys": True, "reason": "hired"},
    ),
    ("chat keys off --reason moved", "POST /accounts/off", {"reason": "moved"}),
    (
        "chat ledger prune --keep-days 62 --reason old",
        "POST /ledger/prune",
        {"keep_days": 62, "reason": "old"},
    ),
    ("chat ledger restore", "POST /ledger/restore", {}),
    (
        "chat ledger restore --apply --reason lost",
        "POST /ledger/restore",
        {"apply": True, "reason": "lost"},
    ),
    (
        "chat ledger restore --user alice --apply",
        "POST /ledger/restore",
        {"user": "alice", "apply": True},
    ),
    (
        "chat ledger restore --apply; chat credit 0.001 --user alice --reason broken",
        "POST /ledger/restore; POST /ledger/credit",
        [{"apply": True}, {"user": "alice", "usd": "0.001", "reason": "broken"}],
    ),
    (
        (
            "chat amounts set key {key} key-usd-day '2 usd/day'; chat ledger restore --apply; "
            "chat credit 0.001 --key {key}"
        ),
        "PUT /amounts/key/key-usd-day/{key}; POST /ledger/restore; POST /ledger/credit",
        [{"amount": "2 usd/day"}, {"apply": True}, {"key": "{key}", "usd": "0.001"}],
    ),
    (
        "chat ledger restore --apply; chat credit 0.001 --team research",
        "POST /ledger/restore; POST /ledger/credit",
        [{"apply": True}, {"team": "research", "usd": "0.001"}],
    ),
    (
        "chat ledger restore --apply; ratelimit reset alice --reason broken",
        "POST /ledger/restore; POST /reset",
        [{"apply": True}, {"identity": "alice", "reason": "broken"}],
    ),
    (
        "chat ledger restore --apply; ratelimit reset alice --limit usd-day",
        "POST /ledger/restore; POST /reset",
        [{"apply": True}, {"identity": "alice", "name": "usd-day"}],
    ),
    (
        "chat admin-keys create lead --scope read --scope keys --team sales --expires 9d",
        "POST /admin-keys",
        {"name": "lead", "scopes": ["read", "keys"], "team": "sales", "expires": "9d"},
    ),
    (
        "chat admin-keys rotate {admin} --overlap 2h --reason r",
        "POST /admin-keys/{admin}/rotate",
        {"overlap": "2h", "reason": "r"},
    ),
    ("chat admin-keys revoke {admin}", "DELETE /admin-keys/{admin}", None),
    ("chat alerts test", "POST /alerts/test", {}),
    ("chat users create dora --plan pro", "PUT /users/dora", {"plan": "pro"}),
    ("chat teams set sales", "PUT /teams/sales", {}),
    (
        "chat providers pause offline --for 2h --reason r; chat providers resume offline",
        "POST /providers/offline/pause; POST /providers/offline/resume",
        [{"for": "2h", "reason": "r"}, None],
    ),
]


def spend(database_url: str, key: str) -> None:
    """Calls of alice's with her key, of bob's, and one that is old enough to be deleted."""
    now = datetime.now(UTC)
    rows = (("alice", "o3", 0), ("alice", "claude-haiku-4-5", 0), ("bob", "gpt-5.4-mini", 0))
    calls = [
        begun(started_at=now - timedelta(days=days, seconds=n), user=f"user:{user}", slug=slug)
        for n, (user, slug, days) in enumerate((*rows, ("bob", "o3", 99)))
    ]
    with_keys = [
        each._replace(key_id=None)
        if each.user == "user:bob"
        else each._replace(key_id=key, team="research")
        for each in calls
    ]
    table.write(Database(database_url), list(map(finished, with_keys)))


def test_a_call_does_what_its_command_does(
    app: Flask,
    api: Api,
    accounts: Accounts,
    database_url: str,
    uri: str,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """Accounts, management keys, overrides, blocks, the ledger, what limits have counted and the
    log are the same after each step; only who did it differs."""
    services, runner = services_of(app), app.test_cli_runner()
    spend(database_url, key_of(accounts))
    (tmp_path / "users.csv").write_text(CSV)
    named = {
        "{key}": key_of(accounts),
        "{admin}": services.admin_keys.create("hr", ["read"], team=None, expires_at=None).public_id,
        "{file}": str(tmp_path / "users.csv"),
    }
    assert services.alerts is not None
    services.alerts.webhook = Webhook(receiver.url, signing_key(SECRET))
    made = re.compile(r"\b[0-9a-f]{16}\b|(?<=\(deleted )[-0-9: ]+")  # by either, at another time
    with (
        closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file,
        closing(sqlite3.connect(":memory:")) as before,
        redis.Redis.from_url(uri) as storage,
    ):
        file.backup(before)

        def start_afresh(lines: str) -> None:
            before.backup(file)
            storage.flushall()
            if lines.startswith("chat keys off"):  # the database was replaced by one without keys
                with file:
                    file.execute("DELETE FROM api_keys")
                services.authenticator.accounts_on.set()

        def with_names(text: str) -> str:
            return re.sub(r"{\w+}", lambda found: named[found[0]], text)

        for words, calls, bodies in SAME:
            spends, by_command, by_call = "ledger restore" in words, [], []
            start_afresh(words)
            for each in with_names(words).split("; "):
                result = runner.invoke(args=[*shlex.split(each), *by(each)])
                assert result.exit_code == 0, result.output
                by_command.append((state(app), spends and used(app)))
            start_afresh(words)
            sent = bodies if isinstance(bodies, list) else [bodies]
            sent = json.loads(with_names(json.dumps(sent)))
            for each, body in zip(with_names(calls).split("; "), sent, strict=True):
                answer = api(*each.split(" ", 1), body)
                assert answer.status_code in {200, 201}, answer.text
                by_call.append((state(app), spends and used(app)))
            assert made.sub("ID", str(by_call)) == made.sub("ID", str(by_command)), words
            assert {each.by for each in changes(app)} <= {"admin token"}
    assert [each.body["type"] for each in receiver.received(2)] == ["alert.test"] * 2


def by(line: str) -> list[str]:
    """The option of who does it, of a command that has a log."""
    return [] if line.startswith("chat alerts") else ["--by", "olga"]


# -- the same report -----------------------------------------------------------------------------


def rows(of: Callable[[Any], Any] = lambda row: row) -> Callable[[Any], Any]:
    """Rows in any order, without what passes with time."""
    return lambda found: sorted((of(lasting(each)) for each in found), key=str)


def whole(found: Any) -> Any:
    return found


def left(found: Any) -> Any:
    return {**found, "limits": list(map(lasting, found["limits"]))}


def exported(row: Any) -> Any:
    """A user, as a file has it, or as the list."""
    limits = row["limits"]
    text = limits if isinstance(limits, str) else "; ".join(map("=".join, limits.items()))
    return row["user"], row["plan"], row["team"] or "", text


def upstreams(found: Any) -> Any:
    named = found["upstreams"] if isinstance(found, dict) else {e["name"]: e for e in found}
    return {name: (each["keys"], each["missing"]) for name, each in named.items()}


def forecasts(found: Any) -> Any:
    return sorted((tuple(each.values()) for each in found), key=str)


#: A command that reports, the address of its report, and what both have to say alike.
REPORTS: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("chat admin-keys list", "/admin-keys", whole),
    ("chat alerts list", "/alerts", rows(lambda row: (row["identity"], row["spent"]))),
    ("chat keys list", "/keys", rows()),
    ("chat keys list --user alice", "/keys?user=alice", rows()),
    ("chat keys show {key}", "/keys/{key}", whole),
    ("chat ledger calls", "/ledger/calls", whole),
    ("chat ledger calls --user alice", "/ledger/calls?user=alice", whole),
    ("chat ledger check", "/ledger/check", whole),
    ("chat ledger estimates", "/ledger/estimates", whole),
    ("chat latency", "/ledger/latency", whole),
    ("chat ledger outcomes", "/ledger/outcomes", rows()),
    ("chat ledger days", "/ledger/days", rows()),
    ("chat ledger days --by model --since 2d", "/ledger/days?by=model&since=2d", rows()),
    (
        "chat ledger reconcile --provider anthropic --since 5d",
        "/ledger/reconcile?provider=anthropic&since=5d",
        whole,
    ),
    ("chat ledger traffic", "/ledger/traffic", rows()),
    ("chat plans list", "/plans", rows()),
    ("chat providers check", "/providers", upstreams),
    ("chat providers list", "/providers", whole),
    ("chat spend", "/spending", rows(lambda row: {**row, "user": row["subject"]})),
    (
        "chat spend --by model --top 1",
        "/spending?by=model&top=1",
        rows(lambda row: {**row, "model": row["subject"]}),
    ),
    ("chat forecast", "/spending/forecast", forecasts),
    ("chat forecast --by team --top 1", "/spending/forecast?by=team&top=1", forecasts),
    ("chat teams list", "/teams", rows()),
    ("chat teams show research", "/teams/research", whole),
    ("chat trace {call}", "/ledger/calls/{call}", whole),
    ("chat usage alice", "/usage/alice", left),
    ("chat users export", "/users", rows(exported)),
    ("chat users list", "/users", rows()),
    ("chat users list --query ALI --plan starter", "/users?q=ALI&plan=starter", rows()),
    ("chat users show alice", "/users/alice", whole),
    ("ratelimit blocks", "/blocks", rows()),
    ("ratelimit check", "/policy", whole),
    ("ratelimit inspect alice", "/states/alice", rows()),
    ("ratelimit log", "/changes", rows()),
    ("ratelimit near --at 90", "/used?at=90", rows()),
    ("ratelimit override list", "/overrides", rows()),
    ("ratelimit shadow report", "/shadow", rows()),
    ("ratelimit show", "/limits?limit=1000", rows()),
    ("ratelimit top", "/used", rows()),
    ("ratelimit why alice", "/denials?identity=alice", rows()),
]


@pytest.fixture
def worked(
    make_app: AppMaker, uri: str, accounts: Accounts, database_url: str, app: Flask, tmp_path: Path
) -> None:
    """Something to report: spending, a call, a denied one, an alert, and what operators did."""
    spend(database_url, key_of(accounts))
    accounts.set_amount("team", "research", "team-usd-month", "9 usd/month")
    now = datetime.now(UTC)
    # At noon: a call in the last hour of a day may be billed on the next.
    noons = [(now - timedelta(days)).replace(hour=12) for days in range(1, 15)]
    past = [finished(begun(started_at=at, team="research")) for at in (now, *noons)]
    table.write(Database(database_url), past)
    policy = tmp_path / "policy.toml"
    tried = 'limit = "100/day"\n'
    policy.write_text(POLICY_FILE.read_text().replace(tried, f'{tried}candidate = "2/day"\n', 1))
    worker = make_app(RATELIMIT_STORAGE_URI=uri, RATELIMIT_POLICY_FILE=str(policy))
    runner = app.test_cli_runner()
    key = accounts.create_key("alice", plan=None, default_plan="starter").text
    for status, command in ((200, "chat block user alice"), (403, "chat ledger restore --apply")):
        body, headers = {"message": "hi"}, {"x-api-key": key}
        assert worker.test_client().post("/chat", json=body, headers=headers).status_code == status
        assert runner.invoke(args=command.split()).exit_code == 0
    for command in (
        "ratelimit override set ip:203.0.113.9 ip 9/minute --reason less",
        "chat amounts set user alice usd-day '0.001 usd/day'",
        "chat admin-keys create hr --scope read",
    ):
        assert runner.invoke(args=shlex.split(command)).exit_code == 0
    alert = Alert(type="alert", identity="user:bob", spent=1, amount=2, since=now)
    remember(Database(database_url), alert)
    services_of(worker).ledger.flush()
    services_of(worker).limiter._components.recorder.flush()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A provider that reports a call of another key, and none of the ledger's."""
    provider = Biller("anthropic")
    at = datetime.now(UTC) - timedelta(days=3)
    provider.bill("claude-haiku-4-5", Usage(9, 9), at, key="key-of-another")
    monkeypatch.setenv(variable("anthropic"), "sk-ant-admin-of-a-test")
    with reporting(provider) as url:
        monkeypatch.setitem(ADDRESSES, "anthropic", url)
        yield


@pytest.mark.usefixtures("worked", "reported")
def test_a_report_is_that_of_its_command(app: Flask, api: Api, accounts: Accounts) -> None:
    """With the same rows and names, also where both select. The names are promised."""

    def is_full(row: dict[str, Any]) -> bool:
        return row.get("period") != 60 or row["reset_after"] == 0

    # What a minute's bucket gets back between two readings would make a difference.
    eventually(lambda: all(map(is_full, api("GET", "/usage/alice").json["limits"])))
    call_id = api("GET", "/ledger/calls").json["items"][0]["id"]
    names = []
    for line, path, alike in REPORTS:
        with_id = [
            each.replace("{call}", call_id).replace("{key}", key_of(accounts))
            for each in (line, path)
        ]
        result = app.test_cli_runner().invoke(args=[*with_id[0].split(), "--json"])
        answer = api("GET", with_id[1]).json
        assert answer is not None
        printed = json.loads(result.stdout)
        by_command = alike(printed)
        assert by_command, line
        assert alike(answer.get("items", answer)) == by_command, line
        names += [f"{line.partition(' --')[0]} --json {name}" for name in promised.fields(printed)]
    promised.compare("answers", names)


# -- a desired state -----------------------------------------------------------------------------

PUTS = [
    ("/users/alice", {"plan": "pro", "team": "sales", "limits": {"usd-day": "9 usd/day"}}),
    ("/users/dora", {"plan": "pro", "active": True}),
    ("/users/alice", {"active": False}),
    ("/keys/{key}", {"models": ["o3"], "files": True, "class": "batch", "limits": {}}),
    ("/teams/research", {"limits": {"team-usd-day": "9 usd/day"}}),
    ("/teams/new", {}),
    ("/amounts/user/usd-day/alice", {"amount": "9 usd/day"}),
    ("/amounts/user/usd-day/alice", {"amount": "9 usd/day", "until": "2099-01-01"}),
    ("/overrides/usd-day/alice", {"amount": "9 usd/day", "until": "2099-01-01"}),
    ("/overrides/usd-day/alice", {"amount": "9 usd/day"}),
    ("/blocks/user/alice", {}),
    ("/blocks/key/{key}", {"abnormal": True}),
    ("/blocks/model/o3", {}),
    ("/blocks/all", {}),
]


def test_a_desired_state_may_be_put_twice(app: Flask, api: Api, accounts: Accounts) -> None:
    """The second time changes nothing, also in the log, and every address with PUT is here."""
    key = key_of(accounts)
    for address_, body in PUTS:
        path = address_.replace("{key}", key)
        first = api("PUT", path, body)
        assert first.status_code in {200, 201}, first.text
        before = state(app)
        second = api("PUT", path, body)
        assert second.status_code == 200, second.text
        assert state(app) == before, path
        if "changed" in (second.json or {}):
            assert second.json["changed"] is False  # type: ignore[index]
        else:
            assert second.json == first.json
    tried = {path.split("/")[1] for path, _ in PUTS}
    assert tried == {each.path.split("/")[1] for each in ACTIONS if each.method == "PUT"}


def test_two_operators_do_not_overwrite_each_other(
    app: Flask, api: Api, accounts: Accounts
) -> None:
    """By If-Match with what was seen; If-None-Match: * only creates. Nothing is changed then."""
    for path, one, other in (
        ("/users/alice", {"plan": "pro"}, {"team": "sales"}),
        ("/teams/research", {"limits": {}}, {"limits": {"team-usd-day": "9 usd/day"}}),
        (f"/keys/{key_of(accounts, 'bob')}", {"files": True}, {"models": ["o3"]}),
    ):
        seen = api("GET", path)
        etag = seen.headers["ETag"]
        assert api("GET", path, If_None_Match=etag).status_code == 304
        changed = api("PUT", path, one, If_Match=etag)
        assert changed.status_code == 200
        before = state(app)
        late = api("PUT", path, other, If_Match=etag)
        assert (late.status_code, late.json and late.json["code"]) == (412, "changed_meanwhile")
        assert api("PUT", path, other, If_None_Match="*").status_code == 412
        assert state(app) == before
        assert api("PUT", path, other, If_Match=changed.headers["ETag"]).status_code == 200
    assert api("DELETE", "/users/alice", If_Match=etag).status_code == 412
    assert api("PUT", "/users/eve", {}, If_Match="*").status_code == 412
    assert api("PUT", "/users/eve", {}, If_None_Match="*").status_code == 201
    assert api("PUT", "/blocks/all", {}, If_Match="*").json["code"] == "no_etag"


# -- lists ---------------------------------------------------------------------------------------


def test_every_list_has_pages_and_csv(app: Flask, api: Api, database_url: str) -> None:
    """Its pages have, together, all rows in order, each once; so has the CSV."""
    now = datetime.now(UTC)
    calls = [
        finished(begun(started_at=now - timedelta(minutes=n), user=f"user:{n}", slug=slug))
        for n, slug in enumerate(("o3", "gpt-5.4-mini", "claude-haiku-4-5"))
    ]
    table.write(Database(database_url), calls)
    remember(
        Database(database_url),
        Alert(type="alert", identity="user:=1", spent=1, amount=2, since=now),
    )
    for user in ("alice", "bob"):
        api("PUT", f"/overrides/usd-day/{user}", {"amount": "9 usd/day"})
        api("PUT", f"/blocks/user/{user}", {})
    lists = [each for each in ACTIONS if each.order is not None]
    several = set()
    for each in lists:
        path = address(each)
        everything = api("GET", f"{path}?limit=1000").json
        assert everything is not None
        rows, cursor = [], ""
        some = len(everything["items"]) // 3 or 1
        while True:
            page = api("GET", f"{path}?limit={some}&cursor={cursor}").json
            rows += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        assert list(map(lasting, rows)) == list(map(lasting, everything["items"])), path
        if len(rows) > 1:
            several.add(each.path)
        for answer in (api("GET", f"{path}?format=csv"), api("GET", path, Accept="text/csv")):
            assert answer.mimetype == "text/csv"
            found = list(csv.DictReader(io.StringIO(answer.text)))
            assert len(found) == len(rows), path
            assert not rows or list(found[0]) == list(rows[0])
        for other in ([1], [[1], 1], [[], 1]):
            odd = base64.urlsafe_b64encode(json.dumps(other).encode()).decode()
            assert api("GET", f"{path}?cursor={odd}").status_code in {200, 422}, path
        assert api("GET", f"{path}?cursor=%C3%A4&format=csv").status_code == 422
    assert several >= {"/users", "/keys", "/spending", "/ledger/calls", "/overrides", "/blocks"}
    assert "'=1" in api("GET", "/alerts?format=csv").text.replace("user:=1", "'=1")


def test_a_list_of_keys_may_be_older_than_a_key(
    api: Api, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is made with its user while the list is read is left out."""
    read = Accounts.users

    def read_before_a_key(self: Accounts, *names: str, **of: Any) -> Any:
        users = read(self, *names, **of)
        accounts.create_key("dora", plan=None, default_plan="starter")
        return users

    monkeypatch.setattr(Accounts, "users", read_before_a_key)
    answer = api("GET", "/keys")
    assert answer.status_code == 200
    assert {key["user"] for key in answer.json["items"]} == {"alice", "bob", "carol"}


@pytest.mark.parametrize(
    ("path", "of_lead", "of_all"),
    [
        *(("/users", 2, 13), ("/teams", 0, 0), ("/teams/research", 2, 2)),
        *(("/keys", 2, 13), ("/keys?user=alice", 4, 2)),
    ],
)
def test_a_list_reads_only_the_users_that_it_has(
    app: Flask,
    api: Api,
    accounts: Accounts,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    of_lead: int,
    of_all: int,
) -> None:
    """Not all of a large company for a small team, nor all of them once for each team."""
    words = ("admin-keys", "create", "lead", "--scope", "all", "--team", "research")
    lead = app.test_cli_runner().invoke(args=["chat", *words]).stdout.strip()
    read, count = store._user_of, itertools.count()
    for number in range(9):
        accounts.create_key(f"user-{number}", plan=None, default_plan="starter", team="sales")
    accounts.create_key("dora", plan=None, default_plan="starter", team="research")
    monkeypatch.setattr(store, "_user_of", lambda row: (next(count), read(row))[1])
    for key, most in ((lead, of_lead), (TOKEN, of_all)):
        before = next(count)
        assert api("GET", path, key=key).status_code == 200
        assert next(count) - before - 1 <= most, path


def test_pages_have_all_rows_of_one_second(
    app: Flask, api: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the changes and calls, though their times are alike."""
    now = datetime.now(UTC).replace(microsecond=0)
    calls = [finished(begun(started_at=now, user=f"user:{n}")) for n in range(5)]
    table.write(Database(database_url), calls)
    instants = (now.timestamp() + n / 1000 for n in itertools.count())
    clock = Mock(time=lambda: next(instants))
    monkeypatch.setattr("ratelimit_ext.records.overrides.time", clock)
    amounts = [f"{amount} usd/day" for amount in (9, 5, 7, 8, 6)]
    for amount in amounts:
        done = api("PUT", "/overrides/usd-day/alice", {"amount": amount})
        assert done.status_code == 200, done.json
    assert {each.at // 1 for each in changes(app)} == {now.timestamp()}

    def paged(path: str, field: str) -> list[Any]:
        found, cursor = [], ""
        while cursor is not None:
            page = api("GET", f"{path}?limit=2&cursor={cursor}").json
            found += [each[field] for each in page["items"]]
            cursor = page["next"]
        return found

    assert paged("/changes", "amount") == amounts
    assert sorted(paged("/ledger/traffic", "user")) == [f"user:{n}" for n in range(5)]


def test_a_page_of_calls_does_not_read_those_before_it(
    api: Api, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger has millions. Any other text in a cursor is ignored or refused."""
    now = datetime.now(UTC)
    calls = [finished(begun(started_at=now - timedelta(minutes=9 - n))) for n in range(9)]
    table.write(Database(database_url), calls)
    read: list[Any] = []
    own = Reports.calls

    def counted(self: Reports, **of: Any) -> Any:
        for each in own(self, **of):
            read.append(each)
            yield each

    monkeypatch.setattr(Reports, "calls", counted)
    cursor, pages = "", []
    while cursor is not None:
        read.clear()
        page = api("GET", f"/ledger/calls?limit=2&since=1d&cursor={cursor}").json
        pages.append([each["id"] for each in page["items"]])
        cursor = page["next"]
        assert len(read) <= 4
    assert [each for page in pages for each in page] == [each.id for each in calls]
    for odd in ("", "x", "2026-11-29", "0001-01-01T00:00:00+14:00", 1, None, {}):
        found = base64.urlsafe_b64encode(json.dumps([[odd, "c1"], 1]).encode()).decode()
        assert api("GET", f"/ledger/calls?cursor={found}").status_code in {200, 422}, odd


def lasting(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what passes with time."""
    return {k: v for k, v in row.items() if k not in {"retry_after", "reset_after"}}


def address(action: Action) -> str:
    """An address of the action, of what there is."""
    return re.sub(r"<(?:[^<>]*:)?(\w+)>", lambda part: PARTS.get(part[1], "x"), action.path)


# -- what is wrong -------------------------------------------------------------------------------


def test_a_field_that_is_unknown_or_of_another_type_is_named(
    app: Flask, api: Api, accounts: Accounts
) -> None:
    """In the body and in the query of every action, with what to do; nothing is changed."""
    before = state(app)
    for action in ACTIONS:
        path = address(action).replace("/keys/x", f"/keys/{key_of(accounts)}")
        body = None if action.body is None else {}
        answers = [("colour", api(action.method, f"{path}?colour=red", body))]
        if action.body is not None:
            answers.append(("colour", api(action.method, path, {"colour": "red"})))
            for name, field in action.body.model_fields.items():
                shown = field.alias or name
                answers.append((shown, api(action.method, path, {shown: {"a": [1]}})))
            for odd in ([], "x", None):
                answer = api(action.method, path, odd)
                assert answer.status_code in {400, 422}, answer.text
                assert answer.mimetype == "application/problem+json"
        for named, answer in answers:
            assert answer.mimetype == "application/problem+json"
            found = answer.json
            assert found is not None
            assert (answer.status_code, found["field"].split(".")[0]) == (422, named), answer.text
            assert found.keys() >= {"type", "title", "status", "detail", "code"}
            assert found["title"] == "Unprocessable Entity"
    assert state(app) == before


INVALID = (422, "invalid_field")
#: Method, path, body; status, code, field.
WRONG: list[tuple[str, str, Any, int, str, str | None]] = [
    ("PUT", "/users/alice", {"plan": "gold"}, 422, "unknown_plan", "plan"),
    ("PUT", "/users/alice", {"team": "no"}, 422, "unknown_team", "team"),
    ("PUT", "/users/alice", {"limits": {"usd": "1"}}, 422, "unknown_limit", "limits"),
    ("PUT", "/users/alice", {"limits": {"usd-day": "1"}}, 422, "invalid_amount", "limits"),
    ("PUT", "/users/alice", {"limits": {"usd-day": 5}}, 422, "invalid_field", "limits.usd-day"),
    ("PUT", "/users/ip:10.0.0.1", {}, 422, "invalid_name", None),
    ("PUT", "/users/%20new", {}, 422, "invalid_name", None),
    ("PUT", "/users/alice%20", {}, 422, "invalid_name", None),
    ("PUT", "/teams/new%20", {}, 422, "invalid_name", None),
    ("PUT", "/users/%ff", {}, 422, "invalid_name", None),
    ("PUT", "/users/alice", {"reason": "r" * 201}, 422, "invalid_field", "reason"),
    ("POST", "/keys", {"user": "alice", "people": {"x": 1}}, 422, "invalid_field", "people.x"),
    ("GET", "/users/eve", None, 404, "unknown_user", None),
    ("DELETE", "/users/eve", None, 404, "unknown_user", None),
    ("POST", "/users", {"csv": "user\na\na\n"}, 422, "invalid_csv", "csv"),
    ("POST", "/keys", {}, 422, "invalid_field", "user"),
    ("POST", "/keys", {"user": "alice", "plan": "pro"}, 409, "other_plan", None),
    ("POST", "/keys", {"user": "alice", "team": "sales"}, 409, "other_team", None),
    ("POST", "/keys", {"user": "x", "team": "no"}, 422, "unknown_team", "team"),
    ("POST", "/keys", {"user": "x", "expires": "yesterday"}, 422, "past_time", "expires"),
    ("POST", "/keys", {"user": "x", "models": ["a b"]}, 422, "invalid_models", "models.0"),
    ("POST", "/keys", {"user": "x", "models": ["a*"] * 101}, *INVALID, "models"),
    ("POST", "/keys", {"user": "x", "people": {"headers": ["X"] * 11}}, *INVALID, "people.headers"),
    ("GET", "/keys/0123456789abcdef", None, 404, "unknown_key", None),
    ("PUT", "/keys/0123456789abcdef", {"files": True}, 404, "unknown_key", None),
    ("DELETE", "/keys/0123456789abcdef", None, 404, "unknown_key", None),
    ("DELETE", "/keys?user=eve", None, 404, "unknown_user", None),
    ("POST", "/keys/0123456789abcdef/rotate", {}, 404, "unknown_key", None),
    ("GET", "/teams/no", None, 404, "unknown_team", None),
    ("PUT", "/teams/x", {"limits": {"usd-day": "1 usd/day"}}, 422, "unknown_limit", "limits"),
    ("PUT", "/amounts/user/usd-day/eve", {"amount": "1 usd/day"}, 404, "unknown_user", None),
    ("PUT", "/amounts/user/alice/usd-day", {"amount": "1 usd/day"}, 404, "unknown_user", None),
    ("DELETE", "/amounts/user/alice/usd-day", None, 404, "unknown_user", None),
    ("POST", "/keys", {"user": "alice", "name": " sign-in "}, 422, "invalid_field", "name"),
    ("PUT", "/amounts/user/usd-day/alice", {"amount": "1"}, 422, "invalid_amount", "amount"),
    ("DELETE", "/amounts/user/usd-day/alice", None, 404, "no_amount", None),
    ("PUT", "/overrides/no/alice", {"amount": "1 usd/day"}, 422, "unknown_limit", None),
    ("PUT", "/overrides/usd-day/eve", {"amount": "1 usd/day"}, 404, "unknown_user", None),
    ("DELETE", "/overrides/usd-day/alice", None, 404, "no_override", None),
    ("PUT", "/blocks/user/eve", {}, 404, "unknown_user", None),
    ("PUT", "/blocks/model/no", {}, 422, "unknown_model", None),
    ("PUT", "/blocks/model/o3", {"abnormal": True}, 422, "invalid_field", "abnormal"),
    ("PUT", "/blocks/user/alice", {"for": "long"}, 422, "invalid_span", "for"),
    ("POST", "/reset", {"identity": "alice"}, 404, "nothing_counted", None),
    ("POST", "/accounts/off", {}, 409, "has_keys", None),
    ("POST", "/ledger/prune", {"keep_days": 1}, 422, "invalid_field", "keep_days"),
    ("POST", "/ledger/prune", {}, 422, "invalid_field", "keep_days"),
    ("POST", "/ledger/credit", {"usd": "1"}, 422, "invalid_field", "user"),
    (
        "POST",
        "/ledger/credit",
        {"usd": "1", "user": "a", "team": "b"},
        422,
        "invalid_field",
        "user",
    ),
    ("POST", "/ledger/credit", {"usd": "1", "team": "no"}, 404, "unknown_team", None),
    ("POST", "/ledger/credit", {"usd": "1", "key": "no"}, 404, "unknown_key", None),
    ("POST", "/ledger/credit", {"usd": "1", "user": "alice"}, 422, "nothing_spent", None),
    ("POST", "/alerts/test", {}, 409, "no_webhook", None),
    ("GET", "/spending?by=colour", None, 422, "unknown_subject", "by"),
    ("GET", "/spending?month=2026-13", None, 422, "invalid_month", "month"),
    ("GET", "/spending?month=last&since=1d", None, 422, "invalid_field", "month"),
    ("GET", "/spending?user=eve", None, 404, "unknown_caller", None),
    ("GET", "/users?limit=0", None, 422, "invalid_field", "limit"),
    ("GET", "/users?limit=1&limit=2", None, 422, "invalid_field", "limit"),
    ("GET", "/limits?endpoint=no", None, 422, "unknown_endpoint", "endpoint"),
    ("GET", "/used?name=no", None, 422, "unknown_limit", "name"),
]


def test_what_is_wrong_changes_nothing(app: Flask, api: Api) -> None:
    """The answer has the status, a word for programs, and the field if one is wrong."""
    before = state(app)
    for method, path, body, *expected in WRONG:
        answer = api(method, path, body)
        found = [answer.status_code, json_of(answer)["code"], answer.json.get("field")]
        assert found == expected, answer.text
        assert answer.json["detail"][-1] in ".?"
    assert state(app) == before


def test_a_name_and_a_limit_in_the_wrong_order_are_told_apart(api: Api) -> None:
    """By the first name: if it is a limit's, the error shows the order. A user may have that name,
    too."""
    path, body = "/amounts/user/alice/usd-day", {"amount": "1 usd/day"}
    for answer in (api("PUT", path, body), api("DELETE", path)):
        assert json_of(answer)["detail"] == (
            "There is no user 'usd-day'. 'usd-day' is a limit: write amounts/user/LIMIT/NAME, or "
            "user NAME LIMIT in a command. GET users lists the users."
        )
    api("PUT", "/users/usd-day", {})
    assert api("PUT", "/amounts/user/usd-day/usd-day", body).status_code == 200


def test_an_outage_of_the_database_is_a_503(
    app: Flask, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a problem, too, and no 500."""
    failing = Mock(side_effect=OperationalError("SELECT", {}, Exception("gone")))
    monkeypatch.setattr(services_of(app).accounts, "users", failing)
    answer = api("GET", "/users")
    assert (answer.status_code, answer.json and answer.json["code"]) == (503, "database")


# -- who may use it ------------------------------------------------------------------------------


def test_only_a_bearer_token_opens_it(app: Flask, api: Api, accounts: Accounts) -> None:
    """A session's cookie does not, so no form of another site reaches it; nor a key of models."""
    key = accounts.create_key("alice", plan=None, default_plan="starter").text
    browser = app.test_client()
    assert browser.post("/admin/login", data={"token": TOKEN}).status_code == 303
    assert browser.get("/admin").status_code == 200
    assert browser.get(f"{PREFIX}/users").status_code == 401
    for action in ACTIONS:
        body = None if action.body is None else {}
        for wrong in ("", "wrong", "ä", f"{TOKEN}x", key):
            answer = api(action.method, address(action), body, key=wrong)
            assert answer.status_code == 401
            assert json_of(answer)["code"] == "invalid_admin_key"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.usefixtures("stopped_clock")
def test_guesses_of_a_key_are_limited(make_app: AppMaker) -> None:
    """By address, as those of the login."""
    client = make_app(CHATAPP_ADMIN_TOKEN=TOKEN).test_client()
    headers = {"Authorization": "Bearer wrong", "Accept": "application/problem+json"}
    answers = [client.get(f"{PREFIX}/users", headers=headers) for _ in range(25)]
    assert [each.status_code for each in answers] == [401] * 20 + [429] * 5
    assert answers[-1].mimetype == "application/problem+json"


def test_an_unknown_address_is_a_problem(api: Api) -> None:
    """And so is a method that it does not take."""
    for method, path, status in (("GET", "/nothing", 404), ("PATCH", "/users", 405)):
        answer = api(method, path)
        assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")


def test_without_a_token_there_is_no_api(make_app: AppMaker) -> None:
    """As there is no /admin."""
    assert make_app().test_client().get(f"{PREFIX}/users").status_code == 404
