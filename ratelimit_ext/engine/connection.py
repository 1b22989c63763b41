"""Connections that carry one script call each, without redis-py's client in between.

They come from the client's own pool, which connects, authenticates and sets their timeouts, and
reads replies. Left out is what the client does around each command, which takes longer than the
call. If anything else takes part in a call (a tool that traces it, a subclass, retries, TLS, a
cache, a pool that waits), :meth:`ScriptConnections.run` declines, and the client is used.

A script is called as a function of a library (``FCALL``): a function's tables are built once, which
saves a third of the server's time. Where that is refused, EVALSHA is sent instead.

Nothing is sent twice but what the server refused to run: after a lost reply it may have charged.

The client's ``socket_timeout`` bounds each command as a whole: all reads together, from the moment
at which it was sent; on a new connection, with connecting and the handshake. redis-py itself
applies it to each read, so a server that sends a byte now and then could hold a call for ever. If
all connections of the pool are in use, a call first waits for one, as long at most: nothing was
sent, and it would be decided without the storage otherwise.

A thread that waits for a processor or for the interpreter may miss the deadline although the
storage serves, and a storage on the same machine waits like it: see :func:`comes_late`.
"""

from __future__ import annotations

import math
import os
import re
import select
import socket as sockets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Final, NamedTuple, TypeVar

from hiredis import pack_command

from ratelimit_ext.core.threads import forget_in_child
from ratelimit_ext.engine.arguments import Script

#: How many idle connections are kept from the pool at most, and never more than half of it.
MOST_IDLE: Final = 32

#: How often a thread looks for a free connection, and how long without a ``socket_timeout``.
LOOK_S: Final = 0.002
LONGEST_WAIT_S: Final = 0.1
#: What a pool raises that has no connection left, or none within its own time.
NO_CONNECTION: Final = re.compile(r"Too many connections|No connection available")

#: What tools that trace calls replace, on the class or on the client.
_TRACED: Final = ("evalsha", "execute_command")
_PLAIN: Final = [
    ["redis.client.Redis", "redis.connection.ConnectionPool", f"redis.connection.{name}"]
    for name in ("Connection", "UnixDomainSocketConnection")
]
#: Options of a pool that ask for more than a plain connection.
_OPTIONS: Final = ("credential_provider", "encoding", "encoding_errors", "redis_connect_func")
#: The server's errors for a function that it did not run, by text.
UNKNOWN: Final = "Function not found"
FULL: Final = "command not allowed when used memory > 'maxmemory'."
FORBIDDEN: Final = re.compile(
    r"unknown command ['`]FCALL['`]|.* no permissions to run the 'fcall' "  # ` before Redis 7
)

#: The socket's own timeout is enough for a read that begins with this part of the time left.
_NEARLY: Final = 0.95

#: A thread that lost so much time was delayed. A wait for a reply ends when the thread was not
#: delayed for some time, in which it looks in slices, and at most this long after its deadline.
DELAY_S: Final = 0.01
SLICE_S: Final = 0.01
CALM_S: Final = 3 * SLICE_S
LATEST_S: Final = 1.0
#: How much longer it waits, undelayed, for a storage that may wait for a processor. One that hangs
#: has to be noticed soon.
CROWDED_S: Final = 0.2
#: The shortest timeout that is one: older clients raise another error for none.
MOMENT_S: Final = 0.001
LOAD: Final = Path("/proc/loadavg")
#: Takes as long as other threads want this processor.
_give_way: Final[Callable[[], object]] = getattr(os, "sched_yield", lambda: None)

NEVER: Final = math.inf
NO_TIMEVAL: Final = struct.pack("@ll", 0, 0)
#: What reading raises on a connection that another thread closes meanwhile: redis-py before 7 does
#: if the client itself reads a cluster's layout.
CLOSED: Final = (ValueError, AttributeError)

T = TypeVar("T")


def _is_crowded() -> bool:
    """Return whether more threads of this machine want to run than it has processors: a storage
    here waits, too, maybe longer than this thread. Linux knows that."""
    try:
        running = LOAD.read_text("ascii").split()[3].partition("/")[0]
    except (OSError, IndexError):
        return False
    return int(running) > (os.cpu_count() or 1)


