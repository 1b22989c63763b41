"""A provider's client that calls an unknown address gets the known ones, in its wire format."""

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker, json_of
from tests.served import serving

MESSAGES: Any = [{"role": "user", "content": "ping"}]


@pytest.fixture
def url(make_app: AppMaker) -> Iterator[str]:
    """The address of a server without providers."""
    with serving(make_app()) as url:
        yield url


def complete(sdk: openai.OpenAI) -> object:
    return sdk.chat.completions.create(model="offline", messages=MESSAGES)


def say(sdk: anthropic.Anthropic) -> object:
    return sdk.messages.create(model="offline", max_tokens=9, messages=MESSAGES)


def count(sdk: anthropic.Anthropic) -> object:
    return sdk.messages.count_tokens(model="offline", messages=MESSAGES)


def respond(sdk: openai.OpenAI) -> object:
    return sdk.responses.create(model="offline", input="ping")


SPEECH = {"input": "a", "model": "tts-1", "voice": "alloy"}
PROMPT = {"model": "gpt-4o", "prompt": "a"}
OPENAI = (
    openai.OpenAI,
    "invalid_request_error",
    "POST /v1/embeddings, POST /v1/responses/input_tokens, GET /v1/models",
)
ANTHROPIC = (
    anthropic.Anthropic,
    "not_found_error",
    "POST /v1/messages, POST /v1/messages/count_tokens, GET /v1/models",
)
#: The SDK, its type of error and the known addresses; the base URL, the call and the hint.
CASES: dict[str, tuple[Any, str, Callable[[Any], object], str]] = {
    "no /v1": (OPENAI, "", complete, "base_url of OpenAI's SDK must end in /v1"),
    "no /v1, for the models": (OPENAI, "", lambda sdk: sdk.models.list(), "must end in /v1"),
    "/v1 twice": (OPENAI, "/v1/v1", complete, "base_url must end in a single /v1"),
    "another beginning": (OPENAI, "/api", complete, "must end in /v1"),
    "responses, no /v1": (OPENAI, "", respond, "must end in /v1"),
    "messages, /v1": (ANTHROPIC, "/v1", say, "base_url must not end in /v1"),
    "models, /v1": (ANTHROPIC, "/v1", lambda sdk: sdk.models.list(), "must not end in /v1"),
    "messages, another beginning": (ANTHROPIC, "/api", say, "begins with /v1"),
    "count_tokens, /v1": (ANTHROPIC, "/v1", count, "base_url must not end in /v1"),
}
#: What this server does not have, and the SDK's call of it, at the right base URL.
UNSUPPORTED: dict[str, tuple[Any, str, Callable[[Any], object]]] = {
    "moderations": (
        OPENAI,
        "POST /v1/moderations",
        lambda sdk: sdk.moderations.create(input="ping"),
    ),
    "openai's batches": (OPENAI, "GET /v1/batches", lambda sdk: sdk.batches.list()),
    "openai's files": (OPENAI, "GET /v1/files", lambda sdk: sdk.files.list()),
    "images": (
        OPENAI,
        "POST /v1/images/generations",
        lambda sdk: sdk.images.generate(prompt="cat"),
    ),
    "speech": (OPENAI, "POST /v1/audio/speech", lambda sdk: sdk.audio.speech.create(**SPEECH)),
    "completions": (OPENAI, "POST /v1/completions", lambda sdk: sdk.completions.create(**PROMPT)),
    "batches": (ANTHROPIC, "GET /v1/messages/batches", lambda sdk: sdk.messages.batches.list()),
    "files": (ANTHROPIC, "GET /v1/files", lambda sdk: sdk.beta.files.list()),
}
CASES |= {
    name: (sdk, "/v1" if sdk is OPENAI else "", call, f"{address} is not supported here.")
    for name, (sdk, address, call) in UNSUPPORTED.items()
}


