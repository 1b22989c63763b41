"""The parts of the worker that decide: what a request is, which worker has free threads, which is
replaced."""

import contextlib
import logging
import multiprocessing
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import PollableMethodQueue

from chatapp.server import gunicorn_worker
from chatapp.server.gunicorn_worker import (
    ACCEPT_AT_ONCE,
    BEGIN_AT_ONCE,
    BODY_BYTES,
    HEAD_MAX_BYTES,
    HEALTH,
    JOINED_MAX_BYTES,
    PAGE,
    AnswerSocket,
    CallCap,
    CallWorker,
    Connection,
    FreeThreads,
    StartResult,
    TimedUnreader,
    can_be_answered,
)

HEAD = b"POST /chat HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection: the client's and the server's."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


@pytest.fixture
def conn(pair: tuple[socket.socket, socket.socket]) -> Connection:
    return Connection(Config(), pair[1], ("127.0.0.1", 1), ("127.0.0.1", 2), patience_s=10.0)


WHOLE = {
    "no body": HEAD + b"\r\n",
    "a body": HEAD + b"Content-Length: 5\r\n\r\nhello",
    "a body, with zeros before its size": HEAD + b"Content-Length: %020d\r\n\r\nhello" % 5,
    "a body, in small letters": HEAD + b"content-length:5\r\n\r\nhello",
    "more than a body": HEAD + b"Content-Length: 5\r\n\r\nhelloGET /",
    "a large body, which a thread reads": HEAD + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES + 1),
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "both, which gunicorn refuses": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "no number": HEAD + b"Content-Length: five\r\n\r\n",
    "no number after many spaces": HEAD + b"Content-Length:" + b" " * 60_000 + b"x\r\n\r\n",
    "an empty line before": b"\r\n\r\n" + HEAD + b"\r\n",
}
PARTS = {
    "nothing but empty lines": b"\r\n\r\n\r\n\r\n",
    "half a head": HEAD,
    "nearly a head": HEAD + b"\r",
    "half of a body that is larger than a head": HEAD + b"Content-Length: 65537\r\n\r\n{",
    "half a body": HEAD + b"Content-Length: 5\r\n\r\nhell",
}


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("name", [*WHOLE, *PARTS])
def test_a_thread_gets_whole_requests(conn: Connection, name: str, at_once: bool) -> None:
    """With their bodies, if these are small and their size is announced, in whatever pieces they
    arrive."""
    sent = {**WHOLE, **PARTS}[name]
    for piece in [sent] if at_once else [sent[i : i + 1] for i in range(len(sent))]:
        assert conn.take(piece) is None
    assert conn.is_whole is (name in WHOLE)
    assert len(conn.received) <= HEAD_MAX_BYTES + BODY_BYTES


@pytest.mark.parametrize("size", [b"%d" % (BODY_BYTES + 1), b"9" * 16, b"0" * 20 + b"9" * 20])
def test_a_body_of_any_announced_size_is_large(conn: Connection, size: bytes) -> None:
    """Such bodies occupy a quarter of the threads, and none after the answer."""
    assert conn.take(HEAD + b"Content-Length: " + size + b"\r\n\r\n") is None
    assert conn.is_large


def test_a_body_is_not_read_any_more_once_its_answer_begins(
    conn: Connection, pair: tuple[socket.socket, socket.socket]
) -> None:
    """As of a body that broke off: the next one was refused until the thread was done."""
    conn.take(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe")
    assert conn.is_being_read
    conn.init()
    next(conn.parser)
    assert conn.is_being_read
    conn.is_answered = True
    assert not conn.is_being_read


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"\x16\x03\x01", "400"), (b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, "431")],
    ids=["TLS", "a huge head"],
)
def test_data_that_is_no_request_is_refused(conn: Connection, sent: bytes, status: str) -> None:
    """Without a thread, and without waiting for its end."""
    refusal = conn.take(sent)
    assert refusal is not None
    assert refusal.startswith(status)


