"""Connections to an upstream: what is sent on them, and which of them are kept."""

import re
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from typing import Any

import httpcore2
import httpx2
import pytest
from httpcore2 import SyncBackend

from chatapp.upstreams import cancellation, transport
from chatapp.upstreams.cancellation import ConnectionFailed, written
from chatapp.upstreams.cancellation import Wait as CallWait
from chatapp.upstreams.transport import JOINED_MAX_BYTES, KEPT_MAX, Answer, Pool, network_errors
from tests.chatapp.upstream_server import OPENAI_PATH, Stream, UpstreamServer, Wait

HEAD_END = b"\r\n\r\n"


class Recorded:
    """A network backend whose streams note the bytes of each write, their sockets, and how often it
    is asked whether there is something to read. Writes of `fails_on` fail."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.probes = 0
        self.sockets: list[socket.socket] = []
        self.fails_on: bytes | None = None

    def connect_tcp(self, *args: Any, **options: Any) -> Any:
        stream = SyncBackend().connect_tcp(*args, **options)
        send = stream.write

        def write(buffer: bytes, timeout: float | None = None) -> None:
            if self.fails_on == buffer:
                raise httpcore2.WriteError("no")
            send(buffer, timeout)

        def get_extra_info(info: str) -> Any:
            self.probes += info == "is_readable"
            return look(info)

        look = stream.get_extra_info
        self.sockets.append(look("socket"))
        stream.write, stream.get_extra_info = write, get_extra_info
        return stream

    def written(self, connection: socket.socket, data: bytes) -> int:
        if self.fails_on == data:
            return 0
        self.writes.append(data)
        return written(connection, data)

    @property
    def open(self) -> int:
        """How many connections are not closed."""
        return sum(each.fileno() >= 0 for each in self.sockets)


class Caller:
    """Requests over a pool."""

    def __init__(self, url: str, recorded: Recorded) -> None:
        over = httpx2.HTTPTransport()
        over._pool._network_backend = recorded
        self.client = httpx2.Client(transport=over)
        self.pool = Pool(self.client, httpx2.URL(url), connect_s=5)

    def begin(self, method: str, path: str, body: bytes = b"", *, read_s: float = 60) -> Answer:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return self.pool.send(method, path, f"Host: x\r\n{length}", body, read_s=read_s)

    def get(self) -> bytes:
        return b"".join(self.begin("GET", "/v1/models"))

    def post(self, body: bytes, *, read_s: float = 60) -> Answer:
        answer = self.begin("POST", OPENAI_PATH, body, read_s=read_s)
        answer.content = b"".join(answer)
        return answer


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    made = Recorded()
    monkeypatch.setattr(cancellation, "written", made.written)
    return made


@pytest.fixture
def caller(recorded: Recorded, provider: UpstreamServer) -> Iterator[Caller]:
    made = Caller(provider.url, recorded)
    with made.client:
        yield made


# -- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{}", b"{}" + HEAD_END])
def test_head_and_body_are_one_write(caller: Caller, recorded: Recorded, body: bytes) -> None:
    """Whatever the body ends with, on a new connection and on one that was used before."""
    for count in (1, 2):
        caller.post(body)
        assert len(recorded.writes) == count
        head, _, sent = recorded.writes[-1].partition(HEAD_END)
        assert head.startswith(b"POST ")
        assert sent == body


def test_a_large_body_is_not_copied(caller: Caller, recorded: Recorded) -> None:
    """It follows its head in a second write."""
    body = b"{}" + b" " * JOINED_MAX_BYTES
    caller.post(body)
    head, sent = recorded.writes
    assert head.endswith(HEAD_END)
    assert sent == body


def test_a_request_without_a_body_is_sent(caller: Caller, recorded: Recorded) -> None:
    """Nothing follows its head."""
    caller.get()
    assert [each.endswith(HEAD_END) for each in recorded.writes] == [True]


def test_a_request_can_be_refused_before_it_was_sent(
    caller: Caller, recorded: Recorded, provider: UpstreamServer
) -> None:
    """The answer is read although the body could not be written. The connection is not kept."""
    body = b"{}" + b" " * JOINED_MAX_BYTES
    recorded.fails_on = body
    answer = caller.pool.send("GET", "/v1/models", "Host: x\r\n", body, read_s=60)
    assert (answer.status, b"no such path" in b"".join(answer)) == (404, True)
    assert recorded.open == 0


# -- kept connections --------------------------------------------------------------------------


def test_one_idle_connection_is_asked_whether_it_is_open(
    caller: Caller, recorded: Recorded
) -> None:
    """The one that is used, and not all of them for each request."""
    with ExitStack() as at_once:
        for answer in [caller.begin("GET", "/v1/models") for _ in range(5)]:
            at_once.callback(answer.close)
            b"".join(answer)
    assert len(recorded.sockets) == 5
    for count in (1, 2):
        caller.get()
        assert recorded.probes == count
    assert len(recorded.sockets) == 5


def test_calls_share_connections(caller: Caller, recorded: Recorded) -> None:
    """A hundred calls in a row need one, and calls of eight threads at most eight."""
    for _ in range(100):
        caller.post(b"{}")
    assert len(recorded.sockets) == 1
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(caller.post, repeat(b"{}", 200)))
    assert {answer.status for answer in answers} == {200}
    assert len(recorded.sockets) <= 8


def test_a_connection_that_was_closed_is_not_used(caller: Caller, recorded: Recorded) -> None:
    """The request is sent once, on another one."""
    caller.post(b"{}")
    recorded.sockets[0].shutdown(socket.SHUT_RD)  # reads as if the upstream had closed it
    answer = caller.post(b"{}")
    assert answer.status == 200
    assert len(recorded.writes) == len(recorded.sockets) == 2
    assert recorded.open == 1


def test_a_request_that_was_sent_is_not_sent_again(
    caller: Caller, recorded: Recorded, provider: UpstreamServer
) -> None:
    """Its kept connection ends without an answer, which may be billed all the same."""
    caller.post(b"{}")
    provider.drop(1)
    with pytest.raises(ConnectionFailed) as failed:
        caller.post(b"{}")
    assert failed.value.kind == "unavailable"
    assert len(recorded.writes) == len(provider.calls) == 2
    assert (len(recorded.sockets), recorded.open) == (1, 0)


def test_kept_connections_expire(
    caller: Caller, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are not the next to be used."""
    for answer in [caller.begin("GET", "/v1/models") for _ in range(3)]:
        b"".join(answer)
    assert recorded.open == 3
    now = transport.time.monotonic()
    monkeypatch.setattr(transport.time, "monotonic", lambda: now + transport.KEPT_S - 1)
    caller.get()
    monkeypatch.setattr(transport.time, "monotonic", lambda: now + transport.KEPT_S + 1)
    caller.get()
    assert (len(recorded.sockets), recorded.open) == (3, 1)


