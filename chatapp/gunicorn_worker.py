"""gunicorn's worker for long calls: threads for requests that have arrived, none for clients that
are slow, and a few that calls cannot take.

gunicorn's own gthread gives a thread to each connection it accepts, and accepts more than it has
threads. This one
- receives heads and small bodies in its main loop, each within a deadline;
- leaves a new connection to a worker with much more room;
- has `threads` for calls, and RESERVE more for health checks and for refusing calls beyond that;
- waits for clients to close in its main loop;
- is replaced after `max_requests` calls, when no other worker is and it has none in flight.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp,
so that a HUP takes new code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import queue
import re
import select
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Final

from gunicorn.http import get_parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import TConn, ThreadWorker

#: In the WSGI environment of a call for which the worker has no thread: to be refused at once.
OVERLOADED: Final = "chatapp.overloaded"

#: Threads beside those for calls: for health checks, and to refuse.
RESERVE: Final = 4
HEALTH: Final = re.compile(rb"(?:GET|HEAD) /(?:healthz|readyz)[ ?]")

# A head is larger only by mistake or on purpose; 16 kB of it may be one field.
HEAD_MAX_BYTES: Final = 64 * 1024
# A body up to here is received before a thread is taken; of a larger one, the thread reads it.
SMALL_BODY_BYTES: Final = 64 * 1024
# What all clients together may have sent without a thread.
RECEIVED_MAX_BYTES: Final = 16 * 1024 * 1024
STEP_BYTES: Final = 64 * 1024
# The slowest that a body may come, after its deadline's first part: 400 kbit/s.
BODY_BYTES_PER_S: Final = 50_000
# For a client that still sends while its answer says no: it reads that at the end of its body.
LINGER_S: Final = 5.0
LINGER_MAX_BYTES: Final = 32 * 1024 * 1024
# For a request that is on its way on a kept connection when the worker stops; gunicorn's own.
STOP_LINGER_S: Final = 2.0

# How long a connection is left to workers with more room: by a worker with some, and by one with
# none, which would have to refuse it. Longer than a busy worker's loop takes; a health check that
# waits so long is still in time.
LEAVE_S: Final = 0.02
LEAVE_IF_FULL_S: Final = 0.3
LOOK_AGAIN_S: Final = 0.01
# How long a call waits for a thread before it is refused: short ones end meanwhile.
QUEUE_S: Final = 0.5
SWEEP_S: Final = 0.5

CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
EXPECTS: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
# Such a client knows no interim answer, and would take it for its own.
HTTP_1_0: Final = re.compile(rb"(?:PROXY [^\r\n]*\r\n)?[^\r\n]* HTTP/1\.0\r\n")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_SLOW: Final = "408 Request Timeout"
REFUSAL: Final = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Board:
    """Where the workers of one master see each other's room, in shared memory.

    Made in the master before it forks. ``take`` and ``free`` are the master's.
    """

    MOST_WORKERS: Final = 256

    def __init__(self) -> None:
        #: 0 for a worker that does not serve, else its room and 1.
        self._cells = memoryview(mmap.mmap(-1, 2 * self.MOST_WORKERS)).cast("H")
        self._taken: set[int] = set()
        # A lock of this file is a process's, and ends with it.
        self._lock = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the master

    def take(self) -> int:
        """A free cell. Workers beyond the most share the last one, and are balanced less well."""
        free = (cell for cell in range(self.MOST_WORKERS - 1) if cell not in self._taken)
        cell = next(free, self.MOST_WORKERS - 1)
        self._taken.add(cell)
        return cell

    def free(self, cell: int) -> None:
        """The worker of that cell has ended."""
        self._cells[cell] = 0
        self._taken.discard(cell)

    def publish(self, cell: int, room: int | None) -> None:
        """Say how many more calls a worker can take; None: it does not serve."""
        self._cells[cell] = 0 if room is None else min(room + 1, 0xFFFF)

    def most_room(self, *, besides: int) -> int:
        """The room of the worker that has the most, except for one."""
        most = max(room for cell, room in enumerate(self._cells) if cell != besides)
        return max(0, most - 1)

    def serving(self) -> int:
        """How many workers serve."""
        return sum(map(bool, self._cells))

    def lock_replacement(self) -> bool:
        """Whether this process is the one that is replaced now. It is until it ends."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Wire(SocketUnreader):  # type: ignore[misc]
    """What a client sends while a thread reads it: at BODY_BYTES_PER_S or faster, after the first
    ``patience_s``. TimeoutError otherwise."""

    def __init__(self, sock: socket.socket, patience_s: float) -> None:
        super().__init__(sock)
        self._patience_s = patience_s
        self.begin()

    def begin(self) -> None:
        """The next bytes are of another request."""
        self._began: float | None = None
        self._count = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        now = time.monotonic()
        if self._began is None:
            self._began = now
        allowed_s = self._patience_s + self._count / BODY_BYTES_PER_S
        # What has arrived already is always read.
        self.sock.settimeout(max(0.01, self._began + allowed_s - now))
        try:
            received: bytes = super().chunk(size_hint)
        finally:
            self.sock.settimeout(None)
        self._count += len(received)
        return received


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, and what it has sent that no thread has."""

    def __init__(self, *about: Any, patience_s: float) -> None:
        super().__init__(*about)
        self.data_ready = True
        self._patience_s = patience_s
        self.received = bytearray()
        #: How many bytes are a request that a thread can take; None: its head has not ended.
        self.whole_at: int | None = None
        #: When it is closed, if nothing more happens.
        self.until = 0.0
        #: What it discards before it is closed, in bytes; None: it is not being closed.
        self.lingers: int | None = None
        self.is_call = self.is_refused = False
        #: Whether the client of this request has been told to go on.
        self.has_continued = False

    def init(self) -> None:
        """Runs in the thread, before the request is parsed."""
        if self.parser is None:
            self.initialized = True
            self.parser: Any = get_parser(self.cfg, self.sock, self.client)
            self.parser.unreader = Wire(self.sock, self._patience_s)
        self.parser.unreader.begin()
        self.parser.unreader.unread(bytes(self.received))
        self.received.clear()
        self.whole_at = None

    @property
    def is_whole(self) -> bool:
        """Whether a thread can take the request."""
        return self.whole_at is not None and len(self.received) >= self.whole_at

    def take(self, data: bytes) -> str | None:
        """Add what was received; the status of a refusal if it can be no request.

        This looks at as much as it takes to know when to parse, and decides nothing else: gunicorn
        parses all of it.
        """
        searched = max(0, len(self.received) - 3)
        self.received += data
        if self.whole_at is not None:
            return None
        if self.cfg.proxy_protocol == "off":
            while self.received[:2] == b"\r\n":  # RFC 9112, 2.2
                del self.received[:2]
                searched = 0
            first = bytes(self.received[:1])
            if first not in {b"", b"\r"} and not first.isalpha():  # TLS, for instance
                return "400 Bad Request"
        end = self.received.find(b"\r\n\r\n", searched)
        if (end if end >= 0 else len(self.received)) > HEAD_MAX_BYTES:
            return "431 Request Header Fields Too Large"
        if end >= 0:
            self._head_ends(end + 4)
        return None

    def _head_ends(self, end: int) -> None:
        head = self.received[:end]
        length = CONTENT_LENGTH.search(head)
        size = int(length[1]) if length and not CHUNKED.search(head) else 0
        # What is larger, or of no announced size, is read by the thread.
        self.whole_at = end + (size if size <= SMALL_BODY_BYTES else 0)
        if not self.is_whole:
            self.until = time.monotonic() + self._patience_s + size / BODY_BYTES_PER_S
            if EXPECTS.search(head) and not HTTP_1_0.match(head):
                with contextlib.suppress(OSError):
                    self.sock.send(CONTINUE)
                    self.has_continued = True


def can_be_answered(sock: socket.socket) -> bool:
    """Whether a short answer fits into the socket's buffer: one that does not, as the client reads
    nothing, would hold a thread."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def is_unread(body: Any) -> bool:
    """Whether a thread would have to read more of a body than the worker has received."""
    length = getattr(body.reader, "length", None)  # what is left of an announced one
    chunks = getattr(body.reader, "parser", None)
    return chunks is not None if length is None else length > SMALL_BODY_BYTES


