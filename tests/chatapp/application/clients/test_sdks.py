"""The providers' current SDKs, unchanged except for their base_url, against a real server."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.chatapp.conftest import NO_LIMITS, AppMaker
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Answer,
    Cut,
    Stream,
    UpstreamServer,
    Wait,
    anthropic_body,
    anthropic_error,
    anthropic_events,
    named,
    openai_chunks,
    openai_error,
    response_body,
    response_events,
)
from tests.served import serving

SHORT = {"retry-after-ms": "20", "Retry-After": "1"}
ASKED = {"messages": [{"role": "user", "content": "ping"}]}
GPT = {"model": "gpt-5.4-mini", **ASKED}
CLAUDE = {"model": "claude-haiku-4-5", "max_tokens": 100, **ASKED}
RESPONSE: Any = {"model": "gpt-5.4-mini", "input": "ping"}


@pytest.fixture
def gpt(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key="mine") as client:
        yield client


@pytest.fixture
def claude(served: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served, api_key="mine") as client:
        yield client


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long this thread has slept: the SDKs do, before they try again."""
    slept, pause, own = list[float](), time.sleep, threading.get_ident()

    def note(seconds: float) -> None:
        if threading.get_ident() == own:
            slept.append(seconds)
        pause(seconds)

    monkeypatch.setattr(time, "sleep", note)
    return slept


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdks_read_how_long_parts_took(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, stream: bool
) -> None:
    """By their own way to an answer's headers, before a stream is read."""
    for raw in (
        gpt.chat.completions.with_raw_response.create(**GPT, stream=stream),
        gpt.responses.with_raw_response.create(**RESPONSE, stream=stream),
        claude.messages.with_raw_response.create(**CLAUDE, stream=stream),
    ):
        parts = dict(part.split(";dur=") for part in raw.headers["server-timing"].split(", "))
        assert parts.keys() == {"limits", "upstream"}
        assert all(float(ms) >= 0 for ms in parts.values())
        answer: Any = raw.parse()
        assert list(answer) if stream else answer.id


def test_openai_answers_and_streams(gpt: openai.OpenAI, ledger: RecordingLedger) -> None:
    """As with OpenAI, and every call is in the ledger with the provider's usage."""
    answer = gpt.chat.completions.create(**GPT)
    assert answer.choices[0].message.content == "pong"
    with gpt.chat.completions.create(stream=True, **GPT) as stream:
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(texts) == "pong"
    for call in ledger.finished(2):
        assert call.usage is not None
        assert (call.usage.input_tokens, call.usage.output_tokens) == (12, 5)
        assert (call.status, call.estimated, call.client_left) == ("answered", False, False)
    assert "gpt-5.4-mini" in {model.id for model in gpt.models.list()}
    assert gpt.models.retrieve("offline").owned_by == "offline"


