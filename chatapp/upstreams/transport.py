"""HTTP/1.1 to an upstream: its connections, requests on them, and their answers.

httpcore2 opens the connections, with TLS and through proxies, and llhttp parses the answers. See
docs/decisions/0022-the-sdks-http-client.md.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any, Final

import httpcore2
import httpx2
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from chatapp.upstreams import ErrorKind
from chatapp.upstreams.cancellation import ConnectionFailed, Stream, hang_up

#: As in the SDKs' clients: connections in use, connections kept, and for how long.
IN_USE_MAX: Final = 1_000
KEPT_MAX: Final = 100
KEPT_S: Final = 5.0
READ_MAX_BYTES: Final = 64 * 1024
#: Of a head, and of whatever else is not the body. llhttp has no bound.
HEAD_MAX_BYTES: Final = 100 * 1024
#: A larger body is sent after its head instead of being copied.
JOINED_MAX_BYTES: Final = 64 * 1024
#: The last bytes of an answer in chunks without trailers, and of one without a body.
CHUNKED_END: Final = b"0\r\n\r\n"
HEAD_END: Final = b"\r\n\r\n"
#: The request that httpcore2 connects for, with what a proxy needs: an origin, and headers.
DIAL: Final = re.compile(rb"DIAL (.*)/ HTTP/1\.1\r\nHost: .*\r\n((?:.+\r\n)*)\r\n")


@contextmanager
def network_errors(where: str = "") -> Iterator[None]:
    """Turn the errors of connections to that origin into ConnectionFailed, with a reason that
    quotes neither the request nor the body of its answer."""
    try:
        yield
    except (
        OSError,
        UnicodeError,  # of a host with an empty label, as api..example.com
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.ProxyError,
    ) as error:
        # After ConnectTimeout the prompt was not sent, and may be sent again.
        is_late = isinstance(error, TimeoutError | httpcore2.ReadTimeout | httpcore2.WriteTimeout)
        kind: ErrorKind = "timeout" if is_late else "unavailable"
        dns = "DNS: " if isinstance(error.__context__, socket.gaierror) else ""
        message = f"{where}{dns}{str(error) or type(error).__name__}"
        raise ConnectionFailed(kind, message=message) from error


class Connected(Exception):
    """httpcore2 has connected."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream


class NewStream(Stream):
    """A stream while httpcore2 connects. Instead of a request, it raises Connected."""

    has_request = False

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if dialled := DIAL.match(buffer):
            self.close = lambda: None  # httpcore2 closes its connection when a request fails
            connected = Stream(self._stream)
            connected.proxied = dialled[1].decode(), dialled[2].decode()
            raise Connected(connected)
        super().write(buffer, timeout)

    def start_tls(self, *args: Any, **kwargs: Any) -> NewStream:
        return NewStream(self._stream.start_tls(*args, **kwargs))


class Pool:
    """The connections to one origin, for all threads of one process. No request is sent twice.

    ``client`` has the certificates, proxies and socket options. ``connect_s`` limits each step of
    connecting.
    """

    def __init__(self, client: httpx2.Client, url: httpx2.URL, *, connect_s: float) -> None:
        # Neither httpx2 nor httpcore2 has a public way to its connections.
        transport: Any = client._transport_for_url(url)  # noqa: SLF001
        connector = self._connector = transport._pool  # noqa: SLF001
        backend = connector._network_backend  # noqa: SLF001
        connector._network_backend = SimpleNamespace(  # noqa: SLF001
            connect_tcp=lambda *args, **kwargs: NewStream(backend.connect_tcp(*args, **kwargs))
        )
        self._url = url
        self._where = f"{url.scheme}://{url.netloc.decode()}: "  # without a password
        self._connect_s = connect_s
        self._free = threading.Semaphore(IN_USE_MAX)
        self._lock = threading.Lock()
        #: Connections without a request, and when they expire. The last one is used next.
        self._kept: deque[tuple[float, Stream]] = deque()

    def send(self, method: str, target: str, headers: str, body: bytes, *, read_s: float) -> Answer:
        """Send a request, whose ``headers`` are lines. The answer's body is not read yet.

        ``read_s`` limits each wait for the upstream. Raises ConnectionFailed.
        """
        if not self._free.acquire(timeout=read_s):
            raise ConnectionFailed("unavailable", message="all connections are in use")
        stream = None
        try:
            with network_errors(self._where):
                stream = self._take() or self._connect(read_s)
                origin, of_proxy = stream.proxied
                head = f"{method} {origin}{target} HTTP/1.1\r\n{of_proxy}{headers}\r\n"
                answer = Answer(self, stream, read_s=read_s)
                answer.begin(head.encode("ascii"), body)
        except BaseException:
            self.release(stream)
            raise
        return answer

    def release(self, stream: Stream | None, *, keep: bool = False) -> None:
        """End a request and its connection, if it has one; ``keep`` that for another request."""
        if stream is not None and keep:
            with self._lock:
                self._kept.append((time.monotonic() + KEPT_S, stream))
                stream = self._kept.popleft()[1] if len(self._kept) > KEPT_MAX else None
        self._free.release()
        if stream is not None:
            stream.close()

    def _take(self) -> Stream | None:
        """Return a kept connection that is still open, or None."""
        while True:
            expired = []
            with self._lock:
                now = time.monotonic()
                while self._kept and self._kept[0][0] < now:
                    expired.append(self._kept.popleft()[1])
                taken = self._kept.pop()[1] if self._kept else None
            for stream in expired:
                stream.close()
            # If it is readable, the upstream has closed it, or sent what answers no request.
            if taken is None or not taken.get_extra_info("is_readable"):
                return taken
            taken.close()

    def _connect(self, read_s: float) -> Stream:
        url = self._url
        core_url = httpcore2.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"
        )
        timeout = {"connect": self._connect_s, "read": read_s, "write": read_s}
        request = httpcore2.Request(
            "DIAL", core_url, headers={"Host": "none"}, extensions={"timeout": timeout}
        )
        try:
            self._connector.create_connection(core_url.origin).handle_request(request)
        except Connected as connected:
            return connected.stream
        except (TimeoutError, httpcore2.TimeoutException) as error:
            # Also if a proxy does not answer in time.
            raise httpcore2.ConnectTimeout(*error.args) from error
        raise AssertionError("httpcore2 has connected without our streams")


