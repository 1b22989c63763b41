"""People behind a trusted key: who they are, what they get, and who cannot name them."""

import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from werkzeug.test import TestResponse

from chatapp.accounts.people import HEADERS, MOST_NEW, People
from chatapp.accounts.store import USERS, Accounts
from chatapp.database.connection import Database
from chatapp.services import Services, services_of
from tests.chatapp.cli.test_commands import run
from tests.chatapp.conftest import AppMaker, json_of
from tests.chatapp.web.test_authentication import ANTHROPIC, BODIES, OPENAI
from tests.chatapp.web.test_identities import left

EMAIL, ID, NAME = HEADERS
ANN = "ann@example.com"
#: What Open WebUI 0.12.4 sends with ENABLE_FORWARD_USER_INFO_HEADERS: see its utils/headers.py.
OPEN_WEBUI = {
    "X-OpenWebUI-User-Name": quote("Zoë Ünal", safe=" "),
    "X-OpenWebUI-User-Id": "0b6e3d30-3d1c-4a0c-9a53-2f6d6f8a4a11",
    "X-OpenWebUI-User-Email": ANN,
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "8f1f7b1e-7a1b-4b56-8d3a-5d5c0a1e2b3c",
}
#: What LibreChat sends besides the header `X-User: {{LIBRECHAT_USER_EMAIL}}`, as its package
#: @librechat/agents 3.2.21 does: a question, the use of a tool, and the chat's title.
OF_LIBRECHAT = {"model": "offline", "user": "6650f0c2a1b2c3d4e5f60718"}
STREAMED = {**OF_LIBRECHAT, "stream": True, "stream_options": {"include_usage": True}}
ASKED = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "6*7?"}]
USE = {"name": "calculator", "arguments": '{"input":"6*7"}'}
USED = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call_1", "type": "function", "function": USE}
]}  # fmt: skip
RESULT = {"role": "tool", "content": "42", "name": "calculator", "tool_call_id": "call_1"}
LIBRECHAT: tuple[dict[str, Any], ...] = (
    {**STREAMED, "messages": ASKED},
    {**STREAMED, "messages": [*ASKED, USED, RESULT], "tools": [
        {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
    ]},
    {**OF_LIBRECHAT, "stream": False, "messages": [{"role": "user", "content": "A title."}]},
)  # fmt: skip
#: Ids that agents send in the places of users: Claude Code's two forms, and those of others.
SESSIONS = (
    f"user_{'5f' * 32}_account__session_4df4f2a4-5d3c-4f0a-8d23-7a1f1e2d3c4b",
    json.dumps({"device_id": "5f" * 32, "account_uuid": "", "session_id": "4df4f2a4"}),
    "session_01H",
    "sess-01H",
    "SESSION:1",
    '["a"]',
)


@pytest.fixture
def app(accounts: Accounts, make_app: AppMaker) -> Flask:
    accounts.create_key("erin", plan=None, default_plan="starter")
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def services(app: Flask) -> Services:
    return services_of(app)


def key_of(accounts: Accounts, people: People | None, user: str = "webui") -> dict[str, str]:
    """The header of a new key with that right."""
    made = accounts.create_key(user, plan="team", default_plan="starter", people=people)
    return {"Authorization": f"Bearer {made.text}"}


def ask(
    client: FlaskClient, headers: Mapping[str, str], path: str = "/chat", **body: object
) -> TestResponse:
    return client.post(path, json={**BODIES[path], **body}, headers=headers)


def called(services: Services) -> dict[str | None, int]:
    assert services.ledger.flush()
    return {each.subject: each.calls for each in services.reports.spending(by="user", since=None)}


@pytest.mark.parametrize("path", BODIES)
def test_each_person_has_a_plan_limits_usage_and_a_row(
    client: FlaskClient, services: Services, accounts: Accounts, path: str
) -> None:
    """In each protocol; new ones have the plan that the key gives, and count apart."""
    key = key_of(accounts, People(plan="starter"))
    for _ in range(2):
        response = ask(client, {**key, **OPEN_WEBUI}, path)
        assert response.status_code == 200
    assert ask(client, {**key, EMAIL: "bob@example.com"}, path).status_code == 200
    usage = json_of(client.get("/usage", headers={**key, EMAIL: ANN}))
    assert (usage["user"], usage["plan"]) == (ANN, "starter")
    remaining = {each["name"]: each["remaining"] for each in usage["limits"]}
    assert (remaining["plan"], remaining["user"]) == (98, 8)
    assert called(services) == {f"user:{ANN}": 2, "user:bob@example.com": 1}
    (public_id,) = {row["key_id"] for row in services.reports.calls()}
    assert {user.brought_by for user in accounts.users() if "@" in user.name} == {public_id}


def test_a_request_without_a_name_is_the_keys_own(
    client: FlaskClient, services: Services, accounts: Accounts
) -> None:
    """As of a UI that does not forward its users. Ids of sessions and JSON are no names."""
    key = key_of(accounts, People())
    for text in ("", " ", *SESSIONS):
        assert ask(client, {**key, EMAIL: text}).status_code == 200
    assert ask(client, key).status_code == 200
    assert called(services) == {"user:webui": len(SESSIONS) + 3}
    assert {user.name for user in accounts.users()} == {"erin", "webui"}


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 300, "has 300 characters; at most 256 are allowed"),
        ("user:erin", "begins with 'user' and a colon, which is reserved"),
        ("ip:198.51.100.1", "begins with 'ip' and a colon, which is reserved"),
        ("team:a", "begins with 'team' and a colon, which is reserved"),
        ("ann%0Abob", "has control characters"),
        pytest.param("sess-" * 100_000 + "@", "has 500001 characters; at most 256", id="long"),
    ],
)
def test_a_name_that_cannot_be_one_is_an_error(
    client: FlaskClient, services: Services, accounts: Accounts, path: str, text: str, problem: str
) -> None:
    """A 400 says why, by the header and by the body: the request counts for no one else."""
    by_header, by_body = key_of(accounts, People()), key_of(accounts, People(headers=()))
    name = unquote(text)
    named = {"metadata": {"user_id": name}} if path == ANTHROPIC else {"user": name}
    for refused in (
        ask(client, {**by_header, EMAIL: text}, path),
        ask(client, by_body, path, **named),
    ):
        assert refused.status_code == 400
        assert f"The user's name {problem}" in refused.text
        assert "Send an email address or an id." in refused.text
    assert called(services) == {}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (ANN, ANN),
        ("José@example.com", "José@example.com"),  # in Latin-1
        ("b64:TWFyacSHQGV4YW1wbGUuY29t", "Marić@example.com"),  # what Latin-1 cannot
        ("b64:José", "b64:José"),
        ("{{LIBRECHAT_USER_EMAIL}}", "webui"),  # older ones, when they ask for the models
        ("", "webui"),
    ],
)
def test_librechat_names_its_users(
    client: FlaskClient, services: Services, accounts: Accounts, header: str, name: str
) -> None:
    """All that it sends for a user counts for them, and asking for the models makes them known."""
    key = {**key_of(accounts, People(headers=("X-User",))), "X-User": header}
    assert client.get("/v1/models", headers=key).status_code == 200
    assert name in {user.name for user in accounts.users()}
    for body in LIBRECHAT:
        with client.post(OPENAI, json=body, headers=key) as response:
            assert (response.status_code, bool(response.data)) == (200, True)
    assert called(services) == {f"user:{name}": len(LIBRECHAT)}


