"""POST /v1/responses: requests are forwarded unchanged, priced and settled like other calls."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from chatapp.upstreams.openai_responses import extras_of
from tests.chatapp.conftest import NO_LIMITS, AppMaker, json_of, replace_services
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    RESPONSES_PATH,
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    Wait,
    compaction_body,
    named,
    response_body,
    response_events,
)

MODEL = "gpt-5.4-mini"
USAGE = Usage(12, 5, cached_input_tokens=8, reasoning_tokens=2, tiers=())


def ask(client: FlaskClient, **fields: object) -> TestResponse:
    return client.post(RESPONSES_PATH, json={"model": MODEL, "input": "ping", **fields})


def error_of(response: TestResponse) -> dict[str, Any]:
    return dict(json_of(response)["error"])


@pytest.fixture
def recorded(online: FlaskClient, ledger: RecordingLedger) -> Callable[[], Any]:
    """The only call that is over, once there is one."""
    replace_services(online.application, ledger=ledger)
    return lambda: ledger.finished()[0]


def test_body_and_answer_are_forwarded_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer
) -> None:
    """Items, tools and unknown fields reach the provider, and its JSON comes back unchanged. The
    key is the server's."""
    sent = json.dumps(
        {
            "model": MODEL,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "é"}]}],
            "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "custom"}],
            "reasoning": {"effort": "high", "summary": "auto"},
            "some_new_field": {"a": [1.0, 1e-7, None]},
        },
        indent=3,
    ).encode()
    answer = json.dumps(response_body(some_new_answer=[1.50]), indent=2).encode()
    provider.script(Answer(200, answer, {"x-request-id": "req-7"}))
    response = online.post(
        RESPONSES_PATH,
        data=sent,
        content_type="application/json",
        headers={
            "Authorization": "Bearer mine",
            "OpenAI-Beta": "responses=v9",
            "x-openai-internal-codex-responses-lite": "true",
            "x-codex-window-id": "1",
        },
    )
    assert (response.status_code, response.data) == (200, answer)
    assert response.headers["x-request-id"] == "req-7"
    assert response.headers["x-ratelimit-limit-requests"] == "10"
    [call] = provider.calls
    assert (call.path, call.raw) == (RESPONSES_PATH, sent)
    assert call.headers["authorization"] == "Bearer sk-openai-test"
    assert call.headers["openai-beta"] == "responses=v9"
    assert call.headers["x-openai-internal-codex-responses-lite"] == "true"
    assert "x-codex-window-id" not in call.headers


@pytest.mark.parametrize("end", ["completed", "incomplete"])
def test_a_stream_comes_back_byte_for_byte(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any], end: str
) -> None:
    """With events that are unknown here, and it is billed by its last event."""
    events = response_events(end=end)
    events.insert(4, named("response.something_new", sequence_number=4, item=["x"]))
    events.insert(2, b": a comment\n\n")
    provider.script(Stream(events))
    assert ask(online, stream=True).data == b"".join(events)
    call = recorded()
    assert (call.status, call.estimated, call.endpoint) == (
        "answered",
        False,
        "openai_api.responses",
    )
    assert call.usage == USAGE
    assert call.cost_micro_usd == catalogue.load().price(MODEL, USAGE)


def test_a_failed_response_reaches_its_client_unchanged(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any]
) -> None:
    """It is billed by the usage that it reports; the next call is sent."""
    error = {"code": "rate_limit_exceeded", "message": "no"}
    events = response_events(end="failed", error=error)
    provider.script(Stream(events))
    assert ask(online, stream=True).data == b"".join(events)
    call = recorded()
    assert (call.status, call.usage, call.estimated) == ("cut_off", USAGE, False)
    assert ask(online).status_code == 200


BREAKS: dict[str, tuple[list[Any], str]] = {
    "cut": ([*response_events()[:6], Cut()], "provider_unavailable"),
    "an error": (
        [*response_events()[:6], named("error", code="server_error", message="no", param=None)],
        "provider_unavailable",
    ),
    "a nested error": (
        [*response_events()[:6], named("error", error={"code": "slow_down", "message": "no"})],
        "server_is_overloaded",
    ),
    "no usage": ([*response_events()[:6]], "provider_unavailable"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_off_ends_with_an_error(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any], name: str
) -> None:
    """In the form that the SDK raises and in the documented one; what was received is charged."""
    pieces, code = BREAKS[name]
    provider.script(Stream(pieces))
    received = ask(online, stream=True, reasoning={"effort": "none"}).data
    whole = b"".join(response_events()[:6])
    assert received.startswith(whole)
    kind, data = received[len(whole) :].decode().rstrip().split("\n")
    assert kind == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", code, 6)
    assert error["error"]["code"] == code
    call = recorded()
    assert (call.status, call.estimated) == ("cut_off", True)
    assert call.usage.output_tokens == 1  # “pong”


def test_a_terminal_event_without_usage_is_estimated(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any]
) -> None:
    """By what was received, as for every answer without a bill."""
    provider.script(Stream(response_events(usage={"input_tokens": "many"})))
    assert ask(online, stream=True).data
    call = recorded()
    assert (call.status, call.estimated, call.usage.output_tokens) == ("answered", True, 1)


