"""gunicorn's worker for long calls: slow clients do not occupy its threads.

gunicorn's own gthread gives a thread to each accepted connection, and accepts more connections than
it has threads. This worker
- receives heads and bodies up to BODY_BYTES in its main loop, each within a deadline;
- lets larger bodies occupy a quarter of its threads while they arrive;
- hands a call that would wait to a worker with a free thread, with its connection;
- has `threads` for calls, RESERVE more for health checks and refusals of further calls, and as many
  for the pages of operators and users, which are needed most when calls occupy all threads;
- takes fewer calls while its threads wake late;
- waits for clients to disconnect in its main loop;
- is replaced after `max_requests` calls, one worker at a time, when it has no call in flight.

gunicorn's master loads this file by its path (see gunicorn.conf.py): it imports nothing of chatapp,
so that a HUP loads new code.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import queue
import re
import select
import socket
import sys
import tempfile
import termios
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

#: Where files in memory are, if anywhere. On a disk, a heartbeat could block.
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

#: Set in the WSGI environment of a call that the worker does not take: why, for its client.
OVERLOADED: Final = "chatapp.overloaded"
NO_THREAD: Final = "The server has too many calls in flight."
LATE: Final = "The server is too busy for more calls than those in flight."

#: Threads besides those for calls: for health checks and refusals, and as many for pages.
RESERVE: Final = 4
HEALTH: Final = re.compile(rb"(?:GET|HEAD) /(?:healthz|readyz)[ ?]")
PAGE: Final = re.compile(
    rb"(?:GET|HEAD) /(?:usage|v1/models|metrics)[/ ?]"
    rb"|(?:GET|HEAD|POST|PUT|DELETE) /(?:admin|me)[/ ?]"
)

# A valid head is smaller; one field of it may have 16 kB.
HEAD_MAX_BYTES: Final = 64 * 1024
# A body up to this size is received before a thread gets the request: a conversation of 200,000
# tokens. A thread reads a larger one, and one without an announced size.
BODY_BYTES: Final = 1024 * 1024
# Received data of all requests that have no thread yet.
RECEIVED_MAX_BYTES: Final = 32 * 1024 * 1024
STEP_BYTES: Final = 64 * 1024
# Of glibc's malloc.h.
M_ARENA_MAX: Final = -8
M_MMAP_THRESHOLD: Final = -3
# The minimum rate of a body, after the first `patience_s`: 400 kbit/s.
BODY_BYTES_PER_S: Final = 50_000
# The minimum rate at which a client reads its answer: 40 kbit/s. It may pause for `unread_s`.
# Only the time counts in which it could have read more.
ANSWER_BYTES_PER_S: Final = 5_000
# A client that still sends its body reads a refusal only after that.
LINGER_S: Final = 5.0
LINGER_MAX_BYTES: Final = 32 * 1024 * 1024
# For a request in transit on a kept connection when the worker stops, as in gunicorn.
STOP_LINGER_S: Final = 2.0

LOOK_AGAIN_S: Final = 0.01
# How long a call waits for a thread, of this worker or of another one, before it is refused.
QUEUE_S: Final = 0.5
# How many calls begin in a turn of the main thread's loop. The first milliseconds of a call are all
# work: if hundreds began at once, this loop would wait for the interpreter behind them, and health
# checks and refusals with it. So a turn takes longer the more have just begun.
BEGIN_AT_ONCE: Final = 4
BEGIN_AGAIN_S: Final = 0.001
# How many connections are accepted in a turn: behind a slow one, many wait for a refusal.
ACCEPT_AT_ONCE: Final = 16
SWEEP_S: Final = 0.5
# A larger piece of a body is sent after the head instead of being copied.
JOINED_MAX_BYTES: Final = 64 * 1024

# The first digits, without zeros, are enough to see that a body is too large.
CONTENT_LENGTH: Final = re.compile(
    rb"\r\ncontent-length:[ \t]*+0*+(\d{0,15}+)\d*+[ \t]*+\r\n", re.IGNORECASE
)
CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
EXPECTS: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
# Such a client would take an interim answer for the answer.
HTTP_1_0: Final = re.compile(rb"(?:PROXY [^\r\n]*\r\n)?[^\r\n]* HTTP/1\.0\r\n")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_SLOW: Final = "408 Request Timeout"
REFUSAL: Final = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class FreeThreads:
    """The free threads of each worker, in memory that all workers of a master share.

    Created in the master before it forks. A worker shares its cell only with one that starts
    CELLS workers later.
    """

    CELLS: Final = 1024

    def __init__(self) -> None:
        #: 0 for a worker that does not serve, else its free threads + 1.
        self._cells = memoryview(mmap.mmap(-1, 2 * self.CELLS)).cast("H")
        # A lock on this file belongs to a process, and ends with it.
        self._lock = tempfile.TemporaryFile(dir=MEMORY)  # noqa: SIM115 - open as long as the master

    def publish(self, cell: int, free: int | None) -> None:
        """Set the number of further calls that a worker can take; None if it does not serve."""
        self._cells[cell] = 0 if free is None else min(free + 1, 0xFFFF)

    def most(self, *, besides: int) -> int:
        """Return the most free threads of any other worker."""
        cells = self._cells.tolist()
        cells[besides] = 0
        return max(0, max(cells) - 1)

    def serving(self) -> int:
        return sum(map(bool, self._cells))

    def lock_replacement(self) -> bool:
        """Become the only worker that is being replaced; False if another one is."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Handover:
    """Calls on their way from a worker without a free thread to one that has some, each with its
    client's connection. A connection that is kept alive would otherwise belong to one worker.

    Created in the master before it forks: any worker may take a call, also of one that was killed.
    """

    def __init__(self) -> None:
        self._sender, self.receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._sender, self.receiver):
            end.settimeout(0)

    def give(self, conn: Connection) -> bool:
        """Hand a call over; returns False if that is not possible."""
        about = repr((conn.client, conn.server, conn.has_continued, conn.until)).encode()
        try:
            with tempfile.TemporaryFile(dir=MEMORY) as file:
                file.write(conn.received)
                file.seek(0)
                socket.send_fds(self._sender, [about], [conn.sock.fileno(), file.fileno()])
        except OSError:
            return False
        return True

    def take(self, cfg: Any, patience_s: float) -> Connection | None:
        """Return a call of another worker; None if none waits."""
        try:
            about, files, *_ = socket.recv_fds(self.receiver, 4096, 2)
        except BlockingIOError:
            return None
        if len(files) < 2:  # this process may open no more: the client is disconnected
            for fd in files:
                os.close(fd)
            return None
        client, server, has_continued, until = ast.literal_eval(about.decode())
        sock = socket.socket(fileno=files[0])
        conn = Connection(cfg, sock, client, server, patience_s=patience_s)
        with open(files[1], "rb") as file:  # noqa: PTH123 - a descriptor
            conn.take(file.read())
        conn.has_continued, conn.until = has_continued, until
        return conn


