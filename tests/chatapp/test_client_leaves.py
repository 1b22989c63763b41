"""A client that leaves a stream: the provider's call ends at once, and what was made is counted."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.chatapp.provider_server import (
    ProviderServer,
    Stream,
    Wait,
    anthropic_events,
    openai_chunks,
)
from tests.chatapp.recording_ledger import RecordingLedger

MESSAGES = [{"role": "user", "content": "ping"}]
WAYS = {
    "/chat with openai": ("/chat", {"message": "ping", "model": "gpt-5.4-mini"}),
    "/chat with anthropic": ("/chat", {"message": "ping", "model": "claude-haiku-4-5"}),
    "openai": ("/v1/chat/completions", {"model": "gpt-5.4-mini", "messages": MESSAGES}),
    "anthropic": (
        "/v1/messages",
        {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": MESSAGES},
    ),
}


def begun(url: str, path: str, body: dict[str, object]) -> http.client.HTTPResponse:
    """A stream of which the first line has been read."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    content = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps({**body, "stream": True}), content)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline()
    assert connection.sock is None or connection.sock.shutdown(socket.SHUT_RDWR) is None
    return response


@pytest.mark.parametrize("way", WAYS)
def test_the_provider_stops_while_nobody_sends_anything(
    served: str, provider: ProviderServer, ledger: RecordingLedger, way: str
) -> None:
    """Not at the next word, which may be a minute away; the call is told once, as an estimate."""
    path, body = WAYS[way]
    openai = "gpt" in str(body["model"])
    pieces = openai_chunks()[:2] if openai else anthropic_events()[:4]
    provider.script(Stream([*pieces, Wait()]))
    response = begun(served, path, body)
    assert provider.waiting.wait(10)
    response.close()
    assert provider.hung_up.wait(5)
    [call] = ledger.finished()
    assert len(ledger.begun) == 1
    assert (call.status, call.client_left, call.estimated) == ("cut_off", True, True)
    assert call.usage is not None
    # Anthropic has told the input by then; OpenAI tells nothing before the end.
    assert call.usage.input_tokens == (call.estimated_input_tokens if openai else 23)
    assert call.usage.output_tokens == 1


def test_a_stream_that_was_never_read_ends_too(
    served: str, provider: ProviderServer, ledger: RecordingLedger
) -> None:
    """Nor does the first byte have to be waited for."""
    provider.script(Stream([Wait()]))
    address = urlsplit(served)
    assert address.hostname is not None
    assert address.port is not None
    body = json.dumps({"message": "ping", "model": "gpt-5.4-mini", "stream": True}).encode()
    head = f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert provider.waiting.wait(10)
    assert provider.hung_up.wait(5)
    [call] = ledger.finished()
    assert (call.status, call.client_left) == ("cut_off", True)


def test_who_closes_after_the_last_word_has_not_left(
    served: str, provider: ProviderServer, ledger: RecordingLedger
) -> None:
    """The usage that comes after it is still waited for, and is the bill."""
    pieces = openai_chunks()
    provider.script(Stream([*pieces[:4], Wait(), *pieces[4:]]))
    connection = http.client.HTTPConnection(urlsplit(served).netloc, timeout=10)
    body = {"model": "gpt-5.4-mini", "messages": MESSAGES, "stream": True}
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    while b'"finish_reason": "stop"' not in response.readline():
        pass
    response.close()
    connection.close()
    assert provider.waiting.wait(10)
    assert not provider.hung_up.wait(0.2)
    provider.go_on()
    [call] = ledger.finished()
    assert (call.status, call.client_left, call.estimated) == ("answered", False, False)
