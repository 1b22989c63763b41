"""API keys on real requests: which are accepted, which are refused, and what a failed attempt
costs."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from chatapp.accounts.api_key import PresentedKey, new_key
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.web.test_identities import left

ADDRESS = "198.51.100.7"
OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
BODIES: dict[str, dict[str, object]] = {
    "/chat": {"message": "hi"},
    OPENAI: {"model": "offline", "messages": [{"role": "user", "content": "hi"}]},
    ANTHROPIC: {
        "model": "offline",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "hi"}],
    },
}


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    """The accounts of the application, with one key, so that keys are required."""
    accounts = Accounts(Database(database_url))
    accounts.create_key("erin", plan=None, default_plan="starter")
    return accounts


@pytest.fixture
def alice(accounts: Accounts) -> PresentedKey:
    """A key of alice, on the plan pro."""
    return accounts.create_key("alice", plan="pro", default_plan="starter")


@pytest.fixture
def app(accounts: Accounts, make_app: AppMaker) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def ask(
    client: FlaskClient,
    headers: Mapping[str, str],
    *,
    path: str = "/chat",
    ip: str = ADDRESS,
    **body: object,
) -> TestResponse:
    """One message with these headers."""
    return client.post(
        path, json={**BODIES[path], **body}, headers=headers, environ_overrides={"REMOTE_ADDR": ip}
    )


def bearer(key: PresentedKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.text}"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "form", ["Authorization: Bearer {}", "authorization: bearer  {}", "x-api-key: {}"]
)
def test_a_key_opens_every_endpoint(
    client: FlaskClient, alice: PresentedKey, path: str, form: str
) -> None:
    """In OpenAI's header or Anthropic's."""
    name, _, value = form.format(alice.text).partition(": ")
    response = ask(client, {name: value}, path=path)
    assert response.status_code == 200, response.text


def test_the_keys_owner_pays(client: FlaskClient, alice: PresentedKey) -> None:
    """On their plan, whatever user the body names, from any address."""
    first = ask(client, bearer(alice), user_id="erin", ip="203.0.113.1")
    second = ask(client, bearer(alice), user_id="yet another", ip="203.0.113.2")
    assert (left(first)["plan"], left(second)["plan"]) == (1999, 1998)


def test_all_keys_of_a_user_share_their_limits(
    client: FlaskClient, accounts: Accounts, alice: PresentedKey
) -> None:
    """A second key gives no second set of limits."""
    second = accounts.create_key("alice", plan=None, default_plan="starter")
    ask(client, bearer(alice))
    assert left(ask(client, bearer(second)))["plan"] == 1998


GOOD_FORM = "sk-chat-0123456789abcdef-" + "A" * 43
BAD_HEADERS: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"Authorization": ""},
    "an empty bearer": {"Authorization": "Bearer "},
    "basic": {"Authorization": "Basic YWxpY2U6cGFzcw=="},
    "no scheme": {"Authorization": GOOD_FORM},
    "never made": {"Authorization": f"Bearer {GOOD_FORM}"},
    "never made, x-api-key": {"x-api-key": GOOD_FORM},
    "malformed": {"x-api-key": "sk-proj-abc"},
    "two words": {"Authorization": f"Bearer {GOOD_FORM} {GOOD_FORM}"},
    "two keys": {"Authorization": f"Bearer {GOOD_FORM}", "x-api-key": GOOD_FORM[:-1] + "B"},
    "10 kB": {"Authorization": "Bearer sk-chat-" + "a" * 10_000},
    "SQL": {"x-api-key": "' OR 1=1; DROP TABLE api_keys; --"},
    "not ASCII": {"x-api-key": "sk-chat-ü\xff"},
    "a wildcard": {"x-api-key": "sk-chat-%-%"},
    "JSON": {"x-api-key": '{"$ne": null}'},
    "NUL": {"x-api-key": GOOD_FORM[:-1] + "\x00"},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", BAD_HEADERS)
def test_without_a_valid_key_it_is_401(client: FlaskClient, path: str, name: str) -> None:
    """In the format of the endpoint, with what to do, before the body is read."""
    response = client.post(path, data=b"not even JSON", headers=BAD_HEADERS[name])
    assert response.status_code == 401, response.text
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.headers["x-should-retry"] == "false"
    body = json_of(response)
    if path == OPENAI:
        assert body["error"]["code"] == "invalid_api_key"
        sentence = body["error"]["message"]
    elif path == ANTHROPIC:
        assert body["type"] == "error"
        assert body["error"]["type"] == "authentication_error"
        sentence = body["error"]["message"]
    else:
        assert set(body) == {"error", "code"}
        assert body["code"] == "invalid_api_key"
        sentence = body["error"]
    assert sentence.endswith((".", "characters."))
    assert len(sentence) < 200
    assert "A" * 43 not in response.text


@pytest.mark.parametrize("path", BODIES)
def test_a_foreign_key_beside_a_valid_one_is_ignored(
    client: FlaskClient, alice: PresentedKey, path: str
) -> None:
    """In either header: Claude Code sends both if an ANTHROPIC_API_KEY is left over."""
    foreign = "sk-ant-api03-left-over"
    both = {"Authorization": f"Bearer {alice.text}", "x-api-key": foreign}
    assert ask(client, both, path=path).status_code == 200
    both = {"Authorization": f"Bearer {foreign}", "x-api-key": alice.text}
    assert ask(client, both, path=path).status_code == 200
    same = {"Authorization": f"Bearer {alice.text}", "x-api-key": alice.text}
    assert ask(client, same, path=path).status_code == 200


def test_two_keys_of_this_server_are_401(
    client: FlaskClient, accounts: Accounts, alice: PresentedKey
) -> None:
    """The server does not guess which user calls, even if both are valid."""
    bob = accounts.create_key("bob", plan=None, default_plan="starter")
    response = ask(client, {"Authorization": f"Bearer {alice.text}", "x-api-key": bob.text})
    assert response.status_code == 401
    assert "two API keys of this server" in json_of(response)["error"]
    neither = {"Authorization": "Bearer sk-ant-1", "x-api-key": "sk-ant-2"}
    refused = ask(client, neither)
    assert refused.status_code == 401
    assert "malformed" in json_of(refused)["error"]


def test_a_wrong_secret_expired_or_revoked_key_is_401(
    client: FlaskClient, accounts: Accounts, alice: PresentedKey
) -> None:
    """The owner of an expired or revoked key learns the reason."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = accounts.create_key("bob", plan=None, default_plan="starter", expires_at=past)
    revoked = accounts.create_key("bob", plan=None, default_plan="starter")
    accounts.revoke(revoked.public_id)
    wrong = PresentedKey(alice.public_id, new_key().secret)
    for key, says in ((wrong, "is unknown"), (expired, "expired"), (revoked, "was revoked")):
        response = ask(client, bearer(key))
        assert response.status_code == 401
        assert says in json_of(response)["error"]


