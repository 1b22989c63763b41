"""Any answer of a provider: never a 500, no call left open, no redirect followed."""

import gzip
import logging
import socket
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.chatapp.application.upstreams.workers import ANTHROPIC, MESSAGES, OPENAI, left
from tests.chatapp.conftest import AppMaker, whole
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Answer,
    Stream,
    UpstreamServer,
    anthropic_body,
    anthropic_events,
    event,
    openai_body,
    openai_chunks,
)

WAYS = {
    "/chat with openai": ("/chat", {"message": "ping", "model": OPENAI}),
    "/chat with anthropic": ("/chat", {"message": "ping", "model": ANTHROPIC}),
    "openai": ("/v1/chat/completions", {"model": OPENAI, "messages": MESSAGES}),
    "anthropic": ("/v1/messages", {"model": ANTHROPIC, "max_tokens": 9, "messages": MESSAGES}),
}
DEEP = b"[" * 200_000
ABSURD = {"a column": 2**63, "a float": 10**400, "sense": 10**12}

every_way = pytest.mark.parametrize("way", WAYS)


class Asker:
    """A client, its provider, and the calls in the ledger."""

    def __init__(
        self, client: FlaskClient, provider: UpstreamServer, ledger: RecordingLedger
    ) -> None:
        self.client, self.provider, self.ledger = client, provider, ledger

    def ask(self, way: str, **more: object) -> Any:
        path, body = WAYS[way]
        return whole(self.client, path, json={**body, **more})


@pytest.fixture
def asker(make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger) -> Asker:
    short = {"CHATAPP_PROVIDER_ATTEMPTS": 1, "CHATAPP_PROVIDER_TIMEOUT_S": 5}
    return Asker(make_app(ledger=ledger, **short).test_client(), provider, ledger)


@every_way
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_deeply_nested_answer_is_malformed(asker: Asker, way: str, status: int) -> None:
    """The call is over in the ledger. A 200 may have been billed, and is charged as held; a refusal
    is not."""
    before = left(asker.client)
    asker.provider.script(Answer(status, DEEP))
    response = asker.ask(way)
    assert response.status_code in (400, 502, 503), response.text
    assert response.status_code != 400 or status == 400
    (call,) = asker.ledger.finished()
    assert call.status in ("malformed", "bad_request", "unavailable")
    after = left(asker.client)
    assert (after["usd-day"] < before["usd-day"]) == (status == 200)
    assert round((before["usd-day"] - after["usd-day"]) * 1e6) == call.cost_micro_usd
    assert after["at-once"] == before["at-once"]


def nested(depth: int) -> object:
    value: object = "pong"
    for _ in range(depth):
        value = [value]
    return value


ODD_CONTENT = {"a number": 7, "nested": nested(950)}


@every_way
@pytest.mark.parametrize("content", ODD_CONTENT.values(), ids=ODD_CONTENT)
def test_unexpected_content_is_no_500(asker: Asker, way: str, content: object) -> None:
    """Generated content in an unexpected form is forwarded, or malformed."""
    body = anthropic_body() if "anthropic" in way else openai_body()
    name = "content" if "anthropic" in way else "choices"
    more: object = [{"type": "text", "message": content, "text": content}]
    odd = {**body, name: content if content == 7 else more}
    asker.provider.script(Answer(200, odd))
    response = asker.ask(way)
    assert response.status_code == (200 if content == 7 and "/chat" not in way else 502)
    (call,) = asker.ledger.finished()
    assert call.status == ("answered" if response.status_code == 200 else "malformed")


UNREADABLE = {
    "cut off": {"Content-Length": "1000", "Connection": "close"},
    "not what it says": {"Content-Encoding": "gzip"},
}


@every_way
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("body", UNREADABLE)
def test_an_unreadable_refusal_is_a_refusal(
    asker: Asker, way: str, body: str, stream: bool
) -> None:
    """Its status and the wait that it names are known, also for a stream."""
    asker.provider.script(Answer(429, b'{"err', {**UNREADABLE[body], "retry-after-ms": "90000"}))
    assert asker.ask(way, stream=stream).status_code == 503
    (call,) = asker.ledger.finished()
    assert (call.status, call.cost_micro_usd) == ("rate_limited", 0)
    # All leave it alone. Such a pause is a minute at most, after which clients may try again.
    assert asker.ask(way).status_code == (529 if way == "anthropic" else 503)


@every_way
@pytest.mark.parametrize("body", UNREADABLE)
def test_an_unreadable_answer_is_charged_as_held(asker: Asker, way: str, body: str) -> None:
    """It was generated and is billed, however early its connection broke; a second attempt would be
    billed, too."""
    asker.provider.script(Answer(200, b'{"id": "', UNREADABLE[body]))
    assert asker.ask(way).status_code == 502
    (call,) = asker.ledger.finished()
    assert (call.status, call.estimated) == ("malformed", True)
    assert round((5.0 - left(asker.client)["usd-day"]) * 1e6) == call.cost_micro_usd > 0


@pytest.mark.parametrize("value", ["a\x01b", "caf\xc3\xa9"])
def test_an_invalid_header_is_dropped(asker: Asker, value: str) -> None:
    """gunicorn would reject it, and with it the answer, which was paid for."""
    headers = {"x-request-id": value, "Content-Type": f"application/json; x={value}"}
    asker.provider.script(Answer(200, openai_body(), headers))
    response = asker.ask("openai")
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.headers["x-request-id"].startswith("req_")  # ours
    asker.provider.script(Answer(200, openai_body(), {"x-request-id": "req_1"}))
    assert asker.ask("openai").headers["x-request-id"] == "req_1"


