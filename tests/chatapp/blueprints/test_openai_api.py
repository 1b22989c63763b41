"""POST /v1/chat/completions and GET /v1/models: requests are forwarded unchanged, and errors have
OpenAI's format."""

import json

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp.web.formats.openai import duration
from tests.chatapp.conftest import NO_LIMITS, AppMaker, json_of
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    OPENAI_PATH,
    RESPONSES_PATH,
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    Wait,
    openai_body,
    openai_chunks,
)

MODEL = "gpt-5.4-mini"
MESSAGES = [{"role": "user", "content": "ping"}]


def ask(client: FlaskClient, **fields: object) -> TestResponse:
    return client.post(OPENAI_PATH, json={"model": MODEL, "messages": MESSAGES, **fields})


def error_of(response: TestResponse) -> dict[str, object]:
    assert set(json_of(response)) == {"error"}
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    return dict(error)


def test_body_and_answer_are_forwarded_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """Tools, images and unknown fields reach the provider, and its JSON comes back unchanged. The
    key is the server's, and the headers of its quotas are not forwarded."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    sent = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "é"}, image]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "some_new_field": {"a": [1.0, 1e-7, None]},
        },
        indent=3,
    ).encode()
    answer = json.dumps(openai_body() | {"some_new_answer": [1.50]}, indent=2).encode()
    headers = {"x-request-id": "req-7", "x-ratelimit-remaining-requests": "59999"}
    provider.script(Answer(200, answer, headers))
    response = online.post(
        OPENAI_PATH,
        data=sent,
        content_type="application/json",
        headers={"Authorization": "Bearer mine"},
    )
    assert response.status_code == 200, response.text
    assert response.data == answer
    assert response.headers["x-request-id"] == "req-7"
    assert response.headers["x-ratelimit-remaining-requests"] != "59999"
    [call] = provider.calls
    assert call.raw == sent
    assert call.headers["authorization"] == "Bearer sk-openai-test"


def test_a_stream_comes_back_byte_for_byte(online: FlaskClient, provider: UpstreamServer) -> None:
    """With its usage if the client requested that."""
    response = ask(online, stream=True, stream_options={"include_usage": True})
    assert response.data == b"".join(openai_chunks())
    assert response.mimetype == "text/event-stream"
    assert response.headers["X-Accel-Buffering"] == "no"


def test_unrequested_usage_is_hidden(online: FlaskClient, provider: UpstreamServer) -> None:
    """The server requests it, but a client that reads `choices[0]` of every chunk would fail on
    it."""
    response = ask(online, stream=True)
    assert provider.calls[0].body["stream_options"] == {"include_usage": True}
    chunks = openai_chunks()
    assert response.data == b"".join(chunks[:4] + chunks[5:])


def test_a_stream_that_breaks_off_ends_with_an_error(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """The SDK raises. Without an error it would take the partial answer for a whole one."""
    provider.script(Stream([*openai_chunks()[:3], Cut()]))
    *_, last, empty = ask(online, stream=True).data.split(b"\n\n")
    assert empty == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "provider_unavailable"


def test_the_offline_model_answers_in_the_same_format(client: FlaskClient) -> None:
    """A client can be tried without a key."""
    whole = ask(client, model="offline").json
    assert whole is not None
    assert whole["object"] == "chat.completion"
    assert "ping" in whole["choices"][0]["message"]["content"]
    streamed = ask(client, model="offline", stream=True, stream_options={"include_usage": True})
    *chunks, usage, done, _ = streamed.data.split(b"\n\n")
    texts = [json.loads(c.removeprefix(b"data: "))["choices"][0]["delta"] for c in chunks]
    assert "".join(t.get("content", "") for t in texts) == whole["choices"][0]["message"]["content"]
    assert json.loads(usage.removeprefix(b"data: "))["usage"] == whole["usage"]
    assert done == b"data: [DONE]"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": "a"', b'{"a":1,"a":2}', b"\xff"])
def test_a_body_without_an_object_is_refused(client: FlaskClient, body: bytes) -> None:
    """400 in OpenAI's format."""
    response = client.post(OPENAI_PATH, data=body, content_type="application/json")
    assert response.status_code == 400
    error_of(response)