def test_a_disconnect_ends_the_providers_call(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """A silent reasoning model is charged what it can have generated in the time that passed."""
    import openai

    provider.script(Stream([*response_events()[:2], Wait()]))
    with openai.OpenAI(base_url=f"{served}/v1", api_key="mine", max_retries=0) as gpt:
        stream = gpt.responses.create(
            model=MODEL, input="ping", stream=True, max_output_tokens=1024
        )
        next(iter(stream))
        assert provider.waiting.wait(60)
        stream.close()
    assert provider.hung_up.wait(60)
    call = ledger.billed()
    assert (call.status, call.client_left, call.estimated) == ("cut_off", True, True)
    assert 0 < call.usage.output_tokens <= 1_024
    assert call.basis == "time"


def test_an_answer_is_bounded_by_the_budget(make_app: AppMaker, provider: UpstreamServer) -> None:
    """By what two dollars pay: 30 dollars a million tokens."""
    limits = [{"name": "d", "limit": "2 usd/day", "key": "user"}]
    app = make_app(**NO_LIMITS, RATELIMIT_BLUEPRINTS={"openai_api": limits})
    client = app.test_client()
    assert ask(client, model="gpt-5.5", max_output_tokens=100_000).status_code == 200
    assert ask(client, model="gpt-5.5", max_output_tokens=20).status_code == 200
    first, second = (call.body["max_output_tokens"] for call in provider.calls)
    assert isinstance(first, int)
    assert 60_000 < first < 67_000
    assert second == 20


def test_the_offline_model_answers_in_the_same_format(client: FlaskClient) -> None:
    """Plain and streamed, with the events in OpenAI's order; nothing is stored."""
    whole = ask(client, model="offline").json
    assert whole is not None
    assert (whole["object"], whole["status"], whole["store"]) == ("response", "completed", False)
    text = whole["output"][0]["content"][0]["text"]
    assert "ping" in text
    streamed = ask(client, model="offline", stream=True)
    events = [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in (each.split("\n") for each in streamed.text.strip().split("\n\n"))
    ]
    assert [number for number, _ in enumerate(events)] == [e["sequence_number"] for _, e in events]
    assert all(name == event["type"] for name, event in events)
    names = list(dict.fromkeys(name.removeprefix("response.") for name, _ in events))
    assert names == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    assert "".join(e.get("delta", "") for _, e in events) == text
    assert events[-1][1]["response"]["usage"] == whole["usage"]


def test_a_long_wait_is_a_usage_limit(make_app: AppMaker) -> None:
    """Codex sleeps through any Retry-After, unless `type` says that usage is limited; then it shows
    `resets_at`."""
    limits = {"openai_api": ["1/day"]}
    client = make_app(**NO_LIMITS, RATELIMIT_BLUEPRINTS=limits).test_client()
    assert ask(client, model="offline").status_code == 200
    error = error_of(ask(client, model="offline"))
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "usage_limit_reached")
    assert 86_300 < error["resets_at"] - time.time() <= 86_401
    chat = {"model": "offline", "messages": [{"role": "user", "content": "ping"}]}
    error = error_of(client.post("/v1/chat/completions", json=chat))
    assert (error["type"], "resets_at" in error) == ("requests", False)