class Threads:
    """Threads that end with the process: a call that takes longer than a stop may does not hold up
    its end, as those of concurrent.futures would. Used by the main thread alone."""

    def __init__(self, most: int, work: Callable[[Connection], None]) -> None:
        self._most = most
        self._work = work
        self._queue: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._started = self._busy = 0

    def submit(self, conn: Connection) -> None:
        """Have a thread work on that; say `done` when it has."""
        self._busy += 1
        if self._started < min(self._busy, self._most):
            self._started += 1
            threading.Thread(target=self._run, daemon=True).start()
        self._queue.put(conn)

    def done(self) -> None:
        """A thread is free again."""
        self._busy -= 1

    def shutdown(self, *, wait: bool) -> None:
        """As an executor has it."""

    def _run(self) -> None:
        while True:
            self._work(self._queue.get())


class CallWorker(ThreadWorker):  # type: ignore[misc]
    """See the module. `threads` is how many calls it takes."""

    #: How long a head may take, and a body beside the time for its size; gunicorn.conf.py sets it.
    patience_s: ClassVar[float] = 10.0
    #: Of the master that loaded this module.
    board: ClassVar[Board] = Board()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cell = self.board.take()
        #: Calls in threads, and how many there were.
        self.calls = self.calls_begun = 0
        #: Connections that no thread has, those that have waited longest first; their bytes.
        self.waiting: dict[Connection, None] = {}
        self.received_bytes = 0
        #: Calls that wait for a thread, the first first.
        self.queued: deque[Connection] = deque()
        #: After so many calls the worker is to be replaced. Those of health checks do not count,
        #: which gunicorn's own counter cannot know.
        self.calls_until_due: int = self.max_requests
        self.max_requests: int = sys.maxsize
        self.is_due = False
        #: Since when connections are left to other workers, and when to look again.
        self.leaves_since: float | None = None
        self.look_at = self.sweep_at = 0.0
        self.present = threading.local()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:  # noqa: ARG003 - gunicorn's
        """Refuse what this worker does not speak."""
        if cfg.is_ssl or cfg.protocol != "http" or "h2" in cfg.http_protocols:
            sys.exit("gunicorn.conf.py: this worker speaks HTTP/1.1; TLS and HTTP/2 are a proxy's")

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads + RESERVE, self.work)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app: Callable[..., Iterable[bytes]] = self.wsgi

        def marked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if self.present.conn.is_refused:
                environ[OVERLOADED] = True

            def start(*answer: Any) -> Any:
                response = start_response.__self__
                if self.present.conn.is_refused or is_unread(response.req.body):
                    response.force_close()
                return start_response(*answer)

            return app(environ, start)

        self.wsgi: Any = marked

    def handle_quit(self, sig: Any, frame: Any) -> None:
        Worker.handle_quit(self, sig, frame)

    # -- the main thread's loop -----------------------------------------------------------------

    def run(self) -> None:
        self.poller.register(self.method_queue, 1, self.method_queue.run_callbacks)
        self.publish()
        self.log.info("Worker serves (pid: %s)", self.pid)
        while self.alive and self.is_parent_alive():
            self.notify()
            now = time.monotonic()
            self.set_accept_enabled(now >= self.look_at)
            wait_s = SWEEP_S if self._accepting else max(0.0, self.look_at - now)
            self.wait_for_and_dispatch_events(min(wait_s, LOOK_AGAIN_S) if self.queued else wait_s)
            self.sweep()
            if self.is_due and not self.calls:
                self.log.info("Worker is replaced after %s calls.", self.calls_begun)
                break
        self.stop()

    def stop(self) -> None:
        """Accept nothing more, and let calls in flight finish."""
        self.alive = False
        self.board.publish(self.cell, None)
        self.set_accept_enabled(False)
        now = time.monotonic()
        for conn in self.waiting:
            conn.until = min(conn.until, now + STOP_LINGER_S)
        until = now + self.cfg.graceful_timeout
        while self.nr_conns > 0 and time.monotonic() < until:
            self.notify()
            self.wait_for_and_dispatch_events(SWEEP_S)
            self.sweep()
        for listener in self.sockets:
            listener.close()

    def publish(self) -> None:
        """Say how much room there is; and close connections after their answers if there is none
        here, and some elsewhere."""
        room = 0 if self.is_due else self.room
        self.board.publish(self.cell, room if self.alive else None)
        moves = not room and self.board.most_room(besides=self.cell) > 0
        self.max_keepalived = 0 if moves else sys.maxsize

    @property
    def room(self) -> int:
        """How many more calls there are threads for."""
        threads: int = self.cfg.threads
        return max(0, threads - self.calls)

    def sweep(self) -> None:
        """Close what has waited too long."""
        now = time.monotonic()
        while self.queued and self.queued[0].until <= now:
            self.refuse(self.queued.popleft())
        if now < self.sweep_at:
            return
        self.sweep_at = now + SWEEP_S
        for conn in [conn for conn in self.waiting if conn.until <= now]:
            self.drop(conn, TOO_SLOW)

    # -- connections ----------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Take a connection, unless another worker should."""
        now = time.monotonic()
        if self.leaves(now):
            self.look_at = now + LOOK_AGAIN_S
            return
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self.evict()
            elif error.errno not in {errno.EAGAIN, errno.ECONNABORTED}:
                raise
            return
        about = (self.cfg, sock, address, listener.getsockname())
        conn = Connection(*about, patience_s=self.patience_s)
        self.nr_conns += 1
        self.wait(conn, until=now + self.patience_s)
        self.receive(conn, sock)
        if self.nr_conns > self.worker_connections:
            self.evict()

    def leaves(self, now: float) -> bool:
        """Whether a connection is left to others: for a moment, while one has much more room."""
        room, most = 0 if self.is_due else self.room, self.board.most_room(besides=self.cell)
        # Short calls come and go: a worker that heeded each of them would idle.
        if most == 0 or (room and room >= most - max(1, self.cfg.threads // 4)):
            self.leaves_since = None
            return False
        # It comes back at once while connections are waiting. What it has left in vain it takes
        # with all that wait behind it: one by one, they would wait for ever if the other hangs.
        if self.leaves_since is None or now - self.look_at > LOOK_AGAIN_S:
            self.leaves_since = now
        return now - self.leaves_since < (LEAVE_S if self.room else LEAVE_IF_FULL_S)

    def wait(self, conn: Connection, *, until: float) -> None:
        """Have the poller wait for what the client sends."""
        conn.sock.settimeout(0)
        conn.until = until
        self.waiting[conn] = None
        self.poller.register(conn.sock, 1, partial(self.receive, conn))

    def receive(self, conn: Connection, sock: Any) -> None:
        """Take what the client has sent; give it to a thread when it is a request."""
        if conn not in self.waiting:
            return  # it was closed to make room, after the poller had seen this
        try:
            data = conn.sock.recv(STEP_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and conn.whole_at is not None:
            self.enqueue_req(conn)  # the application says that the body is not whole
        elif not data:
            self.drop(conn)
        elif conn.lingers is not None:
            conn.lingers -= len(data)
            if conn.lingers <= 0:
                self.drop(conn)
        else:
            self.read(conn, data)

    def read(self, conn: Connection, data: bytes) -> None:
        """Take that of a client's request."""
        if not conn.received:
            conn.until = min(conn.until, time.monotonic() + self.patience_s)
        self.received_bytes -= len(conn.received)
        refusal = conn.take(data)
        self.received_bytes += len(conn.received)
        if refusal is not None:
            self.drop(conn, refusal)
        elif conn.is_whole:
            self.enqueue_req(conn)
        elif self.received_bytes > RECEIVED_MAX_BYTES:
            self.evict()

    def leave_poller(self, conn: Connection) -> None:
        """No longer wait for the client."""
        del self.waiting[conn]
        self.received_bytes -= len(conn.received)
        self.poller.unregister(conn.sock)

    def drop(self, conn: Connection, refusal: str | None = None) -> None:
        """Close a connection that waits; a client that has begun a request is told why."""
        has_begun = bool(conn.received)
        self.leave_poller(conn)
        self.nr_conns -= 1
        if refusal is not None and has_begun:
            with contextlib.suppress(OSError):
                conn.sock.send(REFUSAL.format(refusal).encode())
        conn.close()

    def evict(self) -> None:
        """Make room for another: close the connection that has waited longest."""
        if self.waiting:
            self.drop(next(iter(self.waiting)), TOO_SLOW)
        else:
            self.look_at = time.monotonic() + SWEEP_S

    # -- requests -------------------------------------------------------------------------------

    def enqueue_req(self, conn: Connection) -> None:
        """Give a request to a thread: a call to one of those for calls, when one is free."""
        self.leave_poller(conn)
        conn.is_refused = False
        conn.is_call = not HEALTH.match(conn.received)
        if not conn.is_call:
            self.answer(conn)
        elif self.room:
            self.begin(conn)
        elif len(self.queued) < self.cfg.threads:
            conn.until = time.monotonic() + QUEUE_S
            self.queued.append(conn)
        else:
            self.refuse(conn)

    def begin(self, conn: Connection) -> None:
        """Give a call to a thread."""
        self.calls += 1
        self.calls_begun += 1
        if self.calls_begun >= self.calls_until_due and not self.is_due:
            self.is_due = self.may_be_replaced()
        self.publish()
        self.tpool.submit(conn)

    def refuse(self, conn: Connection) -> None:
        """Have the application refuse a call."""
        conn.is_refused = True
        self.answer(conn)

    def answer(self, conn: Connection) -> None:
        """Give a request to one of the threads that calls cannot take."""
        if can_be_answered(conn.sock):
            self.tpool.submit(conn)
        else:
            self.nr_conns -= 1
            conn.close()

    def may_be_replaced(self) -> bool:
        """Whether all workers serve, and no other is being replaced."""
        return self.board.serving() >= self.cfg.workers and self.board.lock_replacement()

    def work(self, conn: Connection) -> None:
        """Answer a request, in a thread."""
        keeps = False
        self.present.conn = conn
        try:
            keeps = bool(self.handle(conn))
        except BaseException:
            self.log.exception("Error handling request")
        self.method_queue.defer(self.finish_request, conn, keeps)

    def handle_request(self, req: Any, conn: Connection) -> bool:
        """Have the application answer."""
        if conn.has_continued:
            # gunicorn would say it again, to a client that has sent its body and awaits the answer.
            req._expected_100_continue = False
            conn.has_continued = False
        return bool(super().handle_request(req, conn))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:  # noqa: FBT001 - gunicorn's
        # A body that was not read and has not arrived is not worth a thread: the main loop lingers.
        return keepalive and not is_unread(conn.parser.mesg.body) and conn.parser.finish_body()

    def finish_request(self, conn: Connection, keeps: bool) -> None:  # noqa: FBT001 - gunicorn's
        """Wait for the client's next request, or for it to close."""
        self.tpool.done()
        if conn.is_call and not conn.is_refused:
            self.calls -= 1
            self.publish()
            if self.queued:
                self.begin(self.queued.popleft())
        now = time.monotonic()
        try:
            if not keeps:
                conn.lingers = LINGER_MAX_BYTES
                conn.sock.shutdown(socket.SHUT_WR)
                self.wait(conn, until=now + LINGER_S)
                return
            kept_s = self.cfg.keepalive if self.alive else STOP_LINGER_S
            self.wait(conn, until=now + kept_s)
            if ahead := conn.parser.unreader.take_buffered():
                self.read(conn, ahead)
        except (OSError, ValueError):  # the client has closed it, or gunicorn has
            if conn in self.waiting:
                del self.waiting[conn]
            self.nr_conns -= 1
            conn.close()
