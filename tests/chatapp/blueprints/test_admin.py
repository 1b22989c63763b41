"""/admin without a browser: who may use it, what it changes and logs, and what bad input gets."""

import csv
import io
import re
import time
from datetime import UTC, date, datetime, timedelta
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from urllib.parse import unquote

import pytest
import redis
from flask import Flask, get_template_attribute
from flask.testing import FlaskClient
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from chatapp import POLICY_FILE
from chatapp.accounts import store
from chatapp.accounts.people import People
from chatapp.accounts.store import Accounts, UserChange
from chatapp.alerts.alert import Alert
from chatapp.alerts.table import remember
from chatapp.blueprints.admin import users as users_page
from chatapp.blueprints.admin.chart import OTHERS, chart, dollars
from chatapp.blueprints.admin.forms import ACTS
from chatapp.database.connection import Database
from chatapp.ledger import table
from chatapp.ledger.call import new_call_id
from chatapp.ledger.forecast import Forecast
from chatapp.ledger.reports import DayTotal
from chatapp.operators.callers import shared_operators, slugs_by_upstream
from chatapp.services import services_of
from ratelimit_ext.core.charge import Charge
from tests.chatapp.blueprints.conftest import TOKEN
from tests.chatapp.conftest import AppMaker, policy_file
from tests.chatapp.ledger.calls import begun, finished

VIEWS = (
    *("/admin", "/admin/users", "/admin/user?name=alice", "/admin/limits", "/admin/denials"),
    *(
        "/admin/live",
        "/admin/latency",
        "/admin/shadow",
        "/admin/changes",
        "/admin/team?name=research",
    ),
    "/admin/operators",
    "/admin/call?id=none",
)
CHANGES = (*(f"act/{each}" for each in ACTS), "logout")


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    accounts = Accounts(Database(database_url))
    accounts.create_team("research")
    accounts.create_key("alice", plan=None, default_plan="starter")
    return accounts


@pytest.fixture
def admin(app: Flask) -> FlaskClient:
    """A client with a session."""
    return logged_in(app)


def log_in(client: FlaskClient, token: str = TOKEN, **fields: str) -> Any:
    return client.post("/admin/login", data={"token": token, **fields})


def logged_in(app: Flask) -> FlaskClient:
    client = app.test_client()
    assert log_in(client).status_code == 303
    return client


def admin_with(uri: str, directory: Path, policy: str) -> dict[str, str]:
    """The settings of an application with this policy, whose operators have a token."""
    file = policy_file(directory, policy)
    uses = {"RATELIMIT_STORAGE_URI": uri, "RATELIMIT_POLICY_FILE": file}
    return {**uses, "CHATAPP_ADMIN_TOKEN": TOKEN}


def chatted(client: FlaskClient, key: str, times: int = 1) -> list[Any]:
    """The answers to messages with this key, which are free."""
    body, headers = {"message": "hi", "model": "offline"}, {"Authorization": f"Bearer {key}"}
    return [client.post("/chat", json=body, headers=headers) for _ in range(times)]


def send(client: FlaskClient, act: str, /, **fields: Any) -> Any:
    """Send the form of an act as the page of its user would, or another one."""
    page = client.get("/admin/users").text
    found = re.search(r'name="form_token" value="(\w+)"', page)
    assert found is not None, page
    user = fields.get("user") or fields.get("name")
    owner = fields.get("owner") or "user"
    back = f"/admin/{owner}?name={user}" if user else "/admin/users"
    form = {"form_token": found[1], "back": back, **fields}
    answer = client.post("/admin/logout" if act == "logout" else f"/admin/act/{act}", data=form)
    return client.get(answer.location) if answer.status_code == 303 else answer


def actions(app: Flask) -> list[tuple[str, str, str]]:
    log = services_of(app).limiter.operators.log()
    return [(entry.action, entry.identity, entry.by) for entry in log]


# -- who may use it ----------------------------------------------------------------------------


def test_without_a_token_there_is_no_admin_page(make_app: AppMaker) -> None:
    """The address is unknown."""
    client = make_app().test_client()
    assert client.get("/admin").status_code == 404
    assert log_in(client).status_code == 404


def test_every_address_of_admin_needs_a_session(app: Flask, accounts: Accounts) -> None:
    """Neither the token in a header nor an API key is one."""
    key = accounts.create_key("alice", plan=None, default_plan="starter")
    client = app.test_client()
    rules = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("admin.")}
    paths = {view.partition("?")[0] for view in VIEWS} | {f"/admin/{each}" for each in CHANGES}
    acts = {each for each in paths if each.startswith("/admin/act/")}
    assert rules == paths - acts | {"/admin/login", "/admin/", "/admin/act/<name>"}
    for text in (TOKEN, key.text):
        headers = {"Authorization": f"Bearer {text}"}
        assert {client.get(each, headers=headers).status_code for each in VIEWS} == {401}
        sent = {client.post(f"/admin/{each}", headers=headers).status_code for each in CHANGES}
        assert sent == {401}
    assert len(accounts.all_keys()) == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/admin/nowhere/at/all", 404), ("PUT", "/admin/users", 405)],
)
def test_an_unknown_address_is_a_page(
    admin: FlaskClient, method: str, path: str, status: int
) -> None:
    """With the headers of the others. The management API answers for its addresses."""
    answer = admin.open(path, method=method)
    assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert "<h1>That did not work</h1>" in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert admin.get("/admin/api/v1/nowhere").mimetype == "application/problem+json"


@pytest.mark.usefixtures("stopped_clock")
def test_guesses_of_the_admin_token_are_limited(make_app: AppMaker) -> None:
    """A wrong token counts against its address, like every request: 20 at once, then 2 a second.
    The answer is a page."""
    client = make_app(CHATAPP_ADMIN_TOKEN=TOKEN).test_client()
    answers = [log_in(client, wrong) for wrong in ("", "wrong", "ä", TOKEN[:-1], f"{TOKEN} ")]
    assert {answer.status_code for answer in answers} == {401}
    assert "That token or key is not valid." in answers[0].text
    more = [log_in(client, "wrong") for _ in range(20)]
    denied = next(answer for answer in more if answer.status_code == 429)
    assert "<h1>That did not work</h1>" in denied.text
    sentence = r"Too many requests from this address\. Try again in (less than a|\d) second"
    assert re.search(sentence, denied.text)
    assert int(denied.headers["Retry-After"]) >= 1
    assert log_in(client).status_code == 429


def test_the_sessions_cookie_is_for_this_page_alone(app: Flask) -> None:
    """No script, other site or other path gets it, and it has an end. Answers are not cached."""
    client = app.test_client()
    secure = client.post("/admin/login", data={"token": TOKEN}, base_url="https://localhost")
    assert "; Secure" in secure.headers["Set-Cookie"]
    cookie = log_in(client).headers["Set-Cookie"]
    for part in ("Max-Age=28800", "HttpOnly", "Path=/admin", "SameSite=Strict"):
        assert f"; {part}" in cookie
    assert TOKEN not in cookie
    answer = client.get("/admin")
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'; style-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy


