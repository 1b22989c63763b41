"""Requests through TLS and proxies, as the environment has them for every program."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from chatapp.upstreams import RawRequest, UpstreamError
from tests.certificate import self_signed
from tests.chatapp.conftest import upstream
from tests.chatapp.upstream_server import OPENAI_PATH, Answer, UpstreamServer, openai_body

REQUEST = RawRequest.of({"model": "gpt-5.4-mini"})
#: "user:password"
CREDENTIALS = b"Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA=="


@contextmanager
def listening(
    port_of: int, *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """A server on a port that hands all bytes to the other port, and the heads that began its
    connections. A CONNECT gets its 200; without credentials, a 407."""
    heads: list[bytes] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65_536):
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port_of)) as server:
            client = client if tls is None else tls.wrap_socket(client, server_side=True)
            with client:
                first = client.recv(65_536)
                heads.append(first.partition(b"\r\n\r\n")[0])
                if first.startswith(b"CONNECT ") and CREDENTIALS not in first:
                    client.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
                    return
                if first.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(first)
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], heads


@pytest.fixture
def no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of this machine are reached through a proxy, too."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)


class Https(NamedTuple):
    """The provider with TLS: its port and certificate, and how its connections began."""

    port: int
    certificate: Path
    context: ssl.SSLContext
    heads: list[bytes]


@pytest.fixture
def https(
    provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Https]:
    """The provider is at https://localhost."""
    certificate, context = self_signed(tmp_path, "DNS:localhost")
    with listening(int(provider.url.rpartition(":")[2]), tls=context) as (port, heads):
        monkeypatch.setenv("OPENAI_BASE_URL", f"https://localhost:{port}/v1")
        monkeypatch.setenv("NO_PROXY", "localhost")
        yield Https(port, certificate, context, heads)


def test_https_needs_a_trusted_certificate(
    https: Https, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to a server with another. Its connection is kept, as without TLS."""
    with pytest.raises(UpstreamError) as failed:
        upstream("openai").forward(REQUEST)
    assert (failed.value.kind, provider.calls) == ("unavailable", [])
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.message
    monkeypatch.setenv("SSL_CERT_FILE", str(https.certificate))
    openai = upstream("openai")
    for _ in range(3):
        assert openai.forward(REQUEST).generated == ["pong"]
    stream = openai.forward_stream(RawRequest.of({"model": "gpt-5.4-mini", "stream": True}))
    assert "".join(part.text for part in stream) == "pong"
    assert len(https.heads) == 1
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://127.0.0.1:{https.port}/v1")
    with pytest.raises(UpstreamError) as failed:
        upstream("openai").forward(REQUEST)  # another name than the certificate's
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.message
    assert len(provider.calls) == 4


def test_http_goes_through_its_proxy(
    provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch, no_exceptions: None
) -> None:
    """It gets the whole address and its credentials, and its connection is kept."""
    port_of = int(provider.url.rpartition(":")[2])
    with listening(port_of) as (port, heads):
        monkeypatch.setenv("HTTP_PROXY", f"http://user:password@127.0.0.1:{port}")
        openai = upstream("openai")
        for _ in range(2):
            provider.script(Answer(200, openai_body()))  # as for the path alone
            openai.forward(REQUEST)
        [head] = heads
        assert head.startswith(f"POST {provider.url}{OPENAI_PATH} HTTP/1.1\r\n".encode())
        assert CREDENTIALS in head.split(b"\r\n")
        assert f"Host: 127.0.0.1:{port_of}".encode() in head.split(b"\r\n")
        assert [call.path for call in provider.calls] == [f"{provider.url}{OPENAI_PATH}"] * 2
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        upstream("openai").forward(REQUEST)
        assert len(heads) == 1
        assert provider.calls[-1].path == OPENAI_PATH


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_https_goes_through_a_tunnel(
    scheme: str,
    https: Https,
    provider: UpstreamServer,
    monkeypatch: pytest.MonkeyPatch,
    no_exceptions: None,
) -> None:
    """The proxy sees neither the request nor the key; without credentials it refuses."""
    monkeypatch.setenv("SSL_CERT_FILE", str(https.certificate))
    tls = https.context if scheme == "https" else None  # TLS in TLS
    with listening(https.port, tls=tls) as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://localhost:{port}")
        with pytest.raises(UpstreamError) as failed:
            upstream("openai").forward(REQUEST)
        assert (failed.value.kind, provider.calls) == ("unavailable", [])
        assert "407" in failed.value.message
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://user:password@localhost:{port}")
        openai = upstream("openai")
        for _ in range(2):
            assert openai.forward(REQUEST).generated == ["pong"]
        assert len(heads) == 2
        assert heads[1].startswith(f"CONNECT localhost:{https.port} HTTP/1.1".encode())
        assert b"sk-" not in b"".join(heads)
    assert [call.path for call in provider.calls] == [OPENAI_PATH] * 2
