"""Anthropic's real SDK against a local server that speaks its protocol, through POST /chat."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from chatapp.providers import Message, Prompt, Timeouts
from chatapp.providers.anthropic import Anthropic
from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import (
    ANTHROPIC_PATH,
    Answer,
    ProviderServer,
    anthropic_body,
    anthropic_error,
)

ASKED = {"message": "ping", "model": "claude-haiku-4-5"}


def test_an_answer_comes_back_with_its_usage(online: FlaskClient, provider: ProviderServer) -> None:
    """What is read from and written to the cache is part of the input, as with other providers."""
    response = online.post("/chat", json=ASKED)
    assert response.status_code == 200, response.text
    assert response.json == {
        "reply": "pong",
        "model": "claude-haiku-4-5",
        "usage": {
            "input_tokens": 23,
            "cached_input_tokens": 8,
            "cache_write_tokens": 3,
            "output_tokens": 5,
            "reasoning_tokens": 0,
        },
    }
    [call] = provider.calls
    assert call.path == ANTHROPIC_PATH
    # As X-Api-Key or as a bearer token: that is the SDK's affair.
    assert any("sk-ant-test" in value for value in call.headers.values())
    assert call.body == {
        "model": "claude-haiku-4-5",
        "max_tokens": 2048,
        "messages": [{"role": "user", "content": "ping"}],
    }


@pytest.mark.parametrize(
    "model", ["claude-haiku-4-5-20251001", "claude-3-5-haiku-latest", "claude-99"]
)
def test_the_name_chooses_anthropic(
    online: FlaskClient, provider: ProviderServer, model: str
) -> None:
    """Its families are its own, listed or not, and the name goes there as it was given."""
    assert online.post("/chat", json={"message": "ping", "model": model}).status_code == 200
    assert provider.calls[0].path == ANTHROPIC_PATH
    assert provider.calls[0].body["model"] == model


def test_its_key_alone_makes_it_the_default(
    provider: ProviderServer, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has only this key need not name a model."""
    monkeypatch.delenv("OPENAI_API_KEY")
    response = make_app().test_client().post("/chat", json={"message": "ping"})
    assert response.json is not None
    assert response.json["model"] == "claude-haiku-4-5"


def test_only_text_is_shown(online: FlaskClient, provider: ProviderServer) -> None:
    """Thinking and tools are no reply; several texts are one."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "po"},
        {"type": "text", "text": "ng"},
    ]
    provider.script(Answer(200, anthropic_body() | {"content": blocks}))
    response = online.post("/chat", json=ASKED)
    assert response.json is not None
    assert response.json["reply"] == "pong"


def test_instructions_stand_beside_the_conversation(provider: ProviderServer) -> None:
    """A system message goes where Anthropic takes it."""
    messages = (Message("system", "Be brief."), Message("user", "ping"))
    prompt = Prompt(model="claude-haiku-4-5", messages=messages, max_tokens=9)
    assert Anthropic(Timeouts()).complete(prompt).finish_reason == "stop"
    assert provider.calls[0].body["system"] == "Be brief."
    assert provider.calls[0].body["messages"] == [{"role": "user", "content": "ping"}]


ERRORS = {
    "rate limit with a wait": (
        anthropic_error(429, kind="rate_limit_error", headers={"retry-after": "9"}),
        *(503, "server_is_overloaded", "9"),
    ),
    "rate limit without a wait": (
        anthropic_error(429, kind="rate_limit_error"),
        *(503, "server_is_overloaded", "1"),
    ),
    "a spend cap": (
        anthropic_error(429, kind="rate_limit_error", error_code="enforced_spend_limit_reached"),
        *(502, "provider_refused", None),
    ),
    "no credit": (anthropic_error(402, kind="billing_error"), 502, "provider_refused", None),
    "overloaded": (
        anthropic_error(529, kind="overloaded_error"),
        *(503, "server_is_overloaded", "1"),
    ),
    "a wrong key": (
        anthropic_error(401, kind="authentication_error", message="bad key sk-ant-test"),
        *(502, "provider_refused", None),
    ),
    "no such model": (anthropic_error(404, kind="not_found_error"), 422, "unknown_model", None),
    "too long": (
        anthropic_error(400, kind="invalid_request_error"),
        502,
        "provider_rejected",
        None,
    ),
    "broken": (anthropic_error(500, kind="api_error"), 502, "provider_unavailable", None),
    "its own timeout": (anthropic_error(504, kind="timeout_error"), 504, "provider_timeout", None),
    "not JSON": (Answer(200, b'{"id": '), 502, "provider_unavailable", None),
    "a page": (
        Answer(200, b"<h1>Log in</h1>", {"Content-Type": "text/html"}),
        *(502, "provider_unavailable", None),
    ),
    "content of a wrong type": (
        Answer(200, anthropic_body() | {"content": 7}),
        *(502, "provider_unavailable", None),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_its_errors_are_never_ours(
    online: FlaskClient, provider: ProviderServer, name: str
) -> None:
    """Each is told by its cause, asked once only, without the provider's words or our key."""
    answer, status, code, retry_after = ERRORS[name]
    provider.script(answer)
    response = online.post("/chat", json=ASKED)
    assert response.status_code == status, response.text
    assert response.json is not None
    assert response.json["code"] == code
    assert response.headers.get("Retry-After") == retry_after
    assert "anthropic" in response.json["error"]
    assert "sk-" not in response.text
    assert len(provider.calls) == 1


def test_a_silent_provider_is_a_timeout(provider: ProviderServer, make_app: AppMaker) -> None:
    """The call ends when the setting says, once, as a 504."""
    provider.silence()
    client = make_app(CHATAPP_PROVIDER_TIMEOUT_S=0.2).test_client()
    response = client.post("/chat", json=ASKED)
    assert response.status_code == 504
    assert response.json is not None
    assert response.json["code"] == "provider_timeout"
    assert len(provider.calls) == 1


def test_an_unreachable_provider_is_a_502(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens: told as such."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:1")
    response = make_app().test_client().post("/chat", json=ASKED)
    assert response.status_code == 502
    assert response.json is not None
    assert response.json["code"] == "provider_unavailable"