@pytest.mark.parametrize("name", CASES)
def test_an_sdk_shows_the_mistake_and_the_known_addresses(url: str, name: str) -> None:
    """As an error of its own type."""
    (sdk_of, kind, known), base, call, hint = CASES[name]
    with (
        sdk_of(base_url=f"{url}{base}", api_key="mine") as sdk,
        pytest.raises((openai.NotFoundError, anthropic.NotFoundError)) as missing,
    ):
        call(sdk)
    assert hint in str(missing.value)
    assert known in str(missing.value)
    assert missing.value.type == kind
    if isinstance(missing.value, openai.NotFoundError):
        assert missing.value.code == "not_found"
    else:
        assert missing.value.request_id


@pytest.mark.parametrize(
    ("method", "path", "status", "protocol"),
    [
        ("POST", "/messages", 404, "anthropic"),
        ("GET", "/messages", 404, "anthropic"),
        ("GET", "/v1/messages", 405, "anthropic"),
        ("GET", "/v1/messages/count_tokens", 405, "anthropic"),
        ("POST", "/v1/messages/batches", 404, "anthropic"),
        ("POST", "/chat/completions", 404, "openai"),
        ("GET", "/models", 404, "openai"),
        ("GET", "/v1", 404, "openai"),
        ("GET", "/v1/chat/completions", 405, "openai"),
        ("POST", "/v1/models", 405, "openai"),
        ("GET", "/v1/embeddings", 405, "openai"),
        ("POST", "/v1/fine_tuning/jobs", 404, "openai"),
        ("GET", "/v1/%ff%00", 404, "openai"),
        ("GET", "/chat", 405, None),
        ("POST", "/chats", 404, None),
        ("GET", "/messages.txt", 404, None),
    ],
)
def test_the_address_shows_the_protocol_of_a_client_without_headers(
    client: FlaskClient, method: str, path: str, status: int, protocol: str | None
) -> None:
    """The answer has chatapp's own format if it shows none."""
    response = client.open(path, method=method)
    assert (response.status_code, response.content_type) == (status, "application/json")
    body = json_of(response)
    error = body["error"]
    assert isinstance(error, str) == (protocol is None)
    if protocol is not None:
        is_missing = protocol == "anthropic" and status == 404
        assert error["type"] == ("not_found_error" if is_missing else "invalid_request_error")
    assert ("request_id" in body) == (protocol == "anthropic")


def test_a_long_address_is_cut(client: FlaskClient) -> None:
    """The message stays short, whatever the client requested."""
    body = json_of(client.get(f"/v1/{'x' * 3000}"))
    assert len(body["error"]["message"]) < 450


@pytest.mark.parametrize("path", ["/chat", "/v1/messages", "/v1/chat/completions"])
def test_a_405_names_the_allowed_method(client: FlaskClient, path: str) -> None:
    """In every format."""
    response = client.get(path)
    assert "Use POST." in response.text
    assert "POST" in response.headers["Allow"]


@pytest.mark.usefixtures("stopped_clock")
@pytest.mark.parametrize(
    ("path", "headers", "kind"),
    [
        ("/v1/moderations", {}, ("requests", "rate_limit_exceeded")),
        ("/v1/nowhere", {"anthropic-version": "2023-06-01"}, ("rate_limit_error",)),
        ("/v1/messages/batches", {}, ("rate_limit_error",)),
        ("/nowhere", {}, ("rate_limited",)),
    ],
)
def test_a_429_has_the_format_of_the_404(
    make_app: AppMaker, path: str, headers: dict[str, str], kind: tuple[str, ...]
) -> None:
    """An SDK can read it, and obeys its Retry-After."""
    client = make_app().test_client()
    answers = [client.post(path, headers=headers) for _ in range(21)]
    assert [answer.status_code for answer in answers] == [404] * 20 + [429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    body: Any = answers[-1].json
    words = body if isinstance(body["error"], str) else body["error"]
    assert {*kind} <= {*map(str, words.values())}
