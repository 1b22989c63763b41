"""OpenAI's real SDK against a local server that speaks OpenAI's protocol, through POST /chat."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker
from tests.chatapp.provider_server import (
    OPENAI_PATH,
    Answer,
    ProviderServer,
    openai_body,
    openai_error,
)

ASKED = {"message": "ping", "model": "gpt-5.4-mini"}


def test_an_answer_comes_back_with_its_usage(online: FlaskClient, provider: ProviderServer) -> None:
    """Text, model and every kind of token; the call carried our key, model and bound."""
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
    """Its families are its own, listed or not, and the name goes there as it was given."""
    assert online.post("/chat", json={"message": "ping", "model": model}).status_code == 200
    assert provider.calls[0].path == OPENAI_PATH
    assert provider.calls[0].body["model"] == model


def test_with_a_key_a_cheap_model_is_the_default(
    online: FlaskClient, provider: ProviderServer
) -> None:
    """Who names no model and has a key talks to a model."""
    response = online.post("/chat", json={"message": "ping"})
    assert response.json is not None
    assert response.json["model"] == "gpt-5.6-luna"


def test_a_refusal_is_shown_as_text(online: FlaskClient, provider: ProviderServer) -> None:
    """A model that declines says so in another field; the caller sees it all the same."""
    body = openai_body(text=None)
    body["choices"][0]["message"]["refusal"] = "I would rather not."  # type: ignore[index]
    provider.script(Answer(200, body))
    response = online.post("/chat", json=ASKED)
    assert response.json is not None
    assert response.json["reply"] == "I would rather not."


ERRORS = {
    "rate limit with a wait": (
        openai_error(429, code="rate_limit_exceeded", headers={"Retry-After": "7"}),
        *(503, "server_is_overloaded", "7"),
    ),
    "rate limit with an exact wait": (
        openai_error(
            429,
            code="rate_limit_exceeded",
            headers={"retry-after-ms": "1200", "Retry-After": "2"},
        ),
        *(503, "server_is_overloaded", "2"),
    ),
    "rate limit without a wait": (
        openai_error(429, code="rate_limit_exceeded"),
        *(503, "server_is_overloaded", "1"),
    ),
    "overloaded": (
        openai_error(503, code="server_is_overloaded"),
        *(503, "server_is_overloaded", "1"),
    ),
    "no credit": (openai_error(429, code="insufficient_quota"), 502, "provider_refused", None),
    "a wrong key": (
        openai_error(401, code="invalid_api_key", message="Incorrect API key: sk-openai-test"),
        *(502, "provider_refused", None),
    ),
    "a forbidden country": (openai_error(403, code="forbidden"), 502, "provider_refused", None),
    "no such model": (openai_error(404, code="model_not_found"), 422, "unknown_model", None),
    "too long": (openai_error(400, code="context_length"), 502, "provider_rejected", None),
    "broken": (openai_error(500, code="server_error"), 502, "provider_unavailable", None),
    "broken in HTML": (
        Answer(502, b"<h1>Bad gateway</h1>", {"Content-Type": "text/html"}),
        *(502, "provider_unavailable", None),
    ),
    "not JSON": (Answer(200, b'{"id": '), 502, "provider_unavailable", None),
    "a page": (
        Answer(200, b"<h1>Log in</h1>", {"Content-Type": "text/html"}),
        *(502, "provider_unavailable", None),
    ),
    "a list": (Answer(200, b"[]"), 502, "provider_unavailable", None),
    "empty": (Answer(200, b""), 502, "provider_unavailable", None),
    "no choices": (
        Answer(200, openai_body() | {"choices": []}),
        *(502, "provider_unavailable", None),
    ),
    "choices of a wrong type": (
        Answer(200, openai_body() | {"choices": "pong"}),
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
    assert "openai" in response.json["error"]
    assert "sk-" not in response.text
    assert len(provider.calls) == 1


def test_a_wait_that_no_client_should_sit_out_says_so(
    online: FlaskClient, provider: ProviderServer
) -> None:
    """Beyond a minute SDKs sleep for days or hammer: they are told not to retry."""
    provider.script(openai_error(429, code="slow_down", headers={"Retry-After": "3600"}))
    response = online.post("/chat", json=ASKED)
    assert response.headers["Retry-After"] == "3600"
    assert response.headers["x-should-retry"] == "false"


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
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-test")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    response = make_app().test_client().post("/chat", json=ASKED)
    assert response.status_code == 502
    assert response.json is not None
    assert response.json["code"] == "provider_unavailable"
