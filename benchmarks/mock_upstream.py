"""A provider that takes its time: OpenAI's chat completion, plain or streamed, in its own process.

Its formats are those of the tests' provider, whose server would be slower than what is measured.
This one reads a request only to know where it ends, whether it asks for a stream, and whether its
prompt asks for an answer at once: all others are answered after DELAY_MS. If it is paced, a stream
has as many tokens as the request allows, PER_S of them a second.
"""

from __future__ import annotations

import heapq
import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context

from tests.chatapp.upstream_server import OpenAIProtocol, Reply

MODEL = "gpt-5.4-mini"
DELAY_MS = 200
WORDS = 20  # of a streamed answer, an event each
PER_S = 10  # events, of a paced stream
USAGE = {
    "prompt_tokens": 14,
    "completion_tokens": WORDS,
    "total_tokens": 14 + WORDS,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
# Quotas that no benchmark exhausts.
HEAD = (
    "HTTP/1.1 200 OK\r\nx-request-id: req_1\r\n"
    "x-ratelimit-limit-requests: 100000000\r\n"
    "x-ratelimit-remaining-requests: 99999000\r\n"
    "x-ratelimit-reset-requests: 1ms\r\n"
    "x-ratelimit-limit-tokens: 1000000000\r\n"
    "x-ratelimit-remaining-tokens: 999990000\r\n"
    "x-ratelimit-reset-tokens: 1ms\r\n"
)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
AT_ONCE = b"at once"
STREAM = re.compile(rb'"stream": ?true')
ALLOWED = re.compile(rb'"max_completion_tokens": ?(\d+)')


def plain() -> bytes:
    body = json.dumps(OpenAIProtocol(Reply(model=MODEL, text="word " * WORDS, usage=USAGE)).body())
    head = f"{HEAD}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def streamed(words: int = WORDS) -> list[bytes]:
    """The head and each event, as they are sent."""
    chat = OpenAIProtocol(Reply(model=MODEL, usage=USAGE))
    events = [*chat.start(), *[chat.delta("text", "word ")] * words, *chat.end()]
    head = f"{HEAD}content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head.encode(), *(b"%x\r\n%b\r\n" % (len(each), each) for each in events), b"0\r\n\r\n"]


@contextmanager
def mock_upstream(*, paced: bool = False) -> Iterator[int]:
    """Its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        process = get_context("fork").Process(
            target=partial(serve, listener, paced=paced), daemon=True
        )
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.join(5)


def serve(listener: socket.socket, *, paced: bool) -> None:
    """Answer on all connections until the process is ended."""
    whole, stream = plain(), b"".join(streamed())
    #: When the rest of each answer is due: its next piece, and the others at the pace.
    due: list[tuple[float, int, socket.socket, Sequence[bytes]]] = []
    count = 0
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    received: dict[socket.socket, bytes] = {}
    while True:
        while due and due[0][0] <= time.monotonic():
            at, number, connection, pieces = heapq.heappop(due)
            with suppress(OSError):
                connection.sendall(pieces[0])
                if len(pieces) > 1:
                    heapq.heappush(due, (at + 1 / PER_S, number, connection, pieces[1:]))
        for key, _ in selector.select(max(0, due[0][0] - time.monotonic()) if due else None):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                received[connection] = b""
                continue
            connection = key.fileobj
            piece = b""
            with suppress(ConnectionError):
                piece = connection.recv(65_536)
            if not piece:
                selector.unregister(connection)
                del received[connection]
                connection.close()
                continue
            request = received[connection] + piece
            head, found, body = request.partition(b"\r\n\r\n")
            length = LENGTH.search(head)
            complete = found and len(body) >= (int(length[1]) if length else 0)
            received[connection] = b"" if complete else request
            if complete:
                pieces = [stream if STREAM.search(body) else whole]
                if paced and pieces == [stream]:
                    allowed = ALLOWED.search(body)
                    start, first, *rest = streamed(int(allowed[1]) if allowed else WORDS)
                    pieces = [start + first, *rest]
                at = time.monotonic() + (0 if AT_ONCE in body else DELAY_MS / 1e3)
                count += 1
                heapq.heappush(due, (at, count, connection, pieces))
