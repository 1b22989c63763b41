"""Where a vendor's SDK finds nothing it is told what there is, in words that it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker
from tests.chatapp.served import serving

MESSAGES: Any = [{"role": "user", "content": "ping"}]


@pytest.fixture
def url(make_app: AppMaker) -> Iterator[str]:
    """The address of a server that is offline."""
    with serving(make_app()) as url:
        yield url


def complete(sdk: openai.OpenAI) -> object:
    return sdk.chat.completions.create(model="offline", messages=MESSAGES)


def say(sdk: anthropic.Anthropic) -> object:
    return sdk.messages.create(model="offline", max_tokens=9, messages=MESSAGES)


def count(sdk: anthropic.Anthropic) -> object:
    return sdk.messages.count_tokens(model="offline", messages=MESSAGES)


OPENAIS: dict[str, tuple[str, Callable[[openai.OpenAI], object], str]] = {
    "no /v1": ("", complete, "base_url of OpenAI's SDK must end in /v1"),
    "no /v1, for the models": ("", lambda sdk: sdk.models.list(), "must end in /v1"),
    "/v1 twice": ("/v1/v1", complete, "base_url must end in a single /v1"),
    "another beginning": ("/api", complete, "must end in /v1"),
    "responses": (
        "/v1",
        lambda sdk: sdk.responses.create(model="offline", input="ping"),
        "nothing at POST /v1/responses.",
    ),
    "responses, no /v1": (
        "",
        lambda sdk: sdk.responses.create(model="offline", input="ping"),
        "must end in /v1",
    ),
    "embeddings": (
        "/v1",
        lambda sdk: sdk.embeddings.create(model="offline", input="ping"),
        "nothing at POST /v1/embeddings.",
    ),
}
ANTHROPICS: dict[str, tuple[str, Callable[[anthropic.Anthropic], object], str]] = {
    "/v1": ("/v1", say, "base_url must not end in /v1"),
    "/v1, for the models": ("/v1", lambda sdk: sdk.models.list(), "must not end in /v1"),
    "another beginning": ("/api", say, "begins with /v1"),
    "count_tokens, /v1": ("/v1", count, "base_url must not end in /v1"),
    "batches": ("", lambda sdk: sdk.messages.batches.list(), "at GET /v1/messages/batches."),
    "files": ("", lambda sdk: sdk.beta.files.list(), "nothing at GET /v1/files."),
}


@pytest.mark.parametrize("name", OPENAIS)
def test_openais_sdk_shows_what_there_is(url: str, name: str) -> None:
    """As an error of that protocol: what is wrong with base_url, and which endpoints there are."""
    base, call, says = OPENAIS[name]
    with (
        openai.OpenAI(base_url=f"{url}{base}", api_key="mine") as sdk,
        pytest.raises(openai.NotFoundError) as missing,
    ):
        call(sdk)
    assert says in str(missing.value)
    assert "POST /v1/chat/completions, GET /v1/models" in str(missing.value)
    assert missing.value.code == "not_found"
    assert missing.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", ANTHROPICS)
def test_anthropics_sdk_shows_what_there_is(url: str, name: str) -> None:
    """The same in the other's shape."""
    base, call, says = ANTHROPICS[name]
    with (
        anthropic.Anthropic(base_url=f"{url}{base}", api_key="mine") as sdk,
        pytest.raises(anthropic.NotFoundError) as missing,
    ):
        call(sdk)
    assert says in str(missing.value)
    assert "POST /v1/messages, POST /v1/messages/count_tokens, GET /v1/models" in str(missing.value)
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id


@pytest.mark.parametrize(
    ("method", "path", "status", "vendor"),
    [
        ("POST", "/messages", 404, "anthropic"),
        ("GET", "/messages", 404, "anthropic"),
        ("GET", "/v1/messages", 405, "anthropic"),
        ("POST", "/chat/completions", 404, "openai"),
        ("GET", "/models", 404, "openai"),
        ("GET", "/v1", 404, "openai"),
        ("GET", "/v1/chat/completions", 405, "openai"),
        ("GET", "/v1/%ff%00", 404, "openai"),
        ("GET", "/chat", 405, None),
        ("POST", "/chats", 404, None),
        ("GET", "/messages.txt", 404, None),
    ],
)
def test_without_an_sdk_the_address_tells_the_protocol(
    client: FlaskClient, method: str, path: str, status: int, vendor: str | None
) -> None:
    """Where it tells none, the answer has chatapp's own shape."""
    response = client.open(path, method=method)
    assert (response.status_code, response.content_type) == (status, "application/json")
    body = response.json
    assert body is not None
    error = body["error"]
    assert isinstance(error, str) == (vendor is None)
    assert ("request_id" in body) == (vendor == "anthropic")


def test_a_long_address_is_not_told_back(client: FlaskClient) -> None:
    """An error is a sentence, whatever was asked for."""
    told = client.get(f"/v1/{'x' * 3000}").json
    assert told is not None
    assert len(told["error"]["message"]) < 400


def test_a_405_says_what_to_send(client: FlaskClient) -> None:
    """In every shape."""
    told = [client.get(path).json for path in ("/chat", "/v1/messages", "/v1/chat/completions")]
    assert told[0] is not None
    assert told[0]["error"] == "GET is not for this address; send POST."
    for body in told[1:]:
        assert body is not None
        assert body["error"]["message"] == "GET is not for this address; send POST."


@pytest.mark.parametrize(
    ("path", "headers", "kind"),
    [
        ("/v1/embeddings", {}, ("requests", "rate_limit_exceeded")),
        ("/v1/nowhere", {"anthropic-version": "2023-06-01"}, ("rate_limit_error",)),
        ("/v1/messages/batches", {}, ("rate_limit_error",)),
        ("/nowhere", {}, ("rate_limited",)),
    ],
)
def test_a_429_has_the_shape_that_a_404_has(
    make_app: AppMaker, path: str, headers: dict[str, str], kind: tuple[str, ...]
) -> None:
    """An SDK reads it, and obeys its Retry-After."""
    client = make_app().test_client()
    answers = [client.post(path, headers=headers) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [404] * 20 + [429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    told: Any = answers[-1].json
    words = told if isinstance(told["error"], str) else told["error"]
    assert {*kind} <= {*map(str, words.values())}