class _Calm(threading.local):
    """Since when a thread was not delayed, by the monotonic clock."""

    since: float = -NEVER

    def is_over(self, due: float, *, expected: float, latest_s: float = LATEST_S) -> bool:
        """Return whether a wait is over, which ends ``latest_s`` after it is due at the latest. The
        thread was to be woken when ``expected``."""
        # A thread that slept is mostly woken in time, also if those that work wait for long.
        _give_way()
        now_s = time.monotonic()
        if now_s - expected > DELAY_S:
            self.since = now_s
        ends, latest = max(due, self.since + CALM_S), due + latest_s
        if ends <= now_s < min(ends + CROWDED_S, latest) and _is_crowded():
            return False
        return now_s >= min(ends, latest)


_calm: Final = _Calm()


def comes_late(
    look: Callable[[float], bool], due: float, *, expected: float, since: float | None = None
) -> bool:
    """Return whether a reply comes although it had not come when this thread was to be woken,
    ``expected`` by the monotonic clock. ``look`` waits for it for so many seconds.

    It is waited for until it is ``due``, and at least for CALM_S without a delay of this thread
    ``since`` it was asked for: a thread that waits for a processor or the interpreter asks late, so
    the storage had no time. As long as threads wait here, so may the storage. ``None``: a part of
    the reply has come, so the storage had time: the rest has to come until it is due."""
    latest_s = 0.0 if since is None else LATEST_S
    _calm.since = max(_calm.since, since or -NEVER)
    while not _calm.is_over(due, expected=expected, latest_s=latest_s):
        expected = time.monotonic() + SLICE_S
        if look(SLICE_S):
            return True
    return look(0.0)


class PoolQueue:
    """The threads that wait for a connection of a pool, in their order. They also look for one that
    other users of the pool have released."""

    def __init__(self, pool: Any) -> None:
        self._most: int = getattr(pool, "max_connections", 1)
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: the threads that waited have stayed in the parent."""
        self._lock = threading.Lock()
        self.waiting: list[threading.Event] = []

    def run(self, call: Callable[[], T], until: float) -> T:
        """Run a call that takes a connection. If all are in use, and so nothing was sent, it waits
        for one; raises the client's error if it gets none in time."""
        if not self.waiting:
            try:
                return call()
            except Exception as error:
                if not NO_CONNECTION.search(str(error)):
                    raise
        return self._run_later(call, until)

    def note_release(self) -> None:
        """Let the next thread look at once, of those that may."""
        for turn in self.waiting[: self._most]:
            if not turn.is_set():
                turn.set()
                return

    def _run_later(self, call: Callable[[], T], until: float) -> T:
        turn, expected = threading.Event(), NEVER
        _calm.since = time.monotonic()
        with self._lock:
            self.waiting.append(turn)
        try:
            while True:
                # A connection may be in the hands of a thread that waits for a processor.
                is_over = _calm.is_over(until, expected=expected)
                # As many as there are connections: some of these threads may have one by now.
                if is_over or turn in self.waiting[: self._most]:
                    try:
                        return call()
                    except Exception as error:
                        if is_over or not NO_CONNECTION.search(str(error)):
                            raise
                expected = time.monotonic() + LOOK_S
                turn.wait(LOOK_S)
                turn.clear()
        finally:
            with self._lock:
                self.waiting.remove(turn)
            self.note_release()


class Deadline(threading.local):
    """When the call of a thread has to be over, by the monotonic clock."""

    ends: float = NEVER


class _Line(NamedTuple):
    """A connection, its socket, and whether the socket has something to read."""

    connection: Any
    socket: Any
    readable: Callable[[int], list[Any]]

    def use_clients_timeout(self) -> None:
        """Let the client send or read: it may wait for no longer, as on its own connections."""
        with suppress(OSError):  # it is closed
            self.socket.settimeout(self.connection.socket_timeout)
            # Or the kernel would end a wait for messages that has no timeout.
            self.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVTIMEO, NO_TIMEVAL)


