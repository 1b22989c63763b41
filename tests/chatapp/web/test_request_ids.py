"""Every answer bears the id of its request: the provider's where it sent one, else the server's."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest
from flask.testing import FlaskClient

from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from chatapp.services import services_of
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import (
    Answer,
    ProviderServer,
    anthropic_error,
    openai_error,
)

MESSAGES: Final = [{"role": "user", "content": "hi"}]
CHAT, OPENAI, ANTHROPIC = "/chat", "/v1/chat/completions", "/v1/messages"
MODELS: Final = {CHAT: "gpt-4o", OPENAI: "gpt-4o", ANTHROPIC: "claude-haiku-4-5"}
HEADERS: Final = {CHAT: "x-request-id", OPENAI: "x-request-id", ANTHROPIC: "request-id"}
OWN: Final = re.compile(r"req_[0-9a-f]{32}")


def ask(client: FlaskClient, path: str, **fields: object) -> Any:
    body: dict[str, object] = {"model": "offline", "message": "hi"}
    if path != CHAT:
        body = {"model": "offline", "max_tokens": 10, "messages": MESSAGES}
    with client.post(path, json={**body, **fields}) as response:
        response.get_data()
    return response


def own_id(path: str, response: Any) -> str:
    """The server's id in the answer's header, and in the body of Anthropic's errors."""
    told: str = response.headers[HEADERS[path]]
    assert OWN.fullmatch(told)
    if path == ANTHROPIC:
        assert "x-request-id" not in response.headers
        if response.status_code >= 400:
            assert response.json["request_id"] == told
    return told


@pytest.mark.parametrize("path", HEADERS)
def test_an_answer_of_this_server_has_one(client: FlaskClient, path: str) -> None:
    """Answers of the offline model, whole and streamed, a mistake of the caller, and a denial: each
    has another."""
    answers = [
        ask(client, path),
        ask(client, path, stream=True),
        ask(client, path, model="no such model"),
    ]
    answers += [ask(client, path) for _ in range(9)]
    assert {answer.status_code for answer in answers} >= {200, 429}
    assert len({own_id(path, answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("path", HEADERS)
def test_a_401_and_a_429_at_the_edge_have_one(
    make_app: AppMaker, database_url: str, path: str
) -> None:
    """Also a denial that takes the place of an answer that was ready."""
    Accounts(Database(database_url)).create_key("alice", plan=None, default_plan="starter")
    client = make_app().test_client()
    answers = [ask(client, path) for _ in range(25)]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert len({own_id(path, answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("path", ["/nowhere", "/usage", "/v1/models", "/v1/nowhere", "/"])
def test_other_addresses_have_one(client: FlaskClient, path: str) -> None:
    """Whatever is at them."""
    assert OWN.fullmatch(client.get(path).headers["x-request-id"])


@pytest.mark.parametrize("path", HEADERS)
def test_the_log_has_the_id_of_a_failure_of_ours(
    make_app: AppMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    """Under it an operator finds what a 500 was."""
    app = make_app()
    monkeypatch.setattr(services_of(app).conversation, "answer", None)
    response = ask(app.test_client(), path)
    assert response.status_code == 500
    assert f"Request {own_id(path, response)} failed" in caplog.text


PROVIDER_ERRORS: Final = (400, 401, 404, 429, 500, 503)


@pytest.mark.parametrize("status", PROVIDER_ERRORS)
@pytest.mark.parametrize("path", HEADERS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_provider_keeps_its_id(
    online: FlaskClient, provider: ProviderServer, path: str, status: int, stream: bool
) -> None:
    """Whether its body is handed on or the error is told in our words."""
    provider.script(provider_error(path, status, "req_7"))
    response = ask(online, path, model=MODELS[path], stream=stream)
    assert response.status_code >= 400
    assert response.headers[HEADERS[path]] == "req_7"
    if path == ANTHROPIC and response.status_code >= 500:
        assert response.json["request_id"] == "req_7"


@pytest.mark.parametrize("path", HEADERS)
def test_an_id_that_cannot_be_sent_on_is_replaced(
    online: FlaskClient, provider: ProviderServer, path: str
) -> None:
    """A server would refuse the header, and the whole answer with it."""
    provider.script(provider_error(path, 500, "a\x01b"))
    response = ask(online, path, model=MODELS[path])
    assert response.status_code in {502, 503}
    own_id(path, response)


@pytest.mark.parametrize("path", HEADERS)
def test_an_answer_of_the_provider_without_one_gets_ours(online: FlaskClient, path: str) -> None:
    """The scripted provider sends none."""
    response = ask(online, path, model=MODELS[path])
    assert response.status_code == 200
    own_id(path, response)


def provider_error(path: str, status: int, request_id: str) -> Answer:
    """An error of the provider behind that address."""
    if path == ANTHROPIC:
        headers = {"request-id": request_id}
        return anthropic_error(status, kind="api_error", headers=headers)
    return openai_error(status, code="trouble", headers={"x-request-id": request_id})
