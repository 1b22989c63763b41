"""Management keys: what each scope may do, what a team's administrator may, and what owners may.

The matrix is made of the table of actions, so a new address is in it.
"""

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from chatapp import POLICY_FILE
from chatapp.accounts.api_key import ADMIN_PREFIX, public_id_of
from chatapp.accounts.people import People
from chatapp.accounts.store import Accounts
from chatapp.actions.table import ACTIONS
from chatapp.blueprints.admin.forms import ACTS
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.operators import users
from chatapp.operators.callers import shared_operators
from chatapp.services import services_of
from chatapp.settings import SCOPES
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.blueprints.management.conftest import Api
from tests.chatapp.blueprints.management.test_actions import (
    address,
    changes,
    key_of,
    spend,
    state,
    used,
)
from tests.chatapp.blueprints.test_admin import admin_with, chatted, log_in, send
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.ledger.calls import begun, finished

#: What a team's administrator may, on the team. A new action is not one until it is here, too.
OF_TEAM = {
    *("list_users", "get_user", "put_user", "list_keys", "get_key", "create_key", "revoke_key"),
    *("revoke_keys", "rotate_key", "list_teams", "get_team", "put_amount", "clear_amount"),
    *("get_usage", "list_spending", "list_forecasts", "list_days", "list_calls", "get_call"),
}


def new_key(app: Flask, *scopes: str, team: str | None = None, name: str = "hr") -> str:
    words = [word for scope in scopes for word in ("--scope", scope)]
    of_team = [] if team is None else ["--team", team]
    made: str = run(app, "admin-keys", "create", name, *words, *of_team).stdout.strip()
    return made


# -- the matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("team", [None, "research"])
def test_each_scope_may_do_its_actions_and_no_others(
    app: Flask, api: Api, team: str | None
) -> None:
    """Every action by a key of every scope: refused with 403, which names the scope, or not."""
    assert {each.name for each in ACTIONS if each.of_team} == OF_TEAM
    assert {each.scope for each in ACTIONS} <= set(SCOPES)
    keys = {scope: new_key(app, scope, team=team) for scope in SCOPES}
    before = state(app)
    for action in ACTIONS:
        for scope, key in keys.items():
            # A field that no action has: who may call it is answered with 422, and nothing done.
            answer = api(action.method, f"{address(action)}?colour=red", {}, key=key)
            may = scope in (action.scope, "all") and (team is None or action.of_team)
            assert (answer.status_code == 403) == (not may), (action.name, scope, answer.text)
            assert answer.status_code in {403, 422}
            if scope not in (action.scope, "all"):
                assert f"needs the scope {action.scope}" in json_of(answer)["detail"]
    assert state(app) == before


def test_several_scopes_add_up(app: Flask, api: Api) -> None:
    """A key that reads and makes keys does both, and changes no plan."""
    key = new_key(app, "read", "keys")
    assert api("GET", "/users", key=key).status_code == 200
    assert api("POST", "/keys", {"user": "alice"}, key=key).status_code == 201
    assert api("PUT", "/users/alice", {"plan": "pro"}, key=key).status_code == 403
    assert {each.by for each in changes(app)[:1]} == {f"hr (admin key {public_id_of(key)})"}


@pytest.mark.parametrize("team", [None, "research"])
def test_a_change_is_no_way_to_read(app: Flask, api: Api, team: str | None) -> None:
    """Without the scope read, a PUT answers what it has done. The item and its ETag need both."""
    mine = key_of(services_of(app).accounts)
    for scope, path in (
        ("users", "/users/alice"),
        ("keys", f"/keys/{mine}"),
        ("teams", "/teams/x"),
    ):
        if team and scope != "users":  # an operator's alone
            continue
        answer = api("PUT", path, {}, key=new_key(app, scope, team=team))
        is_new = path == "/teams/x"
        done = "Team x is created without budgets." if is_new else "Nothing was changed."
        assert (answer.status_code, answer.json) == (201 if is_new else 200, {"done": done})
        assert "ETag" not in answer.headers
        both = api("PUT", path, {}, key=new_key(app, scope, "read", team=team))
        assert both.json == api("GET", path).json
        etag, blind = both.headers["ETag"], new_key(app, scope, team=team)
        for guess in ({"If_Match": etag}, {"If_None_Match": etag}):
            assert api("PUT", path, {}, key=blind, **guess).status_code == 403
        assert api("PUT", path, {}, key=blind, If_Match="*").status_code == 200


def test_a_field_is_no_way_around_a_scope(app: Flask, api: Api) -> None:
    """Amounts need the scope of limits, new users that of users, and keys in an import theirs."""
    keys, users = new_key(app, "keys"), new_key(app, "users")
    before, mine = state(app), key_of(services_of(app).accounts)
    usd, own = {"usd-day": "1 usd/day"}, {"key-usd-day": "1 usd/day"}
    quoted = '"user","\nlimits"\nalice,usd-day=1 usd/day\n'  # a head over two lines
    for method, path, body, key, scope in (
        ("PUT", "/users/alice", {"limits": usd}, users, "limits"),
        ("PUT", f"/keys/{mine}", {"limits": own}, keys, "limits"),
        ("PUT", f"/keys/{mine}", {"people": {"plan": "pro"}}, keys, "users"),
        ("POST", "/keys", {"user": "alice", "people": {"plan": "pro"}}, keys, "users"),
        ("POST", "/keys", {"user": "alice", "limits": own}, keys, "limits"),
        ("POST", "/keys", {"user": "new", "plan": "pro"}, keys, "users"),
        ("POST", "/users", {"csv": "user,limits\nalice,usd-day=1 usd/day\n"}, users, "limits"),
        ("POST", "/users", {"csv": quoted}, users, "limits"),
        ("POST", "/users", {"csv": "user\nnew\n", "keys": True}, users, "keys"),
    ):
        answer = api(method, path, body, key=key)
        assert answer.status_code == 403, (path, body)
        assert f"needs the scope {scope}" in json_of(answer)["detail"]
    assert state(app) == before


# -- effects -------------------------------------------------------------------------------------