def test_a_number_that_python_cannot_write_is_refused(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """1e999 is JSON, but cannot be written again when stream options are added."""
    raw = json.dumps({"model": MODEL, "messages": MESSAGES, "stream": True})[:-1] + ', "x": 1e999}'
    response = online.post(OPENAI_PATH, data=raw, content_type="application/json")
    assert response.status_code == 400
    error_of(response)


def test_a_denial_has_openais_format(client: FlaskClient) -> None:
    """Status, body and headers are OpenAI's, besides the server's own headers."""
    for _ in range(10):
        allowed = ask(client, model="offline")
        assert allowed.status_code == 200
    assert allowed.headers["x-ratelimit-limit-requests"] == "10"
    assert allowed.headers["x-ratelimit-remaining-requests"] == "0"
    denied = ask(client, model="offline")
    assert denied.status_code == 429
    error = error_of(denied)
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert denied.headers["x-ratelimit-remaining-requests"] == "0"
    assert denied.headers["x-ratelimit-reset-requests"].endswith("s")
    assert denied.headers["Retry-After"] == "2"
    assert "x-should-retry" not in denied.headers


def test_calls_in_flight_are_reported_as_requests(
    make_app: AppMaker, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's errors know requests and tokens only."""
    monkeypatch.setattr("chatapp.calls.upstream_call.LEFT_S", 0.0)
    client = make_app().test_client()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "ping"}], "stream": True}
    provider.script(*[Stream([*openai_chunks()[:2], Wait()])] * 4)
    streams = [client.post("/v1/chat/completions", json=body) for _ in range(4)]
    denied = client.post("/v1/chat/completions", json=body)
    assert denied.status_code == 429
    assert "4 calls at once" in str(error_of(denied)["message"])
    assert error_of(denied)["type"] == "requests"
    provider.go_on()  # each would be read on for its bill, as long as the provider may be silent
    for stream in streams:
        stream.close()


def test_all_protocols_share_one_limit(client: FlaskClient) -> None:
    """Ten calls pass at once, in any protocol. No address has another wait, and new names in a body
    get no new limits."""
    bodies: dict[str, dict[str, object]] = {
        "/chat": {"message": "hi"},
        OPENAI_PATH: {"messages": MESSAGES, "user": "a new user"},
        RESPONSES_PATH: {"input": "ping", "user": "another user"},
        ANTHROPIC_PATH: {"max_tokens": 5, "messages": MESSAGES, "metadata": {"user_id": "a third"}},
    }

    def calls(times: int) -> list[TestResponse]:
        asked = [each for each in bodies.items() for _ in range(times)]
        return [client.post(path, json={"model": "offline", **body}) for path, body in asked]

    assert [answer.status_code for answer in calls(3)] == [200] * 10 + [429] * 2
    assert [(each.status_code, each.headers["Retry-After"]) for each in calls(1)] == [
        (429, "2")
    ] * 4


def test_a_used_up_day_stops_the_sdks_retries(make_app: AppMaker) -> None:
    """The message names the plan, and a header stops the SDK."""
    app = make_app(**NO_LIMITS, RATELIMIT_BLUEPRINTS={"openai_api": ["1/day"]})
    client = app.test_client()
    assert ask(client, model="offline").status_code == 200
    denied = ask(client, model="offline")
    assert denied.status_code == 429
    assert denied.headers["x-should-retry"] == "false"


#: What the list has of a model besides OpenAI's fields.
SIZES = (
    *("max_input_tokens", "max_tokens", "context_window", "max_completion_tokens"),
    "capabilities",
)


def test_the_models_are_those_that_can_be_called(online: FlaskClient, client: FlaskClient) -> None:
    """As a list and one by one, without the other provider's, at no cost to the plan."""
    listed = online.get("/v1/models")
    assert json_of(listed)["object"] == "list"
    names = {model["id"]: model["owned_by"] for model in listed.json["data"]}
    assert names["offline"] == "offline"
    assert names[MODEL] == "openai"
    assert not any(name.startswith("claude") for name in names)
    assert '"plan"' not in listed.headers["RateLimit"]
    found = online.get(f"/v1/models/{MODEL}").json
    standard = {"id": MODEL, "object": "model", "created": 0, "owned_by": "openai"}
    assert found is not None
    assert found.items() >= standard.items()
    assert found.keys() - standard.keys() == {*SIZES}
    missing = online.get("/v1/models/llama")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "model_not_found"


def test_calls_work_without_limits(make_app: AppMaker) -> None:
    """RATELIMIT_ENABLED=false switches off the limits only."""
    response = ask(make_app(RATELIMIT_ENABLED=False).test_client(), model="offline")
    assert response.status_code == 200
    assert "x-ratelimit-limit-requests" not in response.headers


@pytest.mark.parametrize(
    ("wait_us", "text"),
    [(0, "0s"), (1, "1ms"), (999_001, "1s"), (59_999_999, "1m0s"), (86_400_000_000, "24h0m0s")],
)
def test_durations_are_written_as_openai_does(wait_us: int, text: str) -> None:
    """Rounded up, in OpenAI's units."""
    assert duration(wait_us) == text
