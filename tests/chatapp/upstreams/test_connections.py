"""Kept connections: a caller never gets what its upstream sent for another call, or for none."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from chatapp.upstreams import RawRequest
from tests.chatapp.conftest import upstream
from tests.chatapp.upstream_server import openai_body, openai_chunks

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def answer(text: str, *, streamed: bool = False) -> bytes:
    """A whole answer on the wire that says this."""
    if streamed:
        pieces = [f"{len(each):x}\r\n".encode() + each + b"\r\n" for each in openai_chunks(text)]
        kind, body = (
            "text/event-stream\r\ntransfer-encoding: chunked",
            b"".join([*pieces, b"0\r\n\r\n"]),
        )
    else:
        body = json.dumps(openai_body(text=text)).encode()
        kind = f"application/json\r\ncontent-length: {len(body)}"
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode() + body


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a server that answers the calls like that, in order, and its connections."""
    left, accepted = iter(answers), list[socket.socket]()

    def serve(connection: socket.socket) -> None:
        received = b""
        with suppress(OSError):
            while piece := connection.recv(65_536):
                received += piece
                head, _, body = received.partition(b"\r\n\r\n")
                length = LENGTH.search(head)
                if length is not None and len(body) == int(length[1]):
                    received = b""
                    connection.sendall(next(left))

    def accept() -> None:
        with suppress(OSError):
            while True:
                accepted.append(listener.accept()[0])
                threading.Thread(target=serve, args=(accepted[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", accepted
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("more", "connections"),
    [(b"", 1), (answer("for another"), 2), (b"junk", 2)],
    ids=["nothing", "an answer", "junk"],
)
def test_what_follows_an_answer_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, *, more: bytes, connections: int, streamed: bool
) -> None:
    """Bytes that came with the end of an answer end its connection. Without any it is kept."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-test")
    first = answer("first", streamed=streamed) + more
    with answering(first, answer("second")) as (url, accepted):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        openai = upstream("openai")
        request = RawRequest.of({"model": "gpt-5.4-mini", "stream": streamed})
        if streamed:
            assert "".join(part.text for part in openai.forward_stream(request)) == "first"
        else:
            assert openai.forward(request).generated == ["first"]
        assert openai.forward(RawRequest.of({"model": "gpt-5.4-mini"})).generated == ["second"]
        assert len(accepted) == connections
