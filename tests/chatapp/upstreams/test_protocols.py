"""The providers' real SDKs against a local server with their APIs, through POST /chat."""

from importlib import import_module
from typing import Any, Final

import httpx2
import pytest
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.catalogue import Model
from chatapp.catalogue.usage import Usage
from chatapp.upstreams import Message, RawRequest, Timeouts, Turn
from tests.chatapp.conftest import AppMaker, json_of, upstream
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    Answer,
    UpstreamServer,
    anthropic_body,
    openai_body,
)

OPENAI, ANTHROPIC = "gpt-5.4-mini", "claude-haiku-4-5"
CLAUDE: Final = Model(ANTHROPIC, ANTHROPIC, "anthropic")
MESSAGES: Final = [{"role": "user", "content": "ping"}]
OPENAI_USAGE: Final = {
    "input_tokens": 12,
    "cached_input_tokens": 8,
    "cache_write_tokens": 0,
    "output_tokens": 5,
    "reasoning_tokens": 2,
}
#: Tokens read from and written to the cache are part of the input, as with OpenAI.
ANTHROPIC_USAGE: Final = {
    "input_tokens": 23,
    "cached_input_tokens": 8,
    "cache_write_tokens": 3,
    "output_tokens": 5,
    "reasoning_tokens": 0,
}


@pytest.mark.parametrize(
    ("model", "path", "key", "bound", "usage"),
    [
        (OPENAI, OPENAI_PATH, "sk-openai-test", "max_completion_tokens", OPENAI_USAGE),
        (ANTHROPIC, ANTHROPIC_PATH, "sk-ant-test", "max_tokens", ANTHROPIC_USAGE),
    ],
)
def test_an_answer_has_its_text_and_usage(
    *,
    online: FlaskClient,
    provider: UpstreamServer,
    model: str,
    path: str,
    key: str,
    bound: str,
    usage: dict[str, int],
) -> None:
    """Every kind of token is reported. The call had the server's key, the model and the bound."""
    response = online.post("/chat", json={"message": "ping", "model": model})
    assert response.status_code == 200, response.text
    cost_usd = catalogue.load().price(model, Usage(**usage)) / 1e6
    assert response.json == {"reply": "pong", "model": model, "usage": usage, "cost_usd": cost_usd}
    [call] = provider.calls
    assert call.path == path
    # Anthropic's SDK decides whether it is X-Api-Key or a bearer token.
    assert any(key in value for value in call.headers.values())
    assert call.body == {"model": model, bound: 2048, "messages": MESSAGES}


@pytest.mark.parametrize(
    ("name", "path", "query"),
    [("OpenAI", "/chat/completions", {}), ("Anthropic", "/v1/messages", {"beta": "true"})],
)
def test_requests_are_those_of_the_sdk(
    provider: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    path: str,
    query: dict[str, str],
) -> None:
    """They do not pass through the SDK, and yet have its address, its headers and its settings from
    the environment, each time."""
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: a")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Team: a")
    own = RawRequest(raw=b'{"n": 1}', fields={}, headers={"X-Beta": "b"}, query=query)
    plain = RawRequest(raw=b'{"n": 22}', fields={})
    forwarder = upstream(name.lower())
    client = getattr(import_module(name.lower()), name)  # takes seconds, which collection does not
    for request in (own, plain):
        forwarder.forward(request)
        options: Any = {
            "headers": dict(request.headers),
            "params": dict(request.query),
            "timeout": httpx2.Timeout(Timeouts().read_s),
        }
        with client() as sdk:
            sdk.post(path, cast_to=httpx2.Response, content=request.raw, options=options)
    assert len(provider.calls) == 4
    for ours, theirs in (provider.calls[:2], provider.calls[2:]):
        assert ours == theirs
        assert ours.headers["x-team"] == "a"


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gpt-4o-2024-08-06", OPENAI_PATH),
        ("chatgpt-4o-latest", OPENAI_PATH),
        ("o3", OPENAI_PATH),
        ("o4-mini", OPENAI_PATH),
        ("gpt-99", OPENAI_PATH),
        ("claude-haiku-4-5-20251001", ANTHROPIC_PATH),
        ("claude-3-5-haiku-latest", ANTHROPIC_PATH),
        ("claude-99", ANTHROPIC_PATH),
    ],
)
def test_the_name_of_a_model_chooses_its_provider(
    online: FlaskClient, provider: UpstreamServer, model: str, path: str
) -> None:
    """Listed or not, the name is sent unchanged."""
    assert online.post("/chat", json={"message": "ping", "model": model}).status_code == 200
    assert provider.calls[0].path == path
    assert provider.calls[0].body["model"] == model


@pytest.mark.parametrize(
    ("without", "model"),
    [("ANTHROPIC_API_KEY", "gpt-5.6-luna"), ("OPENAI_API_KEY", "claude-haiku-4-5")],
)
def test_one_key_is_enough_for_a_default_model(
    provider: UpstreamServer,
    make_app: AppMaker,
    monkeypatch: pytest.MonkeyPatch,
    without: str,
    model: str,
) -> None:
    """A request needs no model."""
    monkeypatch.delenv(without)
    response = make_app().test_client().post("/chat", json={"message": "ping"})
    assert json_of(response)["model"] == model


# -- OpenAI ------------------------------------------------------------------------------------


def test_the_default_model_is_openais(online: FlaskClient) -> None:
    """If both keys are set."""
    response = online.post("/chat", json={"message": "ping"})
    assert json_of(response)["model"] == "gpt-5.6-luna"


def test_a_refusal_is_shown_as_text(online: FlaskClient, provider: UpstreamServer) -> None:
    """OpenAI has a separate field for it."""
    body = openai_body(text=None)
    body["choices"][0]["message"]["refusal"] = "I would rather not."  # type: ignore[index]
    provider.script(Answer(200, body))
    response = online.post("/chat", json={"message": "ping", "model": OPENAI})
    assert json_of(response)["reply"] == "I would rather not."


# -- Anthropic ---------------------------------------------------------------------------------


def test_only_text_is_shown(online: FlaskClient, provider: UpstreamServer) -> None:
    """The reply has all texts, without thinking and tools."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "po"},
        {"type": "text", "text": "ng"},
    ]
    provider.script(Answer(200, anthropic_body() | {"content": blocks}))
    response = online.post("/chat", json={"message": "ping", "model": ANTHROPIC})
    assert json_of(response)["reply"] == "pong"


def test_system_messages_are_not_in_the_conversation(provider: UpstreamServer) -> None:
    """A system message is sent in a separate field."""
    turn = Turn("ping", CLAUDE, (Message("system", "Be brief."),))
    assert upstream("anthropic").complete(turn, 9).finish_reason == "stop"
    assert provider.calls[0].body["system"] == "Be brief."
    assert provider.calls[0].body["messages"] == MESSAGES


def test_a_plain_answer_may_be_long(provider: UpstreamServer) -> None:
    """The SDK's own method refuses bounds above 21,333 tokens without a stream, at the default
    timeouts, and cannot send a lone surrogate, which JSON may contain. The API takes both."""
    turn = Turn("ping \ud800", CLAUDE)
    assert upstream("anthropic").complete(turn, 64_000).text == "pong"
    assert provider.calls[0].body["max_tokens"] == 64_000