class Answer(httpx2.SyncByteStream):
    """An answer whose body is read by iterating. Its connection serves no other request before
    `close`, which may be called again.

    ``headers`` have names in lower case. ``read_s`` limits each read and may be changed.
    ``content`` is the body, once a caller has read it.
    """

    def __init__(self, pool: Pool, stream: Stream, *, read_s: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.read_s = read_s
        self.content = b""
        self._connections = pool
        self._stream = stream
        self._has_head = self._is_complete = False
        #: Whether another request can follow on the connection.
        self._is_clean = True
        self._lock = threading.Lock()
        self._is_aborted = self._is_closed = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        #: Since the last piece of the body.
        self._other_bytes = 0
        self.on_body = self._pieces.append
        self._parser = HttpResponseParser(self)
        # The answer was paid for. An invalid value of a header is dropped where it is used.
        self._parser.set_dangerous_leniencies(lenient_headers=True)

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").lower().startswith("text/event-stream")

    def begin(self, head: bytes, body: bytes) -> None:
        """Send the request and receive the head. Raises what `network_errors` expects."""
        try:
            if len(body) <= JOINED_MAX_BYTES:
                self._stream.write(head + body, self.read_s)
            else:
                self._stream.write(head, self.read_s)
                self._stream.write(body, self.read_s)
        except httpcore2.WriteError:  # the upstream may refuse a request before it has all of it
            self._is_clean = False
        while not self._has_head:
            self._receive()

    def __iter__(self) -> Iterator[bytes]:
        """Return the pieces of the body as they arrive; ConnectionFailed if it is cut off."""
        return chain.from_iterable(self._reads())

    def decoded(self) -> Iterator[bytes]:
        """Return the same without the body's Content-Encoding."""
        return _decoded(self) if "content-encoding" in self.headers else iter(self)

    def close(self) -> None:
        with self._lock:  # after `abort`, which would shut down what may serve another call
            if self._is_closed:
                return
            self._is_closed = True
        del self._parser  # which refers to this
        keep = self._is_complete and self._is_clean and not self._is_aborted
        self._connections.release(self._stream, keep=keep)

    def abort(self, how: int) -> None:
        """Shut the connection down, also while another thread reads from it."""
        with self._lock:
            if not self._is_closed:
                self._is_aborted = True
                hang_up(self._stream, how)

    def _reads(self) -> Iterator[list[bytes]]:
        with network_errors():
            while True:
                yield self._pieces
                self._pieces.clear()
                if self._is_complete:
                    break
                self._receive()
        self.close()

    def _receive(self) -> None:
        received = self._stream.read(READ_MAX_BYTES, self.read_s)
        if not received:
            if not self._has_head or self.headers.keys() & {"content-length", "transfer-encoding"}:
                raise httpcore2.RemoteProtocolError("the upstream ended the connection too early")
            self._is_complete = True  # nothing else ends such a body
            return
        try:
            self._parser.feed_data(received)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._is_clean = False
            if not self._is_complete:
                ours = isinstance(error.__context__, httpcore2.ProtocolError)
                reason = error.__context__ if ours else error
                raise httpcore2.RemoteProtocolError(str(reason)) from error
        if self._is_complete and self._is_clean:
            # llhttp skips empty lines after an answer.
            end = self._pieces[-1] if self._pieces else HEAD_END
            end = CHUNKED_END if "transfer-encoding" in self.headers else end
            self._is_clean = received.endswith(end)
        self._other_bytes = 0 if self._pieces else self._other_bytes + len(received)
        if self._other_bytes > HEAD_MAX_BYTES:
            raise httpcore2.RemoteProtocolError(f"a head is larger than {HEAD_MAX_BYTES} bytes")

    # -- what llhttp calls ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_complete:
            raise httpcore2.RemoteProtocolError("something follows the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        fields, self._fields = self._fields, []  # from now on they are trailers, which are ignored
        version, headers = self._parser.get_http_version(), self.headers
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200 and self.status != 101:
            return  # the answer is still to come
        for field, value in fields:
            name, text = field.decode("latin-1").lower(), value.decode("latin-1").strip()
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
            if name.endswith(" ") or "\0" in text:  # both are allowed by the leniency
                raise httpcore2.RemoteProtocolError(f"the header {name!r} is invalid")
        coding = headers.get("transfer-encoding", "chunked")
        if version not in ("1.0", "1.1") or self.status < 100 or coding.lower() != "chunked":
            head = f"HTTP/{version}, status {self.status}, Transfer-Encoding {coding}"
            raise httpcore2.RemoteProtocolError(f"the answer has an unknown form: {head}")
        self._is_clean &= version == "1.1" and self._parser.should_keep_alive()
        self._has_head = True

    def on_message_complete(self) -> None:
        self._is_complete = self._has_head


def _decoded(answer: Answer) -> Iterator[bytes]:
    headers = {b"content-encoding": answer.headers["content-encoding"].encode("latin-1")}
    try:
        yield from httpx2.Response(200, headers=headers, stream=answer).iter_bytes()
    except httpx2.DecodingError as error:
        raise ConnectionFailed("unavailable", message=str(error)) from error