def test_openais_responses(gpt: openai.OpenAI, ledger: RecordingLedger) -> None:
    """Created, streamed, continued, read and deleted, as with OpenAI."""
    first = gpt.responses.create(**RESPONSE)
    assert (first.output_text, first.status) == ("pong", "completed")
    with gpt.responses.stream(**RESPONSE) as stream:
        assert stream.get_final_response().output_text == "pong"
    with gpt.responses.create(stream=True, **RESPONSE) as events:
        kinds = [event.type for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert gpt.responses.create(previous_response_id=first.id, **RESPONSE).output_text == "pong"
    for call in ledger.finished(4):
        assert call.usage is not None
        assert (call.usage.input_tokens, call.usage.output_tokens) == (12, 5)
        assert (call.status, call.estimated, call.client_left) == ("answered", False, False)
    assert gpt.responses.retrieve(first.id).id == first.id
    assert gpt.responses.cancel(first.id).id == first.id
    gpt.responses.delete(first.id)
    for missing in (gpt.responses.retrieve, gpt.responses.cancel, gpt.responses.delete):
        with pytest.raises(openai.NotFoundError, match="not found"):
            missing("resp_9")


def test_openais_responses_have_items_and_counts(
    gpt: openai.OpenAI, provider: UpstreamServer
) -> None:
    """The other addresses of the Responses API."""
    first = gpt.responses.create(**RESPONSE)
    page = {"object": "list", "data": [], "has_more": False, "first_id": "a", "last_id": "a"}
    provider.script(Answer(200, page))
    assert gpt.responses.input_items.list(first.id, limit=2, include=["file_search_call.results"])
    assert provider.calls[-1].path.startswith(f"/v1/responses/{first.id}/input_items?")
    assert gpt.responses.input_tokens.count(**RESPONSE).input_tokens == 29
    compacted = gpt.responses.compact(**RESPONSE)
    assert (compacted.object, compacted.usage.output_tokens) == ("response.compaction", 5)


def test_openais_responses_are_parsed(gpt: openai.OpenAI, provider: UpstreamServer) -> None:
    """A structured output arrives as the program's own class."""

    class Size(BaseModel):
        width: int

    provider.script(Answer(200, response_body(text='{"width": 7}')))
    assert gpt.responses.parse(text_format=Size, **RESPONSE).output_parsed == Size(width=7)
    text = provider.calls[0].body["text"]
    assert isinstance(text, dict)
    assert text["format"]["name"] == "Size"


def test_anthropic_answers_and_streams(
    claude: anthropic.Anthropic, ledger: RecordingLedger
) -> None:
    """As with Anthropic, including betas, and every call is in the ledger."""
    answer = claude.messages.create(**CLAUDE)
    assert [block.text for block in answer.content if block.type == "text"] == ["pong"]
    with claude.messages.stream(**CLAUDE) as stream:
        assert stream.get_final_text() == "pong"
        assert stream.get_final_message().usage.output_tokens == 5
    assert claude.beta.messages.create(betas=["x-2026"], **CLAUDE).usage.output_tokens == 5
    for call in ledger.finished(3):
        assert call.usage is not None
        assert (call.usage.input_tokens, call.usage.output_tokens) == (23, 5)
        assert call.status == "answered"


def test_tools_pass(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: UpstreamServer
) -> None:
    """The model gets the tools that a program declares."""
    function = {"name": "f", "description": "é", "parameters": {"type": "object"}}
    gpt.chat.completions.create(tools=[{"type": "function", "function": function}], **GPT)
    tool = {"name": "f", "input_schema": {"type": "object"}}
    claude.messages.create(tools=[tool], tool_choice={"type": "auto"}, **CLAUDE)
    assert provider.calls[0].body["tools"] == [{"type": "function", "function": function}]
    assert provider.calls[1].body["tools"] == [tool]


def test_anthropics_tool_runner_continues_without_a_thread(
    claude: anthropic.Anthropic, provider: UpstreamServer
) -> None:
    """It requests a thread by default. The refusal has the code at which it sends the whole
    conversation instead."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    provider.script(Answer(200, anthropic_body() | {"content": [use], "stop_reason": "tool_use"}))
    message: Any = claude.beta.messages.tool_runner(tools=[weather], **CLAUDE).until_done()
    assert message.content[0].text == "pong"
    assert not any("thread" in call.body for call in provider.calls)
    messages: Any = provider.calls[1].body["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "user"]
    assert messages[2]["content"][0]["content"] == "sunny in Oslo"


def test_an_overloaded_provider_is_tried_again(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: UpstreamServer, slept: list[float]
) -> None:
    """By the SDK, after the provider's wait; each call of the server is one attempt."""
    provider.script(openai_error(429, code="rate_limit_exceeded", headers=SHORT))
    assert gpt.chat.completions.create(**GPT).choices[0].message.content == "pong"
    provider.script(anthropic_error(529, kind="overloaded_error", headers=SHORT))
    assert claude.messages.create(**CLAUDE).usage.output_tokens == 5
    assert len(provider.calls) == 4
    assert slept == [1, 1]
    provider.script(anthropic_error(529, kind="overloaded_error", headers={"Retry-After": "20"}))
    with pytest.raises(anthropic.OverloadedError) as overloaded:
        claude.with_options(max_retries=0).messages.create(**CLAUDE)
    assert overloaded.value.response.headers["Retry-After"] == "20"


def test_a_permanent_error_is_not_retried(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: UpstreamServer
) -> None:
    """Credit, a rejected key, an hour of waiting: the error is raised at once."""
    provider.script(openai_error(429, code="insufficient_quota"))
    with pytest.raises(openai.InternalServerError):
        gpt.chat.completions.create(**GPT)
    provider.script(openai_error(429, code="slow_down", headers={"Retry-After": "3600"}))
    with pytest.raises(openai.InternalServerError):
        gpt.chat.completions.create(**GPT)
    provider.script(anthropic_error(401, kind="authentication_error"))
    with pytest.raises(anthropic.InternalServerError):
        claude.messages.create(**CLAUDE)
    assert len(provider.calls) == 3


def test_mistakes_raise_the_providers_exceptions(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: UpstreamServer
) -> None:
    """The `except` clauses of a program stay valid."""
    with pytest.raises(openai.NotFoundError, match="Unknown model") as missing:
        gpt.chat.completions.create(**{**GPT, "model": "llama"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        gpt.chat.completions.create(max_tokens=-1, **GPT)
    with pytest.raises(anthropic.NotFoundError, match="/v1/chat/completions"):
        claude.messages.create(**{**CLAUDE, "model": "gpt-4o"})
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(**{**CLAUDE, "max_tokens": -1})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id
    assert provider.calls == []


def test_a_denial_raises_a_rate_limit_error(make_app: AppMaker, slept: list[float]) -> None:
    """With its headers. The SDK does not wait for a used-up day."""
    limits = {"openai_api": ["1/day"], "anthropic_api": ["1/day"]}
    app = make_app(**NO_LIMITS, RATELIMIT_BLUEPRINTS=limits)
    with serving(app) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="mine") as gpt:
            gpt.chat.completions.create(**{**GPT, "model": "offline"})
            with pytest.raises(openai.RateLimitError) as denied:
                gpt.chat.completions.create(**{**GPT, "model": "offline"})
            assert denied.value.code == "rate_limit_exceeded"
            assert denied.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        with anthropic.Anthropic(base_url=url, api_key="mine") as claude:
            claude.messages.create(**{**CLAUDE, "model": "offline"})
            with pytest.raises(anthropic.RateLimitError) as refused:
                claude.messages.create(**{**CLAUDE, "model": "offline"})
            assert refused.value.type == "billing_error"
    assert slept == []


def test_the_sdk_waits_for_a_short_denial(make_app: AppMaker) -> None:
    """It sleeps for the wait of the denial, once, and gets its answer."""
    app = make_app(**NO_LIMITS, RATELIMIT_BLUEPRINTS={"openai_api": ["1/second"]})
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="mine") as gpt:
        for _ in range(3):
            answer = gpt.chat.completions.create(**{**GPT, "model": "offline"})
            assert answer.model == "offline"


def test_a_stream_that_breaks_off_raises(
    gpt: openai.OpenAI,
    claude: anthropic.Anthropic,
    provider: UpstreamServer,
    ledger: RecordingLedger,
) -> None:
    """A partial answer is never taken for a whole one; generated output is charged as an
    estimate."""
    provider.script(
        Stream([*openai_chunks()[:3], Cut()]),
        Stream([*response_events()[:6], Cut()]),
        Stream([*anthropic_events()[:5], named("error", error={"type": "overloaded_error"})]),
    )
    with pytest.raises(openai.APIError, match="failed or could not be reached"):
        list(gpt.chat.completions.create(stream=True, **GPT))
    with pytest.raises(openai.APIError, match="failed or could not be reached"):
        list(gpt.responses.create(stream=True, **RESPONSE))
    with pytest.raises(anthropic.APIStatusError):
        list(claude.messages.create(stream=True, **CLAUDE))
    for call in ledger.finished(3):
        assert (call.status, call.estimated, call.client_left) == ("cut_off", True, False)
        assert call.usage is not None
        assert call.usage.output_tokens >= 1


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_the_first_part_arrives_before_the_second_is_generated(
    gpt: openai.OpenAI, claude: anthropic.Anthropic, provider: UpstreamServer, protocol: str
) -> None:
    """Nothing between provider and client buffers it."""
    pieces = openai_chunks() if protocol == "openai" else anthropic_events()
    provider.script(Stream([*pieces[:2], Wait(), *pieces[2:]]))
    stream = (
        gpt.chat.completions.create(stream=True, **GPT)
        if protocol == "openai"
        else claude.messages.create(stream=True, **CLAUDE)
    )
    next(stream)
    next(stream)
    provider.go_on()
    assert len(list(stream)) >= 2