def test_a_session_ends(
    app: Flask, admin: FlaskClient, make_app: AppMaker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After eight hours, by logging out, and with another token. A forged cookie is refused."""
    cookie = admin.get_cookie("chatapp_admin", path="/admin")
    assert cookie is not None

    def status(app: Flask, value: str) -> int:
        client = app.test_client()
        client.set_cookie("chatapp_admin", value, path="/admin")
        return int(client.get("/admin").status_code)

    same, other = (
        make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=token)
        for token in (TOKEN, "b" * 16)
    )
    assert [status(each, cookie.value) for each in (app, same, other)] == [200, 200, 401]
    content, _, signature = cookie.value.rpartition(".")
    assert status(app, f"{content}.{signature[::-1]}") == 401
    assert send(admin, "logout").status_code == 401
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 3600 - 60)
    assert status(app, cookie.value) == 200
    monkeypatch.setattr(time, "time", lambda: now + 8 * 3600 + 60)
    assert status(app, cookie.value) == 401


def test_a_change_needs_the_token_of_its_form(app: Flask, admin: FlaskClient) -> None:
    """Which another site cannot read; that of another session is not enough."""
    other = logged_in(app)
    found = re.search(r'name="form_token" value="(\w+)"', other.get("/admin/users").text)
    assert found is not None
    for token in ({}, {"form_token": "wrong"}, {"form_token": "ä"}, {"form_token": found[1]}):
        for path in CHANGES:
            answer = admin.post(f"/admin/{path}", data={**token, "kind": "all", "user": "alice"})
            assert answer.status_code == 403
            assert "This form is out of date." in answer.text
    assert actions(app) == []
    assert admin.get("/admin").status_code == 200


def test_a_path_that_a_proxy_may_read_differently_is_no_page(app: Flask) -> None:
    """As it was sent: with an encoding, a second slash, a dot or a parameter it is a 404, for the
    pages, their changes and the management API."""
    api, key = "/admin/api/v1/users", {"Authorization": f"Bearer {TOKEN}"}
    paths = [
        *(
            "//admin",
            "/%61dmin",
            "/admin;x",
            "/./admin",
            "/admin/.",
            "/x/../admin",
            "//admin/users",
        ),
        *("/admin//users", "/%61dmin/users", "/admin/%75sers", "/admin%2Fusers", "/admin/users;x"),
        *(f"/{api}", "/%61dmin/api/v1/users", "/admin/%61pi/v1/users", "/admin//api/v1/users"),
    ]
    expected = {("GET", each): 404 for each in paths} | {("POST", "/%61dmin/act/put_user"): 404}
    expected |= {("GET", "/admin"): 401, ("GET", "/admin?q=%61"): 401}
    expected |= {("POST", "/admin/act/put_user"): 401}
    expected |= {("GET", api): 200, ("GET", f"{api}/%61lice"): 200}
    for (method, sent), status in expected.items():
        path, _, asked = sent.partition("?")
        environ = {"RAW_URI": sent, "PATH_INFO": unquote(path), "QUERY_STRING": asked}
        answer = app.test_client().open(method=method, headers=key, environ_overrides=environ)
        assert answer.status_code == status, (method, sent)


def test_a_login_leads_only_to_this_page(app: Flask) -> None:
    """A link cannot lead elsewhere, and cannot make the page state anything."""
    for next_, location in (
        ("/admin/users?q=a", "/admin/users?q=a"),
        ("https://evil.example/", "/admin"),
        ("//evil.example/admin/", "/admin"),
        ("/adminevil.example", "/admin"),
        ("/admin/\r\nSet-Cookie: a=b", "/admin"),
    ):
        assert log_in(app.test_client(), next=next_).location == location
    client = logged_in(app)
    assert "Call the" not in client.get("/admin?done=Call+the+number+below").text


@pytest.mark.parametrize(
    ("sent", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 303), ("none", 303), (None, 303)],
)
def test_a_form_of_another_site_begins_no_session(
    app: Flask, sent: str | None, status: int
) -> None:
    """It may have the key of a team's administrator, in whose name an operator would go on."""
    client = app.test_client()
    headers = {} if sent is None else {"Sec-Fetch-Site": sent}
    answer = client.post("/admin/login", data={"token": TOKEN}, headers=headers)
    assert answer.status_code == status
    assert (client.get_cookie("chatapp_admin", path="/admin") is None) == (status == 403)
    assert ("Another site has sent this form" in answer.text) == (status == 403)


def test_odd_requests_to_admin_get_a_page(app: Flask, admin: FlaskClient) -> None:
    """Also without a session: bytes that are not UTF-8, forms of other types, and old cookies."""
    odd = {"QUERY_STRING": "done=\xff&name=\xfe&q=%00&by=\x00"}
    for client, status in ((admin, 200), (app.test_client(), 401)):
        for path in ("/admin", "/admin/users"):
            assert client.get(path, environ_overrides=odd).status_code == status
    assert admin.get("/admin/user", environ_overrides=odd).status_code == 404
    stranger = app.test_client()
    for data, kind in (
        (b"token=\xff&next=%ff", "application/x-www-form-urlencoded"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"{}", "application/json"),
    ):
        answer = stranger.post("/admin/login", data=data, content_type=kind)
        assert answer.status_code == 401
    assert stranger.get("/admin", headers={"Cookie": "chatapp_admin=\xff.x.y"}).status_code == 401
    assert admin.get("/admin/login").location == "/admin"
    assert admin.get("/admin/").location == "/admin"


# -- what it changes ---------------------------------------------------------------------------


def test_a_key_is_created_shown_once_and_revoked(
    app: Flask, admin: FlaskClient, accounts: Accounts
) -> None:
    """Of a new user; every change is in the log of operators."""
    fields = {"user": "bob", "plan": "pro", "name": "ci", "expires": "30d"}
    made = send(admin, "create_key", **fields)
    found = re.search(r'id="new-key">(sk-chat-(\w{16})-[\w-]+)<', made.text)
    assert found is not None
    text, public_id = found.groups()
    assert "It is shown only once." in made.text
    assert text not in admin.get("/admin/user?name=bob").text
    key, user = accounts.find(public_id) or pytest.fail("no key")
    assert (user.plan, key.name) == ("pro", "ci")
    assert key.expires_at is not None
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert "is revoked" in send(admin, "revoke_key", key=public_id).text
    found_key = accounts.find(public_id)
    assert found_key is not None
    assert found_key[0].revoked_at is not None
    who = (public_id, "admin token")
    assert actions(app) == [("revoke-key", *who), ("create-key", *who)]


def test_a_new_key_is_in_no_address_and_for_its_session_alone(
    app: Flask, admin: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form's answer leads to the page that shows it, so a reload creates no other key."""
    page = admin.get("/admin/users").text
    found = re.search(r'name="form_token" value="(\w+)"', page)
    assert found is not None
    form = {"form_token": found[1], "user": "alice", "name": "ci"}
    answer = admin.post("/admin/act/create_key", data=form)
    assert answer.status_code == 303
    cookie = answer.headers["Set-Cookie"]
    for part in ("HttpOnly", "Path=/admin/user", "SameSite=Strict"):
        assert f"; {part}" in cookie
    assert "Max-Age" not in cookie  # the browser does not store it
    sealed = admin.get_cookie("chatapp_admin_key", path="/admin/user")
    assert sealed is not None

    def shown(client: FlaskClient, name: str = "alice") -> str | None:
        client.set_cookie("chatapp_admin_key", sealed.value, path="/admin/user")
        found = re.search(r'id="new-key">(.*?)<', client.get(f"/admin/user?name={name}").text)
        return found and found[1]

    other = logged_in(app)
    accounts.create_key("bob", plan=None, default_plan="starter")
    assert (shown(other), shown(admin, "bob")) == (None, None)
    with monkeypatch.context() as failing:  # a page that failed has not shown it
        failing.setattr(users_page, "shown", Mock(side_effect=OSError("gone")))
        assert admin.get("/admin/user?name=alice").status_code == 503
    assert admin.get_cookie("chatapp_admin_key", path="/admin/user") is not None
    key = shown(admin)
    assert key is not None
    assert key not in answer.location
    assert admin.get_cookie("chatapp_admin_key", path="/admin/user") is None
    assert len(accounts.all_keys()) == 3
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 62)
    assert shown(admin) is None


def test_plan_amount_and_block_of_a_user(
    app: Flask, admin: FlaskClient, accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """What the commands do, with the reason, in the log of operators and in the server's."""
    assert "alice has the plan pro" in send(admin, "put_user", user="alice", plan="pro").text
    assert (found := accounts.user("alice")) is not None
    assert found.plan == "pro"
    amount = {"owner": "user", "name": "alice", "limit": "usd-day", "amount": "90 usd/day"}
    page = send(admin, "put_amount", **amount, until="2h", reason="launch").text
    assert "90 usd/day until" in page
    [override] = services_of(app).limiter.operators.overrides()
    assert (override.identity, override.reason) == ("user:alice", "launch")
    cleared = send(admin, "clear_amount", owner="user", name="alice", limit="usd-day").text
    assert "alice has the policy's usd-day again" in unescape(cleared)
    blocked = send(admin, "block", kind="user", name="alice", reason="leaked <key>")
    assert "Unblock user" in blocked.text
    limits = admin.get("/admin/limits").text
    assert "leaked &lt;key&gt;" in limits
    assert "is no longer blocked" in send(admin, "unblock", kind="user", name="alice").text
    names = [(action, identity) for action, identity, _ in actions(app)]
    assert names == [
        (each, "user:alice") for each in ("unblock", "block", "clear-override", "override", "plan")
    ]
    assert "admin token, from 127.0.0.1: alice has the plan pro" in caplog.text
    assert "launch" in admin.get("/admin/changes").text


def test_a_change_names_the_operator(
    app: Flask, accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """As they have entered it; without a name, the token. A name of two lines begins no session."""
    bad = log_in(app.test_client(), name="olga\x1b[2J")
    assert (bad.status_code, "Set-Cookie" in bad.headers) == (400, False)
    for name, plan in (("  ", "pro"), (" olga ", "starter"), ("admin token", "pro")):
        client = app.test_client()
        log_in(client, name=name)
        send(client, "put_user", user="alice", plan=plan)
    by = ["admin token", "olga (admin page)", "admin token (admin page)"]
    assert [by for _, _, by in actions(app)] == by[::-1]
    assert "olga (admin page), from 127.0.0.1: alice has the plan starter" in caplog.text


@pytest.mark.parametrize(
    ("path", "fields", "sentence"),
    [
        ("create_key", "user=&name=x", '"user" is missing'),
        ("create_key", "user=a\x1bb&name=x", "contains a control character"),
        ("create_key", "user=eve&name=x&expires=-1", "is not a time; write"),
        ("create_key", "user=eve&name=x&plan=gold", "Unknown plan 'gold'"),
        ("create_key", "user=alice&name=x&plan=pro", "has the plan starter"),
        ("create_key", "user=eve&name=x&team=no", "There is no team 'no'"),
        ("revoke_key", "key=0000000000000000", "There is no key 0000000000000000"),
        ("revoke_keys", "user=<eve>", "There is no user '<eve>'"),
        ("put_user", "user=<eve>&plan=pro", "There is no user '<eve>'"),
        ("put_team", "verb=create&team=a\x1bb", "contains a control character"),
        ("put_team", "verb=create&team=research", "'research' already exists."),
        ("put_user", "user=eve&team=research", "no user 'eve'"),
        ("put_amount", "owner=user&name=alice&limit=usd-day&amount=9 usd/hour", "usd-day: "),
        ("put_amount", "owner=user&name=alice&limit=usd-dya&amount=1", "Did you mean usd-day?"),
        (
            "put_amount",
            "owner=user&name=alice&limit=usd-day&amount=9 usd/day&until=someday",
            "is not a time",
        ),
        ("clear_amount", "owner=user&name=alice&limit=usd-day", "has no amount of"),
        ("block", "kind=planet&name=x", "'planet' cannot be"),
        ("block", "kind=user&name=eve", "There is no user 'eve'"),
        ("block", "kind=user&name=alice&for=long", "is not a length of time"),
        ("block", "kind=all&name=x", "'all' cannot be"),
    ],
)
def test_a_wrong_form_changes_nothing(
    app: Flask, admin: FlaskClient, path: str, fields: str, sentence: str
) -> None:
    """It gets the sentence of the command, without commands; the text in it is only text."""
    answer = send(admin, path, **dict(each.split("=", 1) for each in fields.split("&")))
    assert answer.status_code == 400
    assert sentence in unescape(answer.text)
    assert not [mark for mark in ("`", " --") if mark in answer.text]
    assert "<eve>" not in answer.text
    assert actions(app) == []


def test_a_form_with_a_mistake_is_shown_again(admin: FlaskClient, accounts: Accounts) -> None:
    """With what was written; the sentence belongs to the field that has the mistake, and to the
    form of that key alone."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    first, second = sorted(key.public_id for key in accounts.all_keys())
    fields = {"owner": "user", "name": "alice", "limit": "usd-month", "reason": "a <b>"}
    page = send(admin, "put_amount", **fields, amount="lots").text
    assert '<option value="usd-month" selected>' in page
    [wrong] = re.findall(r"<[^>]*aria-invalid[^>]*>", page)
    assert 'name="amount" value="lots"' in wrong
    assert 'aria-describedby="form-problem" autofocus' in wrong
    assert page.count('id="form-problem" role="alert">usd-month: found') == 1
    assert 'name="reason" value="a &lt;b&gt;"' in page
    assert page.count('value="a &lt;b&gt;"') == 1
    page = send(admin, "put_key", key=second, user="alice", limits="none", models="o3\ngpt").text
    forms = {id_: part for part in page.split("</form>") if (id_ := key_to_change(part))}
    assert {first, second} == forms.keys()
    assert ("form-problem" in forms[first], "o3" in forms[first]) == (False, False)
    assert ("form-problem" in forms[second], "o3\ngpt</textarea>" in forms[second]) == (True, True)


def key_to_change(part: str) -> str:
    """The key that a form of the page changes."""
    found = re.search(r'act/put_key".*name="key" value="(\w+)"', part, re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize(
    "back",
    [
        *("/admin/nowhere", "/admin/changes", "/admin/user?name=eve", "https://example.com/admin"),
        *("/admin/api/v1/users", "/admin/act/put_user", "/admin/logout", "/admin/login", ""),
    ],
)
def test_a_form_of_no_page_has_its_mistake_on_a_page_of_its_own(
    admin: FlaskClient, back: str
) -> None:
    """The page may be gone; a form names none but the pages of this site."""
    answer = send(admin, "put_user", user="eve", plan="pro", back=back)
    assert (answer.status_code, "<h1>That did not work</h1>" in answer.text) == (400, True)
    assert "There is no user 'eve'." in unescape(answer.text)


def test_a_key_is_changed(app: Flask, admin: FlaskClient, accounts: Accounts) -> None:
    """Its amounts, models, class and files; an empty field removes what was there."""
    [key] = accounts.all_keys()
    change = {"key": key.public_id, "user": "alice"}
    fields = {"limits": "key-usd-day=2 usd/day", "models": "gpt-5*\r\no3", "class": "batch"}
    page = send(admin, "put_key", **change, **fields, files="on").text
    assert "key-usd-day=2 usd/day; models gpt-5*, o3; class batch; may name files" in page
    page = send(admin, "put_key", **change, clears="limits", files="off").text
    assert f"Key {key.public_id} has no amounts;" in page
    [key] = accounts.all_keys()
    assert (key.limits, key.models, bool(key.files)) == (None, ["gpt-5*", "o3"], False)


def test_a_session_of_a_program_is_raised(
    make_app: AppMaker, uri: str, tmp_path: Path, accounts: Accounts
) -> None:
    """The page says what it has now, and until when."""
    limit = 'name = "session-usd"\nlimit = "5 usd per session"\nkey = "session"\n'
    text = f"{POLICY_FILE.read_text()}\n[[groups.calls.limits]]\n{limit}"
    app = make_app(**admin_with(uri, tmp_path, text))
    admin = logged_in(app)
    assert "Raise a session" in admin.get("/admin/limits").text
    form = {"limit": "session-usd", "identity": "session:alice/1", "amount": "9 usd per session"}
    page = send(admin, "put_override", **form, until="2h", back="/admin/limits").text
    assert "session:alice/1 has session-usd=9 usd per session until" in page


def test_operators_get_keys(app: Flask, admin: FlaskClient) -> None:
    """Shown once, listed, replaced and revoked."""
    none = send(admin, "create_admin_key", name="hr")
    assert (none.status_code, '"scopes" is missing' in unescape(none.text)) == (400, True)
    form: dict[str, Any] = {"scopes": ["read", "keys"], "back": "/admin/operators"}
    made = send(admin, "create_admin_key", name="hr", **form).text
    found = re.search(r'id="new-key">(sk-admin-(\w{16})-[\w-]+)<', made)
    assert found is not None
    listed = admin.get("/admin/operators").text
    assert (found[1] in listed, found[2] in listed, "keys, read" in listed) == (False, True, True)
    replaced = send(admin, "rotate_admin_key", key=found[2]).text
    assert 'id="new-key">sk-admin-' in replaced
    revoked = send(admin, "revoke_admin_key", key=found[2], back="/admin/operators").text
    assert "is revoked" in revoked


def test_users_are_imported(
    app: Flask, admin: FlaskClient, accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """All lines or none; new keys are a file to download. The server's log has the import."""
    csv_ = "user,plan,team,limits\r\ndora,pro,research,usd-day=9 usd/day\r\n"
    checked = send(admin, "import_users", csv=csv_, dry_run="on").text
    assert "1 created" in checked
    assert accounts.user("dora") is None
    wrong = send(admin, "import_users", csv=csv_.replace("pro", "gold"))
    assert (wrong.status_code, "line 2: plan" in wrong.text) == (400, True)
    made = send(admin, "import_users", csv=csv_, keys="on")
    assert made.mimetype == "text/csv"
    assert made.text.startswith("user,key\ndora,sk-chat-")
    assert "admin token, from 127.0.0.1: Users: 1 created" in caplog.text
    assert "sk-chat-" not in caplog.text


def test_a_provider_is_paused(admin: FlaskClient) -> None:
    """In an incident; then its models are as overloaded, until the pause ends."""
    form = {"name": "offline", "back": "/admin/limits"}
    paused = send(admin, "pause_provider", **form, **{"for": "2h"}).text
    assert "offline pauses until" in paused
    assert "offline no longer pauses" in send(admin, "resume_provider", **form).text


def test_a_limit_starts_afresh(
    make_app: AppMaker, uri: str, admin: FlaskClient, accounts: Accounts
) -> None:
    """On the page of the user, for the limits that have counted something."""
    key = accounts.create_key("bob", plan="starter", default_plan="starter").text
    page = "/admin/user?name=bob"
    assert "/admin/act/reset" not in admin.get(page).text
    [answer] = chatted(make_app(RATELIMIT_STORAGE_URI=uri).test_client(), key)
    assert answer.status_code == 200
    used = admin.get(page).text
    assert "1 of 100 requests" in used
    assert "/admin/act/reset" in used
    done = send(admin, "reset", identity="user:bob", name="plan", back=page).text
    assert "Reset plan of user:bob." in done
    assert "1 of 100 requests" not in done


def test_no_page_shows_a_commands_flags() -> None:
    """They are for a terminal; the documents have them."""
    pages = sorted((Path(POLICY_FILE).parent / "templates" / "admin").glob("*.html"))
    assert pages
    assert not [page.name for page in pages if re.search(r"[ >]--[a-z]", page.read_text())]


def test_every_form_that_is_filled_in_asks_for_the_reason(
    admin: FlaskClient, accounts: Accounts
) -> None:
    """For the log of changes."""
    pages = [admin.get(view).text for view in VIEWS]
    forms = [each for page in pages for each in re.findall(r"<form.*?</form>", page, re.DOTALL)]
    filled_in = [each for each in forms if 'class="fields"' in each]
    assert len(filled_in) > 15
    assert not [each for each in filled_in if each.count('name="reason"') != 1]


# -- what it shows -----------------------------------------------------------------------------


def test_spending_is_shown_by_each_subject(
    app: Flask, admin: FlaskClient, database_url: str
) -> None:
    """Names are text; an unknown subject or time is the usual one."""
    assert "There are no calls in this period." in admin.get("/admin").text
    now = datetime.now(UTC)
    calls = [
        finished(begun(started_at=now, user="user:<b>", team="research"), cost_micro_usd=2_000_000),
        finished(begun(started_at=now), cost_micro_usd=4_500_000),
        finished(begun(started_at=now - timedelta(days=40)), cost_micro_usd=9_000_000),
    ]
    table.write(Database(database_url), calls)
    page = admin.get("/admin?by=colour&days=1000").text
    assert "$6.50" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.partition("<main>")[2]
    assert page.index("alice") < page.index("&lt;b&gt;")
    assert "$15.50" in admin.get("/admin?days=90").text
    for by, name in (
        *(("team", "research"), ("model", "claude-haiku-4-5"), ("key", "0123456789abcdef")),
    ):
        assert name in admin.get(f"/admin?by={by}").text


def test_spending_of_a_calendar_month(admin: FlaskClient, database_url: str) -> None:
    """As an invoice has it, by UTC."""
    this = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    calls = [
        finished(begun(started_at=this), cost_micro_usd=2_000_000),
        finished(begun(started_at=this - timedelta(microseconds=1)), cost_micro_usd=4_500_000),
    ]
    table.write(Database(database_url), calls)
    assert "<dd>$2.00</dd>" in admin.get("/admin?days=this").text
    assert "<dd>$4.50</dd>" in admin.get("/admin?days=last").text
    last = f"{this - timedelta(days=1):%Y-%m}"
    page = admin.get(f"/admin?days=7&by=model&month={last}").text
    assert "<dd>$4.50</dd>" in page
    assert f'type="month" name="month" value="{last}"' in page
    assert f"days=7&amp;month={last}&amp;by=user" in page  # another choice keeps the month
    assert "There are no calls in this period." in admin.get("/admin?month=2999-01").text
    refused = admin.get("/admin?month=soon")
    assert (refused.status_code, "is not a month" in refused.text) == (400, True)


def test_a_call_is_found_by_its_id(app: Flask, admin: FlaskClient, database_url: str) -> None:
    """What it used and cost, and how it ended."""
    call = finished(begun(started_at=datetime.now(UTC)), cost_micro_usd=1485)
    table.write(Database(database_url), [call])
    page = admin.get(f"/admin/call?id={call.id}").text
    assert "0.001485" in page
    assert "answered" in page
    assert admin.get("/admin/call?id=none").status_code == 404


def test_spending_of_a_user_and_of_a_team(
    app: Flask, admin: FlaskClient, accounts: Accounts, database_url: str
) -> None:
    """By what else there is; a key is shown with its user, and a team leads to its page."""
    [key] = accounts.all_keys()
    now = datetime.now(UTC)
    own = begun(started_at=now, user="user:alice", key_id=key.public_id)
    calls = [
        finished(own._replace(id=new_call_id(), team="research"), cost_micro_usd=2_000_000),
        finished(own, cost_micro_usd=3_000_000),
        finished(begun(started_at=now, user="user:zoe", slug="o3"), cost_micro_usd=7_000_000),
    ]
    table.write(Database(database_url), calls)
    by_key = admin.get("/admin?user=alice").text
    assert "Spending of alice" in by_key
    assert "$5.00" in by_key
    assert f'{key.public_id}<small class="line">key of <a href="/admin/user?name=alice"' in by_key
    by_user = admin.get("/admin?team=research").text
    assert "Spending of the team research" in by_user
    assert ("$2.00" in by_user, "zoe" in by_user) == (True, False)
    assert "o3" not in admin.get("/admin?user=alice&by=model").text
    assert 'href="/admin/team?name=research"' in admin.get("/admin?by=team").text


def test_alerts_are_shown_with_the_spending(admin: FlaskClient, database_url: str) -> None:
    """Of all, or of the user or team."""
    now = datetime.now(UTC)
    database = Database(database_url)
    facts = {"since": now, "amount": 5_000_000, "spent": 4_020_000}
    for identity in ("user:alice", "team:research"):
        alert = Alert(
            type="budget.reached", identity=identity, name="usd-day", threshold=80, **facts
        )
        assert remember(database, alert)
    remember(database, Alert(type="usage.unusual", identity="user:<zoe>", **facts))
    page = admin.get("/admin").text.partition("<h2>Alerts</h2>")[2]
    assert ("$4.02" in page, "80 %" in page, "unusual usage" in page) == (True,) * 3
    assert "<zoe>" not in page
    page = admin.get("/admin?team=research").text.partition("<h2>Alerts</h2>")[2]
    assert (page.count("usd-day"), "alice" in page) == (1, False)
    assert "<h2>Alerts</h2>" not in admin.get("/admin?user=bob").text


def test_budgets_have_forecasts(
    admin: FlaskClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the pages of users and teams, and in the list of alerts without a threshold."""
    at = datetime(2026, 11, 26, 15, tzinfo=UTC)
    limit = SimpleNamespace(name="usd-month")
    found = {
        "alice": [(limit, Forecast(at, 0.9, 1))],
        "team:research": [(limit, Forecast(None, 0, 1))],
    }
    monkeypatch.setattr(users_page, "forecasts", lambda each: found[each.removeprefix("user:")])
    page = admin.get("/admin/user?name=alice").text
    assert "usd-month: At this pace it is used up on Thursday, 2026-11-26, at 15:00 UTC" in page
    page = admin.get("/admin/team?name=research").text
    assert "usd-month: At this pace it lasts (100 % sure)." in page
    facts = {"since": at, "amount": 5_000_000, "spent": 4_020_000, "name": "usd-month"}
    remember(Database(database_url), Alert(type="budget.forecast", identity="team:red", **facts))
    assert "forecast</td>" in admin.get("/admin").text.partition("<h2>Alerts</h2>")[2]


def test_a_team_has_a_page(
    app: Flask, admin: FlaskClient, accounts: Accounts, database_url: str
) -> None:
    """Its members, what they and former ones spent for it, its budgets, and amounts to change."""
    assert "Team of a new user" in admin.get("/admin/users").text
    assert "This team has no members." in admin.get("/admin/team?name=research").text
    assert admin.get("/admin/team?name=no").status_code == 404
    moved = send(admin, "put_user", user="alice", team="research", reason="new here")
    assert "alice has the team research" in moved.text
    assert 'href="/admin/team?name=research"' in moved.text
    now = datetime.now(UTC)
    calls = [
        finished(begun(started_at=now, user=f"user:{name}", team="research"), cost_micro_usd=cost)
        for name, cost in (("alice", 2_000_000), ("zoe", 4_000_000))
    ]
    calls.append(finished(begun(started_at=now), cost_micro_usd=9_000_000))
    table.write(Database(database_url), calls)
    amount = {"owner": "team", "name": "research", "limit": "team-usd-day", "amount": "40 usd/day"}
    assert "research has team-usd-day=40 usd/day" in send(admin, "put_amount", **amount).text
    raised = {**amount, "amount": "90 usd/day", "until": "2h", "reason": "launch"}
    page = send(admin, "put_amount", **raised).text
    assert "90 usd/day until" in page
    assert " UTC, then 40 usd/day</span>" in page
    assert "UTC, and 40 usd/day? Without an amount, team-usd-day does not limit research." in page
    assert "0 of 90 usd" in page
    assert ("$6.00" in page, "$2.00" in page, "spent $4.00 this month" in page) == (True,) * 3
    assert "team-usd-month (1000 usd/month)" in page
    cleared = send(admin, "clear_amount", owner="team", name="research", limit="team-usd-day")
    assert "research has the policy's team-usd-day again" in unescape(cleared.text)
    assert "1 member" in admin.get("/admin/users").text
    assert "alice has no team" in send(admin, "put_user", user="alice", clears="team").text
    identities = [(action, identity) for action, identity, _ in actions(app)]
    assert identities[-1] == ("team", "user:alice")
    assert {identity for _, identity in identities[1:-1]} == {"team:research"}


def test_a_team_is_created_and_gets_members(app: Flask, admin: FlaskClient) -> None:
    """Its page follows, where members and budgets are added."""
    page = send(admin, "put_team", verb="create", team="sales", reason="new").text
    assert "Team sales is created without budgets." in page
    assert "<option>alice</option>" in page
    page = send(admin, "put_user", user="alice", team="sales", back="/admin/team?name=sales").text
    assert ("alice has the team sales" in page, "<h1>Team sales</h1>" in page) == (True, True)
    assert "<option>alice</option>" not in page
    names = [(action, identity) for action, identity, _ in actions(app)]
    assert names == [("team", "user:alice"), ("create-team", "team:sales")]


def test_all_keys_of_a_user_are_revoked(admin: FlaskClient, accounts: Accounts) -> None:
    """Of one who leaves. It is offered if they have several."""
    assert "Revoke all keys" not in admin.get("/admin/user?name=alice").text
    accounts.create_key("alice", plan=None, default_plan="starter")
    bob = accounts.create_key("bob", plan=None, default_plan="starter")
    assert "Revoke all keys" in admin.get("/admin/user?name=alice").text
    assert send(admin, "revoke_keys", user="alice").text.count(" of alice is revoked;") == 2
    assert "There is no key to revoke." in send(admin, "revoke_keys", user="alice").text
    assert [each.public_id for each in accounts.all_keys() if not each.revoked_at] == [
        bob.public_id
    ]


def test_a_user_is_deactivated_and_deleted(
    app: Flask, admin: FlaskClient, accounts: Accounts
) -> None:
    """The user's page and the list say so; after a deletion the list follows."""
    accounts.create_key("bob", plan=None, default_plan="starter")
    page = send(admin, "put_user", active="off", user="alice", reason="on leave").text
    assert "alice is deactivated; no worker accepts" in page
    assert '<span class="badge">deactivated</span>' in page
    assert "Activate user" in page
    assert "deactivated" in admin.get("/admin/users").text
    assert "alice is active again" in send(admin, "put_user", active="on", user="alice").text
    deleted = send(admin, "delete_user", user="alice", reason="left").text
    assert "alice is deleted with all keys" in deleted
    assert "<h1>Users and keys</h1>" in deleted
    assert admin.get("/admin/user?name=alice").status_code == 404
    refused = send(admin, "delete_user", user="bob")
    assert (refused.status_code, "bob has the only keys" in refused.text) == (400, True)
    assert [action for action, _, _ in actions(app)] == ["delete-user", "activate", "deactivate"]


def test_a_key_is_replaced(admin: FlaskClient, accounts: Accounts) -> None:
    """The old one stays valid for a day; a revoked one has no successor."""
    [old] = accounts.all_keys()
    page = send(admin, "rotate_key", key=old.public_id, reason="yearly").text
    [new] = {each.public_id for each in accounts.all_keys()} - {old.public_id}
    assert f'<code id="new-key">sk-chat-{new}-' in page
    assert f"Key {new} of alice replaces {old.public_id}, which is valid until" in page
    assert "yearly" in admin.get("/admin/changes").text
    send(admin, "revoke_key", key=new, reason="a mistake")
    assert "is revoked or has expired" in send(admin, "rotate_key", key=new).text
    by_whom = r"<td>blocked-key</td>(\s*<td>.*</td>){3}\s*<td>a mistake</td>"
    assert re.search(by_whom, admin.get("/admin/limits").text)


def test_denials_by_a_limit_of_a_team_are_on_its_page(
    make_app: AppMaker, uri: str, accounts: Accounts, tmp_path: Path
) -> None:
    """The view of all denials leads there."""
    once = 'limit = "1/day"\nstrategy = "fixed-window"\nkey = "team"'
    policy = POLICY_FILE.read_text().replace('limit = "500 in flight"\nkey = "team"', once)
    app = make_app(**admin_with(uri, tmp_path, policy))
    key = accounts.create_key("bob", plan=None, default_plan="starter", team="research")
    assert [each.status_code for each in chatted(app.test_client(), key.text, 2)] == [200, 429]
    services_of(app).limiter._components.recorder.flush()
    client = logged_in(app)
    page = client.get("/admin/team?name=research").text.partition("Denied in the last 24 hours")[2]
    assert "team-at-once" in page.partition("Change an amount")[0]
    assert 'href="/admin/team?name=research"' in client.get("/admin/denials").text


def test_long_tables_have_pages(admin: FlaskClient, accounts: Accounts) -> None:
    """Fifty rows each; a number that is too high means the last page, nonsense the first."""
    for number in range(50):
        accounts.create_key(f"user-{number:02}", plan=None, default_plan="starter")
    first = admin.get("/admin/users?q=user-").text
    assert "to 50 of" not in first
    first = admin.get("/admin/users").text
    assert "1 to 50 of 51" in first
    assert 'href="/admin/users?page=2">Next</a>' in first
    assert ("user-48" in first, "user-49" in first, "Previous" in first) == (True, False, False)
    for page in ("2", "999"):
        second = admin.get(f"/admin/users?page={page}").text
        assert "51 to 51 of 51" in second
        assert ("user-49" in second, "alice" in second, "Next" in second) == (True, False, False)
    for page in ("0", "-1", "x", "²", ""):
        assert "1 to 50 of 51" in admin.get(f"/admin/users?page={page}").text


@pytest.mark.parametrize("page", ["users", "user?name=alice", "team?name=research"])
def test_a_page_reads_the_users_and_keys_that_it_shows(
    admin: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """Of 10,000 users it would read for half a second: of all others it reads the names."""
    made = Mock(wraps=store.ApiKey), Mock(wraps=store.User)
    for number in range(60):
        accounts.create_key(f"user-{number:02}", plan=None, default_plan="starter")
    for name, row in zip(("ApiKey", "User"), made, strict=True):
        monkeypatch.setattr(store, name, row)
    assert admin.get(f"/admin/{page}").status_code == 200
    assert [row.call_count <= 51 for row in made] == [True, True]


def rows_of(client: FlaskClient, path: str) -> list[dict[str, str]]:
    """The rows of a download."""
    answer = client.get(path)
    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="')
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_a_table_is_downloaded_whole_as_it_is_filtered(
    admin: FlaskClient, accounts: Accounts
) -> None:
    """Not only the page of it that is shown. The link has the filter, and no other address."""
    for number in range(60):
        accounts.create_key(f"user-{number:02}", plan=None, default_plan="starter")
    page = admin.get("/admin/users?q=user-&page=2&done=x").text
    assert 'href="/admin/users?q=user-&amp;csv=users" aria-label="Download CSV' in page
    rows = rows_of(admin, "/admin/users?q=user-&csv=users")
    assert [each["user"] for each in rows] == [f"user-{number:02}" for number in range(60)]
    assert (rows[0]["valid_keys"], rows[0]["state"]) == ("1", "active")
    odd = admin.get("/admin/users?_scheme=javascript&_external=1&_anchor=x").text
    links = [each for each in re.findall(r'href="([^"]+)"', odd) if "csv=" in each]
    assert links == ["/admin/users?_scheme=javascript&amp;_external=1&amp;_anchor=x&amp;csv=users"]
    unknown = admin.get("/admin/users?csv=secrets")
    assert (unknown.status_code, unknown.mimetype) == (200, "text/html")


def test_a_downloaded_cell_is_no_formula(admin: FlaskClient, database_url: str) -> None:
    """Callers choose their names and tags."""
    now = datetime.now(UTC)
    calls = [finished(begun(started_at=now, user="=cmd()"), cost_micro_usd=2_500_000)]
    table.write(Database(database_url), calls)
    assert rows_of(admin, "/admin?days=7&csv=spending") == [
        {
            "subject": "'=cmd()",
            "calls": "1",
            "input_tokens": "1000",
            "output_tokens": "200",
            "cost_micro_usd": "2500000",
            "cost_usd": "2.500000",
        }
    ]
    assert rows_of(admin, "/admin?user=alice&csv=spending") == []


def test_changes_are_downloaded_with_their_times(admin: FlaskClient) -> None:
    """As `flask ratelimit log --json` has them."""
    send(admin, "put_user", user="alice", plan="pro", reason="@promoted")
    send(admin, "put_user", user="alice", team="research")
    (row,) = rows_of(admin, "/admin/changes?q=promoted&csv=changes")
    assert (row["action"], row["amount"], row["reason"]) == ("plan", "pro", "'@promoted")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["at"])
    assert row["until"] == ""


def test_what_limits_hold_is_downloaded(
    make_app: AppMaker, uri: str, accounts: Accounts, database_url: str
) -> None:
    """Each table of each view, once it has rows."""
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)
    admin = logged_in(app)
    key = accounts.create_key("bob", plan=None, default_plan="starter", team="research")
    accounts.set_amount("user", "bob", "plan", "1/day")
    chatted(app.test_client(), key.text, 2)
    services_of(app).limiter._components.recorder.flush(all_of_them=True)
    table.write(Database(database_url), [finished(begun(started_at=datetime.now(UTC)))])
    facts = {"since": datetime.now(UTC), "amount": 5_000_000, "spent": 4_020_000}
    remember(Database(database_url), Alert(type="usage.unusual", identity="user:zoe", **facts))
    send(admin, "block", kind="user", name="alice", reason="leaked")
    for path, expected in {
        "/admin?csv=alerts": {"identity": "user:zoe", "spent": "4.020000"},
        "/admin/team?name=research&csv=members": {"user": "bob", "limits": '{"plan": "1/day"}'},
        "/admin/team?name=research&csv=limits": {"limit": "team-at-once", "used": "0"},
        "/admin/user?name=bob&csv=limits": {"limit": "user", "identity": "user:bob"},
        "/admin/limits?csv=near": {"limit": "plan", "identity": "user:bob", "share": "1.000000"},
        "/admin/limits?csv=blocked": {"identity": "user:alice", "note": "leaked", "until": ""},
        "/admin/limits?csv=providers": {"pause": ""},
        "/admin/limits?csv=calls": {"model": "claude-haiku-4-5", "calls": "1", "failed": "0"},
        "/admin/denials?identity=bob&csv=denials": {"identity": "user:bob", "limit": "plan"},
        "/admin/live?csv=limits": {"limit": "plan", "allowed": "1", "denied": "1"},
    }.items():
        rows = rows_of(admin, path)
        assert rows, path
        assert expected.items() <= rows[0].items(), (path, rows[0])


def test_a_download_is_whole_or_fails(make_app: AppMaker, accounts: Accounts) -> None:
    """A file without rows would look like good news."""
    down = make_app(CHATAPP_ADMIN_TOKEN=TOKEN, RATELIMIT_STORAGE_URI="redis://127.0.0.1:1")
    client = logged_in(down)
    for path in ("limits?csv=blocked", "changes?csv=changes", "denials?csv=denials"):
        answer = client.get(f"/admin/{path}")
        assert answer.status_code == 503
        assert "The limits cannot be reached" in answer.text


def test_changes_are_searched(admin: FlaskClient) -> None:
    """By name, action, limit, amount, person and reason."""
    send(admin, "put_user", user="alice", plan="pro", reason="promoted")
    send(admin, "put_user", user="alice", team="research")
    for searched, found, other in (
        ("PROMOTED", "promoted", "team research"),
        ("research", "team research", "promoted"),
    ):
        page = admin.get(f"/admin/changes?q={searched}").text.partition("<tbody>")[2]
        assert found in page
        assert other not in page
    assert "No change contains “zzz”." in admin.get("/admin/changes?q=zzz").text


def test_the_chart_adds_up(app: Flask) -> None:
    """Bars of seven subjects and all others; each is as tall as its share of the axis."""
    totals = [DayTotal(f"s{n}", 1, 1, 1, 1_000_000 * n, day="2026-11-25") for n in range(1, 10)]
    totals.append(DayTotal(None, 1, 1, 1, 3_000_000, day="2026-11-24"))
    drawn = chart(totals, first=date(2026, 11, 24), last=date(2026, 11, 25), by="team")
    assert list(drawn.amounts) == ["s9", "s8", "s7", "s6", "s5", "s4", OTHERS]
    with app.app_context():
        svg = str(get_template_attribute("admin/chart.html", "bars")(drawn))
    assert "all others, 2026-11-25: $6.00" in svg
    assert "all others, 2026-11-24: $3.00" in svg
    heights = [float(each) for each in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert sum(heights) == pytest.approx(48 / 50 * 180, abs=0.5)


def test_a_credit_draws_no_bar(app: Flask) -> None:
    """A day may have more credit than spending; the sum still counts it."""
    totals = [DayTotal("s", 1, 1, 1, 2_000_000, day="2026-11-24")]
    totals.append(DayTotal("s", 1, 1, 1, -65_300, day="2026-11-25"))
    drawn = chart(totals, first=date(2026, 11, 24), last=date(2026, 11, 25), by="user")
    with app.app_context():
        svg = str(get_template_attribute("admin/chart.html", "bars")(drawn))
    assert "$1.93 in total" in drawn.title
    assert re.findall(r'<rect[^>]* height="([^"]+)"', svg) == ["180.0"]
    assert [dollars(micro) for micro in (-65_300, -2_000_000, 0)] == ["-$0.0653", "-$2.00", "$0.00"]
    assert [dollars(micro) for micro in (21, 49, 50)] == ["$0.000021", "$0.000049", "$0.0001"]


def test_what_limits_hold_is_shown(
    make_app: AppMaker, uri: str, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is near a limit, what is blocked, and the pause of a provider; also of one user."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-test")
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    accounts.set_amount("user", "bob", "plan", "1/day")
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)
    client = logged_in(app)
    assert chatted(client, key.text)[0].status_code == 200
    with app.app_context():
        upstream = next(each for each in slugs_by_upstream() if each.startswith("openai/"))
        services_of(app).limiter.operators.block("provider", upstream, for_s=60)
    page = client.get("/admin/limits").text
    assert "1 of 1 requests" in page
    assert re.search(rf"{upstream}</th>\s*<td><span class=\"badge\">paused</span> free in ", page)
    assert "1 of 1 requests" in client.get("/admin/user?name=bob").text
    assert client.get("/admin/user?name=eve").status_code == 404
    _, _, lifting = page.partition('action="/admin/act/unblock_model"')
    assert f'name="name" value="{upstream[7:]}"' in lifting.partition("</form>")[0]
    send(client, "unblock_model", name=upstream[7:])
    assert "Nothing is blocked." in client.get("/admin/limits").text


def test_callers_near_a_limit_are_read_together(
    app: Flask, admin: FlaskClient, accounts: Accounts
) -> None:
    """Their plans and amounts: one query for all users, and none for each."""
    names, read = [f"user-{number}" for number in range(30)], list[str]()
    accounts.import_users([UserChange(name, {}) for name in names], default_plan="starter")
    accounts.set_amount("user", names[7], "usd-day", "0.50 usd/day")
    with app.app_context():
        rows = [row for row in shared_operators().rows() if row.name == "usd-day"]
        for name in names:
            charge = Charge(rows[0].limit, rows[0].bucket(f"user:{name}"), 450_000)
            services_of(app).limiter._components.engines.primary.admit([charge])
    with services_of(app).database.reading() as connection:
        engine = connection.engine
    event.listen(engine, "before_cursor_execute", lambda *words: read.append(words[2]))
    near = csv.DictReader(io.StringIO(admin.get("/admin/limits?csv=near").text))
    assert [row["identity"] for row in near if row["limit"] == "usd-day"] == [f"user:{names[7]}"]
    assert len([sql for sql in read if "FROM users" in sql]) == 1


def test_a_surge_is_listed_and_ended(
    make_app: AppMaker, uri: str, redis_client: redis.Redis, accounts: Accounts
) -> None:
    """Of a key that spends far more than usual; on the page of its user, too."""
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)
    with app.app_context():
        [surge] = [
            each for each in shared_operators().states(key.public_id) if each.row.name == "surge"
        ]
    name = surge.verdict.charge.key
    end = int((time.time() + 3600) * 1_000_000)
    used_end_usual = (number.to_bytes(7, "little") for number in (9_000_000, end, 100))
    held = bytes(4)  # by no call; and eight windows are known
    redis_client.set(name, held + b"".join(used_end_usual) + b"\x08")
    client = logged_in(app)
    assert f"Unblock key {key.public_id}" in client.get("/admin/user?name=bob").text
    page = client.get("/admin/limits").text
    assert re.search(r"<td>surge</td>\s*<td>abnormal-usage</td>", page)
    lifted = rf'value="key">\s*<input type="hidden" name="name" value="{key.public_id}">'
    assert re.search(lifted, page)
    done = send(client, "unblock", back="/admin/limits", kind="key", name=key.public_id).text
    assert "its usual amount is forgotten, which ends a surge." in done
    assert "Nothing is blocked." in done


def test_denials_are_explained(make_app: AppMaker, uri: str, accounts: Accounts) -> None:
    """As `flask ratelimit why` does; by identity, limit and time, and on the user's page."""
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    accounts.set_amount("user", "bob", "plan", "1/day")
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN)
    client = logged_in(app)
    assert "No caller was denied in the last 24 hours." in client.get("/admin/denials").text
    asked = chatted(client, key.text, 4)
    assert [each.status_code for each in asked] == [200, 429, 429, 429]
    for _ in range(30):
        client.post("/chat", json={"message": "hi"}, environ_base={"REMOTE_ADDR": "203.0.113.9"})
    limiter = services_of(app).limiter
    limiter._components.recorder.flush(all_of_them=True)
    page = client.get("/admin/denials").text
    assert '<a href="/admin/user?name=bob">bob</a>' in page
    assert "203.0.113.9</th>" in page
    for words in (asked[1].headers["x-request-id"], "1 used", "0 left", "next free at", "1 d<"):
        assert words in page
    assert "2 more like this until" in page
    for query, is_shown in (
        *(("identity=bob", True), ("identity=user:bob&limit=plan&span=15m", True)),
        *(("limit=plan", True), ("identity=203.0.113.9", False), ("limit=ip", False)),
    ):
        rows = client.get(f"/admin/denials?{query}").text.partition("<tbody>")[2]
        assert ("bob</a></th>" in rows, "203.0.113.9</th>" in rows) == (is_shown, not is_shown)
    assert "There is no user &#39;eve&#39;" in client.get("/admin/denials?identity=eve").text
    none = "No denial of alice by plan is recorded in the last 48 hours."
    assert none in client.get("/admin/denials?identity=alice&limit=plan&span=48h").text
    assert "2 more like this until" in client.get("/admin/user?name=bob").text
    assert "No denial of this user or their keys" in client.get("/admin/user?name=alice").text


def test_shadows_are_reported(
    make_app: AppMaker, uri: str, accounts: Accounts, tmp_path: Path
) -> None:
    """As `flask ratelimit shadow report` does, for each shadow in one table."""
    policy = POLICY_FILE.read_text().replace(
        'limit = "100/day"\n', 'limit = "100/day"\ncandidate = "2/day"\n', 1
    )
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    client = logged_in(make_app(**admin_with(uri, tmp_path, policy)))
    assert "has met a limit in shadow or a candidate" in client.get("/admin/shadow").text
    assert {each.status_code for each in chatted(client, key.text, 5)} == {200}
    page = client.get("/admin/shadow").text
    assert page.count("<h2>") == 1
    assert "A candidate; 100 per 1 day is enforced." in page
    assert page.count("60.0 %") == 2
    assert 'name=bob">bob</a> 3' in page
    assert "At 5, 99 % of 1 caller would have had no refusal" in page


def test_denials_may_be_off(make_app: AppMaker, uri: str, accounts: Accounts) -> None:
    """The views say by which setting; the user's page is shown anyway."""
    app = make_app(
        RATELIMIT_STORAGE_URI=uri, CHATAPP_ADMIN_TOKEN=TOKEN, CHATAPP_REMEMBER_DENIALS=False
    )
    client = logged_in(app)
    for view in ("live", "denials", "shadow"):
        assert "Set CHATAPP_REMEMBER_DENIALS to true." in client.get(f"/admin/{view}").text
    assert "Limits now" in client.get("/admin/user?name=alice").text


def test_decisions_are_shown_live(make_app: AppMaker, uri: str, accounts: Accounts) -> None:
    """Of all workers, by limit and minute, with the latest denials."""
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    accounts.set_amount("user", "bob", "plan", "2/day")
    config = {"RATELIMIT_STORAGE_URI": uri, "CHATAPP_ADMIN_TOKEN": TOKEN}
    worker, app = make_app(**config), make_app(**config)
    chatted(worker.test_client(), key.text, 5)
    services_of(worker).limiter._components.recorder.flush(all_of_them=True)
    page = logged_in(app).get("/admin/live").text
    cells = r'<a href="/admin/denials\?limit=plan">plan</a></th>((\s|<td.*?</td>)*)</tr>'
    row = re.search(cells, page)
    assert row is not None
    assert re.findall(r'"number">(.*?)<', row[1]) == ["2", "3", "2", "3", "–"]
    assert "plan, by the minute: 2 admitted, 3 denied" in page
    assert re.search(r"Denied since \d\d:\d\d</dt><dd>3<", page)
    assert "2 more like this until" in page
    assert page.count("data-part") == 4


def test_how_providers_do_is_shown(app: Flask, admin: FlaskClient, database_url: str) -> None:
    """From the ledger, of the last hour; a request that was wrong is no failure of a provider."""
    assert "No provider was called in the last hour." in admin.get("/admin/limits").text
    now = datetime.now(UTC)
    statuses = ["answered"] * 6 + ["overloaded"] * 2 + ["timeout", "bad_request"]
    calls = [finished(begun(started_at=now), status=status) for status in statuses]
    calls += [begun(started_at=now, slug="claude-opus-4-5"), finished(begun())]
    table.write(Database(database_url), calls)
    page = admin.get("/admin/limits").text.partition("Calls of the last hour")[2]
    rows = [re.findall(r">([^<>]+)</t[hd]>", each) for each in page.split("<tr>")[2:]]
    assert rows == [
        ["anthropic/claude-haiku-4-5", "10", "–", "30.0 %", "2 overloaded, 1 timeout"],
        ["anthropic/claude-opus-4-5", "1", "1", "–", "–"],
    ]


def test_a_database_that_fails_is_no_mistake_of_the_operator(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page says it with 503, and the log has it."""
    client = logged_in(make_app(CHATAPP_ADMIN_TOKEN=TOKEN))
    fails = Mock(side_effect=OperationalError("SELECT", {}, Exception("disk I/O error")))
    monkeypatch.setattr(Accounts, "names", fails)
    response = client.get("/admin/users")
    assert response.status_code == 503
    assert "The database failed: disk I/O error." in response.text
    assert "GET /admin/users: The database failed: disk I/O error." in caplog.text


def test_a_storage_that_cannot_be_read_is_said(make_app: AppMaker, accounts: Accounts) -> None:
    """Spending and accounts are shown anyway: they are in the database."""
    client = logged_in(make_app(CHATAPP_ADMIN_TOKEN=TOKEN))
    views = ("limits", "user?name=alice", "live", "denials", "shadow")
    for view in views:
        assert "(memory://), which no command can see" in client.get(f"/admin/{view}").text
    assert "are in the memory of each worker" in client.get("/admin/changes").text
    assert client.get("/admin/users").status_code == 200
    down = make_app(CHATAPP_ADMIN_TOKEN=TOKEN, RATELIMIT_STORAGE_URI="redis://127.0.0.1:1")
    other = logged_in(down)
    for view in (*views, "changes"):
        page = other.get(f"/admin/{view}").text
        assert page.count("The limits cannot be reached: the storage failed: ") == 1
    assert "is revoked" in send(client, "revoke_key", key=accounts.all_keys()[0].public_id).text


def test_the_users_of_a_trusted_key_are_shown_under_it(
    app: Flask, admin: FlaskClient, accounts: Accounts
) -> None:
    """Its owner's page says for whom the key acts, and links its users; their pages name it."""
    made = accounts.create_key("webui", plan="pro", default_plan="starter", people=People())
    headers = {"x-api-key": made.text, "X-OpenWebUI-User-Email": "ann@example.com"}
    assert (
        app.test_client().post("/chat", json={"message": "hi"}, headers=headers).status_code == 200
    )
    address = f"/admin/users?key={made.public_id}"
    page = admin.get("/admin/user?name=webui").text
    assert "acts for the users in X-OpenWebUI-User-Email" in page
    assert f'href="{address}"' in page
    assert [row["user"] for row in rows_of(admin, f"{address}&csv=users")] == ["ann@example.com"]
    assert f"key {made.public_id}" in admin.get("/admin/user?name=ann@example.com").text
    accounts.delete_user("webui")
    assert "First named by" not in admin.get("/admin/user?name=ann@example.com").text


def test_several_identities_are_printed_and_taken(
    make_app: AppMaker, uri: str, accounts: Accounts, tmp_path: Path
) -> None:
    """By the page of denials and that of limits, as by commands."""
    limit = '[[groups.calls.limits]]\nname = "pair"\nlimit = "1/day"\nkey = ["user", "model"]\n\n'
    policy = POLICY_FILE.read_text().replace("[plans.starter]", f"{limit}[plans.starter]", 1)
    key = accounts.create_key("bob", plan=None, default_plan="starter")
    app = make_app(**admin_with(uri, tmp_path, policy))
    client = logged_in(app)
    assert [each.status_code for each in chatted(client, key.text, 2)] == [200, 429]
    limiter = services_of(app).limiter
    limiter._components.recorder.flush(all_of_them=True)
    both = '<a href="/admin/user?name=bob">bob</a>,offline</th>'
    for identity in ("bob", "bob,offline"):
        page = client.get("/admin/denials", query_string={"identity": identity}).text
        assert both in page
    assert both in client.get("/admin/limits").text
    with app.app_context():
        operators = shared_operators()
        operators.override("pair", "bob,offline", "9/day", as_written=True)
        assert [each.identity for each in operators.overrides()] == ["user:bob,offline"]
        assert operators.reset("bob,offline") == ["pair"]
    assert both in client.get("/admin/changes").text