@pytest.mark.parametrize(
    "name", ["sess-smith@example.com", "ann_session_1@example.com", "Eva-Sess-Meyer Jones"]
)
def test_an_email_or_a_name_may_have_the_word_of_sessions(
    client: FlaskClient, services: Services, accounts: Accounts, name: str
) -> None:
    """In a header and in the body: an id of a session has neither an @ nor a space."""
    by_header, by_body = key_of(accounts, People()), key_of(accounts, People(headers=()))
    assert ask(client, {**by_header, EMAIL: quote(name)}).status_code == 200
    assert ask(client, by_body, OPENAI, user=name).status_code == 200
    assert called(services) == {f"user:{name}": 2}


def test_the_first_header_that_is_sent_names_the_person(
    client: FlaskClient, services: Services, accounts: Accounts
) -> None:
    """The default names an email, an id or a name, which may be escaped; a key may name another."""
    own, other = key_of(accounts, People()), key_of(accounts, People(headers=("X-User",)))
    ask(client, {**own, ID: OPEN_WEBUI[ID], NAME: OPEN_WEBUI[NAME]})
    ask(client, {**own, NAME: OPEN_WEBUI[NAME]})
    ask(client, {**own, NAME: "Zoë Ünal".encode().decode("latin-1")})
    ask(client, {**other, "x-user": "bob", **OPEN_WEBUI})
    assert called(services) == {f"user:{OPEN_WEBUI[ID]}": 1, "user:Zoë Ünal": 2, "user:bob": 1}


