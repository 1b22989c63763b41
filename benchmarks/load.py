"""An HTTP client that costs less than what it measures: sockets and the least of HTTP."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SILENCE_S = 30.0


class Connection:
    """A keep-alive connection with at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.first_byte_at = 0.0  # of the body
        self._received = b""
        self._body_at = 0
        self._end: int | None = None  # of an answer of known length
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has arrived; whether the answer is complete."""
        piece = self.socket.recv(65_536)
        if not piece:
            raise ConnectionError(f"the connection was closed within an answer: {self._received!r}")
        self._received += piece
        if not self._body_at:
            head, found, _ = self._received.partition(b"\r\n\r\n")
            if not found:
                return False
            self._body_at = len(head) + 4
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._end = self._body_at + int(length) if length else None
        if not self.first_byte_at and len(self._received) > self._body_at:
            self.first_byte_at = time.perf_counter()
        if self._end is None:
            return self._received.endswith(b"\r\n0\r\n\r\n")
        return len(self._received) >= self._end

    def ask(self, path: str) -> bytes:
        """The body of one answer."""
        self.send(get_request(path))
        while not self.receive():
            pass
        return self.body

    @property
    def status(self) -> int:
        return int(self._received[9:12])

    @property
    def body(self) -> bytes:
        return self._received[self._body_at :]

    @property
    def is_last(self) -> bool:
        """Whether the server closes the connection after this answer."""
        return b"\r\nconnection: close\r\n" in self._received[: self._body_at].lower()


@dataclass
class Load:
    """What the answers took, in seconds: to the first byte of the body, in all."""

    seconds: float = 0.0  # until the last answer
    cpu_s: float = 0.0  # of the server's processes
    refused: int = 0
    first_bytes: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.times) / self.seconds


def drive(
    port: int,
    requests: Iterator[bytes],
    *,
    connections: int,
    seconds: float,
    status: int = 200,
    refusal: int | None = None,
    workers: int = 1,
    process: int = 0,
) -> Load:
    """Send requests over so many connections, each the next one when its last was answered, for
    that time or until there are no more.

    Each of the `workers` behind the port gets as many of the connections. `process` and its
    descendants are the server. Answers with the status `refusal` are counted apart; any other
    status is a RuntimeError. The last answers are waited for and counted, so that no call reaches
    into the next load.
    """
    load = Load()
    with selectors.DefaultSelector() as selector:
        opened = spread(port, connections, workers)
        processes = descendants(process) if process else []
        used_s = sum(map(cpu_s, processes))
        begin = time.perf_counter()
        for connection in opened:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(next(requests))
        while selector.get_map():
            for done in answered(selector, {status, refusal}):
                now = time.perf_counter()
                if done.status == status:
                    load.times.append(now - done.sent_at)
                    load.first_bytes.append((done.first_byte_at or now) - done.sent_at)
                else:
                    load.refused += 1
                request = next(requests, None) if now < begin + seconds else None
                following = done
                if request is None or done.is_last:
                    selector.unregister(done.socket)
                    done.socket.close()
                    if request is None:
                        continue
                    following = Connection(port)
                    selector.register(following.socket, selectors.EVENT_READ, following)
                following.send(request)
    load.seconds = time.perf_counter() - begin
    load.cpu_s = sum(map(cpu_s, processes)) - used_s
    return load


def answered(selector: selectors.BaseSelector, statuses: set[int | None]) -> Iterator[Connection]:
    """Wait; then the connections whose answer is complete."""
    ready = selector.select(SILENCE_S)
    if not ready:
        raise RuntimeError(f"no answer within {SILENCE_S:.0f} s")
    for key, _ in ready:
        connection: Connection = key.data
        if connection.receive():
            if connection.status not in statuses:
                raise RuntimeError(f"status {connection.status}: {connection.body[:1000]!r}")
            yield connection


def spread(port: int, connections: int, workers: int) -> list[Connection]:
    """Connections of which each worker has accepted as many; left alone, one may take them all."""
    kept: list[Connection] = []
    share: Counter[bytes] = Counter()
    for _ in range(200 * connections):
        connection = Connection(port)
        worker = connection.ask("/worker") if workers > 1 else b""
        if share[worker] * workers >= connections:
            connection.socket.close()
            continue
        share[worker] += 1
        kept.append(connection)
        if len(kept) == connections:
            return kept
    raise RuntimeError(f"the workers accepted {dict(share)} of {connections} connections")


def descendants(process: int) -> list[int]:
    """The process and all that descend from it."""
    found = [process]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def cpu_s(process: int) -> float:
    """What a process has used of a processor so far."""
    # Linux's number for a process's clock, as in clock_getcpuclockid(3). /proc has hundredths of a
    # second only, in which a gateway answers several requests.
    return time.clock_gettime(~process << 3 | 2)


def get(port: int, path: str) -> bytes:
    """The body of one answer, on a connection of its own."""
    connection = Connection(port)
    with connection.socket:
        return connection.ask(path)


def get_request(path: str, **headers: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()


def post_request(path: str, body: bytes, **headers: str) -> bytes:
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode() + body
