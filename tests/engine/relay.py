"""A relay in front of a server: it may take TLS off, and lose replies."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from types import TracebackType
from typing import Self


class Relay:
    """Listens on `port` and carries bytes to and from the target's, one thread a direction.

    While `drops_replies` is set, it hangs up in place of carrying a reply.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._target_port = target_port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.drops_replies = threading.Event()

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
            with contextlib.suppress(ssl.SSLError):  # a client that does not trust us
                if self._tls:
                    client = self._tls.wrap_socket(client, server_side=True)
                server = socket.create_connection(("127.0.0.1", self._target_port))
                self._start(client, server, threading.Event())
                self._start(server, client, self.drops_replies)

    def _start(
        self, source: socket.socket, target: socket.socket, hang_up: threading.Event
    ) -> None:
        threading.Thread(target=_carry, args=(source, target, hang_up), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, hang_up: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while (data := source.recv(65_536)) and not hang_up.is_set():
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