def test_the_body_names_the_person_if_the_operator_says_so(
    client: FlaskClient, services: Services, accounts: Accounts
) -> None:
    """LibreChat sends `user`; Anthropic's and our own body have another field. No header counts
    then, and agents' ids name no person."""
    key = {**key_of(accounts, People(headers=())), **OPEN_WEBUI}
    ask(client, key, OPENAI, user="librechat-1")
    ask(client, key, ANTHROPIC, metadata={"user_id": "librechat-1"})
    ask(client, key, "/chat", user_id="librechat-1")
    for each in SESSIONS:
        assert ask(client, key, OPENAI, user=each).status_code == 200
        assert ask(client, key, ANTHROPIC, metadata={"user_id": each}).status_code == 200
    usage = json_of(client.get("/usage?user_id=librechat-1", headers=key))
    assert usage["user"] == "librechat-1"
    assert called(services) == {"user:librechat-1": 3, "user:webui": 2 * len(SESSIONS)}


def test_blocks_amounts_teams_and_deactivation_are_the_persons(
    app: Flask, client: FlaskClient, services: Services, accounts: Accounts
) -> None:
    """As of any user, while others of the key go on. An amount of the key is for all together."""
    accounts.create_team("school")
    made = accounts.create_key(
        "webui", plan="team", team="school", default_plan="starter", people=People(),
        limits={"key-usd-day": "7 usd/day"},
    )  # fmt: skip
    key = {"Authorization": f"Bearer {made.text}"}
    for name in (ANN, "bob"):
        assert ask(client, {**key, EMAIL: name}).status_code == 200
    assert {u.team_name for u in accounts.users() if u.brought_by} == {"school"}
    accounts.set_amount("user", ANN, "plan", "1/day")
    accounts.set_active("bob", active=False)
    with services.authenticator._lock:
        services.authenticator._people.clear()
    denied = ask(client, {**key, EMAIL: ANN})
    assert (denied.status_code, denied.json and denied.json["policy"]) == (429, "plan")
    refused = ask(client, {**key, EMAIL: "bob"})
    assert (refused.status_code, json_of(refused)["code"]) == (403, "user_deactivated")
    assert "account of bob is deactivated" in refused.json["error"]
    other = ask(client, {**key, EMAIL: "cem"})
    assert left(other)["key-usd-day"] == 7_000_000


def test_new_people_are_bounded_and_known_ones_are_served(
    client: FlaskClient, accounts: Accounts, database_url: str
) -> None:
    """The refusal says when the next one fits; an hour later they do."""
    key = key_of(accounts, People(most_new=3))
    names = [f"p{n}" for n in range(5)]
    answers = [ask(client, {**key, EMAIL: name}, OPENAI).status_code for name in names]
    assert answers == [200, 200, 200, 429, 429]
    refused = ask(client, {**key, EMAIL: "p9"})
    assert json_of(refused)["code"] == "too_many_new_users"
    assert "Existing users are still served" in refused.json["error"]
    assert 3590 < int(refused.headers["Retry-After"]) <= 3600
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["Cache-Control"] == "no-store"
    assert ask(client, {**key, EMAIL: "p1"}).status_code == 200
    assert ask(client, {**key_of(accounts, People()), EMAIL: "p9"}).status_code == 200
    with closing(Database(database_url)) as database, database.writing() as connection:
        before = datetime.now(UTC) - timedelta(hours=1)
        connection.execute(update(USERS).where(USERS.c.name == "p0").values(created_at=before))
    assert ask(client, {**key, EMAIL: "p3"}).status_code == 200
    assert ask(client, {**key, EMAIL: "p4"}).status_code == 429


