"""OpenAI's real SDK against a local server with OpenAI's API, through POST /chat."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.chatapp.provider_server import (
    OPENAI_PATH,
    Answer,
    ProviderServer,
    openai_body,
)

ASKED = {"message": "ping", "model": "gpt-5.4-mini"}


def test_an_answer_comes_back_with_its_usage(online: FlaskClient, provider: ProviderServer) -> None:
    """Text, model and every kind of token; the call had our key, the model and the limit."""
    response = online.post("/chat", json=ASKED)
    assert response.status_code == 200, response.text
    assert response.json == {
        "reply": "pong",
        "model": "gpt-5.4-mini",
        "usage": {
            "input_tokens": 12,
            "cached_input_tokens": 8,
            "cache_write_tokens": 0,
            "output_tokens": 5,
            "reasoning_tokens": 2,
        },
    }
    [call] = provider.calls
    assert call.path == OPENAI_PATH
    assert call.headers["authorization"] == "Bearer sk-openai-test"
    assert call.body["model"] == "gpt-5.4-mini"
    assert call.body["messages"] == [{"role": "user", "content": "ping"}]
    assert call.body["max_completion_tokens"] == 2048


@pytest.mark.parametrize(
    "model", ["gpt-4o-2024-08-06", "chatgpt-4o-latest", "o3", "o4-mini", "gpt-99"]
)
def test_the_name_chooses_openai(online: FlaskClient, provider: ProviderServer, model: str) -> None:
    """A name of its families belongs to it, listed or not, and is sent unchanged."""
    assert online.post("/chat", json={"message": "ping", "model": model}).status_code == 200
    assert provider.calls[0].path == OPENAI_PATH
    assert provider.calls[0].body["model"] == model


def test_with_a_key_a_cheap_model_is_the_default(
    online: FlaskClient, provider: ProviderServer
) -> None:
    """A server with a key answers a request without a model by a model."""
    response = online.post("/chat", json={"message": "ping"})
    assert response.json is not None
    assert response.json["model"] == "gpt-5.6-luna"


def test_a_refusal_is_shown_as_text(online: FlaskClient, provider: ProviderServer) -> None:
    """A model declines in another field, and the client sees its text too."""
    body = openai_body(text=None)
    body["choices"][0]["message"]["refusal"] = "I would rather not."  # type: ignore[index]
    provider.script(Answer(200, body))
    response = online.post("/chat", json=ASKED)
    assert response.json is not None
    assert response.json["reply"] == "I would rather not."