TOOLS: dict[str, tuple[dict[str, object], tuple[str, ...] | str]] = {
    "run by the client": ({"type": "function"}, ()),
    "a local shell": ({"type": "shell", "environment": {"type": "local"}}, ()),
    "a shell in a container": ({"type": "shell", "environment": {"type": "container_auto"}}, "?"),
    "the client's server": ({"type": "mcp", "server_url": "https://example.com"}, ("mcp",)),
    "a search": ({"type": "web_search_2025_08_26"}, ("web_search",)),
    "the preview": ({"type": "web_search_preview_2025_03_11"}, ("web_search_preview",)),
    "files": ({"type": "file_search"}, ("file_search",)),
    "in a namespace": ({"type": "namespace", "tools": [{"type": "web_search"}]}, ("web_search",)),
    "unknown": ({"type": "time_machine"}, "?"),
    "without a type": ({}, ()),
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_are_free_billed_or_refused(name: str) -> None:
    """A tool that OpenAI runs and that has no price is refused."""
    tool, billed = TOOLS[name]
    extras = extras_of({"tools": [tool]})
    if billed == "?":
        assert list(extras.refused) == ["tools"]
    else:
        assert (extras.tools, extras.refused) == (billed, {})


@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output"])
@pytest.mark.parametrize("name", TOOLS)
def test_tools_in_the_conversation_count_too(kind: str, name: str) -> None:
    """Items of the input may add them."""
    tool, billed = TOOLS[name]
    added = extras_of({"input": ["text", {"type": kind, "tools": [tool]}]})
    if billed == "?":
        assert list(added.refused) == ["input"]
    else:
        assert (added.tools, added.refused) == (billed, {})


SEARCHES = [
    {"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "a"}},
    {"type": "web_search_call", "id": "ws_2", "action": {"type": "open_page", "url": "b"}},
    {"type": "file_search_call", "id": "fs_1", "queries": ["c"]},
    {"type": "file_search_call", "id": "fs_2", "queries": ["d"]},
]


@pytest.mark.parametrize(
    ("tool_usage", "searches"),
    [(None, 1), ({"web_search": {"num_requests": 3}}, 3)],
    ids=["counted", "reported"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_billed(
    online: FlaskClient,
    provider: UpstreamServer,
    recorded: Callable[[], Any],
    tool_usage: object,
    searches: int,
    stream: bool,
) -> None:
    """A cent for a search and a quarter of it for one in files, besides the tokens; opening a page
    is free."""
    fields: dict[str, object] = {"output": SEARCHES, "tool_usage": tool_usage}
    tools = [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": []}]
    ended = {"response": response_body(**fields)}
    streamed = Stream([*response_events()[:2], named("response.completed", **ended)])
    provider.script(streamed if stream else Answer(200, response_body(**fields)))
    assert ask(online, tools=tools, stream=stream).data
    call = recorded()
    assert call.usage.tool_calls == {"web_search": searches, "file_search": 2}
    tokens = catalogue.load().price(MODEL, USAGE)
    assert call.cost_micro_usd == tokens + 10_000 * searches + 2 * 2_500


def test_tool_calls_of_a_cut_stream_are_billed(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any]
) -> None:
    """Those that were received; and the input again for each time that the model went on, with what
    there was by then."""
    done = [named("response.output_item.done", output_index=0, item=item) for item in SEARCHES]
    [begun] = [each for each in response_events() if b"output_item.added" in each]
    provider.script(
        Stream([*response_events()[:2], begun, *done[:2], begun, *done[2:], begun, begun, Cut()])
    )
    assert ask(online, stream=True).data
    call = recorded()
    assert call.usage.tool_calls == {"web_search": 1, "file_search": 2}
    assert call.usage.input_tokens == 3 * call.estimated_input_tokens + 2 * 1


@pytest.mark.parametrize(
    "item", [{"id": ["x"], "type": ["y"]}, {"type": "web_search_call", "action": {"type": []}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_odd_item_is_forwarded(
    online: FlaskClient, provider: UpstreamServer, stream: bool, item: dict[str, object]
) -> None:
    """It fails no answer that was paid for."""
    events = response_events()
    done = named("response.output_item.done", output_index=0, item=item)
    whole = Answer(200, response_body(output=[item]))
    provider.script(Stream([*events[:-1], done, events[-1]]) if stream else whole)
    answer = ask(online, stream=stream)
    assert answer.status_code == 200
    assert answer.data.endswith(events[-1]) or not stream


@pytest.mark.parametrize(
    ("tier", "multiple"), [("default", 1), ("priority", 2), ("flex", 0.5), (None, 1)]
)
def test_the_served_tier_is_billed(
    online: FlaskClient,
    provider: UpstreamServer,
    recorded: Callable[[], Any],
    tier: str | None,
    multiple: float,
) -> None:
    """Whatever was requested."""
    provider.script(Answer(200, response_body(model="gpt-5.4", service_tier=tier)))
    ask(online, model="gpt-5.4", service_tier="auto")
    plain = 4 * 2.5 + 8 * 0.25 + 5 * 15
    assert recorded().cost_micro_usd == -(-plain * multiple // 1)


def test_a_compaction_is_a_call(
    online: FlaskClient, provider: UpstreamServer, recorded: Callable[[], Any]
) -> None:
    """Forwarded unchanged, and billed by its usage."""
    answer = json.dumps(compaction_body(), indent=1).encode()
    provider.script(Answer(200, answer))
    sent = json.dumps({"model": MODEL, "input": "a long story", "new": 1}, indent=2).encode()
    response = online.post(f"{RESPONSES_PATH}/compact", data=sent, content_type="application/json")
    assert (response.status_code, response.data) == (200, answer)
    assert provider.calls[0].raw == sent
    call = recorded()
    assert (call.usage, call.endpoint) == (USAGE, "openai_api.compact")
    body = {"model": MODEL, "input": "a", "stream": True}
    assert online.post(f"{RESPONSES_PATH}/compact", json=body).status_code == 400