class ScriptConnections:
    """Idle connections of a client's pool. For all threads; a forked child begins without any."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._usable = _is_plain(client)
        self._has_functions = True
        pool: Any = getattr(client, "connection_pool", None)
        timeout_s = getattr(pool, "connection_kwargs", {}).get("socket_timeout")
        self._deadline, self._timeout_s = Deadline(), timeout_s or NEVER
        self._wait_s: float = timeout_s or LONGEST_WAIT_S
        self._queue = PoolQueue(pool)
        if timeout_s:
            limit_pool(pool, self._deadline, timeout_s)
        if not self._usable:
            return
        self._collects_metrics = _metrics()
        self._class: Any = type(client)
        self._evalsha, self._execute = self._class.evalsha, self._class.execute_command
        self._pool = pool
        self._most_idle = min(MOST_IDLE, self._pool.max_connections // 2)
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: the connections are the parent's."""
        self._idle: list[_Line] = []

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """The client's ``socket_timeout`` for a block as a whole, in this thread: it ends what the
        client connects, sends and reads there."""
        deadline = self._deadline
        deadline.ends = time.monotonic() + self._timeout_s
        try:
            yield
        finally:
            deadline.ends = NEVER

    def ask(self, method: Callable[..., Any], *words: Any, **options: Any) -> Any:
        """Return the reply to a method of the client. If its pool has no connection left, one is
        waited for."""
        call = partial(method, *words, **options)
        try:
            return self._queue.run(call, time.monotonic() + self._wait_s)
        finally:
            self._queue.note_release()

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[int | str]) -> Any:
        """Return the reply to a script; ``None`` if nothing was run and the client has to be used.
        Raises what the client raises."""
        if not self._usable or self._is_traced():
            return None
        words = (len(keys), *keys, *arguments)
        if self._has_functions:
            try:
                return self._call("FCALL", script.function, *words)
            except Exception as error:  # noqa: BLE001 - raised again, if it is no refusal
                if (reply := self._call_again(error, script, words)) is not None:
                    return reply
        return self._call("EVALSHA", script.sha, *words)

    def _call_again(self, error: Exception, script: Script, words: Sequence[Any]) -> Any:
        """Return the reply of the script's function, which the server did not know; ``None`` if it
        is to be called as a script. Raises other errors. Functions may be flushed as soon as they
        are loaded."""
        try:
            if str(error) == UNKNOWN and self._load(script):
                return self._call("FCALL", script.function, *words)
        except Exception as again:  # noqa: BLE001 - as above
            error = again
        refusal = str(error)
        if FORBIDDEN.match(refusal):
            self._has_functions = False
        elif refusal not in (UNKNOWN, FULL):
            raise error
        return None

    def _load(self, script: Script) -> bool:
        """Store the script's library in the server; false if the server refuses."""
        try:
            self.ask(self._client.function_load, script.library, replace=True)
        except Exception as error:
            if str(error) == FULL:
                return False
            if type(error).__name__ not in ("ResponseError", "NoPermissionError"):
                raise
            self._has_functions = False
        return self._has_functions

    def _call(self, *words: Any) -> Any:
        command, deadline = pack_command(words), self._deadline
        reply = line = None
        try:
            line = self._queue.run(self._take, time.monotonic() + self._wait_s)
            if line is None:
                return None
            connection = line.connection
            is_kernels = line.socket.gettimeout() is None
            if is_kernels and threading.current_thread() is threading.main_thread():
                line.use_clients_timeout()  # signals would prolong it: Python reads again
            sent = 0 if connection.health_check_interval else _written(line.socket, command)
            if sent < len(command):
                line.use_clients_timeout()
                connection.send_packed_command((command[sent:],))
            if deadline.ends == NEVER:  # else it includes connecting
                deadline.ends = time.monotonic() + self._timeout_s
            reply = connection.read_response()
        finally:
            deadline.ends = NEVER
            # After an error the pool brings the connection into order.
            if (
                line is not None
                and reply is not None
                and len(self._idle) < self._most_idle
                and not line.connection.should_reconnect()
            ):
                self._idle.append(line)
            elif line is not None:
                line.use_clients_timeout()
                self._pool.release(line.connection)
            if self._queue.waiting:
                self._queue.note_release()
        return reply

    def _is_traced(self) -> bool:
        """Return whether a tool has replaced a method, which may happen at any time."""
        return (
            # By identity: a wrapper may be equal to what it wraps.
            self._class.execute_command is not self._execute
            or self._class.evalsha is not self._evalsha
            or not self._client.__dict__.keys().isdisjoint(_TRACED)
            or self._collects_metrics()
        )

    def _take(self) -> _Line | None:
        """Return an idle connection, or one more of the pool, whose deadline begins with
        connecting; ``None`` if it has to be used otherwise."""
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            # Readable before a command: the server has closed it, or announces something.
            # redis-py has no public name for the socket; `None` while it is not connected.
            if line.connection._sock is line.socket and not line.readable(0):  # noqa: SLF001
                return line
            line.use_clients_timeout()
            self._pool.release(line.connection)
        self._deadline.ends = time.monotonic() + self._timeout_s
        connection = self._pool.get_connection()
        socket = connection._sock  # noqa: SLF001
        if getattr(connection.retry, "_retries", 1) != 0 or socket is None:
            self._usable = False
            self._pool.release(connection)
            return None
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        if (timeout_s := connection.socket_timeout) and type(socket).__module__ == "socket":
            # The kernel ends reads: Python waits in one system call, and reads in another. Sockets
            # of gevent wait in its loop, of which the kernel knows nothing.
            timeval = struct.pack("@ll", *divmod(int(timeout_s * 1_000_000), 1_000_000))
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVTIMEO, timeval)
            socket.settimeout(None)
        return _Line(connection, socket, poll.poll)


