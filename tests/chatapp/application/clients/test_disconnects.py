"""A client disconnects. The provider's call ends at once, and what was generated is charged: here
an answer is not longer than expected. Otherwise it is read on for its bill."""

import http.client
import json
import select
import socket
from urllib.parse import urlsplit

import pytest

from chatapp.ledger.call import Call
from tests.chatapp.application.upstreams.workers import ANTHROPIC, OPENAI
from tests.chatapp.conftest import AppMaker
from tests.chatapp.ledger.recording_ledger import RecordingLedger
from tests.chatapp.upstream_server import (
    Stream,
    UpstreamServer,
    Wait,
    anthropic_events,
    openai_chunks,
    openai_error,
)
from tests.served import disconnecting, serving

MESSAGES = [{"role": "user", "content": "ping"}]
WAYS = {
    "/chat with openai": ("/chat", {"message": "ping", "model": "gpt-5.4-mini"}),
    "/chat with anthropic": ("/chat", {"message": "ping", "model": "claude-haiku-4-5"}),
    "openai": (
        "/v1/chat/completions",
        {"model": "gpt-5.4-mini", "max_completion_tokens": 900, "messages": MESSAGES},
    ),
    "anthropic": (
        "/v1/messages",
        {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": MESSAGES},
    ),
}


def sent(url: str, path: str, body: dict[str, object]) -> http.client.HTTPConnection:
    """The connection of a request whose answer has not been read."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


def begun(url: str, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
    """A stream of which the first line has been read."""
    connection = sent(url, path, {**body, "stream": True})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline()
    assert connection.sock is None or connection.sock.shutdown(socket.SHUT_RDWR) is None
    return response


def read_until(url: str, words: bytes) -> None:
    """Read a stream of OpenAI's up to the line with these words, and disconnect."""
    body = {"model": "gpt-5.4-mini", "messages": MESSAGES, "stream": True}
    connection = sent(url, "/v1/chat/completions", body)
    response = connection.getresponse()
    while words not in response.readline():
        pass
    response.close()
    connection.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_disconnect_is_noticed_in_silence(
    served: str, provider: UpstreamServer, ledger: RecordingLedger, way: str
) -> None:
    """Not at the next word, which may be a minute away. The call is recorded once, as an
    estimate."""
    path, body = WAYS[way]
    openai = "gpt" in str(body["model"])
    pieces = openai_chunks()[:2] if openai else anthropic_events()[:4]
    provider.script(Stream([*pieces, Wait()]))
    response = begun(served, path, body)
    assert provider.waiting.wait(60)
    response.close()
    assert provider.hung_up.wait(20)
    call = ledger.billed()
    assert len(ledger.begun) == 1
    assert (call.status, call.client_left, call.estimated) == ("cut_off", True, True)
    # Anthropic has reported the input by then; OpenAI reports nothing before the end, and may have
    # reasoned without output: what the time allows is charged.
    assert call.usage.input_tokens == (call.estimated_input_tokens if openai else 23)
    # The first delta may have come before the client left, or not: then the stream was silent.
    assert call.usage.output_tokens >= 1
    assert is_bounded_by_time(call) or (not openai and call.usage.output_tokens == 1)


def is_bounded_by_time(call: Call, held: int | None = None) -> bool:
    """Whether the call is charged what its time allows, or what was held if that is less."""
    assert call.usage is not None
    held = held or call.estimated_output_tokens
    output = call.usage.output_tokens
    return (output < held and call.basis == "time") or (output == held and call.basis == "hold")


def test_an_unread_stream_ends(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """The first byte need not have arrived."""
    provider.script(Stream([Wait()]))
    body = {"message": "ping", "model": "gpt-5.4-mini", "stream": True}
    with disconnecting(served, "/chat", body):
        assert provider.waiting.wait(60)
    assert provider.hung_up.wait(20)
    [call] = ledger.finished()
    assert (call.status, call.client_left) == ("cut_off", True)


def test_a_client_may_disconnect_after_the_last_word(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """The usage that follows is still received, and is the bill."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:4], Wait(), *pieces[4:]]))
    read_until(served, b'"finish_reason": "stop"')
    assert provider.waiting.wait(60)
    assert not provider.hung_up.wait(0.2)
    provider.go_on()
    [call] = ledger.finished()
    assert (call.status, call.client_left, call.estimated) == ("answered", False, False)


def test_a_provider_that_does_not_end_its_stream_is_disconnected(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """The client has everything and leaves, as the SDKs do after the last event: its slot is free,
    and the call answered."""
    provider.script(Stream([*openai_chunks(), Wait()]))
    read_until(served, b"[DONE]")
    assert provider.hung_up.wait(3)
    [call] = ledger.finished()
    assert (call.status, call.client_left, call.estimated) == ("answered", False, False)


def test_there_is_no_retry_after_a_disconnect(
    make_app: AppMaker, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """The provider named a wait of a second, and the client disconnects meanwhile."""
    config = {"CHATAPP_PROVIDER_ATTEMPTS": 3, "CHATAPP_FALLBACK_MODELS": {OPENAI: ANTHROPIC}}
    app = make_app(ledger=ledger, **config)
    busy = openai_error(429, code="slow_down", headers={"retry-after-ms": "1500"})
    provider.script(busy)
    body = {"message": "ping", "model": OPENAI, "stream": True}
    with serving(app) as url:
        with disconnecting(url, "/chat", body):
            assert provider.answered.wait(60)
        [call] = ledger.finished()
    assert (call.status, call.client_left, call.attempts) == ("rate_limited", True, 1)
    assert len(provider.calls) == 1


def sent_and_left(url: str, path: str, body: dict[str, object], *, after_s: float = 0) -> None:
    """Request a stream, and disconnect before its first byte."""
    with disconnecting(url, path, {**body, "stream": True}) as leaver:
        select.select([leaver], [], [], after_s)


def test_a_disconnect_at_any_moment_ends_the_call(
    served: str, provider: UpstreamServer, ledger: RecordingLedger
) -> None:
    """Before, during and after the connection to the provider. It is charged if a prompt was
    sent."""
    provider.think()
    moments = [moment / 1000 for moment in range(0, 40, 8)]
    for count, moment in enumerate(moments, 1):
        sent_and_left(served, *WAYS["openai"], after_s=moment)
        calls = ledger.finished(count)
    assert {call.client_left for call in calls} == {True}
    assert {call.status for call in calls} <= {"cut_off", "unavailable"}
    assert all((call.cost_micro_usd > 0) == (call.status == "cut_off") for call in calls)


def test_a_disconnect_during_an_outage_costs_nothing(
    make_app: AppMaker,
    provider: UpstreamServer,
    ledger: RecordingLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No prompt was sent."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    with serving(make_app(ledger=ledger, CHATAPP_PROVIDER_ATTEMPTS=5)) as url:
        sent_and_left(url, *WAYS["openai"], after_s=0.15)
        [call] = ledger.finished()
    assert (call.status, call.client_left, call.cost_micro_usd) == ("unavailable", True, 0)
    assert not provider.calls


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("warm", [False, True], ids=["new connection", "old connection"])
def test_a_provider_that_has_not_begun_is_disconnected_at_once(
    served: str,
    provider: UpstreamServer,
    ledger: RecordingLedger,
    caplog: pytest.LogCaptureFixture,
    way: str,
    warm: bool,
) -> None:
    """It may take a minute before its first byte. Thread and slot are free at once, and the prompt,
    which was sent, is charged. The log has no failure of the provider."""
    path, body = WAYS[way]
    if warm:
        connection = sent(served, path, body)
        assert connection.getresponse().read()
        connection.close()
        ledger.finished()
    provider.think()
    with disconnecting(served, path, {**body, "stream": True}):
        assert provider.waiting.wait(60)
    assert provider.hung_up.wait(20)
    call = ledger.finished(2 if warm else 1)[-1]
    assert (call.status, call.client_left, call.estimated) == ("cut_off", True, True)
    assert call.usage is not None
    assert call.usage.input_tokens == call.estimated_input_tokens
    assert is_bounded_by_time(call)
    assert "did not answer" not in caplog.text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("ends", [False, True], ids=["endless", "ends"])
def test_a_silent_answer_is_read_on_for_its_bill(
    make_app: AppMaker,
    provider: UpstreamServer,
    ledger: RecordingLedger,
    monkeypatch: pytest.MonkeyPatch,
    ends: bool,
    stream: bool,
) -> None:
    """It may have 128,000 tokens, and is expected to have 1,024: the client pays what it cost. If
    it does not end in time, it is charged 16,384 tokens, or what the time allows for a stream."""
    if not ends:
        monkeypatch.setattr("chatapp.calls.upstream_call.LEFT_S", 0.3)
    app = make_app(ledger=ledger, CHATAPP_PROVIDER_TIMEOUT_S=60, CHATAPP_PROVIDER_ATTEMPTS=1)
    provider.think()
    body = {"model": "gpt-5.4-mini", "messages": MESSAGES, "stream": stream}
    with serving(app) as url:
        with disconnecting(url, WAYS["openai"][0], body):
            assert provider.waiting.wait(60)
        if ends:
            assert not provider.hung_up.wait(0.2)
            provider.go_on()
        else:
            assert provider.hung_up.wait(20)
        call = ledger.billed()
    assert call.client_left
    if ends:
        assert (call.status, call.estimated, call.usage.output_tokens) == ("answered", False, 5)
    else:
        assert (call.status, call.estimated) == ("cut_off", True)
        assert is_bounded_by_time(call, held=16_384)
        assert (call.basis == "time") is stream
