"""Valid requests and answers with a value of another type somewhere inside: never a 500."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    anthropic_body,
    anthropic_events,
    named,
    openai_body,
    openai_chunks,
    response_body,
    response_events,
)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BREAKPOINT = {"mode": "explicit", "ttl": "30m"}
SPOKEN = [
    {"role": "system", "content": "be brief"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "hi", "prompt_cache_breakpoint": BREAKPOINT},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,aa"}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]},
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "ok"}]},
]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "gpt-5.4-mini",
        "messages": SPOKEN,
        "tools": [TOOL, {"type": "custom", "custom": {"name": "c"}}],
        "n": 2,
        "max_completion_tokens": 50,
        "prediction": {"type": "content", "content": [{"type": "text", "text": "p"}]},
        "reasoning_effort": "high",
        "service_tier": "auto",
        "stream_options": {"include_usage": True},
        "modalities": ["text"],
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
        "metadata": {"a": "b"},
    },
    "/v1/responses": {
        "model": "gpt-5.4-mini",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "abc"},
            {"type": "additional_tools", "tools": [{"type": "function", "name": "g"}]},
        ],
        "tools": [
            {"type": "web_search"},
            {"type": "namespace", "tools": [{"type": "custom"}]},
            {"type": "shell", "environment": {"type": "local"}},
        ],
        "reasoning": {"effort": "high", "mode": "standard"},
        "text": {"format": {"type": "text"}},
        "max_output_tokens": 60,
        "prompt_cache_options": {"ttl": "30m"},
        "background": False,
    },
    "/v1/messages": {
        "model": "claude-haiku-4-5",
        "max_tokens": 50,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "t", "name": "f", "input": {}},
                    {"type": "compaction", "tool_changes": [{"type": "tool_addition", "tool": {}}]},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        ],
        "tools": [{"name": "f", "input_schema": {}}, {"type": "web_search_20250305"}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "billing_policy": {"bill_to": "self"},
        "speed": "standard",
        "inference_geo": "global",
    },
}
SEARCH = {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}}
DONE = named("response.output_item.done", output_index=0, item=SEARCH)
SEARCHES = [{"type": "server_tool_use", "name": "web_search"}, {"type": "web_search_tool_result"}]
ANSWERS: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "/v1/chat/completions": (openai_body(), openai_chunks()),
    "/v1/responses": (
        response_body(output=[SEARCH], tool_usage={"web_search": {"num_requests": 1}}),
        [*response_events()[:3], DONE, *response_events()[3:]],
    ),
    "/v1/messages": ({**anthropic_body(), "content": SEARCHES}, anthropic_events()),
}
ODD: list[Any] = [
    *(None, [], {}, "", "x", 0, -1, 3.5, True, "\ud800", "\x00", 10**30, "a" * 3000),
    *([[]], ["x"], {"type": []}, {"a": {"b": []}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def mutated(chance: random.Random, valid: Any) -> Any:
    """A copy with one or two other values."""
    copied = copy.deepcopy(valid)
    for _ in range(chance.choice((1, 1, 2))):
        *path, last = chance.choice([*places(copied)])
        holder = copied
        for key in path:
            holder = holder[key]
        holder[last] = copy.deepcopy(chance.choice(ODD))
    return copied


@pytest.fixture
def client(make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger) -> FlaskClient:
    """A client without limits."""
    config = {"RATELIMIT_ENABLED": False, "CHATAPP_PROVIDER_ATTEMPTS": 1}
    return make_app(ledger=ledger, **config).test_client()


def status(client: FlaskClient, path: str, body: object) -> int:
    raw = json.dumps(body)
    with client.post(path, data=raw, content_type="application/json") as response:
        assert response.get_data() is not None
        return response.status_code


@pytest.mark.parametrize("path", REQUESTS)
def test_a_request_with_another_value_is_no_500(
    client: FlaskClient, ledger: RecordingLedger, path: str
) -> None:
    """It is refused, or the provider decides; each call ends."""
    chance = random.Random(path)
    for _ in range(150):
        body = {**mutated(chance, REQUESTS[path]), "stream": chance.random() < 0.3}
        assert status(client, path, body) in (200, 400, 404), body
    begun = {call.id for call in ledger.begun}
    assert {call.id for call in ledger.finished(len(begun))} == begun


@pytest.mark.parametrize("path", ANSWERS)
def test_an_answer_with_another_value_is_no_500(
    client: FlaskClient, provider: UpstreamServer, ledger: RecordingLedger, path: str
) -> None:
    """It is forwarded, or a 502; each call ends."""
    chance = random.Random(path)
    whole, events = ANSWERS[path]
    for _ in range(100):
        pieces = list(events)
        number = chance.choice([n for n, each in enumerate(events) if b"data: {" in each])
        head, _, data = events[number].partition(b"data: ")
        changed = json.dumps(mutated(chance, json.loads(data))).encode()
        pieces[number] = head + b"data: " + changed + b"\n\n"
        provider.script(Answer(200, mutated(chance, whole)), Stream(pieces))
        for stream in (False, True):
            assert status(client, path, {**REQUESTS[path], "stream": stream}) in (200, 502)
    begun = {call.id for call in ledger.begun}
    assert {call.id for call in ledger.finished(len(begun))} == begun