def test_few_connections_are_kept(
    caller: Caller, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are closed."""
    assert KEPT_MAX == 100
    monkeypatch.setattr(transport, "KEPT_MAX", 2)
    for answer in [caller.begin("GET", "/v1/models") for _ in range(5)]:
        b"".join(answer)
    assert (len(recorded.sockets), recorded.open) == (5, 2)


def test_connections_in_use_are_bounded(
    recorded: Recorded, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request waits for one until its timeout. One that failed leaves room for another."""
    monkeypatch.setattr(transport, "IN_USE_MAX", 1)
    caller = Caller(provider.url, recorded)
    with caller.client:
        first = caller.begin("GET", "/v1/models")
        with pytest.raises(ConnectionFailed) as failed:
            caller.begin("GET", "/v1/models", read_s=0.05)
        assert (failed.value.kind, len(recorded.sockets)) == ("unavailable", 1)
        threading.Timer(0.05, b"".join, (first,)).start()
        provider.drop(1)
        with pytest.raises(ConnectionFailed):
            caller.get()
        assert caller.get()
    assert len(recorded.sockets) == 2


def test_a_connection_that_cannot_be_closed_is_not_in_use(
    recorded: Recorded, provider: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is free for another one."""

    def fail() -> None:
        raise OSError("no")

    monkeypatch.setattr(transport, "IN_USE_MAX", 1)
    caller = Caller(provider.url, recorded)
    with caller.client:
        answer = caller.begin("GET", "/v1/models")
        answer.abort(socket.SHUT_RDWR)
        monkeypatch.setattr(answer._stream, "close", fail)
        with pytest.raises(OSError, match="no"):
            answer.close()
        assert caller.begin("GET", "/v1/models", read_s=1).status == 404
    assert len(recorded.sockets) == 2


def test_an_aborted_connection_is_not_kept(caller: Caller, recorded: Recorded) -> None:
    """Also if only its sending half was shut down, and the answer could be read to its end."""
    answer = caller.begin("GET", "/v1/models")
    answer.abort(socket.SHUT_WR)
    assert b"no such path" in b"".join(answer)
    assert recorded.open == 0
    answer.abort(socket.SHUT_WR)  # of a closed answer: nothing happens


# -- waits -------------------------------------------------------------------------------------


def test_a_read_ends_at_its_timeout(caller: Caller, provider: UpstreamServer) -> None:
    """Although the connection has a longer one from the request before."""
    wait = Wait()
    caller.get()
    provider.script(Stream([wait]))
    with pytest.raises(ConnectionFailed) as failed:
        caller.post(b"{}", read_s=0.1)
    assert failed.value.kind == "timeout"
    provider.go_on()


def test_a_proxy_that_does_not_connect_was_not_asked() -> None:
    """The request was not sent: it may be sent again, and is not billed."""
    waits = [CallWait(), CallWait()]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx2.Client(proxy=proxy, trust_env=False) as client:
            pool = Pool(client, httpx2.URL("https://provider.invalid"), connect_s=0.2)
            for wait, read_s in zip(waits, (0.2, 60), strict=True):
                threading.Timer(0.4, wait.end).start()
                with wait, pytest.raises(ConnectionFailed) as failed:
                    pool.send("POST", "/", "", b"{}", read_s=read_s)
                assert failed.value.kind == "unavailable"
    assert [wait.was_asked for wait in waits] == [False, False]


# -- reasons -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://no-such-host.invalid", "http://no-such-host.invalid: DNS: "),
        ("http://api..invalid", "http://api..invalid: .*'idna' codec .*: label empty"),
        ("http://ann:secret@127.0.0.1:9", r"http://127.0.0.1:9: \[Errno 111] Connection refused"),
        ("https://127.0.0.1:{port}", r"https://127.0.0.1:{port}: \[SSL: "),
    ],
    ids=["dns", "label", "refused", "tls"],
)
def test_a_failed_connection_has_its_reason(
    url: str, reason: str, recorded: Recorded, provider: UpstreamServer
) -> None:
    """With the address that was tried, in one line and without a password."""
    port = httpx2.URL(provider.url).port
    caller = Caller(url.format(port=port), recorded)
    with caller.client, pytest.raises(ConnectionFailed) as failed:
        caller.get()
    assert failed.value.kind == "unavailable"
    assert re.match(reason.format(port=port), failed.value.message)
    assert "\n" not in failed.value.message


# -- answers on the wire -----------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"
PLAIN = OK + b"Content-Length: 2\r\n\r\n{}"
IN_CHUNKS = CHUNKED + b"\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"


class Wire:
    """A stream with the bytes of an upstream, and the pool that gets it back."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.kept: list[bool] = []

    def read(self, max_bytes: int, timeout: float) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def write(self, buffer: bytes, timeout: float) -> None:
        pass

    def release(self, stream: object, *, keep: bool) -> None:
        self.kept.append(keep)

    def get_extra_info(self, info: str) -> None:
        """It has no socket."""

    def begun(self) -> Answer:
        """The answer, of which only the head was read."""
        answer = Answer(self, self, read_s=1)  # type: ignore[arg-type]
        answer.begin(b"", b"")
        return answer

    def answer(self) -> Answer:
        """The answer, which was read to its end."""
        answer = Answer(self, self, read_s=1)  # type: ignore[arg-type]
        try:
            with network_errors():
                answer.begin(b"GET / HTTP/1.1\r\n\r\n", b"")
            answer.content = b"".join(answer)
        finally:
            answer.close()
        return answer


#: Status, body, and whether the connection is kept.
READ: dict[str, tuple[bytes, int, bytes, bool]] = {
    "a length": (PLAIN, 200, b"{}", True),
    "chunks": (IN_CHUNKS, 200, b"{}", True),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "an empty body": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "the end of the connection": (OK + b"\r\n{}", 200, b"{}", False),
    "Connection: close": (
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
        200,
        b"{}",
        False,
    ),
    "HTTP/1.0": (PLAIN.replace(b"1.1", b"1.0"), 200, b"{}", False),
    "HTTP/1.0 that is kept": (
        PLAIN.replace(b"1.1 200 OK", b"1.0 200 OK\r\nConnection: keep-alive"),
        *(200, b"{}", False),
    ),
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nRetry-After: 9\r\n\r\n" + PLAIN,
        *(200, b"{}", True),
    ),
    "another protocol": (
        b"HTTP/1.1 101 Other\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{}",
        101,
        b"",
        False,
    ),
    "trailers": (IN_CHUNKS[:-2] + b"Retry-After: 9\r\n\r\n", 200, b"{}", False),
    "an answer to nothing": (PLAIN + PLAIN, 200, b"{}", False),
    "chunks and an answer": (IN_CHUNKS + IN_CHUNKS, 200, b"{}", False),
    "an empty line": (PLAIN + b"\r\n", 200, b"{}", False),
    "chunks and an empty line": (IN_CHUNKS + b"\r\n", 200, b"{}", False),
    "a body that may not be": (b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n{}", 204, b"", False),
    "a folded header": (OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}", 200, b"{}", True),
}
REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "a head that is cut off": OK + b"Content-Length: 2\r\n",
    "a length that is cut off": PLAIN[:-1],
    "chunks that are cut off": IN_CHUNKS[:-2],
    "a chunk that is cut off": IN_CHUNKS[:-12],
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "another coding in chunks": IN_CHUNKS.replace(b"chunked", b"gzip, chunked"),
    "chunks in another coding": IN_CHUNKS.replace(b"chunked", b"chunked, gzip"),
    "a name like chunked": IN_CHUNKS.replace(b"chunked", b"xchunked"),
    "chunks in chunks": IN_CHUNKS.replace(b"\r\n1", b"\r\nTransfer-Encoding: chunked\r\n1", 1),
    "chunks and a length": IN_CHUNKS.replace(b"\r\n", b"\r\nContent-Length: 2\r\n", 1),
    "two lengths": PLAIN.replace(b"\r\n", b"\r\nContent-Length: 1\r\n", 1),
    "a negative length": PLAIN.replace(b": 2", b": -2"),
    "a list of lengths": PLAIN.replace(b": 2", b": 2, 2"),
    "an endless length": PLAIN.replace(b": 2", b": " + b"9" * 40),
    "a chunk of no size": CHUNKED + b"\r\nx\r\n{}\r\n0\r\n\r\n",
    "an endless chunk": CHUNKED + b"\r\n" + b"f" * 40 + b"\r\n{}",
    "a line without a colon": PLAIN.replace(b"\r\n", b"\r\nnonsense\r\n", 1),
    "a space in a name": PLAIN.replace(b"Length:", b"Length :"),
    "a space in the name of a coding": IN_CHUNKS.replace(b"Encoding:", b"Encoding :"),
    "a NUL in a header": OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "a line without a return": PLAIN.replace(b"\r\n", b"\n"),
    "a status of two digits": PLAIN.replace(b"200", b"20"),
    "the status 0": OK.replace(b"200", b"000") + b"\r\n{}",
    "HTTP/2.0": PLAIN.replace(b"1.1", b"2.0"),
    "HTTP/0.9": b"{}",
    "an endless head": OK + b"X: " + b"x" * 200_000,
    "endless headers": OK + b"X: x\r\n" * 40_000,
    "endless interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 8_000 + PLAIN,
    "an endless extension": CHUNKED + b"\r\n1;x=" + b"y" * 200_000,
    "endless trailers": IN_CHUNKS[:-2] + b"X: x\r\n" * 40_000,
}


def cut(raw: bytes, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(0, len(raw), size)]


@pytest.mark.parametrize("size", [65_536, 7, 2, 1])
@pytest.mark.parametrize("case", READ)
def test_an_answer_is_read(case: str, size: int) -> None:
    """However its bytes arrive. Its connection is kept if nothing follows and another request may.
    What is not read yet is seen by the next request. If the end arrives in parts, it may be
    closed."""
    raw, status, body, keep = READ[case]
    wire = Wire(*cut(raw, size))
    answer = wire.answer()
    assert (answer.status, answer.content) == (status, body)
    assert "retry-after" not in answer.headers
    assert wire.kept == [keep] or (size < len(raw) and (wire.pieces or wire.kept == [False]))


def test_an_answer_is_not_closed_while_it_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection would serve another call before it is shut down, or its number would."""
    wire = Wire(PLAIN)
    answer = wire.begun()
    closing = threading.Thread(target=answer.close)

    def hang_up(*_: object) -> None:
        closing.start()
        closing.join(0.1)
        assert wire.kept == []

    monkeypatch.setattr(transport, "hang_up", hang_up)
    answer.abort(socket.SHUT_WR)
    closing.join()
    assert wire.kept == [False]


def test_an_answer_that_is_aborted_as_its_end_arrives_is_not_kept() -> None:
    """By another thread, while this one looks whether anything follows the answer."""

    class Piece(bytes):
        def endswith(self, *end: Any) -> bool:
            answer.abort(socket.SHUT_WR)
            return super().endswith(*end)

    wire = Wire(PLAIN[:-2], Piece(PLAIN[-2:]))
    answer = wire.begun()
    assert b"".join(answer) == b"{}"
    assert wire.kept == [False]


def test_an_answer_needs_no_garbage_collector() -> None:
    """Its parser refers to it only while the answer is read."""
    answer = weakref.ref(Wire(PLAIN).answer())
    assert answer() is None


@pytest.mark.parametrize("size", [65_536, 7, 1])
@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_answer_is_refused(case: str, size: int) -> None:
    """However its bytes arrive. Its connection is not kept."""
    raw = REFUSED[case]
    wire = Wire(*cut(raw, max(size, len(raw) // 500)))
    with pytest.raises(ConnectionFailed) as failed:
        wire.answer()
    assert failed.value.kind == "unavailable"
    assert wire.kept == [False]
