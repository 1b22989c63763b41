"""A relay in front of a server: it may take TLS off, lose replies, or carry bytes badly."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

#: Hands a piece of a reply to the client, or of a request to the server.
Deliver = Callable[[socket.socket, bytes], None]


def whole(target: socket.socket, data: bytes) -> None:
    """As it came."""
    target.sendall(data)


class Relay:
    """Listens on `port` and carries bytes to and from the target's, one thread a direction.

    While `drops_replies` is set, it hangs up in place of carrying a reply; `deliver` is how a reply
    is carried, and `forward` a request, on all connections.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port = target_port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.drops_replies = threading.Event()
        self.deliver: Deliver = whole
        self.forward: Deliver = whole

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._tls:
                    client = self._tls.wrap_socket(client, server_side=True)
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # a client that does not trust us, or a target that is gone
                client.close()
                continue
            _start(client, server, self._request, threading.Event())
            _start(server, client, self._reply, self.drops_replies)

    def _request(self, server: socket.socket, request: bytes) -> None:
        self.forward(server, request)

    def _reply(self, client: socket.socket, reply: bytes) -> None:
        self.deliver(client, reply)


def _start(
    source: socket.socket, target: socket.socket, deliver: Deliver, hang_up: threading.Event
) -> None:
    arguments = (source, target, deliver, hang_up)
    threading.Thread(target=_carry, args=arguments, daemon=True).start()


def _carry(
    source: socket.socket, target: socket.socket, deliver: Deliver, hang_up: threading.Event
) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(65_536)) and not hang_up.is_set():
            deliver(target, data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
