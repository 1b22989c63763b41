"""The network streams of providers' connections: what they send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx2
import pytest
from httpcore2 import SyncBackend

from chatapp.upstreams.cancellation import JOINED_MAX_BYTES, Backend
from tests.chatapp.upstream_server import OPENAI_PATH, Stream, UpstreamServer, Wait

HEAD_END = b"\r\n\r\n"


class Recorded:
    """A network backend whose streams note the bytes of each write, their sockets, and how often it
    is asked whether there is something to read."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.probes = 0
        self.sockets: list[socket.socket] = []

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        stream = SyncBackend().connect_tcp(*args, **options)
        send = stream.write

        def write(buffer: bytes, timeout: float | None = None) -> None:
            if buffer:
                self.writes.append(bytes(buffer))
            send(buffer, timeout)

        def get_extra_info(info: str) -> Any:
            self.probes += info == "is_readable"
            return look(info)

        look = stream.get_extra_info
        self.sockets.append(look("socket"))
        stream.write, stream.get_extra_info = write, get_extra_info
        return stream


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def client(recorded: Recorded) -> Iterator[httpx2.Client]:
    transport = httpx2.HTTPTransport()
    transport._pool._network_backend = Backend(recorded)
    with httpx2.Client(transport=transport) as made:
        yield made


@pytest.mark.parametrize("body", [b"{}", b"{}" + HEAD_END])
def test_head_and_body_are_one_write(
    client: httpx2.Client, recorded: Recorded, provider: UpstreamServer, body: bytes
) -> None:
    """Whatever the body ends with, on a new connection and on one that was used before."""
    for count in (1, 2):
        client.post(f"{provider.url}{OPENAI_PATH}", content=body)
        assert len(recorded.writes) == count
        head, _, sent = recorded.writes[-1].partition(HEAD_END)
        assert head.startswith(b"POST ")
        assert sent == body


def test_a_large_body_is_not_copied(
    client: httpx2.Client, recorded: Recorded, provider: UpstreamServer
) -> None:
    """It follows its head in a second write."""
    body = b"{}" + b" " * JOINED_MAX_BYTES
    client.post(f"{provider.url}{OPENAI_PATH}", content=body)
    head, sent = recorded.writes
    assert head.endswith(HEAD_END)
    assert sent == body


def test_a_request_without_a_body_is_sent(
    client: httpx2.Client, recorded: Recorded, provider: UpstreamServer
) -> None:
    """Nothing follows its head."""
    client.get(f"{provider.url}/v1/models")
    assert [each.endswith(HEAD_END) for each in recorded.writes] == [True]


def test_one_idle_connection_is_asked_whether_it_is_open(
    client: httpx2.Client, recorded: Recorded, provider: UpstreamServer
) -> None:
    """The one that is used, and not all of them for each request."""
    with ExitStack() as at_once:
        stream = partial(client.stream, "GET", f"{provider.url}/v1/models")
        for answer in [at_once.enter_context(stream()) for _ in range(5)]:
            answer.read()
    assert len(recorded.sockets) == 5
    for count in (1, 2):
        client.get(f"{provider.url}/v1/models")
        assert recorded.probes == count
    assert len(recorded.sockets) == 5


def test_a_connection_that_was_closed_is_not_used(
    client: httpx2.Client, recorded: Recorded, provider: UpstreamServer
) -> None:
    """The request is sent once, on another one."""
    client.post(f"{provider.url}{OPENAI_PATH}", content=b"{}")
    recorded.sockets[0].shutdown(socket.SHUT_RD)  # reads as if the upstream had closed it
    answer = client.post(f"{provider.url}{OPENAI_PATH}", content=b"{}")
    assert answer.status_code == 200
    assert len(recorded.writes) == len(recorded.sockets) == 2


def test_a_read_ends_at_its_timeout(client: httpx2.Client, provider: UpstreamServer) -> None:
    """Although the connection has a longer one from the request before."""
    wait = Wait()
    client.get(f"{provider.url}/v1/models", timeout=60)
    provider.script(Stream([wait]))
    with pytest.raises(httpx2.ReadTimeout):
        client.post(
            f"{provider.url}{OPENAI_PATH}", content=b"{}", timeout=httpx2.Timeout(60, read=0.1)
        )
    provider.go_on()
