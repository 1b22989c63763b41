"""Anthropic's real SDK against a local server with its API, through POST /chat."""

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
)

ASKED = {"message": "ping", "model": "claude-haiku-4-5"}


def test_an_answer_comes_back_with_its_usage(online: FlaskClient, provider: ProviderServer) -> None:
    """Tokens read from and written to the cache are part of the input, as with other providers."""
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
    # As X-Api-Key or as a bearer token: the SDK decides.
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
    """A name of its families belongs to it, listed or not, and is sent unchanged."""
    assert online.post("/chat", json={"message": "ping", "model": model}).status_code == 200
    assert provider.calls[0].path == ANTHROPIC_PATH
    assert provider.calls[0].body["model"] == model


def test_its_key_alone_makes_it_the_default(
    provider: ProviderServer, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With only this key, a request needs no model."""
    monkeypatch.delenv("OPENAI_API_KEY")
    response = make_app().test_client().post("/chat", json={"message": "ping"})
    assert response.json is not None
    assert response.json["model"] == "claude-haiku-4-5"


def test_only_text_is_shown(online: FlaskClient, provider: ProviderServer) -> None:
    """The reply has all texts, without thinking and tools."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "po"},
        {"type": "text", "text": "ng"},
    ]
    provider.script(Answer(200, anthropic_body() | {"content": blocks}))
    response = online.post("/chat", json=ASKED)
    assert response.json is not None
    assert response.json["reply"] == "pong"


def test_system_messages_are_not_in_the_conversation(provider: ProviderServer) -> None:
    """A system message is sent in a field of its own."""
    messages = (Message("system", "Be brief."), Message("user", "ping"))
    prompt = Prompt(model="claude-haiku-4-5", messages=messages, max_tokens=9)
    assert Anthropic(Timeouts()).complete(prompt).finish_reason == "stop"
    assert provider.calls[0].body["system"] == "Be brief."
    assert provider.calls[0].body["messages"] == [{"role": "user", "content": "ping"}]


def test_a_plain_answer_may_be_long(provider: ProviderServer) -> None:
    """The SDK's method for messages refuses limits above 21,333 tokens without a stream, at the
    default timeouts; the API takes them. Nor does it send a lone surrogate, which JSON has."""
    prompt = Prompt("claude-haiku-4-5", (Message("user", "ping \ud800"),), max_tokens=64_000)
    assert Anthropic(Timeouts()).complete(prompt).text == "pong"
    assert provider.calls[0].body["max_tokens"] == 64_000
