"""POST /v1/messages: requests are forwarded unchanged, and errors have Anthropic's format."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp.web.formats.anthropic import UNIFIED
from tests.chatapp.conftest import AppMaker, json_of, policy_file
from tests.chatapp.upstream_server import (
    ANTHROPIC_PATH,
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    anthropic_body,
    anthropic_events,
    named,
)

MODEL = "claude-haiku-4-5"
MESSAGES = [{"role": "user", "content": "ping"}]


def ask(client: FlaskClient, **fields: object) -> TestResponse:
    body = {"model": MODEL, "max_tokens": 100, "messages": MESSAGES, **fields}
    return client.post(ANTHROPIC_PATH, json={k: v for k, v in body.items() if v != "absent"})


def error_of(response: TestResponse) -> dict[str, object]:
    body = response.json
    assert body is not None
    assert body["type"] == "error"
    assert body["request_id"]
    assert isinstance(body["error"]["message"], str)
    return dict(body["error"])


def test_body_and_answer_are_forwarded_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """So are the headers and the parameter that choose the protocol's version and betas."""
    sent = json.dumps(
        {
            "model": MODEL,
            "max_tokens": 100,
            "messages": MESSAGES,
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "metadata": {"user_id": "erin"},
            "some_new_field": [1.50],
        },
        indent=3,
    ).encode()
    answer = json.dumps(anthropic_body() | {"some_new_answer": None}, indent=2).encode()
    headers = {"request-id": "req_7", "anthropic-ratelimit-requests-remaining": "3999"}
    provider.script(Answer(200, answer, headers))
    response = online.post(
        f"{ANTHROPIC_PATH}?beta=true&other=1",
        data=sent,
        content_type="application/json",
        headers={
            "x-api-key": "mine",
            "anthropic-beta": "x-2026",
            "anthropic-version": "2023-06-01",
        },
    )
    assert response.status_code == 200, response.text
    assert response.data == answer
    assert response.headers["request-id"] == "req_7"
    assert response.headers["anthropic-ratelimit-requests-remaining"] == "9"
    [call] = provider.calls
    assert call.raw == sent
    assert call.path == f"{ANTHROPIC_PATH}?beta=true"
    assert call.headers["authorization"] == "Bearer sk-ant-test"
    assert "mine" not in str(call.headers)
    assert call.headers["anthropic-beta"] == "x-2026"


def test_a_stream_comes_back_byte_for_byte(online: FlaskClient, provider: UpstreamServer) -> None:
    """Including pings."""
    response = ask(online, stream=True)
    assert response.data == b"".join(anthropic_events())
    assert response.mimetype == "text/event-stream"


BREAKS = {
    "cut": (Cut(), "api_error"),
    "the end": (b"", "api_error"),
    "overloaded": (
        named("error", error={"type": "overloaded_error", "message": "sk-ant-test"}),
        "overloaded_error",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_off_ends_with_an_error_event(
    online: FlaskClient, provider: UpstreamServer, name: str
) -> None:
    """The SDK raises on it."""
    piece, kind = BREAKS[name]
    pieces = [*anthropic_events()[:4], piece]
    provider.script(Stream([piece for piece in pieces if piece != b""]))
    response = ask(online, stream=True)
    assert response.data.startswith(b"".join(anthropic_events()[:4]))
    *_, last, empty = response.text.split("\n\n")
    event, data = last.split("\n")
    assert (event, empty) == ("event: error", "")
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == kind
    assert "sk-" not in response.text


def test_the_offline_model_answers_in_the_same_format(client: FlaskClient) -> None:
    """A client can be tried without a key."""
    whole = ask(client, model="offline").json
    assert whole is not None
    assert (whole["type"], whole["stop_reason"]) == ("message", "end_turn")
    streamed = ask(client, model="offline", stream=True).text
    events = [block.split("\n") for block in streamed.removesuffix("\n\n").split("\n\n")]
    datas = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [f"event: {data['type']}" for data in datas] == [name for name, _ in events]
    texts = [d["delta"]["text"] for d in datas if d["type"] == "content_block_delta"]
    assert "".join(texts) == whole["content"][0]["text"]
    assert datas[-2]["usage"] == whole["usage"]


def test_a_denial_has_anthropics_format(client: FlaskClient) -> None:
    """Status, body and headers are Anthropic's, besides the server's own headers."""
    for _ in range(10):
        allowed = ask(client, model="offline")
    assert allowed.headers["anthropic-ratelimit-requests-limit"] == "10"
    assert allowed.headers["anthropic-ratelimit-requests-remaining"] == "0"
    denied = ask(client, model="offline")
    assert denied.status_code == 429
    assert error_of(denied)["type"] == "rate_limit_error"
    assert denied.headers["Retry-After"] == "2"
    assert denied.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert denied.headers["request-id"] == json_of(denied)["request_id"]
    reset = datetime.fromisoformat(denied.headers["anthropic-ratelimit-requests-reset"])
    assert reset.tzinfo is not None


SENTENCE = "The budget of 5 dollars is spent."
A_MILLION = {"input_tokens": 9, "output_tokens": 1_000_000}
#: What denies, and whether that is spent: a pace is not, nor a day's quota with room soon.
SPENT: dict[str, tuple[dict[str, Any], bool]] = {
    "dollars of a day": ({"limit": "5 usd/day", "anchor": "day"}, True),
    "dollars of half a minute": ({"limit": "5 usd/30 second"}, True),
    "calls of a day": ({"limit": "1/day"}, True),
    "calls of a day, one of which is free again soon": (
        {"limit": "1440/day", "strategy": "token-bucket", "burst": 1},
        False,
    ),
    "calls of an hour": ({"limit": "1/hour"}, False),
    "calls of a second": ({"limit": "1/second"}, False),
}


@pytest.mark.parametrize("name", SPENT)
def test_claude_code_takes_a_spent_budget_for_its_own(
    make_app: AppMaker, provider: UpstreamServer, tmp_path: Path, name: str
) -> None:
    """By type, message and headers, which name the same instant; a pace stays a rate limit."""
    options, is_spent = SPENT[name]
    toml = "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    own = f'key = "ip"\nerror_message = "{SENTENCE}"\n{toml}'
    text = f"version = 1\n[groups.counts]\nlimits = []\n[[groups.calls.limits]]\n{own}"
    file = policy_file(tmp_path, text)
    client = make_app(RATELIMIT_POLICY_FILE=file).test_client()
    provider.script(Answer(200, {**anthropic_body(), "usage": A_MILLION}))
    assert ask(client).status_code == 200
    denied = ask(client)
    error = error_of(denied)
    message = str(error["message"])
    own = message.removeprefix("spend limit reached · ")
    assert denied.status_code == 429
    unified = {k: v for k, v in denied.headers.items() if k.startswith(UNIFIED)}
    if not is_spent:
        assert (error["type"], unified) == ("rate_limit_error", {})
        assert message.startswith(f"{SENTENCE} Try again in ")
        return
    at = int(unified.pop(f"{UNIFIED}-reset"))
    assert 0 <= at - time.time() - int(denied.headers["Retry-After"]) + 5 <= 6
    day = datetime.fromtimestamp(at, UTC)
    assert error["type"] == "billing_error"
    assert own.startswith(f"resets {day:%b} {day.day} · {SENTENCE} Try again in "), message
    assert unified == {
        f"{UNIFIED}-status": "rejected",
        f"{UNIFIED}-overage-disabled-reason": "org_spend_cap_reached",
    }
    assert error["details"]["error_code"] in {"insufficient_quota", "rate_limit_exceeded"}
    assert denied.headers["x-should-retry"] == "false"
