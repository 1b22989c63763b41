"""Calls without a reported usage are charged as the provider may bill them."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient

from chatapp import catalogue
from chatapp.catalogue.usage import Usage
from tests.chatapp.application.upstreams.workers import left
from tests.chatapp.conftest import AppMaker, whole
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    Wait,
    anthropic_body,
    anthropic_events,
    embeddings_body,
    event,
    named,
    openai_body,
    openai_chunks,
    openai_error,
    response_body,
)
from tests.served import disconnecting, serving

REASONING, PLAIN, CLAUDE = "gpt-5.4-mini", "gpt-4o", "claude-haiku-4-5"
MESSAGES = [{"role": "user", "content": "ping"}]
DONE = b"data: [DONE]\n\n"
PATHS = {REASONING: "/v1/chat/completions", PLAIN: "/v1/chat/completions", CLAUDE: "/v1/messages"}


def ask(client: FlaskClient, model: str, **more: object) -> Any:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 900, **more}
    return whole(client, PATHS[model], json=body)


class Calls(NamedTuple):
    """A client, its provider, and its calls in the ledger."""

    client: FlaskClient
    provider: UpstreamServer
    ledger: RecordingLedger

    def ask(self, model: str, **more: object) -> Any:
        return ask(self.client, model, **more)


@pytest.fixture
def calls(make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger) -> Calls:
    return Calls(make_app(ledger=ledger).test_client(), provider, ledger)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("model", PATHS)
def test_a_timeout_is_charged_as_it_was_held(
    make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger, model: str, stream: bool
) -> None:
    """The provider reads the prompt, generates and bills; only the answer is late. Plan, tokens and
    dollars stay charged. Whether to try again is the client's choice, as at the provider."""
    provider.silence()
    client = make_app(ledger=ledger, CHATAPP_PROVIDER_TIMEOUT_S=0.5).test_client()
    response = ask(client, model, stream=stream)
    assert response.status_code == 504
    assert "x-should-retry" not in response.headers
    call = ledger.billed()
    assert (call.status, call.estimated) == ("timeout", True)
    assert call.usage.output_tokens == call.estimated_output_tokens == 900
    remaining = left(client)
    assert round((5.0 - remaining["usd-day"]) * 1e6) == call.cost_micro_usd > 0
    assert (remaining["plan"], remaining["at-once"]) == (99, 4)
    assert call.attempts == 1


