"""A page of another site cannot use this server through a name of its own (DNS rebinding)."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import AppMaker

ASKED = {"message": "hi", "model": "offline"}


def status(client: FlaskClient, host: str, path: str = "/chat") -> int:
    headers = {"Host": host}
    if path == "/chat":
        return client.post(path, json=ASKED, headers=headers).status_code
    return client.get(path, headers=headers).status_code


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:54321", 200),
        ("[::1]:8000", 200),
        ("localhost.", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example:8000", 400),
        ("[::1].evil.example", 400),
        ("evil.example:80:localhost", 400),
        ("", 400),
    ],
)
def test_without_keys_only_loopback_names_are_answered(
    client: FlaskClient, host: str, expected: int
) -> None:
    """At any port."""
    assert status(client, host) == expected


def test_with_keys_every_name_is_answered(make_app: AppMaker, database_url: str) -> None:
    """A page of another site has no key: it spends nothing, under whatever name."""
    accounts = Accounts(Database(database_url))
    key = accounts.create_key("alice", plan=None, default_plan="starter").text
    headers = {"Host": "chat.example", "Authorization": f"Bearer {key}"}
    client = make_app().test_client()
    assert client.post("/chat", json=ASKED, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("chat.example:443", 200), ("a.b.example", 200), ("b.example", 200), ("ab.example", 400)],
)
def test_the_setting_names_them(make_app: AppMaker, host: str, expected: int) -> None:
    """Then it is those and no others; a dot in front stands for the name and all below."""
    client = make_app(CHATAPP_TRUSTED_HOSTS="chat.example, .b.example").test_client()
    assert status(client, host) == expected


def test_a_star_is_any(make_app: AppMaker) -> None:
    """For who knows what they do."""
    assert status(make_app(CHATAPP_TRUSTED_HOSTS="*").test_client(), "evil.example") == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_may_use_any_name(client: FlaskClient, path: str) -> None:
    """A probe names the address of a container, which nobody knows in advance."""
    assert status(client, "10.1.2.3:8000", path) == 200


@pytest.mark.parametrize("path", ["/", "/static/chat.js", "/v1/models", "/usage", "/nowhere"])
def test_nothing_else_is_exempt(client: FlaskClient, path: str) -> None:
    """Not the page, whose script would ask in the other site's name, nor what is nowhere."""
    assert status(client, "evil.example", path) == 400


def test_the_refusal_has_the_endpoints_shape(client: FlaskClient) -> None:
    """It names the host and the setting."""
    headers = {"Host": "evil.example"}
    told = client.post("/chat", json=ASKED, headers=headers).json
    assert told is not None
    assert told["code"] == "untrusted_host"
    assert "evil.example" in told["error"]
    assert "CHATAPP_TRUSTED_HOSTS" in told["error"]
    openai = client.post("/v1/chat/completions", json={}, headers=headers).json
    assert openai is not None
    assert openai["error"]["code"] == "untrusted_host"
    anthropic = client.post("/v1/messages", json={}, headers=headers).json
    assert anthropic is not None
    assert anthropic["error"]["details"] == {"error_code": "untrusted_host"}


def test_strange_hosts_count_at_the_edge(client: FlaskClient) -> None:
    """A refusal is not free to repeat."""
    answers = [status(client, "evil.example") for _ in range(25)]
    assert answers.count(400) == 20
    assert answers[-1] == 429