def test_invented_people_stay_bounded(
    client: FlaskClient,
    services: Services,
    accounts: Accounts,
    stopped_clock: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In rows and in memory, however many a stolen key invents; the key's edge limit, whose burst
    is 200, bounds the queries."""
    key, asked, person = key_of(accounts, People(most_new=10)), [], Accounts.person

    def counted(store: Accounts, public_id: str, name: str, people: People) -> object:
        asked.append(name)
        return person(store, public_id, name, people)

    monkeypatch.setattr(Accounts, "person", counted)
    answers = [ask(client, {**key, EMAIL: f"p{n}"}).status_code for n in range(230)]
    assert (answers[:10], {*answers[10:]}) == ([200] * 10, {429})
    assert len(asked) == 200
    assert len(accounts.users()) == 10 + 2
    authenticator = services.authenticator
    assert {name for _, name in authenticator._stale_people} == set(asked[:10])
    assert {name for _, name in authenticator._people} <= set(asked[:10])


def test_the_database_may_be_away(
    client: FlaskClient, services: Services, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known people are served, as with keys; others get a 503 and are not counted as the owner."""
    key = key_of(accounts, People())
    assert ask(client, {**key, EMAIL: ANN}).status_code == 200

    def away(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Accounts, "person", away)
    services.authenticator._people.clear()
    assert ask(client, {**key, EMAIL: ANN}).status_code == 200
    assert ask(client, {**key, EMAIL: "new"}).status_code == 503


def test_commands_give_and_take_the_right(app: Flask, accounts: Accounts) -> None:
    """Created, listed, changed, rotated with its people, and in the log."""
    words = ("keys", "create", "--user", "webui", "--acts-for-users", "--plan-of-new", "pro")
    key = run(app, *words, "--most-new", "7").stdout.strip()
    client = app.test_client()
    ask(client, {"x-api-key": key, EMAIL: ANN})
    assert f"headers={', '.join(HEADERS)}, plan=pro" in run(app, "keys", "list").stdout
    new = run(app, "keys", "rotate", key).stdout.strip()
    (listed,) = json.loads(run(app, "users", "list", "--key", new, "--json").stdout)
    assert (listed["user"], listed["plan"]) == (ANN, "pro")
    assert run(app, "keys", "set", new, "--acts-for-users", "--user-header", "").stdout.startswith(
        "Key "
    )
    (own,) = [k for k in json.loads(run(app, "keys", "list", "--json").stdout) if k["id"] in new]
    assert own["people"] == {"headers": [], "plan": None, "most_new": MOST_NEW}
    assert (
        "acts only for its own user" in run(app, "keys", "set", new, "--no-acts-for-users").stdout
    )
    assert [k.people for k in accounts.all_keys() if k.public_id in new] == [None]
    assert "all workers apply it within 5 s" in run(app, "users", "set", ANN, "--no-active").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--user-header", ""), "needs --acts-for-users"),
        (("--no-acts-for-users", "--most-new", "9"), "needs --acts-for-users"),
        (("--acts-for-users", "--user-header", "Authorization"), "cannot name users"),
        (("--acts-for-users", "--user-header", "no header"), "cannot name users"),
        (("--acts-for-users", "--plan-of-new", "gold"), "Unknown plan 'gold'"),
        (("--acts-for-users", "--most-new", "0"), "--most-new is 0; send at least 1"),
    ],
)
def test_mistakes_are_sentences(app: Flask, words: tuple[str, ...], says: str) -> None:
    """Nothing is created."""
    result = app.test_cli_runner().invoke(
        args=["chat", "keys", "create", "--user", "webui", *words]
    )
    assert result.exit_code != 0
    assert says in result.stderr
    assert services_of(app).accounts.user("webui") is None


# -- without the right -------------------------------------------------------------------------

texts = st.one_of(st.sampled_from([ANN, "erin", "user:erin", *SESSIONS]), st.text(max_size=30))
headers_of_anyone = st.dictionaries(
    st.sampled_from([*HEADERS, *OPEN_WEBUI, "X-User", "User", "From", "OpenAI-User", "X-User-Id"]),
    texts.map(lambda text: quote(text, safe='@:{}" ')),
    max_size=5,
)
bodies_of_anyone = st.fixed_dictionaries(
    {}, optional={"user": texts, "safety_identifier": texts, "metadata": st.dictionaries(
        st.sampled_from(["user_id", "user", "session_id"]), texts, max_size=2
    )},
)  # fmt: skip


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(headers=headers_of_anyone, body=bodies_of_anyone, path=st.sampled_from([OPENAI, ANTHROPIC]))
def test_without_the_right_nothing_names_another_person(
    worker_of_ada: tuple[FlaskClient, Services, dict[str, str]],
    headers: dict[str, str],
    body: dict[str, Any],
    path: str,
) -> None:
    """Whatever a caller sends, the call is its key's owner's, and no user is made."""
    client, services, key = worker_of_ada
    before = called(services).get("user:ada", 0)
    response = ask(client, {**headers, **key}, path, **body)
    is_answered = response.status_code == 200
    assert called(services) == ({"user:ada": before + is_answered} if before + is_answered else {})
    usage = json_of(client.get("/usage?user_id=erin", headers={**headers, **key}))
    assert usage["user"] == "ada"
    assert {user.name for user in services.accounts.users()} == {"ada", "erin"}


@pytest.fixture
def worker_of_ada(
    client: FlaskClient, services: Services, accounts: Accounts
) -> tuple[FlaskClient, Services, dict[str, str]]:
    """A caller without the right."""
    return client, services, key_of(accounts, None, "ada")