def test_a_client_that_expects_it_gets_100_continue(
    conn: Connection, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Before a thread has its request, because it sends no body otherwise."""
    conn.take(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert pair[0].recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("version", "expected", "continues"),
    [
        (b"1.1", b"100-CONTINUE", True),
        (b"1.0", b"100-continue", False),
        (b"1.1", b"100-continues", False),
    ],
)
def test_only_http_1_1_clients_get_100_continue(
    conn: Connection,
    pair: tuple[socket.socket, socket.socket],
    version: bytes,
    expected: bytes,
    continues: bool,
) -> None:
    """A client of HTTP/1.0 would take an interim answer for the answer."""
    head = HEAD.replace(b"1.1", version) + b"Expect: " + expected
    conn.take(head + b"\r\nContent-Length: 5\r\n\r\n")
    pair[0].setblocking(False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        received = pair[0].recv(100)
    assert received == (b"HTTP/1.1 100 Continue\r\n\r\n" if continues else b"")


@pytest.mark.parametrize(
    "setting", [{"certfile": "a"}, {"http_protocols": "h1,h2"}, {"protocol": "uwsgi"}], ids=str
)
def test_an_unsupported_protocol_stops_the_start(setting: dict[str, str]) -> None:
    """TLS and HTTP/2 need a proxy."""
    cfg = Config()
    for name, value in setting.items():
        cfg.set(name, value)
    with pytest.raises(SystemExit, match="Use a proxy"):
        CallWorker.check_config(cfg, None)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz?from=nginx"])
def test_health_checks_are_recognized_by_their_request_line(path: str) -> None:
    """They have reserved threads. Similar requests are not health checks."""
    assert HEALTH.match(f"GET {path} HTTP/1.1\r\n".encode())
    assert not HEALTH.match(f"POST {path} HTTP/1.1\r\n".encode())
    assert not HEALTH.match(f"GET {path.partition('?')[0]}/x HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("path", ["/usage?days=7", "/v1/models", "/admin", "/admin/users/ada"])
def test_pages_are_recognized_by_their_request_line(path: str) -> None:
    """They have threads besides those for calls. A call has not."""
    assert PAGE.match(f"GET {path} HTTP/1.1\r\n".encode())
    may_change = path.startswith("/admin")
    assert bool(PAGE.match(f"PUT {path} HTTP/1.1\r\n".encode())) == may_change
    assert not PAGE.match(f"GET /chat{path} HTTP/1.1\r\n".encode())
    assert not PAGE.match(b"POST /v1/messages HTTP/1.1\r\n")


def test_a_body_is_read_while_it_is_fast_enough(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the patience, and for the time that the received data takes at the minimum rate."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    client, server = pair
    wire = TimedUnreader(server, 10.0)
    client.sendall(b"a" * 5000)
    assert len(wire.chunk()) == 5000
    now += 10.05  # 5,000 bytes are 0.1 s more
    client.sendall(b"b")
    assert wire.chunk() == b"b"
    now += 1
    client.sendall(b"c")
    assert wire.chunk() == b"c"  # it is there
    with pytest.raises(TimeoutError):
        wire.chunk()


def test_a_client_that_reads_nothing_cannot_be_answered(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Until it reads."""
    client, server = pair
    assert can_be_answered(server)
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.send(b"a" * 65536)
    assert not can_be_answered(server)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while client.recv(65536):
            pass
    assert can_be_answered(server)


def test_workers_see_each_others_free_threads() -> None:
    """In other processes, too, and not after a worker has stopped."""
    free_threads = FreeThreads()
    free_threads.publish(0, 5)
    in_child(free_threads.publish, 1, 7)
    assert free_threads.most(besides=2) == 7
    assert free_threads.most(besides=1) == 5
    assert free_threads.serving() == 2
    free_threads.publish(0, 0)
    assert free_threads.serving() == 2
    free_threads.publish(1, None)
    assert free_threads.serving() == 1
    assert free_threads.most(besides=2) == 0


def test_one_worker_is_replaced_at_a_time() -> None:
    """Until its process has ended, in any way."""
    free_threads = FreeThreads()
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()

    def replaced() -> None:
        theirs.send(free_threads.lock_replacement())
        theirs.recv()

    child = forked.Process(target=replaced)
    child.start()
    assert ours.recv()
    assert not free_threads.lock_replacement()
    child.kill()
    child.join()
    assert free_threads.lock_replacement()


def in_child(function: object, *arguments: int) -> None:
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("body", "packets"), [(b"hello", 1), (b"x" * (JOINED_MAX_BYTES + 1), 2)], ids=["small", "large"]
)
def test_a_head_and_its_body_are_one_packet(body: bytes, packets: int) -> None:
    """But a large body is not copied, and a head that no body follows is sent at once."""
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, client:
        answer = AnswerSocket(server, patience_s=10.0, log=logging.getLogger())
        answer.sendall(HEAD)
        assert client.recv(len(HEAD)) == HEAD
        answer.begins_body = True
        answer.sendall(HEAD)
        answer.sendall(body)
        received = [client.recv(2 * JOINED_MAX_BYTES) for _ in range(packets)]
        assert b"".join(received) == HEAD + body