@pytest.mark.usefixtures("stopped_clock")
def test_an_attempt_is_charged_to_the_address(client: FlaskClient, alice: PresentedKey) -> None:
    """After the address's burst, guesses get 429. A valid key is not affected, even at the same
    address."""
    statuses = [ask(client, {"x-api-key": GOOD_FORM}).status_code for _ in range(30)]
    assert statuses == [401] * 20 + [429] * 10
    fresh = ask(client, bearer(alice))
    assert fresh.status_code == 200
    assert (left(fresh)["user"], left(fresh)["plan"]) == (29, 1999)


def test_public_endpoints_need_no_key(client: FlaskClient) -> None:
    """The page and its files, health, and a preflight; an unknown address is 404."""
    for path in ("/", "/static/chat.js", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    assert client.options("/chat").status_code == 200
    assert client.get("/nowhere").status_code == 404


def test_every_other_endpoint_needs_a_key(app: Flask) -> None:
    """New endpoints need a key unless they are listed here."""
    open_ones = {
        "static",
        "page.page",
        "page.reference",
        "openapi.description",
        "health.healthz",
        "health.readyz",
    }
    client = app.test_client()
    asked = 0
    for rule in app.url_map.iter_rules():
        if rule.endpoint in open_ones:
            continue
        path = rule.rule.replace("<path:name>", "x")
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            ip = f"203.0.113.{asked}"
            response = client.open(path, method=method, environ_overrides={"REMOTE_ADDR": ip})
            assert response.status_code == 401, rule
            asked += 1
    assert asked >= 5


def test_the_first_key_turns_accounts_on(make_app: AppMaker, database_url: str) -> None:
    """Before it no key is needed; from then on every worker requires one, also when the last key
    is revoked."""
    client, accounts = make_app().test_client(), Accounts(Database(database_url))
    assert ask(client, {}).status_code == 200
    assert ask(client, {"x-api-key": "of another server"}).status_code == 200
    key = accounts.create_key("alice", plan=None, default_plan="starter")
    assert ask(client, {}).status_code == 401
    accounts.revoke(key.public_id)
    for each in (client, make_app().test_client()):
        assert ask(each, {}).status_code == 401
        assert "was revoked" in ask(each, bearer(key)).text


def test_an_unknown_plan_becomes_the_default_plan(
    client: FlaskClient, accounts: Accounts, caplog: pytest.LogCaptureFixture
) -> None:
    """Instead of no limits or an error. The log reports it."""
    key = accounts.create_key("carol", plan="gold", default_plan="starter")
    response = ask(client, bearer(key))
    assert left(response)["plan"] == 99
    assert "The default plan 'starter' applies: plan_loader: found 'gold'" in caplog.text


def test_a_lost_database_is_503(
    client: FlaskClient, alice: PresentedKey, database_url: str
) -> None:
    """Keys that were not checked recently have to wait; no key is accepted unchecked."""
    with Database(database_url).writing() as connection:
        connection.execute(text("ALTER TABLE api_keys RENAME TO elsewhere"))
    for path in BODIES:
        response = ask(client, bearer(alice), path=path)
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
    assert client.get("/").status_code == 200


def test_no_log_has_a_key(
    client: FlaskClient, alice: PresentedKey, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at any level, whatever the outcome."""
    with caplog.at_level(logging.DEBUG):
        ask(client, bearer(alice))
        ask(client, {"x-api-key": PresentedKey(alice.public_id, new_key().secret).text})
        for _ in range(25):
            ask(client, bearer(alice))
    assert alice.secret not in caplog.text