MODEL = "gpt-5.4-mini"
#: What changes something or shows a secret: a call, its body, and the scopes that a key needs for
#: it, unless it has "all". {plain}, {people} and {files} are alice's keys, without and with powers,
#: {other} is another team's.
EFFECTS: list[tuple[str, Any, set[str]]] = [
    ("POST /keys/{plain}/rotate", {}, {"keys"}),
    ("POST /keys/{files}/rotate", {}, {"keys"}),
    ("POST /keys/{people}/rotate", {}, {"keys", "users"}),
    ("POST /keys/{other}/rotate", {}, {"keys"}),
    ("POST /keys", {"user": "alice"}, {"keys"}),
    ("POST /keys", {"user": "alice", "people": {}}, {"keys", "users"}),
    ("POST /keys", {"user": "new"}, {"keys", "users"}),
    ("PUT /keys/{plain}", {"files": True}, {"keys"}),
    ("PUT /keys/{plain}", {"class": "batch"}, {"keys"}),
    ("PUT /keys/{plain}", {"people": {}}, {"keys", "users"}),
    ("PUT /keys/{people}", {"people": None}, {"keys", "users"}),
    ("PUT /keys/{people}", {"models": ["o3"]}, {"keys", "users"}),
    ("PUT /keys/{people}", {"files": True}, {"keys", "users"}),
    ("DELETE /keys/{plain}", None, {"keys"}),
    ("DELETE /keys/{files}", None, {"keys"}),
    ("DELETE /keys/{people}", None, {"keys", "users"}),
    ("DELETE /keys/sk-chat-{people}-x", None, {"keys", "users"}),
    ("DELETE /keys?user=alice", None, {"keys", "users"}),
    ("DELETE /keys?user=bob", None, {"keys"}),
    ("PUT /amounts/user/usd-day/alice", {"amount": "2 usd/day"}, {"limits"}),
    ("PUT /amounts/key/key-usd-day/{plain}", {"amount": "2 usd/day"}, {"limits"}),
    ("PUT /amounts/key/key-usd-day/{people}", {"amount": "2 usd/day"}, {"limits"}),
    ("PUT /amounts/team/team-usd-day/research", {"amount": "9 usd/day"}, {"limits", "teams"}),
    ("DELETE /amounts/team/team-usd-day/research", None, {"limits", "teams"}),
    ("PUT /teams/research", {"limits": {}}, {"teams"}),
    ("PUT /overrides/usd-day/alice", {"amount": "9 usd/day"}, {"limits"}),
    ("PUT /overrides/team-usd-day/research", {"amount": "9 usd/day"}, {"limits", "teams"}),
    (f"PUT /overrides/model/{MODEL}", {"amount": "9/minute"}, {"limits", "providers"}),
    ("DELETE /overrides/usd-day/bob", None, {"limits"}),
    ("DELETE /overrides/model/o3", None, {"limits", "providers"}),
    ("DELETE /amounts/user/usd-day/bob", None, {"limits"}),
    ("PUT /blocks/user/alice", {}, {"limits"}),
    ("PUT /blocks/key/{plain}", {}, {"limits"}),
    (f"PUT /blocks/model/{MODEL}", {}, {"providers"}),
    ("PUT /blocks/all", {}, {"all"}),
    ("DELETE /blocks/all", None, {"all"}),
    ("DELETE /blocks/user/bob", None, {"limits"}),
    ("DELETE /blocks/key/{other}", None, {"limits"}),
    ("DELETE /blocks/model/o3", None, {"providers"}),
    ("POST /providers/offline/pause", {"for": "2h"}, {"providers"}),
    ("POST /providers/offline/resume", None, {"providers"}),
    ("POST /reset", {"identity": "bob", "name": "blocked-user"}, {"limits"}),
    ("POST /reset", {"identity": "o3", "name": "blocked-model"}, {"limits", "providers"}),
    ("POST /reset", {"identity": "*", "name": "blocked-all"}, {"all"}),
    ("POST /reset", {"identity": "alice", "name": "usd-day"}, {"limits"}),
    ("POST /reset", {"identity": "alice"}, {"limits"}),
    ("POST /reset", {"identity": "team:research"}, {"limits", "teams"}),
    ("POST /ledger/credit", {"user": "alice", "usd": "0.001"}, {"limits"}),
    ("POST /ledger/credit", {"team": "research", "usd": "0.001"}, {"limits", "teams"}),
    ("POST /ledger/restore", {"apply": True}, {"all"}),
    ("PUT /users/alice", {"plan": "pro"}, {"users"}),
    ("PUT /users/alice", {"active": False}, {"users"}),
    ("PUT /users/alice", {"team": None}, {"users"}),
    ("PUT /users/bob", {"team": "research"}, {"users"}),
    ("PUT /users/new", {}, {"users"}),
    ("DELETE /users/alice", None, {"users"}),
    ("POST /users", {"csv": "user\nnew\n"}, {"users"}),
    ("POST /admin-keys", {"name": "x", "scopes": ["read"]}, {"all"}),
    ("POST /admin-keys/{admin}/rotate", {}, {"all"}),
    ("DELETE /admin-keys/{admin}", None, {"all"}),
    ("POST /ledger/prune", {"keep_days": 62}, {"all"}),
]
#: Accounts with keys stay on, and a test of the webhook changes nothing.
NO_EFFECT = {"turn_accounts_off", "send_test_alert"}
#: Of these, what a team's administrator may, on alice of the team.
OF_LEAD = {
    *("POST /keys/{plain}/rotate", "DELETE /keys/{plain}", "DELETE /keys/{files}"),
    *("PUT /amounts/user/usd-day/alice", "PUT /amounts/key/key-usd-day/{plain}"),
    *("POST /keys", "PUT /users/new"),
}


def test_every_change_is_among_the_effects() -> None:
    """So a new act is not without its row."""
    lines = {line.partition("?")[0] for line, _, _ in EFFECTS}
    for each in ACTIONS:
        path = re.sub(
            r"<any\(([\w, ]+)\):\w+>", lambda part: f"({part[1].replace(', ', '|')})", each.path
        )
        path = re.sub(r"<path:\w+>", ".+", path)
        path = re.sub(r"<\w+>", "[^/]+", path)
        has_row = any(re.fullmatch(f"{each.method} {path}", line) for line in lines)
        assert has_row == (each.method != "GET" and each.name not in NO_EFFECT), each.name