def limit_pool(pool: Any, deadline: Deadline, longest_s: float) -> None:
    """Let the pool make connections that are limited, from connecting on."""
    if (make := getattr(pool, "make_connection", None)) is not None:
        pool.make_connection = lambda: limited(make(), deadline, longest_s)


def limited(connection: Any, deadline: Deadline, longest_s: float) -> Any:
    """Return the connection, whose reads now end with the call that they are for, and at the latest
    after ``longest_s``."""
    parser = connection._parser  # noqa: SLF001 - redis-py has no public name for it
    read = getattr(parser, "read_from_socket", None)
    if read is None or "read_from_socket" in vars(parser):
        return connection  # the application chose another parser; or it is limited

    default = read.__defaults__[0]  # the socket's timeout
    nearly_s, first_s = longest_s * _NEARLY, max(longest_s - CALM_S, longest_s / 2)
    connection.socket_timeout = first_s

    def read_in_time(
        timeout: Any = default,
        raise_on_timeout: bool = True,  # noqa: FBT001, FBT002 - redis-py's
    ) -> Any:
        if timeout is not default:
            return read(timeout, raise_on_timeout)
        began = time.monotonic()
        left_s, wait_s = deadline.ends - began, first_s
        if left_s < nearly_s:
            wait_s = timeout = max(0.0, left_s - CALM_S)
        try:
            if read(timeout, False) or comes_late(  # noqa: FBT003
                lambda timeout_s: read(timeout_s, False),  # noqa: FBT003
                began + min(left_s, longest_s),
                expected=began + wait_s,
                since=None if _has_part(parser) else began,
            ):
                return True
            return read(MOMENT_S, raise_on_timeout)  # which raises the client's error
        except CLOSED as error:
            raise ConnectionError(f"closed while it was read: {error}") from error

    parser.read_from_socket = read_in_time
    return connection


def _has_part(parser: Any) -> bool:
    """Return whether the parser has a part of a reply. It has no reader once it is closed."""
    return bool(getattr(parser._reader, "has_data", bool)())  # noqa: SLF001


def _written(socket: Any, command: bytes) -> int:
    """Return how many bytes the socket takes at once. The client sends the rest, or raises."""
    try:
        return int(socket.send(command, sockets.MSG_DONTWAIT))
    except OSError:
        return 0


def _is_plain(client: Any) -> bool:
    """Return whether the client, its pool and connections are redis-py's own, without extras."""
    pool: Any = getattr(client, "connection_pool", None)
    classes = [type(client), type(pool), getattr(pool, "connection_class", type)]
    return (
        hasattr(select, "poll")
        and [f"{cls.__module__}.{cls.__qualname__}" for cls in classes] in _PLAIN
        and client.connection is None
        and hasattr(pool.connection_class, "should_reconnect")  # not with redis-py 5 and 6.0
        and pool.cache is None
        and all(pool.connection_kwargs.get(option) is None for option in _OPTIONS)
        and client.response_callbacks.keys().isdisjoint(["EVALSHA", "FCALL"])
        and all(_is_original(getattr(type(client), name)) for name in _TRACED)
    )


def _is_original(method: Any) -> bool:
    """Return whether a method is redis-py's. A wrapper may copy the names of what it wraps, but not
    the globals of its code."""
    kind: Any = type(method)
    return kind is FunctionType and method.__globals__["__name__"].partition(".")[0] == "redis"


def _metrics() -> Callable[[], bool]:
    """Return what tells whether redis-py's own metrics are switched on."""
    try:  # redis-py takes longer to import than everything else: only if there is a client of it
        from redis.observability.providers import get_observability_instance  # noqa: PLC0415
    except ImportError:  # an earlier version has no metrics of its own
        return lambda: False
    return lambda: get_observability_instance().get_provider_manager() is not None