def absurd(way: str, tokens: int) -> Answer:
    if "anthropic" in way:
        usage = {"input_tokens": 12, "output_tokens": tokens}
        return Answer(200, {**anthropic_body(), "usage": usage})
    usage = {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": tokens}
    return Answer(200, {**openai_body(), "usage": usage})


@every_way
@pytest.mark.parametrize("tokens", ABSURD.values(), ids=ABSURD)
def test_an_impossible_number_of_tokens_is_no_usage(asker: Asker, way: str, tokens: int) -> None:
    """More than any model can generate: the call is charged as held at most."""
    asker.provider.script(absurd(way, tokens))
    assert asker.ask(way).status_code in (200, 502)
    assert asker.ledger.billed().usage.output_tokens <= 1024
    assert left(asker.client)["usd-day"] > 4.9


@every_way
@pytest.mark.parametrize("tokens", ABSURD.values(), ids=ABSURD)
def test_an_impossible_number_in_a_stream_is_no_usage(asker: Asker, way: str, tokens: int) -> None:
    """The stream ends in its format, and the call with it."""
    if "anthropic" in way:
        pieces = anthropic_events()
        usage = pieces[-2].replace(b'"output_tokens": 5', b'"output_tokens": %d' % tokens)
        assert usage != pieces[-2]
        pieces[-2] = usage
    else:
        pieces = openai_chunks()
        usage = pieces[-2].replace(b'"completion_tokens": 5', b'"completion_tokens": %d' % tokens)
        assert usage != pieces[-2]
        pieces[-2] = usage
    asker.provider.script(Stream(pieces))
    assert asker.ask(way, stream=True).status_code == 200
    assert asker.ledger.billed().usage.output_tokens <= 1024
    assert left(asker.client)["usd-day"] > 4.9


@every_way
@pytest.mark.parametrize("stream", [False, True])
def test_no_redirect_is_followed(asker: Asker, way: str, stream: bool) -> None:
    """It would be an uncounted call to an unknown address."""
    asker.provider.script(Answer(307, {}, {"Location": "/v1/elsewhere"}))
    assert asker.ask(way, stream=stream).status_code == 502
    assert len(asker.provider.calls) == 1
    (call,) = asker.ledger.finished()
    assert call.status == "unavailable"


@pytest.mark.parametrize("wait", ["1e300", "99999999", "1e999"])
def test_an_impossible_wait_is_dropped(asker: Asker, wait: str) -> None:
    """Such as a year."""
    asker.provider.script(Answer(429, {"error": {"message": "no"}}, {"Retry-After": wait}))
    response = asker.ask("/chat with openai")
    assert response.status_code == 503
    assert len(response.headers["Retry-After"]) == 1


def test_a_defect_leaves_no_call_open(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 500, and the caller is refunded, because the provider was not called."""
    from chatapp.upstreams.router import Router

    def oops(*_: object) -> None:
        raise RuntimeError("oops")

    before = left(asker.client)
    monkeypatch.setattr(Router, "answer", oops)
    assert asker.ask("/chat with openai").status_code == 500
    (call,) = asker.ledger.finished()
    assert call.status == "unavailable"
    after = left(asker.client)
    assert after["usd-day"] == before["usd-day"]
    assert after["at-once"] == before["at-once"]


def test_an_endless_event_ends_a_stream(asker: Asker) -> None:
    """With an error in the format of /chat. Providers' endpoints forward unreadable events."""
    pieces = openai_chunks()
    deep = b"data: " + DEEP + b"\n\n"
    asker.provider.script(Stream([*pieces[:2], deep, *pieces[2:]]))
    assert "event: error" in asker.ask("/chat with openai", stream=True).text
    asker.provider.script(Stream([*pieces[:2], event({"a": 1}), deep, *pieces[2:]]))
    assert asker.ask("openai", stream=True).text.endswith("data: [DONE]\n\n")


@every_way
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_endless_answer_is_malformed(
    asker: Asker, way: str, status: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is short and decodes to a long one: it must not fill the memory."""
    monkeypatch.setattr("chatapp.upstreams.sdk.ANSWER_MAX_BYTES", 100_000)
    body = b'{"a": "' + b"a" * 200_000 + b'"}'
    headers = {"Content-Encoding": encoding} if encoding == "gzip" else {}
    sent = gzip.compress(body) if encoding == "gzip" else body
    asker.provider.script(Answer(status, sent, headers))
    response = asker.ask(way)
    assert response.status_code in {400, 502}
    assert len(response.data) < 1_000


@every_way
@pytest.mark.parametrize("status", [400, 401, 500])
def test_errors_do_not_quote_the_key(
    asker: Asker, way: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Providers quote an invalid key, and may quote any: neither the client nor the log gets it."""
    caplog.set_level(logging.DEBUG, "chatapp")
    quoted = "the key sk-openai-test sk-ant-test is wrong"
    asker.provider.script(Answer(status, {"error": {"type": "error", "message": quoted}}))
    response = asker.ask(way)
    own = "sk-ant-test" if "anthropic" in way else "sk-openai-test"
    assert response.status_code >= 400
    assert own not in response.text
    assert own not in caplog.text


def test_addresses_in_a_request_are_not_opened(asker: Asker) -> None:
    """Pictures and documents by address are the provider's to fetch: this server would reach
    addresses of its own network."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.setblocking(False)
        address = f"http://127.0.0.1:{inside.getsockname()[1]}/"
        picture = {"type": "image_url", "image_url": {"url": address}}
        answer = asker.ask("openai", messages=[{"role": "user", "content": [picture]}])
        assert answer.status_code == 200
        source = {"type": "image", "source": {"type": "url", "url": address}}
        answer = asker.ask("anthropic", messages=[{"role": "user", "content": [source]}])
        assert answer.status_code == 200
        with pytest.raises(BlockingIOError):
            inside.accept()
    assert len(asker.provider.calls) == 2