@pytest.mark.parametrize("team", [None, "research"])
def test_each_scope_has_its_effects_and_no_others(
    app: Flask, api: Api, accounts: Accounts, database_url: str, uri: str, team: str | None
) -> None:
    """Whatever address and body lead there: what a key may do and what a limit counts decide who
    changes it or gets a secret. A refusal changes nothing, and names the scope that is missing."""
    plain = key_of(accounts)
    spend(database_url, plain)
    made = {
        name: accounts.create_key("alice", plan=None, default_plan="starter", people=people)
        for name, people in (("people", People()), ("files", None))
    }
    accounts.change("key", made["files"].public_id, files=True)
    named = {"{plain}": plain, "{other}": key_of(accounts, "bob")}
    named["{admin}"] = public_id_of(new_key(app, "read"))
    named |= {f"{{{name}}}": key.public_id for name, key in made.items()}
    for path in ("all", "user/bob", f"key/{named['{other}']}", "model/o3"):
        assert api("PUT", f"/blocks/{path}", {"for": "2h"}).status_code == 200
    for path in ("/overrides/usd-day/bob", "/amounts/user/usd-day/bob"):
        assert api("PUT", path, {"amount": "9 usd/day"}).status_code == 200
    assert api("PUT", "/overrides/model/o3", {"amount": "9/minute"}).status_code == 200
    assert api("POST", "/providers/offline/pause", {"for": "1h"}).status_code == 200
    assert api("POST", "/ledger/restore", {"apply": True}).status_code == 200
    pairs = {frozenset(each) for _, _, each in EFFECTS if len(each) == 2}
    sets = [*({each} for each in SCOPES), *pairs]
    keys = {frozenset(each): new_key(app, *each, team=team) for each in sets}
    file, storage = sqlite3.connect(database_url.removeprefix("sqlite:///")), Redis.from_url(uri)
    with closing(file), closing(sqlite3.connect(":memory:")) as kept, storage:
        file.backup(kept)
        stored = {name: storage.dump(name) for name in storage.keys("*")}
        before = state(app), used(app)
        for line, body, needed in EFFECTS:
            method, path = re.sub(r"{\w+}", lambda found: named[found[0]], line).split(" ", 1)
            is_allowed = team is None or (line in OF_LEAD and "people" not in str(body))
            for scopes, key in keys.items():
                if is_allowed and ("all" in scopes or needed <= scopes):
                    continue
                answer = api(method, path, body, key=key)
                assert answer.status_code == 403, (line, body, sorted(scopes), answer.text)
            assert (state(app), used(app)) == before, (line, body)
            if is_allowed:
                answer = api(method, path, body, key=keys[frozenset(needed)])
                assert answer.status_code in {200, 201}, (line, body, answer.text)
                assert (state(app), used(app)) != before, (line, body)
                kept.backup(file)
                storage.flushall()
                for name, value in stored.items():
                    storage.restore(name, 0, value)


def test_the_pages_forms_have_the_same_bounds(app: Flask, accounts: Accounts) -> None:
    """What a key of some scopes cannot do by the API, it cannot do at /admin: nothing is changed,
    and no secret shown."""
    trusted = accounts.create_key("alice", plan=None, default_plan="starter", people=People())
    accounts.change("key", key_of(accounts), files=True)
    keys, limits = new_key(app, "read", "keys"), new_key(app, "read", "limits")
    lead = new_key(app, "all", team="research", name="lead")
    before = state(app)
    for key, path, fields in (
        (keys, "rotate_key", {"key": trusted.public_id}),
        (keys, "revoke_key", {"key": trusted.public_id}),
        (keys, "revoke_keys", {"user": "alice"}),
        (limits, "block_all", {}),
        (limits, "unblock_all", {}),
        (limits, "block_model", {"name": MODEL}),
        (limits, "put_override", {"identity": MODEL, "limit": "model", "amount": "9/minute"}),
        (
            limits,
            "put_amount",
            {"owner": "team", "name": "research", "limit": "team-usd-day", "amount": "9 usd/day"},
        ),
        (lead, "rotate_key", {"key": trusted.public_id}),
        (lead, "rotate_key", {"key": key_of(accounts)}),
    ):
        client = app.test_client()
        assert log_in(client, key).status_code == 303
        view = client.get("/admin/user?name=alice").text
        assert (trusted.public_id in view) == (key != lead)
        found = re.search(r'name="form_token" value="(\w+)"', view)
        assert found is not None
        answer = client.post(f"/admin/act/{path}", data={"form_token": found[1], **fields})
        assert (answer.status_code, "sk-chat-" in answer.text) == (403, False), (path, fields)
    assert state(app) == before


def test_a_new_user_of_a_former_name_is_someone_else(
    app: Flask, api: Api, accounts: Accounts, database_url: str
) -> None:
    """Another team's administrator, who creates the user again, sees nothing of what the former one
    has called and spent, with their key either. The operator does, by another name."""
    spend(database_url, key_of(accounts))
    for path in ("user/usd-day/bob", "user/plan/bob"):
        amount = "9 usd/day" if "usd" in path else "9/day"
        assert api("PUT", f"/amounts/{path}", {"amount": amount}).status_code == 200
    assert api("POST", "/ledger/restore", {"apply": True}).status_code == 200
    with app.app_context():
        assert [each for each in shared_operators().states("bob") if each.used]
    bob = services_of(app).reports.totals(user="user:bob")
    assert api("DELETE", "/users/bob").status_code == 200
    lead = new_key(app, "all", team="research", name="lead")
    made = api("POST", "/keys", {"user": "bob"}, key=lead).json
    usage = api("GET", "/usage/bob", key=lead).json
    assert set(usage["spent"].values()) == {0}
    own = app.test_client().get("/usage", headers={"x-api-key": made["key"]}).json
    assert set(own["spent"].values()) == {0}
    api("PUT", "/users/new", {}, key=lead)
    new = api("GET", "/usage/new", key=lead).json
    left = [{each["name"]: each["remaining"] for each in u["limits"]} for u in (usage, own, new)]
    assert left[0] == left[2]
    assert left[2].items() <= left[1].items()
    assert api("GET", "/ledger/calls?user=bob", key=lead).json["items"] == []
    names = {each["user"] for each in api("GET", "/ledger/calls").json["items"]}
    [former] = [each for each in names if each.startswith("former:bob (deleted ")]
    again = services_of(app).reports.totals(user=former)
    assert [each.cost_micro_usd for each in again] == [each.cost_micro_usd for each in bob]