def chunk(
    delta: dict[str, object], *, usage: object = None, finish_reason: str | None = None
) -> bytes:
    """Compatible servers may report a usage beside a choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"choices": [choice], "usage": usage})


TEXT = "ok " * 1000  # a thousand tokens
KINDS: dict[str, list[bytes]] = {
    "text": [chunk({"content": TEXT})],
    "refusal": [chunk({"refusal": TEXT})],
    "function_call": [chunk({"function_call": {"name": "f", "arguments": TEXT}})],
    "tool": [chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": TEXT}}]})],
    "custom": [chunk({"tool_calls": [{"index": 0, "custom": {"name": "f", "input": TEXT}}]})],
    "reasoning": [chunk({"reasoning_content": TEXT})],
}


def delta(**fields: object) -> bytes:
    return named("content_block_delta", index=0, delta=fields)


TOOL_USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": TEXT}}
CLAUDES_KINDS: dict[str, list[bytes]] = {
    "text": [delta(type="text_delta", text=TEXT)],
    "tool": [delta(type="input_json_delta", partial_json=TEXT)],
    "thinking": [delta(type="thinking_delta", thinking=TEXT)],
    "block": [named("content_block_start", index=0, content_block=TOOL_USE)],
}


def test_searches_of_a_cut_stream_are_billed(calls: Calls) -> None:
    """A cent each; and the prompt again for each time that Claude went on with results."""
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    search = [named("content_block_start", index=0, content_block=each) for each in (use, result)]
    more = delta(type="text_delta", text="so")
    begun = named("content_block_start", index=0, content_block={"type": "text", "text": ""})
    calls.provider.script(Stream([*anthropic_events()[:1], *search, *search, begun, more, Cut()]))
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    calls.ask(CLAUDE, stream=True, tools=tools)
    call = calls.ledger.billed()
    assert call.usage.tool_calls == {"web_search": 2}
    assert call.usage.input_tokens == 3 * (12 + 8 + 3) + 2 * 7  # and what it has said before
    assert call.usage.cached_input_tokens == 8 + 2 * (8 + 3)
    assert round((5.0 - left(calls.client)["usd-day"]) * 1e6) == call.cost_micro_usd > 20_000


def test_a_call_that_was_ended_for_its_tools_says_so(calls: Calls) -> None:
    """Also if the provider had sent all of it before it noticed."""
    use = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    result = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    search = [named("content_block_start", index=0, content_block=each) for each in (use, result)]
    first, *rest = anthropic_events()
    calls.provider.script(Stream([first, *(300 * search), *rest]))
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    answer = calls.ask(CLAUDE, stream=True, tools=tools)
    assert b"was stopped: its tools' results use up your budget" in answer.data
    assert len(calls.ledger.finished()) == 1


def test_the_tier_of_a_cut_stream_is_billed(calls: Calls) -> None:
    """The one that is served, which each chunk has: a project may have another default."""
    pieces = [
        p.replace(b'"usage"', b'"service_tier": "priority", "usage"') for p in openai_chunks()
    ]
    calls.provider.script(Stream([*pieces[:2], Cut()]))
    calls.ask(PLAIN, stream=True)
    call = calls.ledger.billed()
    assert call.usage.tiers == ("priority",)
    assert call.cost_micro_usd == catalogue.load().price(PLAIN, call.usage)


def test_a_rejected_prediction_is_billed(calls: Calls) -> None:
    """OpenAI bills the tokens of a predicted answer that are not in the answer, and sends none of
    them. They are held, and charged if the stream is cut."""
    prediction = {"type": "content", "content": [{"type": "text", "text": "ping " * 1600}]}
    calls.provider.script(Stream([*openai_chunks()[:2], Cut()]))
    calls.ask(PLAIN, stream=True, prediction=prediction, max_tokens=5000)
    call = calls.ledger.billed()
    assert call.usage.output_tokens == call.estimated_output_tokens
    assert 1_500 < call.estimated_output_tokens < 1_700


@pytest.mark.parametrize(
    ("model", "kind", "pieces"),
    [
        *[(PLAIN, kind, [*openai_chunks()[:1], *pieces]) for kind, pieces in KINDS.items()],
        *[(CLAUDE, kind, [*anthropic_events()[:1], *p]) for kind, p in CLAUDES_KINDS.items()],
    ],
)
def test_every_kind_of_output_that_streams_is_counted(
    calls: Calls, model: str, kind: str, pieces: list[bytes]
) -> None:
    """Text, refusals, arguments of functions and tools, input of custom tools, thinking: by its
    size, if the stream ends before its usage."""
    calls.provider.script(Stream([*pieces, Cut()]))
    calls.ask(model, stream=True, max_tokens=5000)
    call = calls.ledger.billed()
    assert (call.status, call.estimated) == ("cut_off", True)
    assert 1000 <= call.usage.output_tokens <= 1010, kind


@pytest.mark.parametrize(
    ("model", "more", "hidden"),
    [
        (PLAIN, {}, False),
        (REASONING, {}, True),
        (REASONING, {"reasoning_effort": "none"}, False),
        (CLAUDE, {}, False),
        (CLAUDE, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        (CLAUDE, {"thinking": {"type": "disabled"}}, False),
    ],
)
def test_hidden_output_is_charged_by_its_time(
    calls: Calls, model: str, more: dict[str, object], hidden: bool
) -> None:
    """A reasoning model may have generated as much as its time allows, and no more than was held;
    another has sent what it generated."""
    pieces = anthropic_events()[:4] if model == CLAUDE else openai_chunks()[:2]
    calls.provider.script(Stream([*pieces, Cut()]))
    calls.ask(model, stream=True, max_tokens=3000, **more)
    call = calls.ledger.billed()
    assert call.estimated_output_tokens == 1024
    if hidden:
        assert 1 + 500 // 4 <= call.usage.output_tokens <= 1024
        assert call.basis == ("time" if call.usage.output_tokens < 1024 else "hold")
    else:
        assert (call.usage.output_tokens, call.basis) == (1, "received")


@pytest.mark.parametrize("way", ["/chat", *dict.fromkeys(PATHS.values())])
def test_a_plain_call_ends_with_its_client(
    make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger, way: str
) -> None:
    """The provider is disconnected at once, and the call is charged as it was held."""
    app = make_app(ledger=ledger, CHATAPP_PROVIDER_TIMEOUT_S=30, CHATAPP_MAX_TOKENS=1000)
    model = CLAUDE if way == "/v1/messages" else REASONING
    fields = {"message": "ping"} if way == "/chat" else {"messages": MESSAGES, "max_tokens": 99}
    provider.think()
    with serving(app) as url:
        with disconnecting(url, way, {"model": model, **fields}):
            assert provider.waiting.wait(60)
        assert provider.hung_up.wait(20)
        [call] = ledger.finished()
    assert (call.status, call.client_left, call.estimated) == ("cut_off", True, True)
    assert call.usage is not None
    assert call.usage.output_tokens == call.estimated_output_tokens > 0


def test_a_client_that_stays_for_a_plain_answer_gets_it(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """Also over a reused connection."""
    connection = http.client.HTTPConnection(urlsplit(served).netloc, timeout=10)
    for _ in range(2):
        content = {"Content-Type": "application/json"}
        connection.request("POST", "/chat", json.dumps({"message": "ping"}), content)
        assert json.loads(connection.getresponse().read())["reply"] == "pong"
    assert [call.status for call in ledger.finished(2)] == ["answered", "answered"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_the_first_byte_of_a_stream_has_a_separate_timeout(
    make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger, stream: bool
) -> None:
    """A plain answer may take as long as it takes to generate; a stream must begin."""
    timeouts = {"CHATAPP_PROVIDER_FIRST_BYTE_TIMEOUT_S": 0.2, "CHATAPP_PROVIDER_TIMEOUT_S": 30}
    client = make_app(ledger=ledger, **timeouts).test_client()
    provider.think()
    if stream:
        assert ask(client, REASONING, stream=True).status_code == 504
    else:
        provider.go_on()
        assert ask(client, REASONING).status_code == 200


def test_a_pause_within_a_stream_may_be_longer(
    make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """The timeout for the first byte ends with it: thinking may take minutes after that."""
    timeouts = {"CHATAPP_PROVIDER_FIRST_BYTE_TIMEOUT_S": 0.5, "CHATAPP_PROVIDER_TIMEOUT_S": 30}
    app = make_app(ledger=ledger, **timeouts)
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, app.test_client(), REASONING, stream=True)
        assert provider.waiting.wait(60)
        assert not provider.hung_up.wait(0.7)
        provider.go_on()
    [call] = ledger.finished()
    assert call.status == "answered"


@pytest.mark.parametrize("way", ["/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": "many"}, {"prompt_tokens": -1}])
def test_an_answer_with_an_unreadable_usage_is_delivered(
    calls: Calls, way: str, usage: object
) -> None:
    """It is charged by the tokens of its text, not of its JSON."""
    for count, model in enumerate([PLAIN, REASONING], 1):
        calls.provider.script(
            Answer(200, {**openai_body(model=model, text="pong"), "usage": usage})
        )
        fields = {"message": "ping"} if way == "/chat" else {"messages": MESSAGES}
        most = {} if way == "/chat" else {"max_tokens": 900}
        answer = calls.client.post(way, json={"model": model, **fields, **most})
        assert (answer.status_code, "pong" in answer.text) == (200, True)
        call = calls.ledger.finished(count)[-1]
        assert (call.status, call.estimated) == ("answered", True)
        assert call.usage is not None
        assert call.usage.output_tokens == 1


@pytest.mark.parametrize("status", [500, 502, 503, 529])
def test_a_failure_that_the_server_has_retried_may_be_retried(
    make_app: AppMaker, provider: UpstreamServer, status: int
) -> None:
    """An SDK tries three times, Claude Code ten: they outlive a provider's bad half minute here as
    they do without this server."""
    soon = {"retry-after-ms": "10"}
    provider.script(*[openai_error(status, code="trouble", headers=soon)] * 2)
    client = make_app(CHATAPP_PROVIDER_ATTEMPTS=2).test_client()
    response = ask(client, REASONING)
    assert response.status_code == 503
    assert "x-should-retry" not in response.headers
    assert len(provider.calls) == 2
    assert response.json["error"]["code"] == "server_is_overloaded"


def test_cached_input_is_not_counted_in_tokens(calls: Calls) -> None:
    """As the providers count: of an agent's turn of 95,000 tokens, only the uncached ones count.
    Its dollars are those of the cache."""
    usage = {"prompt_tokens": 96_000, "completion_tokens": 500, "total_tokens": 96_500}
    usage |= {"prompt_tokens_details": {"cached_tokens": 95_000}}
    calls.provider.script(Answer(200, {**openai_body(), "usage": usage}))
    before = left(calls.client)
    assert calls.ask(REASONING).status_code == 200
    after = left(calls.client)
    assert before["tokens"] - after["tokens"] == pytest.approx(1_500, abs=1_500)
    billed = catalogue.load().price(REASONING, Usage(96_000, 500, cached_input_tokens=95_000))
    assert round((before["usd-day"] - after["usd-day"]) * 1e6) == billed


def test_all_choices_must_end(calls: Calls) -> None:
    """The first finished one does not make the answer whole: the others may still be generated."""
    first = event({"choices": [{"index": 0, "delta": {"content": "po"}, "finish_reason": "stop"}]})
    calls.provider.script(Stream([first, Cut()]))
    calls.ask(REASONING, stream=True, n=2, max_tokens=900)
    call = calls.ledger.billed()
    assert call.status == "cut_off"
    assert 1 + 2 * 500 // 4 <= call.usage.output_tokens <= 1_800  # of both, in their time
    second = first.replace(b'"index": 0', b'"index": 1')
    calls.provider.script(Stream([first, second, *openai_chunks()[-2:]]))
    calls.ask(REASONING, stream=True, n=2, max_tokens=900)
    assert calls.ledger.finished(2)[-1].status == "answered"


def test_an_invalid_event_at_the_end_is_not_the_bill(calls: Calls) -> None:
    """With an unreadable usage, the received output is charged."""
    delta = named(
        "message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": "many"}
    )
    text = named("content_block_delta", index=0, delta={"type": "text_delta", "text": TEXT})
    calls.provider.script(Stream([anthropic_events()[0], text, delta, named("message_stop")]))
    calls.ask(CLAUDE, stream=True, max_tokens=5000)
    call = calls.ledger.billed()
    assert (call.estimated, call.usage.output_tokens) == (True, 1000)


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a while"])
def test_a_connection_that_breaks_late_had_the_request(
    make_app: AppMaker,
    provider: UpstreamServer,
    ledger: RecordingLedger,
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
) -> None:
    """A stale idle connection breaks at once, and is retried. One that breaks while the provider
    works is charged as held and not retried, because it may be billed each time."""
    monkeypatch.setattr("chatapp.calls.upstream_call.STALE_S", 0.0 if waits else 60.0)
    provider.drop(1)
    client = make_app(ledger=ledger, CHATAPP_PROVIDER_ATTEMPTS=2).test_client()
    response = ask(client, REASONING)
    [call] = ledger.finished()
    if waits:
        assert (response.status_code, call.status) == (504, "timeout")
        assert call.cost_micro_usd > 0
    else:
        assert (response.status_code, call.status) == (200, "answered")
    assert len(provider.calls) == (1 if waits else 2)


@pytest.mark.parametrize("model", [PLAIN, REASONING])
@pytest.mark.parametrize("ending", ["cut", "stop"])
def test_what_comes_after_a_usage_is_charged(calls: Calls, model: str, ending: str) -> None:
    """A usage before the answer is over is that of its beginning."""
    usage = {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}
    last: list[Any] = [Cut()] if ending == "cut" else [chunk({}, finish_reason="stop"), DONE]
    first = chunk({"role": "assistant"}, usage=usage)
    calls.provider.script(Stream([first, chunk({"content": TEXT}), *last]))
    calls.ask(model, stream=True, max_tokens=5000)
    billed = calls.ledger.billed()
    assert billed.estimated
    assert 1000 <= billed.usage.output_tokens <= 1024


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat"])
@pytest.mark.parametrize(
    "usage",
    [{}, {"prompt_tokens": -1}, 0, "x", {"prompt_tokens": 3, "completion_tokens": None}],
    ids=str,
)
def test_a_stream_with_an_unreadable_usage_is_delivered(
    calls: Calls, path: str, usage: object
) -> None:
    """As a whole answer is. Its text is charged."""
    texts = [{"role": "assistant"}, {"content": TEXT}]
    chunks = [
        *(chunk(each, usage=usage) for each in texts),
        chunk({}, usage=usage, finish_reason="stop"),
        DONE,
    ]
    calls.provider.script(Stream(chunks))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 5000}
    response = calls.client.post(path, json={"model": PLAIN, "stream": True, **asked})
    assert TEXT[:20] in response.get_data(as_text=True)
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", True)
    assert call.usage.output_tokens >= 1000


@pytest.mark.parametrize("number", [1, 2])
def test_a_usage_at_the_end_is_the_bill(calls: Calls, number: int) -> None:
    """Also if there are fewer choices than were asked for."""
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    end = event({"choices": [], "usage": usage})
    calls.provider.script(Stream([chunk({"content": TEXT}, finish_reason="stop"), end, DONE]))
    calls.ask(PLAIN, stream=True, n=number)
    billed = calls.ledger.billed()
    assert (billed.estimated, billed.usage.output_tokens) == (False, 7)


PARTS = [{"type": "text", "text": "pong"}]
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": TEXT}]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat"])
def test_a_text_in_parts_is_delivered_and_charged(calls: Calls, path: str, stream: bool) -> None:
    """As Mistral sends it, whose models think in parts of their own."""
    if stream:
        chunks = [chunk({"content": each}) for each in ([THOUGHT], PARTS)]
        calls.provider.script(Stream([*chunks, chunk({}, finish_reason="stop"), DONE]))
    else:
        body = openai_body(text=[THOUGHT, *PARTS])
        calls.provider.script(Answer(200, {**body, "usage": None}))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 5000}
    response = calls.client.post(path, json={"model": PLAIN, "stream": stream, **asked})
    text = response.get_data(as_text=True)
    assert ("pong" in text, TEXT in text) == (True, path != "/chat")
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", True)
    assert 1000 <= call.usage.output_tokens <= 1010


@pytest.mark.parametrize("model", [PLAIN, CLAUDE, "a response"])
def test_half_a_character_is_charged(calls: Calls, model: str) -> None:
    """Servers in JavaScript send an emoji in two halves."""
    text = "\ud83d" + TEXT
    if model == PLAIN:
        calls.provider.script(
            Stream([chunk({"content": text}), chunk({}, finish_reason="stop"), DONE])
        )
        calls.ask(PLAIN, stream=True, max_tokens=5000)
    elif model == CLAUDE:
        delta = named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        calls.provider.script(Stream([anthropic_events()[0], delta, named("message_stop")]))
        calls.ask(CLAUDE, stream=True, max_tokens=5000)
    else:
        delta = named("response.output_text.delta", item_id="msg_1", delta=text)
        end = named("response.completed", response={"id": "resp_1", "output": []})
        calls.provider.script(Stream([delta, end]))
        body = {"model": PLAIN, "input": "ping", "stream": True, "max_output_tokens": 5000}
        calls.client.post("/v1/responses", json=body).get_data()
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", True)
    assert 1000 <= call.usage.output_tokens <= 1010


def test_a_usage_without_choices_is_the_bill(calls: Calls) -> None:
    """Some servers send null for no choices."""
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    end = event({"choices": None, "usage": usage})
    calls.provider.script(Stream([chunk({"content": TEXT}, finish_reason="stop"), end, DONE]))
    calls.ask(PLAIN, stream=True)
    billed = calls.ledger.billed()
    assert (billed.estimated, billed.usage.output_tokens) == (False, 7)


@pytest.mark.parametrize("usage", [None, {"output_tokens": "many"}, {"output_tokens": -1}], ids=str)
def test_a_message_with_an_unreadable_usage_is_delivered(calls: Calls, usage: object) -> None:
    """By /chat, too: its text is charged."""
    text = named("content_block_delta", index=0, delta={"type": "text_delta", "text": TEXT})
    delta = named("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    calls.provider.script(Stream([anthropic_events()[0], text, delta, named("message_stop")]))
    asked = {"message": "ping", "model": CLAUDE, "stream": True}
    answer = calls.client.post("/chat", json=asked).get_data(as_text=True)
    assert ("event: done" in answer, "event: error" in answer) == (True, False)
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated, call.usage.output_tokens) == ("answered", True, 1000)


@pytest.mark.parametrize("path", ["/v1/messages", "/chat"])
@pytest.mark.parametrize(
    ("message", "input_tokens"),
    [
        ({"usage": {"input_tokens": 120}}, 120),
        ({"usage": {"input_tokens": 120, "output_tokens": 1}}, 120),
        ({"usage": None}, None),
        ({"usage": {"input_tokens": 0, "output_tokens": 0}}, None),  # as Ollama did
        ({"usage": {"input_tokens": 120, "output_tokens": 1, "speed": 2}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_input_is_charged_without_a_usage_at_the_start(
    calls: Calls, path: str, message: dict[str, object], input_tokens: int | None
) -> None:
    """Known later, or else as estimated: it is never free. SGLang sends 0 at the end."""
    text = named("content_block_delta", index=0, delta={"type": "text_delta", "text": "pong"})
    usage = {"input_tokens": 0, "output_tokens": 7}
    delta = named("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    start = named("message_start", message=message)
    calls.provider.script(Stream([start, text, delta, named("message_stop")]))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 5000}
    response = calls.client.post(path, json={"model": CLAUDE, "stream": True, **asked})
    assert "pong" in response.get_data(as_text=True)
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", input_tokens is None)
    assert call.usage.input_tokens == (input_tokens or call.estimated_input_tokens) > 0


@pytest.mark.parametrize("model", [PLAIN, CLAUDE])
def test_an_answer_without_its_model_is_delivered(calls: Calls, model: str) -> None:
    """By /chat, too: it costs what it reports."""
    body = openai_body() if model == PLAIN else anthropic_body()
    calls.provider.script(Answer(200, {n: v for n, v in body.items() if n != "model"}))
    answer = calls.client.post("/chat", json={"message": "ping", "model": model}).get_json()
    assert (answer["reply"], answer["model"]) == ("pong", model)
    billed = calls.ledger.billed()
    assert (billed.estimated, billed.usage.output_tokens) == (False, 5)


@pytest.mark.parametrize("path", ["/chat", PATHS[PLAIN]])
@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 503, "message": "overloaded"}, 503), ({"code": 502}, 502), ("no capacity", 502)],
)
def test_an_error_with_status_200_is_free(
    calls: Calls, path: str, error: object, status: int
) -> None:
    """As OpenRouter reports a failure. It is tried again like any other."""
    mine = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES}
    failure = Answer(200, {"id": "x", "error": error, "choices": []})
    calls.provider.script(failure, failure, failure, Answer(200, openai_body()))
    for expected in (status, 200):
        answer = calls.client.post(path, json={"model": PLAIN, **mine})
        assert answer.status_code == expected, answer.text
    failed, answered = calls.ledger.finished()
    assert (failed.cost_micro_usd, failed.attempts, answered.attempts) == (0, 2, 2)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("reported", "output_tokens"),
    [
        ({"total_tokens": 331, "completion_tokens_details": {"reasoning_tokens": 317}}, 319),  # xAI
        ({"total_tokens": 331}, 319),  # Gemini
        *[({"total_tokens": total}, 2) for total in (14, 3, 0, -1, None, "331", 3.5, 10**10)],
    ],
    ids=str,
)
def test_reasoning_beside_the_output_is_charged(
    calls: Calls, reported: dict[str, object], output_tokens: int, stream: bool
) -> None:
    """xAI and Gemini count it in the total only, and bill it as output."""
    usage = {"prompt_tokens": 12, "completion_tokens": 2, **reported}
    end = [
        chunk({"content": "pong"}, finish_reason="stop"),
        event({"choices": [], "usage": usage}),
        DONE,
    ]
    whole = Answer(200, {**openai_body(), "usage": usage})
    calls.provider.script(Stream(end) if stream else whole)
    calls.ask(PLAIN, stream=stream)
    billed = calls.ledger.billed()
    assert (billed.estimated, billed.usage.output_tokens) == (False, output_tokens)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [PATHS[PLAIN], PATHS[CLAUDE], "/v1/responses", "/v1/embeddings"])
def test_a_usage_without_input_is_no_usage(calls: Calls, path: str, stream: bool) -> None:
    """Servers that do not count send zeros."""
    zero = {"prompt_tokens": 0, "input_tokens": 0, "completion_tokens": 0, "output_tokens": 0}
    asked: dict[str, Any] = {"model": PLAIN, "messages": MESSAGES, "stream": stream}
    if path == PATHS[PLAIN]:
        body = openai_body()
        end = event({"choices": [], "usage": zero})
        events = [chunk({"content": "pong"}, finish_reason="stop"), end, DONE]
    elif path == PATHS[CLAUDE]:
        asked |= {"model": CLAUDE, "max_tokens": 900}
        body = anthropic_body()
        text = named("content_block_delta", index=0, delta={"type": "text_delta", "text": "pong"})
        end = named("message_delta", delta={"stop_reason": "end_turn"}, usage=zero)
        events = [named("message_start", message={"usage": zero}), text, end]
    elif path == "/v1/responses":
        asked = {"model": PLAIN, "input": "ping", "stream": stream}
        body = response_body()
        delta = named("response.output_text.delta", item_id="msg_1", delta="pong")
        events = [delta, named("response.completed", response={**body, "usage": zero})]
    else:
        asked = {"model": "text-embedding-3-small", "input": "ping"}
        body, events, stream = embeddings_body(), [], False
    calls.provider.script(Stream(events) if stream else Answer(200, {**body, "usage": zero}))
    with calls.client.post(path, json=asked) as response:
        response.get_data()
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", True)
    assert call.usage.input_tokens == call.estimated_input_tokens > 0
    assert call.usage.output_tokens == {"/v1/embeddings": 0, PATHS[CLAUDE]: 2}.get(path, 1)


@pytest.mark.parametrize("kind", ["a text at the end", "an item without a text id"])
def test_a_response_without_a_usage_is_charged_by_its_text(calls: Calls, kind: str) -> None:
    """As compatible servers send it."""
    if kind == "a text at the end":
        body = response_body(text=TEXT)
        events = [named("response.completed", response={**body, "usage": None})]
    else:
        delta = named("response.output_text.delta", item_id=1, delta=TEXT)
        events = [delta, named("response.completed", response={"id": "resp_1", "output": []})]
    calls.provider.script(Stream(events))
    body = {"model": PLAIN, "input": "ping", "stream": True, "max_output_tokens": 5000}
    calls.client.post("/v1/responses", json=body).get_data()
    [call] = calls.ledger.finished()
    assert (call.status, call.estimated) == ("answered", True)
    assert 1000 <= call.usage.output_tokens <= 1010


WHOLE: dict[str, Any] = {
    "/chat": openai_body(),
    PATHS[PLAIN]: openai_body(),
    PATHS[CLAUDE]: anthropic_body(),
    "/v1/responses": response_body(),
}


@pytest.mark.parametrize("path", WHOLE)
def test_a_whole_answer_to_a_stream_is_delivered_and_costs_its_usage(
    calls: Calls, path: str
) -> None:
    """Some servers and proxies ignore `stream`."""
    calls.provider.script(Answer(200, WHOLE[path]))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 900}
    asked = {"input": "ping"} if path == "/v1/responses" else asked
    model = CLAUDE if path == PATHS[CLAUDE] else PLAIN
    answer = whole(calls.client, path, json={"model": model, "stream": True, **asked})
    if path == "/chat":
        assert answer.mimetype == "text/event-stream"
        assert "pong" in answer.text
        assert "event: done" in answer.text
    else:
        assert (answer.mimetype, answer.get_json()) == ("application/json", WHOLE[path])
    billed = calls.ledger.billed()
    assert (billed.status, billed.estimated, billed.usage.output_tokens) == ("answered", False, 5)
    assert round((5.0 - left(calls.client)["usd-day"]) * 1e6) == billed.cost_micro_usd


def test_an_error_in_place_of_a_stream_is_tried_again(calls: Calls) -> None:
    """As in place of a whole answer."""
    failure = Answer(200, {"error": {"code": 502, "message": "no"}})
    calls.provider.script(failure, Stream(openai_chunks("pong")))
    assert "pong" in calls.ask(PLAIN, stream=True).text
    assert calls.ledger.billed().attempts == 2


ODD: dict[str, object] = {
    "model": 7,
    "id": 7,
    "service_tier": {"name": "default"},
    "choices": [7, {"index": "first", "delta": {"content": "pong"}, "finish_reason": None}],
}


@pytest.mark.parametrize("path", ["/chat", PATHS[PLAIN]])
@pytest.mark.parametrize("reason", [7, {"type": "stop"}, True, "stop"], ids=str)
def test_a_chunk_with_fields_of_a_wrong_type_is_delivered_and_charged(
    calls: Calls, path: str, reason: object
) -> None:
    """What can be read of it counts."""
    end = event({"model": [], "choices": [{"index": [], "delta": "", "finish_reason": reason}]})
    usage = event({"choices": {}, "usage": {"prompt_tokens": 12, "completion_tokens": 7}})
    calls.provider.script(Stream([event(ODD), end, usage, DONE]))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES}
    answer = whole(calls.client, path, json={"model": PLAIN, "stream": True, **asked}).text
    assert "pong" in answer
    assert "error" not in answer
    billed = calls.ledger.billed()
    assert (billed.status, billed.estimated, billed.usage.output_tokens) == ("answered", False, 7)


@pytest.mark.parametrize("path", ["/v1/messages", "/chat"])
def test_an_event_of_claude_with_fields_of_a_wrong_type_is_read(calls: Calls, path: str) -> None:
    """Its text and its usage count."""
    start, *rest = anthropic_events()
    odd = {"text": "pong", "stop_reason": 7}
    end = named("message_delta", delta=7, usage={"output_tokens": 6})
    events = [start, named("content_block_delta", content_block=7, delta=odd), end, rest[-1]]
    calls.provider.script(Stream(events))
    asked = {"message": "ping"} if path == "/chat" else {"messages": MESSAGES, "max_tokens": 900}
    answer = whole(calls.client, path, json={"model": CLAUDE, "stream": True, **asked}).text
    assert "pong" in answer
    assert "error" not in answer
    [call] = calls.ledger.finished()
    assert (call.status, call.usage.output_tokens) == ("answered", 6)


@pytest.mark.parametrize("model", [PLAIN, CLAUDE])
def test_a_reason_and_a_model_of_a_wrong_type_cost_what_is_reported(
    calls: Calls, model: str
) -> None:
    """POST /chat delivers the text of such an answer."""
    body: Any = openai_body() if model == PLAIN else anthropic_body()
    (body["choices"][0] if model == PLAIN else body).update(finish_reason=7, stop_reason={})
    calls.provider.script(Answer(200, {**body, "model": 7}))
    answer = calls.client.post("/chat", json={"message": "ping", "model": model}).get_json()
    assert answer["reply"] == "pong"
    billed = calls.ledger.billed()
    assert (billed.estimated, billed.usage.output_tokens) == (False, 5)


def test_an_empty_finish_reason_does_not_finish(calls: Calls) -> None:
    """LocalAI sends one with each chunk. If the stream is cut off later, hidden output counts."""
    calls.provider.script(Stream([chunk({"content": "pong"}, finish_reason=""), Cut()]))
    calls.ask(PLAIN, stream=True)
    [call] = calls.ledger.finished()
    assert call.status == "cut_off"
