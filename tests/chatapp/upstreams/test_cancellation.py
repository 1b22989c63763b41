"""The network streams of providers' connections: what they send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from httpcore2 import SyncBackend

from chatapp.upstreams.cancellation import JOINED_MAX_BYTES, Backend
from tests.chatapp.upstream_server import OPENAI_PATH, UpstreamServer

HEAD_END = b"\r\n\r\n"


class Recorded:
    """A network backend whose streams note the bytes of each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        stream = SyncBackend().connect_tcp(*args, **options)
        send = stream.write

        def write(buffer: bytes, timeout: float | None = None) -> None:
            if buffer:
                self.writes.append(bytes(buffer))
            send(buffer, timeout)

        stream.write = write
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