# -- names ---------------------------------------------------------------------------------------

PREFIX, BLANK, CONTROL = "leave it out", "is blank or has more than 256", "a control character"
#: Names that no user has, and what the refusal says.
NO_USER = {
    **dict.fromkeys(("team:research", "session:1", "ip:10.0.0.1", "former:bob"), PREFIX),
    **dict.fromkeys(("user:team:research", "user:user:x", " team:research"), PREFIX),
    **dict.fromkeys(("a\tb", "a\x00b", "a\u2028b"), CONTROL),
    **dict.fromkeys(("\u00a0", "x" * 257), BLANK),
}


@pytest.mark.parametrize("name", NO_USER, ids=repr)
def test_a_name_of_no_user_is_a_mistake_everywhere(app: Flask, api: Api, name: str) -> None:
    """By the API, in a file, by a command and on a page: a sentence with what is wrong, and nothing
    is changed."""
    lead = new_key(app, "all", team="research", name="lead")
    before = state(app)
    for key in (TOKEN, lead):
        for method, path, body in (
            ("PUT", f"/users/{quote(name, safe='')}", {}),
            ("POST", "/keys", {"user": name}),
            *([("POST", "/users", {"csv": f'user\nnew\n"{name}"\n'})] if key == TOKEN else ()),
        ):
            answer = api(method, path, body, key=key)
            assert (answer.status_code, NO_USER[name] in answer.text) == (422, True), answer.text
    for words in (("users", "create", name), ("keys", "create", "--user", name)):
        if "\x00" not in name:  # no system passes it to a program
            done = app.test_cli_runner().invoke(args=["chat", *words])
            assert (done.exit_code != 0, NO_USER[name] in done.output) == (True, True), done.output
    client = app.test_client()
    log_in(client)
    says = NO_USER[name] if name.strip() else "is missing; send it"  # as an empty field
    assert says in unescape(send(client, "create_key", user=name).text)
    assert state(app) == before


def test_a_name_changes_no_line_of_a_terminal(app: Flask, accounts: Accounts) -> None:
    """A team's administrator may have chosen it."""
    made = accounts.create_key("a\u202eb", plan=None, default_plan="starter")
    for words in (
        *(("users", "set", "a\u202eb", "--plan", "pro"), ("keys", "create", "--user", "a\u202eb")),
        *(("keys", "revoke", made.public_id), ("users", "delete", "a\u202eb", "--yes")),
    ):
        done = run(app, *words)
        assert "a\\u202eb" in done.output, words
        assert "\u202e" not in done.output, words