def test_a_file_follows_its_head(tmp_path: Path) -> None:
    """The kernel sends it, after the head that waits for a body."""
    (tmp_path / "file").write_bytes(b"hello")
    server, client = socket.socketpair()
    with server, client, (tmp_path / "file").open("rb") as file:
        answer = AnswerSocket(server, patience_s=10.0, log=logging.getLogger())
        answer.begins_body = True
        answer.sendall(HEAD)
        answer.sendfile(file, offset=0, count=5)
        server.close()
        assert client.makefile("rb").read() == HEAD + b"hello"


@pytest.mark.parametrize(("bytes_per_s", "is_too_slow"), [(1, False), (10**9, True)])
def test_a_client_reads_at_a_minimum_rate(
    monkeypatch: pytest.MonkeyPatch, bytes_per_s: int, is_too_slow: bool
) -> None:
    """It reads again and again, and the answer has more than a socket keeps. Whether that is fast
    enough depends on the rate alone."""
    monkeypatch.setattr(gunicorn_worker, "ANSWER_BYTES_PER_S", bytes_per_s)
    server, client = socket.socketpair()
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.01) and client.recv(16_384):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    answer = AnswerSocket(server, patience_s=0.5, log=logging.getLogger())
    outcome = pytest.raises(ConnectionResetError) if is_too_slow else contextlib.nullcontext()
    with server, client, outcome:
        for _ in range(32):
            answer.sendall(b"x" * 65_536)
    over.set()
    reader.join()


class Waiting:
    """A call that may wait for long."""

    until = float("inf")


def test_a_flood_begins_a_few_calls_in_a_turn() -> None:
    """In their order. Those of the next turn wait, as those without a free thread."""
    threads, calls = 2 * BEGIN_AT_ONCE + 1, [Waiting() for _ in range(4 * BEGIN_AT_ONCE)]
    begun: list[Waiting] = []
    worker = CallWorker.__new__(CallWorker)
    worker.__dict__.update(
        alive=True, is_due=False, calls=set(), calls_begun=0, calls_until_due=100, waiting={},
        queued=deque(calls), begun_in_turn=0, call_cap=CallCap(threads, 0.0), sweep_at=float("inf"),
        free_threads=FreeThreads(), cell=0, publishing=threading.Lock(),
        tpool=SimpleNamespace(submit=begun.append),
    )  # fmt: skip
    for most in (BEGIN_AT_ONCE, 2 * BEGIN_AT_ONCE, threads, threads):
        worker.sweep()
        assert begun == calls[:most]
    worker.calls.clear()
    worker.begin_queued()  # none has begun in this turn
    assert begun == calls[: threads + BEGIN_AT_ONCE]


class Accepting(CallWorker):  # type: ignore[misc]
    """A worker that only accepts; ``data`` is what each client has sent."""

    data = b""

    def __init__(self) -> None:
        self.__dict__.update(
            cfg=Config(), log=logging.getLogger(), poller=selectors.DefaultSelector(),
            nr_conns=0, worker_connections=100, received_bytes=0, waiting={},
            entering=threading.Lock(),
        )  # fmt: skip

    def receive(self, conn: Connection, sock: socket.socket) -> None:
        self.received_bytes += len(self.data)


@pytest.mark.parametrize(
    ("data", "counts"),
    [(b"", [ACCEPT_AT_ONCE, ACCEPT_AT_ONCE + 4]), (b"{", [1, 2])],
    ids=["others", "bodies"],
)
def test_connections_that_wait_are_accepted_in_one_turn(data: bytes, counts: list[int]) -> None:
    """Up to sixteen of them. Clients that send bodies are accepted one by one, because only so
    many bodies are kept in memory."""
    worker = Accepting()
    worker.data = data
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0)
    with listener, worker.poller, contextlib.ExitStack() as clients:
        for _ in range(ACCEPT_AT_ONCE + 4):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        for count in counts:
            worker.accept(listener)
            assert worker.nr_conns == len(worker.waiting) == count
        for conn in worker.waiting:
            conn.sock.close()


class Polling:
    """A poller that reports the data of a connection before it has registered it."""

    def __init__(self) -> None:
        self.is_reported, self.goes_on = threading.Event(), threading.Event()

    def register(self, *_: object) -> None:
        self.is_reported.set()
        assert self.goes_on.wait(60)


