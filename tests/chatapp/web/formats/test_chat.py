"""POST /chat with "stream": true, from every provider."""

import json

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from tests.chatapp.conftest import json_of
from tests.chatapp.upstream_server import (
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    anthropic_error,
    anthropic_events,
    event,
    named,
    openai_chunks,
    openai_error,
)

OPENAI, ANTHROPIC = "gpt-5.4-mini", "claude-haiku-4-5"


def ask(client: FlaskClient, model: str) -> TestResponse:
    return client.post("/chat", json={"message": "ping", "model": model, "stream": True})


def events(response: TestResponse) -> list[tuple[str, dict[str, object]]]:
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    pairs = [block.split("\n") for block in blocks]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]


@pytest.mark.parametrize(
    ("model", "written"), [(OPENAI, {"input": 12, "cached": 8}), (ANTHROPIC, {"input": 23})]
)
def test_text_comes_in_deltas_and_ends_with_its_usage(
    online: FlaskClient, provider: UpstreamServer, model: str, written: dict[str, int]
) -> None:
    """The parts are the provider's, and `done` has what the whole answer would have had."""
    response = ask(online, model)
    assert response.status_code == 200
    assert response.mimetype == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"
    *deltas, (last, done) = events(response)
    assert deltas == [("delta", {"text": "po"}), ("delta", {"text": "ng"})]
    assert last == "done"
    assert (done["model"], done["finish_reason"]) == (model, "stop")
    usage = done["usage"]
    assert isinstance(usage, dict)
    assert (usage["input_tokens"], usage["output_tokens"]) == (written["input"], 5)
    assert usage["cached_input_tokens"] == 8
    assert done["cost_usd"] == catalogue.load().price(model, Usage(**usage)) / 1e6 > 0


def test_the_offline_answer_is_streamed(client: FlaskClient) -> None:
    """Word by word; together the same answer."""
    whole = json_of(client.post("/chat", json={"message": "ping"}))
    *deltas, (_, done) = events(ask(client, "offline"))
    assert "".join(str(data["text"]) for _, data in deltas) == whole["reply"]
    assert whole["reply"].startswith("I am offline")
    assert done["finish_reason"] == "stop"


def test_the_usage_of_a_stream_is_requested(online: FlaskClient, provider: UpstreamServer) -> None:
    """OpenAI reports it only on request."""
    ask(online, OPENAI)
    [call] = provider.calls
    assert call.body["stream"] is True
    assert call.body["stream_options"] == {"include_usage": True}
    assert call.body["max_completion_tokens"] == 2048


@pytest.mark.parametrize(
    ("model", "answer", "status"),
    [
        (OPENAI, openai_error(429, code="rate_limit_exceeded"), 503),
        (ANTHROPIC, anthropic_error(529, kind="overloaded_error"), 503),
        (OPENAI, Answer(200, {"no": "stream"}), 502),
    ],
)
def test_an_error_before_the_stream_is_an_ordinary_error(
    online: FlaskClient, provider: UpstreamServer, model: str, answer: Answer, status: int
) -> None:
    """With a status and a JSON body, as without "stream"."""
    provider.script(answer)
    response = ask(online, model)
    assert response.status_code == status
    assert set(json_of(response)) >= {"error", "code"}


OVERLOADED = named("error", error={"type": "overloaded_error", "message": "sk-ant-test"})
BROKEN = {
    "openai cut": (OPENAI, [*openai_chunks()[:2], Cut()], "provider_unavailable"),
    "openai without an end": (OPENAI, openai_chunks()[:3], "provider_unavailable"),
    "openai done and not finished": (
        OPENAI,
        [*openai_chunks()[:2], b"data: [DONE]\n\n"],
        "provider_unavailable",
    ),
    "openai error": (
        OPENAI,
        [*openai_chunks()[:2], event({"error": {"message": "sk-x", "code": "server_error"}})],
        "provider_unavailable",
    ),
    "openai garbage": (OPENAI, [*openai_chunks()[:2], b"data: {\n\n"], "provider_unavailable"),
    "anthropic cut": (ANTHROPIC, [*anthropic_events()[:4], Cut()], "provider_unavailable"),
    "anthropic without an end": (ANTHROPIC, anthropic_events()[:4], "provider_unavailable"),
    "anthropic overloaded": (
        ANTHROPIC,
        [*anthropic_events()[:4], OVERLOADED],
        "server_is_overloaded",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_breaks_off_ends_with_an_error(
    online: FlaskClient, provider: UpstreamServer, name: str
) -> None:
    """The client gets what was received, and the last event reports the error in the server's
    words."""
    model, pieces, code = BROKEN[name]
    provider.script(Stream(pieces))
    response = ask(online, model)
    assert response.status_code == 200
    *deltas, (last, error) = events(response)
    assert deltas == [("delta", {"text": "po"})] or name == "openai without an end"
    assert last == "error"
    assert error["code"] == code
    assert isinstance(error["cost_usd"], float)
    assert error["cost_usd"] > 0, "what was received is charged"
    assert "sk-" not in response.text


def test_stream_is_true_or_false(client: FlaskClient) -> None:
    """Other values are refused, not interpreted."""
    response = client.post("/chat", json={"message": "hi", "stream": "yes"})
    assert response.status_code == 422
    assert json_of(response)["code"] == "invalid_stream"