def test_the_servers_log_has_no_key_and_no_escape(
    app: Flask, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """An address may have a whole key in the place of its public id, and any characters behind."""
    key, user = api("POST", "/keys", {"user": "alice"}).json["key"], "a\u202eb"
    secret, public = key.split("-", 3)[3], public_id_of(key)
    assert secret not in public
    for method, path, body in (
        ("PUT", f"/amounts/key/key-usd-day/{key}", {"amount": "1 usd/day"}),
        ("PUT", f"/blocks/key/{key}", {}),
        ("DELETE", f"/blocks/key/{public}-%1b[2J", None),
        ("DELETE", f"/keys/{key}", None),
        ("PUT", f"/users/{quote(user)}", {}),
    ):
        assert api(method, path, body).status_code in {200, 201}, path
    client = app.test_client()
    log_in(client)
    assert send(client, "create_key", user=user).status_code == 200
    logged = "".join(record.getMessage() for record in caplog.records)
    assert {"/blocks/key/sk-chat-" in logged, f"/blocks/key/{public}-\\x1b[2J" in logged} == {True}
    assert secret not in logged
    assert not {"\x1b", "\u202e"}.intersection(logged)


# -- a team's administrator ----------------------------------------------------------------------


@pytest.fixture
def lead(app: Flask) -> str:
    """A key of the administrator of research, in every scope."""
    return new_key(app, "all", team="research", name="lead")


def test_a_teams_administrator_sees_that_team_alone(app: Flask, api: Api, lead: str) -> None:
    """Lists have its rows only; other users, keys and teams are refused, if they exist or not."""
    assert [each["user"] for each in api("GET", "/users", key=lead).json["items"]] == ["alice"]
    assert [each["user"] for each in api("GET", "/keys", key=lead).json["items"]] == ["alice"]
    assert [each["team"] for each in api("GET", "/teams", key=lead).json["items"]] == ["research"]
    assert api("GET", "/users?team=sales", key=lead).json["items"] == []
    bobs = key_of(services_of(app).accounts, "bob")
    for path in (
        *("/users/bob", "/users/carol", "/users/eve", "/teams/sales", f"/keys/{bobs}"),
        *("/keys/0123456789abcdef", "/usage/bob", "/spending?team=sales"),
        *("/ledger/days?team=sales", "/ledger/calls?team=sales", "/spending?user=bob"),
        *("/ledger/days?user=eve", "/ledger/calls?user=carol"),
    ):
        answer = api("GET", path, key=lead)
        assert (answer.status_code, answer.json and answer.json["code"]) == (403, "forbidden"), path
    for path in ("/users/alice", "/teams/research", "/usage/alice", "/spending", "/ledger/days"):
        assert api("GET", path, key=lead).status_code == 200, path


def test_a_teams_administrator_sees_no_forecast_of_a_former_member(
    app: Flask, api: Api, accounts: Accounts, lead: str, database_url: str
) -> None:
    """Whose calls were the team's, and whose budget is not."""
    accounts.set_amount("team", "research", "team-usd-month", "9 usd/month")
    past = [
        finished(begun(started_at=datetime.now(UTC) - timedelta(n), user=user, team="research"))
        for n in range(15)
        for user in ("user:alice", "user:bob")
    ]
    table.write(Database(database_url), past)
    assert api("POST", "/ledger/restore", {"apply": True}).status_code == 200

    def shown(key: str, query: str = "") -> set[str]:
        items = api("GET", f"/spending/forecast{query}", key=key).json["items"]
        return {each["subject"] for each in items}

    assert (shown(TOKEN), shown(lead)) == ({"user:alice", "user:bob"}, {"user:alice"})
    assert shown(lead, "?by=team") == {"research"}


def test_a_teams_administrator_cannot_raise_above_the_team(app: Flask, api: Api, lead: str) -> None:
    """An amount in dollars up to the team's of that time; any other up to the plan's."""
    path = "/amounts/user/{}/alice"
    for limit, amount, status in (
        *(("usd-day", "50 usd/day", 200), ("usd-day", "51 usd/day", 403)),
        *(("usd-day", "1 usd/day", 200), ("usd-month", "30 usd/month", 200)),
        *(("usd-month", "31 usd/month", 403), ("plan", "100/day", 200), ("plan", "101/day", 403)),
        *(("user", "1/minute", 200), ("user", "31/minute", 403)),
    ):
        answer = api("PUT", path.format(limit), {"amount": amount}, key=lead)
        assert answer.status_code == status, (limit, amount)
    alice = services_of(app).accounts.user("alice")
    assert alice is not None
    assert alice.limits == {
        "usd-day": "1 usd/day",
        "usd-month": "30 usd/month",
        "plan": "100/day",
        "user": "1/minute",
    }
    before = state(app)
    too_much = {"limits": {"usd-day": "51 usd/day"}}
    until = {"amount": "51 usd/day", "until": "2h"}
    key = key_of(services_of(app).accounts)
    for method, address_, body in (
        ("PUT", "/users/alice", too_much),
        ("PUT", "/users/new", too_much),
        ("PUT", path.format("usd-day"), until),
        ("PUT", f"/amounts/key/key-usd-day/{key}", {"amount": "51 usd/day"}),
        ("POST", "/keys", {"user": "alice", "limits": {"key-usd-day": "51 usd/day"}}),
        ("PUT", "/amounts/team/team-usd-day/research", {"amount": "60 usd/day"}),
        ("PUT", "/teams/research", {"limits": {}}),
        ("DELETE", "/amounts/team/team-usd-day/research", None),
        ("PUT", "/overrides/usd-day/alice", {"amount": "9 usd/day"}),
    ):
        answer = api(method, address_, body, key=lead)
        assert answer.status_code == 403, (address_, answer.text)
    assert state(app) == before


@pytest.mark.parametrize("path", ["/admin/api/v1", "import"])
def test_what_a_teams_administrator_gave_ends_with_the_membership(
    app: Flask, api: Api, accounts: Accounts, lead: str, path: str, tmp_path: Path
) -> None:
    """Amounts and overrides, of the user and their keys. What an operator gave stays."""
    key = key_of(accounts, "alice")
    for owner, limit, amount, until, giver in (
        ("user/{}/alice", "usd-day", "50 usd/day", None, lead),
        ("user/{}/alice", "usd-month", "20 usd/month", "2d", lead),
        ("user/{}/alice", "user", "9/minute", None, lead),
        ("user/{}/alice", "user", "10/minute", None, TOKEN),
        ("user/{}/alice", "plan", "70/day", "2d", TOKEN),
        (f"key/{{}}/{key}", "key", "3/minute", None, lead),
    ):
        body = {"amount": amount} | ({} if until is None else {"until": until})
        answer = api("PUT", f"/amounts/{owner.format(limit)}", body, key=giver)
        assert answer.status_code == 200, answer.json
    if path == "import":
        file = tmp_path / "users.csv"
        file.write_text("user,team\nalice,sales\n")
        run(app, "users", "import", str(file))
    else:
        assert api("PUT", "/users/alice", {"team": "sales"}).status_code == 200
    limits = api("GET", "/users/alice").json["limits"]
    assert limits.pop("plan").startswith("70/day until ")
    assert limits == {"user": "10/minute"}
    assert api("GET", f"/keys/{key}").json["limits"] == {}
    reasons = [each.reason for each in changes(app) if each.action.startswith("clear-")]
    assert reasons == ["given in the team research"] * 3


def test_a_teams_administrator_makes_no_key_beyond_the_team(
    app: Flask, api: Api, lead: str
) -> None:
    """Members and their keys: no plan, no other team, no one else's user, no key that names users,
    and no management key."""
    made = api("POST", "/keys", {"user": "dora"}, key=lead)
    assert made.status_code == 201
    dora = services_of(app).accounts.user("dora")
    assert dora is not None
    assert (dora.team_name, dora.plan) == ("research", "starter")
    assert api("PUT", "/users/eric", {}, key=lead).status_code == 201
    eric = services_of(app).accounts.user("eric")
    assert eric is not None
    assert eric.team_name == "research"
    trusted = services_of(app).accounts.create_key(
        "dora", plan=None, default_plan="starter", people=People()
    )
    before = state(app)
    alice, bob = (key_of(services_of(app).accounts, each) for each in ("alice", "bob"))
    for method, path, body in (
        ("POST", "/keys", {"user": "bob"}),
        ("POST", "/keys", {"user": "carol"}),
        ("POST", "/keys", {"user": "new", "team": "sales"}),
        ("POST", "/keys", {"user": "new", "plan": "pro"}),
        ("POST", "/keys", {"user": "alice", "people": {}}),
        ("POST", "/keys", {"user": "alice", "files": True}),
        ("POST", "/keys", {"user": "alice", "class": "interactive"}),
        ("PUT", "/users/alice", {"plan": "pro"}),
        ("PUT", "/users/alice", {"team": None}),
        ("PUT", "/users/alice", {"team": "sales"}),
        ("PUT", "/users/alice", {"active": False}),
        ("PUT", "/users/carol", {}),
        ("PUT", "/users/bob", {}),
        ("DELETE", "/users/alice", None),
        ("PUT", f"/keys/{alice}", {"files": True}),
        ("PUT", f"/keys/{alice}", {"people": {}}),
        ("POST", f"/keys/{bob}/rotate", {}),
        ("POST", f"/keys/{trusted.public_id}/rotate", {}),
        ("DELETE", f"/keys/{bob}", None),
        ("DELETE", "/keys?user=bob", None),
        ("POST", "/admin-keys", {"name": "x", "scopes": ["all"]}),
        ("GET", "/admin-keys", None),
    ):
        answer = api(method, path, body, key=lead)
        assert answer.status_code == 403, (method, path, body, answer.text)
    assert state(app) == before
    assert api("POST", f"/keys/{alice}/rotate", {}, key=lead).status_code == 201
    assert api("DELETE", "/keys?user=alice", key=lead).status_code == 200


def test_a_key_of_a_teams_administrator_ends_with_the_membership(
    app: Flask, api: Api, lead: str
) -> None:
    """The administrator has the secret of a key for a name that comes later: also of one in place
    of an operator's. Those that follow it end, too; the user's other keys go on."""
    made = api("POST", "/keys", {"user": "ceo@example.com"}, key=lead).json
    alices = key_of(services_of(app).accounts)
    rotated = api("POST", f"/keys/{alices}/rotate", {}, key=lead).json
    third = api("POST", f"/keys/{rotated['id']}/rotate", {"overlap": "2h"}).json
    assert {each["team"] for each in (made, rotated, third)} == {"research"}
    assert run(app, "keys", "list").stdout.count("research") == 3

    def opens(key: str) -> int:
        services_of(app).authenticator._valid.clear()
        headers = {"Authorization": f"Bearer {key}"}
        return app.test_client().get("/me/keys", headers=headers).status_code

    bound = [each["key"] for each in (made, rotated, third)]
    assert [opens(each) for each in bound] == [200, 200, 200]
    assert api("PUT", "/users/ceo@example.com", {"plan": "pro", "team": "sales"}).status_code == 200
    assert api("PUT", "/users/alice", {"team": None}).status_code == 200
    assert [opens(each) for each in bound] == [401, 401, 401]
    again = api("POST", f"/keys/{third['id']}/rotate", {})
    assert (again.status_code, again.json and again.json["code"]) == (409, "other_team")
    for user in ("ceo@example.com", "alice"):
        own = api("POST", "/keys", {"user": user}).json
        assert (own["team"], opens(own["key"])) == (None, 200)


def test_a_team_that_is_gone_gives_no_rights(app: Flask, api: Api, accounts: Accounts) -> None:
    """Nor does one that a user has left."""
    lead = new_key(app, "all", team="sales")
    assert api("GET", "/users/bob", key=lead).status_code == 200
    accounts.change("user", "bob", team_name=None)
    assert api("GET", "/users/bob", key=lead).status_code == 403


# -- management keys -----------------------------------------------------------------------------


def test_a_management_key_is_shown_once_and_stored_as_a_digest(
    app: Flask, api: Api, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the database, nor a list, nor a log has the secret. It calls no model."""
    key = new_key(app, "all")
    assert key.startswith(ADMIN_PREFIX)
    secret = key[-43:]  # it may have a hyphen
    folder = Path(database_url.removeprefix("sqlite:///")).parent
    assert not [each for each in folder.glob("*.db*") if secret.encode() in each.read_bytes()]
    listed = api("GET", "/admin-keys", key=key).text + run(app, "admin-keys", "list").output
    assert secret not in listed + caplog.text
    headers = {"Authorization": f"Bearer {key}"}
    answer = app.test_client().post("/chat", json={"message": "hi"}, headers=headers)
    assert answer.status_code == 401
    [entry] = changes(app)
    assert (entry.action, entry.identity, entry.reason) == (
        "create-admin-key",
        public_id_of(key),
        "hr",
    )


def test_a_rotated_key_overlaps_and_a_revoked_one_is_refused(app: Flask, api: Api) -> None:
    """By command and by address alike; an unknown one is named."""
    assert "`chat admin-keys create` creates one" in run(app, "admin-keys", "list").stderr
    key = new_key(app, "read", "all", team=None)
    new = run(app, "admin-keys", "rotate", key, "--overlap", "2h").stdout.strip()
    assert [api("GET", "/users", key=each).status_code for each in (key, new)] == [200, 200]
    third = api("POST", f"/admin-keys/{public_id_of(new)}/rotate", {"overlap": "0s"}, key=new).json
    assert [api("GET", "/users", key=each).status_code for each in (new, third["key"])] == [
        401,
        200,
    ]
    run(app, "admin-keys", "revoke", key)
    assert api("GET", "/users", key=key).status_code == 401
    assert api("DELETE", f"/admin-keys/{third['id']}", key=third["key"]).status_code == 200
    assert api("GET", "/users", key=third["key"]).status_code == 401
    for method, path in (("DELETE", "/admin-keys/no"), ("POST", "/admin-keys/no/rotate")):
        answer = api(method, path, {} if method == "POST" else None)
        assert (answer.status_code, answer.json and answer.json["code"]) == (
            404,
            "unknown_admin_key",
        )
    again = api("POST", f"/admin-keys/{third['id']}/rotate", {})
    assert (again.status_code, again.json and again.json["code"]) == (409, "unusable_key")
    said = run(app, "admin-keys", "rotate", third["id"], status=1).stderr
    assert "is revoked or has expired. `chat keys create` or `chat admin-keys create`" in said
    known = new_key(app, "all")
    for altered in (known[:-1] + ("A" if known[-1] != "A" else "B"), known[:-2]):
        assert api("GET", "/users", key=altered).status_code == 401
    for body in (
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"scopes": ["all"]},
    ):
        assert api("POST", "/admin-keys", body).status_code == 422
    unknown = api("POST", "/admin-keys", {"name": "x", "scopes": ["all"], "team": "no"})
    assert (unknown.status_code, unknown.json and unknown.json["field"]) == (422, "team")


# -- /admin with a key ---------------------------------------------------------------------------


def signed_in(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    answer = log_in(client, key, name="mallory")
    assert answer.status_code == 303, answer.text
    return client


def form_token(client: FlaskClient, path: str) -> str:
    found = re.search(r'name="form_token" value="(\w+)"', client.get(path).text)
    assert found is not None
    return found[1]


def test_a_read_only_session_sees_all_views_and_changes_nothing(app: Flask) -> None:
    """It has no forms, and a form that is sent all the same is refused. So is one without the
    session's token, or with that of another."""
    client = signed_in(app, new_key(app, "read"))
    for path in ("", "/users", "/user?name=alice", "/team?name=research", "/limits", "/changes"):
        page = client.get(f"/admin{path}")
        assert page.status_code == 200
        assert set(re.findall(r'method="post" action="([^"]*)"', page.text)) == {"/admin/logout"}
    token = form_token(client, "/admin")
    other = form_token(signed_in(app, new_key(app, "all")), "/admin")
    writer = signed_in(app, new_key(app, "all"))
    before = state(app)
    fields = {"user": "alice", "name": "alice", "kind": "user", "plan": "pro", "limit": "usd-day"}
    assert len(ACTS) > 25
    for name in ACTS:
        answer = client.post(
            f"/admin/act/{name}", data={"form_token": token, "amount": "1 usd/day", **fields}
        )
        assert answer.status_code == 403, name
        assert "needs the scope" in answer.text
    for wrong in ("", "x", token, other):
        answer = writer.post("/admin/act/put_user", data={"form_token": wrong, **fields})
        assert answer.status_code == 403
    assert state(app) == before


@pytest.mark.parametrize("team", [None, "research"])
@pytest.mark.parametrize("scope", ["keys", "users", "teams", "limits", "providers", "all"])
def test_every_form_that_is_shown_may_be_sent(
    app: Flask, accounts: Accounts, scope: str, team: str | None
) -> None:
    """By keys of each scope, with or without a team; a heading of a form is shown with the form."""
    accounts.create_key("alice", plan=None, default_plan="starter", people=People())
    accounts.change("key", key_of(accounts), files=True, limits={"key-usd-day": "2 usd/day"})
    accounts.set_amount("team", "research", "team-usd-day", "9 usd/day")
    client = signed_in(app, new_key(app, "read", scope, team=team))
    views = ["/user?name=alice", "/team?name=research"]
    views += [] if team else ["/users", "/limits"]
    heading = r"<(h2|summary)>(Change|Give|Block<|Block |Import|Create|Pause|Dea|Plan<)"
    forms: list[tuple[str, str]] = []
    for view in views:
        page = client.get(f"/admin{view}").text
        for part in re.findall(r"<(section|details)(.*?)</\1>", page, re.DOTALL):
            if re.search(heading, part[1]):
                assert "<form" in part[1], part[1]
        forms += re.findall(r'action="(/admin/act/\w+)"(.*?)</form>', page, re.DOTALL)
    assert forms or (team and scope in {"users", "teams", "providers"})
    written = {"amount": "1 usd/day", "usd": "0.000001", "user": "alice", "for": "1m", "name": "x"}
    choices = {"limit": "usd-day", "csv": "user\nalice\n", "identity": "session:x", "kind": "user"}
    for path, form in sorted(forms, key=lambda each: "delete" in each[0]):
        hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
        chosen = re.findall(r'<(?:input|textarea)[^>]* name="(\w+)"[^>]*>([^<]*)</textarea>', form)
        clears = [value for name, value in hidden if name == "clears"]
        fields = {**dict(chosen), **written, **choices, **dict(hidden), "clears": clears}
        answer = client.post(path, data=fields)
        assert answer.status_code != 403, (path, fields, answer.text.partition("<main>")[2])


@pytest.mark.parametrize(("scope", "team"), [("read", "research"), ("read", None), ("keys", None)])
def test_every_link_that_is_shown_may_be_followed(
    make_app: AppMaker, uri: str, accounts: Accounts, tmp_path: Path, scope: str, team: str | None
) -> None:
    """By a team's administrator, by an operator who only reads, and by one who cannot read."""
    policy = POLICY_FILE.read_text().replace('"120/minute"\nburst = 20\n', '"1000/minute"\n', 1)
    app = make_app(**admin_with(uri, tmp_path, policy))
    key = accounts.create_key("alice", plan=None, default_plan="starter")
    assert chatted(app.test_client(), key.text, 11)[-1].status_code == 429
    services_of(app).limiter._components.recorder.flush()
    client = signed_in(app, new_key(app, scope, team=team))
    views = ("", "?user=alice", "/user?name=alice", "/team?name=research")
    pages = [client.get(f"/admin{view}").text for view in views]
    assert any("30 per 1 minute" in page for page in pages) == (scope == "read")  # the denial
    links = {link for page in pages for link in re.findall(r'href="(/admin[^"]*)"', page)}
    for link in links:
        assert client.get(unescape(link)).status_code == 200, link
    assert bool(links) == (scope == "read")


def test_the_log_has_the_key_and_not_a_name_that_was_entered(app: Flask) -> None:
    """Only with the shared token does the name count."""
    key = new_key(app, "users", "read", name="Olga")
    send(signed_in(app, key), "put_user", user="alice", plan="pro")
    send(signed_in(app, TOKEN), "put_user", user="alice", plan="starter")
    by = [each.by for each in changes(app)][:2]
    assert by == ["mallory (admin page)", f"Olga (admin key {public_id_of(key)})"]


def test_a_session_ends_with_its_key(app: Flask) -> None:
    """On its next request."""
    key = new_key(app, "read")
    client = signed_in(app, key)
    assert client.get("/admin").status_code == 200
    run(app, "admin-keys", "revoke", key)
    assert client.get("/admin").status_code == 401
    assert log_in(app.test_client(), key).status_code == 401


def test_a_teams_administrator_has_the_views_of_the_team(app: Flask) -> None:
    """Its spending, its page and its members; keys and amounts of members can be changed."""
    client = signed_in(app, new_key(app, "all", team="research", name="lead"))
    for path, view in {
        "/admin": "Spending",
        "/admin/team?name=research": "Team",
        "/admin/user?name=alice": "Team",
        "/admin?user=alice": "Spending",
    }.items():
        page = client.get(path)
        assert page.status_code == 200
        assert not re.search(r"\b(bob|carol|sales)\b", page.text), path
        assert re.findall(r'aria-current="page">([^<]+)<', page.text) == [view]
    for path in (
        *("users", "limits", "live", "denials", "shadow", "changes", "team?name=sales"),
        "operators",
        *("user?name=bob", "user?name=eve", "?team=sales", "?user=bob", "?user=bob&csv=spending"),
    ):
        assert client.get(f"/admin/{path}".replace("/?", "?")).status_code == 403, path
    token = form_token(client, "/admin/team?name=research")

    def post(path: str, **fields: Any) -> int:
        return client.post(f"/admin/act/{path}", data={"form_token": token, **fields}).status_code

    accounts = services_of(app).accounts
    alices = {"owner": "user", "name": "alice", "limit": "usd-day"}
    teams = {"owner": "team", "name": "research", "limit": "team-usd-day"}
    assert post("create_key", user="dora", name="x") == 303
    assert post("rotate_key", key=key_of(accounts, "dora")) == 303
    assert [k.bound_team for k in accounts.all_keys() if k.user == "dora"] == ["research"] * 2
    assert post("put_amount", **alices, amount="50 usd/day") == 303
    before = state(app)
    for path, fields in (
        ("put_amount", {**alices, "amount": "51 usd/day"}),
        ("put_amount", {**alices, "name": "bob", "amount": "1 usd/day"}),
        ("put_amount", {**teams, "amount": "1 usd/day"}),
        ("clear_amount", teams),
        ("create_key", {"user": "bob", "name": "x"}),
        ("create_key", {"user": "new", "name": "x", "plan": "pro"}),
        ("rotate_key", {"key": key_of(accounts, "bob")}),
        ("revoke_keys", {"user": "bob"}),
        ("put_user", {"user": "bob", "team": "research"}),
        ("put_user", {"user": "alice", "active": "off"}),
        ("block", {"kind": "user", "name": "alice"}),
        ("put_team", {"team": "x"}),
    ):
        assert post(path, **fields) == 403, (path, fields)
    assert state(app) == before


# -- the owner of a key --------------------------------------------------------------------------


def test_owners_list_and_revoke_their_keys_and_lower_their_limits(
    app: Flask, accounts: Accounts
) -> None:
    """With their own key: no one else's, and never more than they have."""
    first, second = (accounts.create_key("alice", plan=None, default_plan="starter") for _ in "ab")
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {first.text}"
    listed = client.get("/me/keys").json["keys"]
    assert {each["user"] for each in listed} == {"alice"}
    assert second.public_id in {each["id"] for each in listed}
    assert second.secret not in str(listed)

    def lower(limit: str, amount: Any) -> tuple[int, str]:
        answer = client.put(f"/me/limits/{limit}", json={"amount": amount})
        return answer.status_code, answer.json.get("code", "")

    assert lower("usd-day", "6 usd/day") == (403, "only_lower")
    assert lower("usd-day", "5 usd/day") == (200, "")
    assert accounts.user("alice").limits is None
    assert lower("usd-day", "2 usd/day") == (200, "")
    assert lower("usd-day", "3 usd/day") == (403, "only_lower")
    assert lower("key-usd-day", "1 usd/day") == (200, "")
    assert lower("team-usd-day", "1 usd/day") == (422, "unknown_limit")
    assert lower("usd-day", "1") == (422, "invalid_amount")
    assert lower("usd-day", f"1{' ' * 10_000}usd/day") == (422, "invalid_amount")
    assert lower("usd-day", 5) == (422, "invalid_field")
    assert client.put("/me/limits/usd-day", json={"amount": "1 usd/day", "x": 1}).status_code == 422
    key, user = accounts.find(first.public_id) or pytest.fail("no key")
    assert (user.limits, key.limits) == ({"usd-day": "2 usd/day"}, {"key-usd-day": "1 usd/day"})
    bobs = key_of(accounts, "bob")
    assert client.delete(f"/me/keys/{bobs}").status_code == 404
    assert client.delete(f"/me/keys/{second.public_id}").status_code == 200
    revoked = accounts.find(second.public_id)
    assert revoked is not None
    assert revoked[0].revoked_at is not None
    by = {(each.action, each.by) for each in changes(app)}
    assert by == {(each, f"alice (key {first.public_id})") for each in ("amount", "revoke-key")}
    assert app.test_client().get("/me/keys").status_code == 401


def test_a_key_that_acts_for_others_does_nothing_as_their_owner(
    app: Flask, accounts: Accounts
) -> None:
    """It names whom it calls for. That is no way to their keys and limits."""
    trusted = accounts.create_key("ui", plan=None, default_plan="starter", people=People())
    client, before = app.test_client(), state(app)
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {trusted.text}"
    assert {each["user"] for each in client.get("/me/keys").json["keys"]} == {"ui"}
    client.environ_base["HTTP_X_OPENWEBUI_USER_EMAIL"] = "alice"
    for method, path, body in (
        ("GET", "/me/keys", None),
        ("DELETE", f"/me/keys/{key_of(accounts)}", None),
        ("PUT", "/me/limits/usd-day", {"amount": "0 usd/day"}),
        ("PUT", "/me/limits/key-usd-day", {"amount": "0 usd/day"}),
    ):
        answer = client.open(path, method=method, json=body)
        assert (answer.status_code, answer.json and answer.json["code"]) == (403, "not_yours")
    assert state(app) == before


def test_a_raise_that_ends_is_not_kept_by_lowering_it(app: Flask, api: Api) -> None:
    """50 USD a day until tomorrow are no 49 USD for good: the lasting amount only falls."""
    made = api("POST", "/keys", {"user": "alice"}).json or {}
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {made['key']}"
    raised = {"amount": "50 usd/day", "until": "2d"}
    assert api("PUT", "/amounts/user/usd-day/alice", raised).status_code == 200

    def lower(amount: str) -> tuple[int, Any]:
        answer = client.put("/me/limits/usd-day", json={"amount": f"{amount} usd/day"})
        user = services_of(app).accounts.user("alice")
        return answer.status_code, user and user.limits

    assert lower("49") == (403, None)
    assert lower("5") == (200, None)
    assert lower("4") == (200, {"usd-day": "4 usd/day"})
    assert lower("5") == (403, {"usd-day": "4 usd/day"})
    raised["amount"] = "3 usd/day"  # an override that is lower, not higher
    assert api("PUT", "/amounts/user/usd-day/alice", raised).status_code == 200
    assert lower("4") == (403, {"usd-day": "4 usd/day"})
    assert lower("2") == (200, {"usd-day": "2 usd/day"})


def test_a_lowered_limit_does_not_outlast_a_smaller_plan(app: Flask, accounts: Accounts) -> None:
    """15 of 60 USD a day, lowered by its owner, would be more than the 5 of the next plan. What an
    operator raised stays, and what is below both plans."""
    key = accounts.create_key("dora", plan="pro", default_plan="starter")
    accounts.set_amount("user", "dora", "plan", "9000/day")  # raised
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key.text}"
    lowered = client.put("/me/limits/usd-day", json={"amount": "15 usd/day"})
    assert lowered.status_code == 200
    accounts.set_amount("user", "dora", "usd-month", "3 usd/month")
    with app.app_context():
        users.put("dora", {"plan": "starter"}, active=None, reason="", by="grace")
    assert accounts.user("dora").limits == {"plan": "9000/day", "usd-month": "3 usd/month"}