def test_a_request_that_comes_at_once_is_reported_once(
    conn: Connection, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread reads it, although the thread that has answered the last one is not done with
    the connection. It used to poll such a connection in a loop."""
    worker, poller, read = CallWorker.__new__(CallWorker), Polling(), []
    worker.__dict__.update(poller=poller, waiting={}, entering=threading.Lock())
    monkeypatch.setattr(worker, "read", lambda _, data: read.append(data))
    pair[0].sendall(HEAD)
    thread = threading.Thread(target=worker.wait, args=[conn], kwargs={"until": 1.0})
    thread.start()
    assert poller.is_reported.wait(60)
    threading.Timer(0.05, poller.goes_on.set).start()
    worker.receive(conn, conn.sock)
    thread.join(60)
    assert read == [HEAD]


class Beating(CallWorker):  # type: ignore[misc]
    """A worker whose main loop wakes eight times a second, until another process is its master."""

    calls: tuple[()] = ()
    stop = publish = lambda *_: None

    def __init__(self) -> None:
        self.now, self.wakes = 1000.0, 0
        self.beats: list[float] = []
        self.__dict__.update(
            log=logging.getLogger(), poller=selectors.DefaultSelector(), alive=True, pid=1, cell=0,
            method_queue=PollableMethodQueue(), start_result=StartResult(), sockets=[],
            call_cap=CallCap(1, self.now), accept_at=0.0, sweep_at=0.0, queued=deque(),
            is_due=False, takes_over=True, waiting={}, _accepting=True, cfg=Config(),
        )  # fmt: skip
        self.method_queue.init()

    def notify(self) -> None:
        self.beats.append(self.now)

    def is_parent_alive(self) -> bool:
        return self.wakes < 13

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        self.wakes += 1
        self.now += 0.125


def test_the_heartbeat_costs_no_call_a_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second, however often the main loop wakes."""
    worker = Beating()
    monkeypatch.setattr(gunicorn_worker, "return_memory", lambda: None)
    monkeypatch.setattr(gunicorn_worker.time, "monotonic", lambda: worker.now)
    with worker.poller:
        worker.run()
    assert worker.beats == [1000.125, 1000.625, 1001.125, 1001.625]
    assert worker.wakes == 13


class Wakes:
    """A worker's main loop with a clock of its own."""

    def __init__(self, threads: int) -> None:
        self.now = 1000.0
        self.call_cap = CallCap(threads, self.now)

    def late(self, *late_s: float, calls: int) -> int:
        """Wake so late, one time after another; returns how many calls the worker takes."""
        for each in late_s:
            self.now = self.call_cap.due + each
            self.call_cap.wake(self.now, calls)
        return self.call_cap.most


def test_a_late_worker_takes_fewer_calls() -> None:
    """A fifth less than it has in flight, again while it stays late, and never fewer than 64.
    Running calls that do not end lower it once."""
    worker = Wakes(250)
    assert worker.late(*[0.3] * CallCap.WAKES, calls=200) == 160
    assert worker.late(*[0.3] * CallCap.WAKES, calls=200) == 160
    assert worker.late(*[0.3] * CallCap.WAKES, calls=160) == 128
    assert worker.late(*[0.3] * 10 * CallCap.WAKES, calls=10) == 64


def test_it_recovers_by_itself() -> None:
    """Step by step, and no further than its threads."""
    worker = Wakes(100)
    assert worker.late(*[0.5] * CallCap.WAKES, calls=100) == 80
    assert worker.late(*[0.0] * CallCap.WAKES, calls=80) == 85
    assert worker.late(*[0.07] * CallCap.WAKES, calls=80) == 85  # neither late nor on time
    assert worker.late(*[0.0] * 9 * CallCap.WAKES, calls=0) == 100


@pytest.mark.parametrize(
    "late_s",
    [[1.0, *[0.0] * 8], [86_400.0, *[0.0] * 8], [*[0.3] * 4, *[0.0] * 5] * 5, [0.05] * 90],
    ids=["a second", "a day's sleep", "less than half of the wakes", "busy"],
)
def test_one_bad_second_refuses_no_call(late_s: list[float]) -> None:
    """Most of the wakes have to be late."""
    assert Wakes(250).late(*late_s, calls=250) == 250


def test_other_programs_make_no_worker_refuse_its_few_calls() -> None:
    """A worker with few calls is late because of others, and a small one keeps all threads."""
    assert Wakes(250).late(*[2.0] * 90, calls=5) == 64
    assert Wakes(60).late(*[2.0] * 90, calls=60) == 60


def test_a_wake_for_an_event_is_no_wake_of_the_clock() -> None:
    """Only a wake that was due can be late."""
    worker = Wakes(250)
    for _ in range(100):
        assert worker.call_cap.wake(worker.now, 250) is None
    assert worker.late(*[0.3] * (CallCap.WAKES - 1), calls=250) == 250
    assert worker.late(0.3, calls=250) == 200
