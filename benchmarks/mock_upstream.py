"""A provider that answers at once: OpenAI's chat completion, always the same, in its own process.

Whatever it is sent is answered with these bytes, headers of quotas included. It reads a request
only to know where it ends, so that what a gateway costs is not hidden behind what this one does.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context

from benchmarks.throughput import complete

BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_764_000_000,
        "model": "gpt-5.4-mini",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "A kind word.", "refusal": None},
            }
        ],
        "usage": {
            "prompt_tokens": 14,
            "completion_tokens": 5,
            "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
).encode()
# Quotas with room for whatever a benchmark asks.
HEAD = (
    "HTTP/1.1 200 OK\r\n"
    "content-type: application/json\r\n"
    f"content-length: {len(BODY)}\r\n"
    "x-request-id: req_1\r\n"
    "x-ratelimit-limit-requests: 100000000\r\n"
    "x-ratelimit-remaining-requests: 99999000\r\n"
    "x-ratelimit-reset-requests: 1ms\r\n"
    "x-ratelimit-limit-tokens: 1000000000\r\n"
    "x-ratelimit-remaining-tokens: 999990000\r\n"
    "x-ratelimit-reset-tokens: 1ms\r\n"
    "\r\n"
)
ANSWER = HEAD.encode() + BODY


@contextmanager
def mock_upstream() -> Iterator[str]:
    """Its base URL, as OPENAI_BASE_URL takes it."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        process = get_context("fork").Process(target=serve, args=(listener,), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            process.terminate()
            process.join(5)


def serve(listener: socket.socket) -> None:
    """Answer on all connections, until the process is ended."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    received: dict[int, bytes] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                received[connection.fileno()] = b""
                poll.register(connection, select.EPOLLIN)
                continue
            try:
                piece = connections[number].recv(65_536)
            except ConnectionError:
                piece = b""
            received[number] += piece
            if not piece:
                poll.unregister(number)
                connections.pop(number).close()
            elif complete(received[number]):
                received[number] = b""
                connections[number].sendall(ANSWER)