class StartResult:
    """Whether a worker serves, or why it cannot, in memory that it shares with its master."""

    MOST_BYTES: Final = 2000
    READY: Final = b"\x01"

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.MOST_BYTES)

    @property
    def is_ready(self) -> bool:
        """Whether the worker serves, or did until it ended."""
        return self._memory[:1] == self.READY

    @property
    def failure(self) -> str:
        """Why it cannot serve; empty if it has not said so."""
        return "" if self.is_ready else self._memory[:].rstrip(b"\0").decode(errors="replace")

    def succeed(self) -> None:
        self._memory[:1] = self.READY

    def fail(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):  # of a module that has caught the error
            error = error.__context__ or error
        text = f"{type(error).__name__}: {error}".encode(errors="replace")[: self.MOST_BYTES]
        self._memory[: len(text)] = text


class CallCap:
    """How many calls a worker takes, by how late its main thread wakes.

    All threads of a process wait for a processor and for the interpreter. If the main thread wakes
    late, each event of each stream is late, too. The number falls below that of the calls in flight
    while most wakes are late, and rises step by step afterwards: no running call is cut. A pause of
    a second or of an hour is one late wake, and changes nothing.
    """

    EVERY_S: Final = 0.2
    #: A first byte has about ten wakes, and should take a second at most.
    LATE_S: Final = 0.1
    WAKES: Final = 9
    #: The fewest calls that it falls to: so few make no worker late, others on the machine do.
    LEAST: Final = 64

    def __init__(self, threads: int, now: float) -> None:
        self.most = self._threads = threads
        self._late_s: list[float] = []
        self.due = now + self.EVERY_S

    @property
    def is_reduced(self) -> bool:
        return self.most < self._threads

    def wake(self, now: float, calls: int) -> float | None:
        """Note a wake. Returns how late most have been if that changes the number of calls."""
        if now < self.due:
            return None
        self._late_s.append(now - self.due)
        self.due = now + self.EVERY_S
        if len(self._late_s) < self.WAKES:
            return None
        late_s = sorted(self._late_s)[self.WAKES // 2]
        self._late_s.clear()
        most = self.most
        if late_s > self.LATE_S:
            self.most = min(most, max(self.LEAST, calls * 4 // 5))
        elif late_s < self.LATE_S / 2:
            self.most = min(self._threads, most + max(1, self._threads // 20))
        return late_s if self.most != most else None


class TimedUnreader(SocketUnreader):  # type: ignore[misc]
    """Reads a client's body in a thread. TimeoutError if it is slower than BODY_BYTES_PER_S, after
    the first ``patience_s``."""

    def __init__(self, sock: socket.socket, patience_s: float) -> None:
        super().__init__(sock)
        # gunicorn would set the timeout of one that it knows several times for each request.
        self._sock, self.sock = sock, None
        self._patience_s = patience_s
        self.begin()

    def begin(self) -> None:
        """The next bytes belong to another request."""
        self._began: float | None = None
        self._count = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        now = time.monotonic()
        if self._began is None:
            self._began = now
        allowed_s = self._patience_s + self._count / BODY_BYTES_PER_S
        # Data that has arrived is always read.
        self._sock.settimeout(max(0.01, self._began + allowed_s - now))
        try:
            received = self._sock.recv(min(max(size_hint or 0, self.mxchunk), self.max_body_chunk))
        finally:
            self._sock.settimeout(None)
        self._count += len(received)
        return received


class AnswerSocket:
    """A client's socket, for one answer. ConnectionResetError if the client reads it more slowly
    than ANSWER_BYTES_PER_S, or nothing for ``patience_s``. Has what gunicorn uses of a socket."""

    def __init__(self, sock: socket.socket, patience_s: float, log: Any) -> None:
        self._sock = sock
        self._patience_s = self._left_s = patience_s
        self._log = log
        self._sent = self._read = 0
        #: Whether a body follows what is sent next, which is the head: both are one packet then.
        self.begins_body = False
        self._head = b""

    def sendfile(self, *about: Any, **options: Any) -> int:
        self.begins_body = False
        self.sendall(b"")
        return self._sock.sendfile(*about, **options)

    def sendall(self, data: bytes) -> None:
        if self.begins_body:
            self.begins_body, self._head = False, data
            return
        head, self._head = self._head, b""
        if len(data) > JOINED_MAX_BYTES:
            self._send_all(head)
        self._send_all(data if len(data) > JOINED_MAX_BYTES else head + data)

    def _send_all(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            rest = rest[self._send(rest, socket.MSG_DONTWAIT) :]
            while rest:  # the socket's buffer is full
                rest = rest[self._send_slowly(rest) :]
        except TimeoutError:
            self._log.info("A client does not read its answer, and is disconnected")
            # gunicorn logs a traceback for a TimeoutError.
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from None

    def _send_slowly(self, data: memoryview) -> int:
        """Wait until the buffer has room, and send what fits. TimeoutError if the client is too
        slow: waiting uses up its time, and reading gives it some."""
        began = time.monotonic()
        self._sock.settimeout(max(0.01, self._left_s))
        try:
            sent = self._send(data)
        finally:
            self._sock.settimeout(None)
        read = self._sent - unread_bytes(self._sock)
        gained_s = (read - self._read) / ANSWER_BYTES_PER_S - (time.monotonic() - began)
        self._left_s = min(self._patience_s, self._left_s + gained_s)
        self._read = read
        if self._left_s <= 0:
            raise TimeoutError
        return sent

    def _send(self, data: memoryview, *flags: int) -> int:
        try:
            sent = self._sock.send(data, *flags)
        except (BlockingIOError, TimeoutError) as error:
            if error.errno == errno.ETIMEDOUT:  # the kernel's: the client acknowledges nothing
                raise
            sent = 0
        self._sent += sent
        return sent


def return_memory() -> None:
    """Have glibc return freed memory: large bodies have none of their heaps, small ones share two,
    instead of one for each thread, in which those of denied requests would stay."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, BODY_BYTES)  # it would rise to 32 MB by itself


def unread_bytes(sock: socket.socket) -> int:
    """Return how many of the sent bytes the client has not acknowledged; 0 if unknown."""
    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


class Connection(TConn):  # type: ignore[misc]
    """A client's connection, with the received data that no thread has yet."""

    def __init__(self, *about: Any, patience_s: float) -> None:
        super().__init__(*about)
        self.data_ready = True
        self._patience_s = patience_s
        self.received = bytearray()
        #: The number of bytes after which a thread can take the request; None before its head ends.
        self.whole_at: int | None = None
        #: When it is closed if nothing happens before.
        self.until = 0.0
        #: The bytes to discard before it is closed; None if it is not being closed.
        self.lingers: int | None = None
        #: Whether a thread has to read the body.
        self.is_large = False
        #: Whether the answer has begun; the rest of a body is not read then.
        self.is_answered = False
        #: Why the worker does not take this call; empty if it does.
        self.refusal = ""
        #: Whether "100 Continue" has been sent for this request.
        self.has_continued = False

    def init(self) -> None:
        """Runs in the thread, before the request is parsed."""
        if self.parser is None:
            self.initialized = True
            self.parser: Any = get_parser(self.cfg, self.sock, self.client)
            self.parser.unreader = TimedUnreader(self.sock, self._patience_s)
        self.parser.unreader.begin()
        self.parser.unreader.unread(self.received)
        self.received.clear()
        self.whole_at = None
        self.is_answered = False

    @property
    def is_being_read(self) -> bool:
        """Whether a thread waits for the large body of this call. For the main thread."""
        if self.is_answered:
            return False
        request = getattr(self.parser, "mesg", None)
        return self.whole_at is not None or request is None or is_unread(request.body)

    @property
    def is_whole(self) -> bool:
        """Whether a thread can take the request."""
        return self.whole_at is not None and len(self.received) >= self.whole_at

    def take(self, data: bytes) -> str | None:
        """Add received data. Returns the status of a refusal if it cannot be a request.

        This only finds out when to parse; gunicorn parses the request.
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
        size = int(length[1] or 0) if length and not CHUNKED.search(head) else 0
        self.is_large = size > BODY_BYTES or bool(CHUNKED.search(head))
        self.whole_at = end + (0 if self.is_large else size)
        if not self.is_whole:
            self.until = time.monotonic() + self._patience_s + size / BODY_BYTES_PER_S
            if EXPECTS.search(head) and not HTTP_1_0.match(head):
                with contextlib.suppress(OSError):
                    self.sock.send(CONTINUE, socket.MSG_DONTWAIT)
                    self.has_continued = True


def can_be_answered(sock: socket.socket) -> bool:
    """Return whether a short answer fits into the socket's buffer, so that no thread waits."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def is_unread(body: Any) -> bool:
    length = getattr(body.reader, "length", None)  # the rest of an announced length
    chunks = getattr(body.reader, "parser", None)
    return chunks is not None if length is None else length > 0


class Threads:
    """Daemon threads. Those of concurrent.futures would delay the end of the process until the last
    call has finished."""

    def __init__(self, most: int, work: Callable[[Connection], None]) -> None:
        self._most = most
        self._work = work
        self._queue: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = self._busy = 0

    def submit(self, conn: Connection) -> None:
        """Have a thread handle the connection; call `done` afterwards. For the main thread."""
        with self._lock:
            self._busy += 1
            is_new = self._started < min(self._busy, self._most)
        if is_new:
            self._started += 1
            threading.Thread(target=self._run, daemon=True).start()
        self._queue.put(conn)

    def done(self) -> None:
        with self._lock:
            self._busy -= 1

    def _run(self) -> None:
        while True:
            self._work(self._queue.get())


class CallWorker(ThreadWorker):  # type: ignore[misc]
    """See the module. `threads` is the number of calls it takes."""

    #: Seconds for a head, and for a body besides the time for its size; gunicorn.conf.py sets it.
    patience_s: ClassVar[float] = 10.0
    #: Seconds for which a client may read nothing of its answer; gunicorn.conf.py sets it.
    unread_s: ClassVar[float] = 60.0
    #: Shared by all workers of the master that loaded this module.
    free_threads: ClassVar[FreeThreads] = FreeThreads()
    handover: ClassVar[Handover] = Handover()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cell = self.age % FreeThreads.CELLS
        self.start_result = StartResult()
        #: The calls and pages in threads, and the number of all calls so far.
        self.calls: set[Connection] = set()
        self.pages: set[Connection] = set()
        self.calls_begun = 0
        #: Connections without a thread, the longest waiting first, and their received bytes.
        self.waiting: dict[Connection, None] = {}
        self.received_bytes = 0
        #: Calls that wait for a thread or for their turn, in their order.
        self.queued: deque[Connection] = deque()
        self.begun_in_turn = 0
        #: The number of calls after which the worker is replaced. Health checks do not count;
        #: gunicorn's own counter would include them.
        self.calls_until_due: int = self.max_requests
        self.max_requests: int = sys.maxsize
        self.is_due = False
        #: Whether calls that others hand over wake the main loop.
        self.takes_over = False
        self.accept_at = self.sweep_at = 0.0
        self.current = threading.local()
        self.call_cap = CallCap(self.cfg.threads, time.monotonic())
        #: Held while the free threads are published, by any thread.
        self.publishing = threading.Lock()
        #: Held while a connection begins to wait. Its data may arrive before: without the lock, the
        #: main thread would poll it in a loop, and the thread would wait for the interpreter.
        self.entering = threading.Lock()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:  # noqa: ARG003 - gunicorn's
        """Reject settings that this worker does not support."""
        if cfg.is_ssl or cfg.protocol != "http" or "h2" in cfg.http_protocols:
            sys.exit("gunicorn.conf.py: this worker supports HTTP/1.1 only. Use a proxy for TLS.")

    def init_process(self) -> None:
        try:
            super().init_process()
        except BaseException as error:
            if self.alive and not self.booted:
                self.start_result.fail(error)
            raise

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads + 2 * RESERVE, self.work)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app: Callable[..., Iterable[bytes]] = self.wsgi

        def marked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if refusal := self.current.conn.refusal:
                environ[OVERLOADED] = refusal

            def start(*answer: Any) -> Any:
                response, conn = start_response.__self__, self.current.conn
                conn.is_answered = True
                response.sock = AnswerSocket(conn.sock, self.unread_s, self.log)
                if conn.refusal or (conn.is_large and is_unread(response.req.body)):
                    response.force_close()
                write = start_response(*answer)
                omits_body = response._omits_body  # noqa: SLF001 - of HEAD, 204 and 304
                response.sock.begins_body = bool(response.response_length) and not omits_body
                return write

            return app(environ, start)

        self.wsgi: Any = marked

    def handle_exit(self, sig: Any, frame: Any) -> None:
        super().handle_exit(sig, frame)
        if not self.booted:  # it does not finish an import of seconds
            sys.exit(0)

    def handle_quit(self, sig: Any, frame: Any) -> None:
        Worker.handle_quit(self, sig, frame)

    # -- the main thread's loop -----------------------------------------------------------------

    def run(self) -> None:
        return_memory()
        self.poller.register(self.method_queue, 1, self.method_queue.run_callbacks)
        self.publish()
        self.start_result.succeed()
        self.log.info("Worker is ready (pid: %s)", self.pid)
        while self.alive and self.is_parent_alive():
            now = time.monotonic()
            self.set_accept_enabled(now >= self.accept_at)
            self.set_takes_over(bool(self.free) and not self.is_due)
            again_s = BEGIN_AGAIN_S if self.free else LOOK_AGAIN_S
            until = min(self.call_cap.due, now + again_s) if self.queued else self.call_cap.due
            self.wait_for_and_dispatch_events(max(0.0, until - now))
            self.adjust_cap()
            self.sweep()
            if self.is_due and not self.calls:
                self.log.info("Worker stops after %s calls and will be replaced", self.calls_begun)
                break
        self.stop()

    def stop(self) -> None:
        """Stop accepting, and let calls in flight finish."""
        self.alive = False
        self.free_threads.publish(self.cell, None)
        self.set_accept_enabled(False)
        self.set_takes_over(False)
        while self.take_over():  # what it has handed over itself may have no other taker
            pass
        # Otherwise clients could connect until the last call has finished, and wait for nothing.
        for listener in self.sockets:
            listener.close()
        now = time.monotonic()
        for conn in list(self.waiting):  # threads add to it
            conn.until = min(conn.until, now + STOP_LINGER_S)
        until = now + self.cfg.graceful_timeout
        while self.nr_conns > 0 and time.monotonic() < until:
            self.wait_for_and_dispatch_events(LOOK_AGAIN_S if self.queued else SWEEP_S)
            self.sweep()

    def publish(self) -> None:
        with self.publishing:
            free = 0 if self.is_due else self.free
            self.free_threads.publish(self.cell, free if self.alive else None)

    @property
    def free(self) -> int:
        return max(0, self.call_cap.most - len(self.calls))

    def adjust_cap(self) -> None:
        """Take fewer calls if this loop wakes late, and more if it does not."""
        was_reduced = self.call_cap.is_reduced
        late_s = self.call_cap.wake(time.monotonic(), len(self.calls))
        if late_s is None:
            return
        self.publish()
        if self.call_cap.is_reduced and not was_reduced:
            self.log.warning(
                "This worker takes %s calls at once instead of %s: its threads wake %.1f s late",
                *(self.call_cap.most, self.cfg.threads, late_s),
            )
        elif was_reduced and not self.call_cap.is_reduced:
            self.log.info("This worker takes %s calls at once again", self.cfg.threads)

    def sweep(self) -> None:
        """Begin and refuse waiting calls. Twice a second, beat, and close late connections."""
        now = time.monotonic()
        self.begun_in_turn = 0
        self.begin_queued()
        while self.queued and not self.free and self.queued[0].until <= now:
            self.refuse(self.queued.popleft())
        self.hand_over()
        if now < self.sweep_at:
            return
        self.sweep_at = now + SWEEP_S
        self.notify()  # not in each turn: the thread would wait for the interpreter afterwards
        while self.take_over():  # no worker has had a free thread since
            pass
        for conn in [conn for conn in list(self.waiting) if conn.until <= now]:
            self.drop(conn, TOO_SLOW)

    # -- connections ----------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        for _ in range(ACCEPT_AT_ONCE):
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
            self.wait(conn, until=time.monotonic() + self.patience_s)
            self.receive(conn, sock)
            if self.nr_conns > self.worker_connections:
                self.evict()
            if self.received_bytes:  # more bodies at once than there is memory for would be dropped
                return

    def wait(self, conn: Connection, *, until: float) -> None:
        """Have the poller wait for data from the client. For any thread, which has no more to do
        with the connection then."""
        conn.until = until
        with self.entering:
            self.poller.register(conn.sock, 1, partial(self.receive, conn))
            self.waiting[conn] = None

    def receive(self, conn: Connection, sock: Any) -> None:
        """Receive data, and give a complete request to a thread."""
        if conn not in self.waiting:
            with self.entering:  # until a thread that has registered it lets it wait
                if conn not in self.waiting:
                    return  # closed by `evict` after the poller had reported it
        try:
            data = conn.sock.recv(STEP_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data and conn.whole_at is not None:
            self.enqueue_req(conn)  # the application reports the incomplete body
        elif not data:
            self.drop(conn)
        elif conn.lingers is not None:
            conn.lingers -= len(data)
            if conn.lingers <= 0:
                self.drop(conn)
        else:
            self.read(conn, data)

    def read(self, conn: Connection, data: bytes) -> None:
        """Add received data to the client's request."""
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
            self.drop(next(conn for conn in list(self.waiting) if conn.received), TOO_SLOW)

    def leave_poller(self, conn: Connection) -> None:
        del self.waiting[conn]
        self.received_bytes -= len(conn.received)
        self.poller.unregister(conn.sock)

    def drop(self, conn: Connection, refusal: str | None = None) -> None:
        """Close a waiting connection. A client that has begun a request gets the refusal."""
        has_begun = bool(conn.received)
        self.leave_poller(conn)
        if refusal is not None and has_begun:
            with contextlib.suppress(OSError):
                conn.sock.send(REFUSAL.format(refusal).encode(), socket.MSG_DONTWAIT)
        self.forget(conn)

    def evict(self) -> None:
        """Close the connection that has waited the longest."""
        if self.waiting:
            self.drop(list(self.waiting)[0], TOO_SLOW)  # noqa: RUF015 - threads add to it
        else:
            self.accept_at = time.monotonic() + SWEEP_S

    # -- requests -------------------------------------------------------------------------------

    def enqueue_req(self, conn: Connection) -> None:
        """Give a request to a thread; a call waits until one of the threads for calls is free."""
        self.leave_poller(conn)
        conn.refusal = ""
        if HEALTH.match(conn.received):
            self.answer(conn)
        elif PAGE.match(conn.received) and len(self.pages) < RESERVE and not conn.is_large:
            self.pages.add(conn)
            self.tpool.submit(conn)
        elif conn.is_large and self.many_are_read:
            self.refuse(conn)
        elif len(self.queued) < self.cfg.threads:
            conn.until = time.monotonic() + QUEUE_S
            self.queued.append(conn)
            self.hand_over()
            self.begin_queued()
        else:
            self.refuse(conn)

    @property
    def many_are_read(self) -> bool:
        """Whether a quarter of the threads read large bodies, which may arrive slowly."""
        reading = sum(conn.is_large and conn.is_being_read for conn in list(self.calls))
        return reading >= max(1, int(self.cfg.threads) // 4)

    def begin_queued(self) -> None:
        """Begin the calls whose turn it is."""
        while self.queued and self.free and self.begun_in_turn < BEGIN_AT_ONCE:
            conn = self.queued.popleft()
            self.begun_in_turn += 1
            self.calls.add(conn)
            self.calls_begun += 1
            if self.calls_begun >= self.calls_until_due and not self.is_due:
                all_serve = self.free_threads.serving() >= self.cfg.workers
                self.is_due = all_serve and self.free_threads.lock_replacement()
            self.publish()
            self.tpool.submit(conn)

    def hand_over(self) -> None:
        """Hand the first calls that wait to workers with free threads. A worker that is due for
        replacement hands over all, because it would never be without a call."""
        waits = self.queued and self.alive and (self.is_due or not self.free)
        most = self.free_threads.most(besides=self.cell) if waits else 0
        for conn in list(self.queued)[:most]:
            # Only the first request of a connection has a PROXY line.
            has_no_line = conn.parser is not None and self.cfg.proxy_protocol != "off"
            if has_no_line or not self.handover.give(conn):
                return
            self.forget(self.queued.popleft())

    def set_takes_over(self, takes: bool) -> None:  # noqa: FBT001 - as set_accept_enabled
        if takes != self.takes_over:
            self.takes_over = takes
            if takes:
                self.poller.register(self.handover.receiver, 1, self.take_over)
            else:
                self.poller.unregister(self.handover.receiver)

    def take_over(self, *_: object) -> bool:
        """Take a call that another worker has handed over; returns whether there was one."""
        conn = self.handover.take(self.cfg, self.patience_s)
        if conn is None:
            return False
        self.nr_conns += 1
        if conn.is_large and self.many_are_read:
            self.refuse(conn)
        else:
            self.queued.append(conn)
            self.begin_queued()
        return True

    def refuse(self, conn: Connection) -> None:
        """Have the application refuse a call in one of the reserved threads."""
        is_late = not self.free and len(self.calls) < self.cfg.threads
        conn.refusal = LATE if is_late else NO_THREAD
        self.answer(conn)

    def answer(self, conn: Connection) -> None:
        """Give a request to one of the reserved threads."""
        if can_be_answered(conn.sock):
            self.tpool.submit(conn)
        else:
            self.forget(conn)

    def work(self, conn: Connection) -> None:
        keeps = False
        self.current.conn = conn
        try:
            keeps = bool(self.handle(conn))
        except BaseException:
            self.log.exception("Error handling request")
        ahead = keeps and conn.parser.unreader.buf.tell()  # of the client's next request
        if keeps and self.alive and not (self.queued or self.is_due or ahead):
            # Only the next request wakes the main thread.
            self.free_thread(conn)
            self.keep(conn)
        else:
            self.method_queue.defer(self.finish_request, conn, keeps)

    def handle_request(self, req: Any, conn: Connection) -> bool:
        if conn.has_continued:
            # gunicorn would send it again, after the client has sent its body.
            req._expected_100_continue = False  # noqa: SLF001
            conn.has_continued = False
        return bool(super().handle_request(req, conn))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:  # noqa: FBT001 - gunicorn's
        # The main loop, and not a thread, discards a body that has not arrived.
        if conn.is_large and is_unread(conn.parser.mesg.body):
            return False
        return keepalive and bool(conn.parser.finish_body())

    def free_thread(self, conn: Connection) -> None:
        """The request has been answered. For any thread."""
        self.tpool.done()
        self.pages.discard(conn)
        if conn in self.calls:
            self.calls.remove(conn)
            self.publish()

    def keep(self, conn: Connection) -> None:
        """Wait for the client's next request. For any thread."""
        try:
            self.wait(conn, until=time.monotonic() + self.cfg.keepalive)
            if not self.alive:  # `stop` may not have seen it
                conn.until = min(conn.until, time.monotonic() + STOP_LINGER_S)
        except (OSError, ValueError):  # the client has closed it, or gunicorn has
            self.method_queue.defer(self.forget, conn)

    def forget(self, conn: Connection) -> None:
        """Close a connection that nothing waits for."""
        self.nr_conns -= 1
        conn.close()

    def finish_request(self, conn: Connection, keeps: bool) -> None:  # noqa: FBT001 - gunicorn's
        """Wait for the client's next request, or until it disconnects."""
        self.free_thread(conn)
        self.begin_queued()
        if keeps:
            ahead = conn.parser.unreader.take_buffered()
            self.keep(conn)
            if ahead and conn in self.waiting:
                self.read(conn, ahead)
            return
        try:
            conn.lingers = LINGER_MAX_BYTES
            conn.sock.shutdown(socket.SHUT_WR)
            self.wait(conn, until=time.monotonic() + LINGER_S)
        except (OSError, ValueError):
            self.forget(conn)
