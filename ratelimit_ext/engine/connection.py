"""Connections that carry one script call each, without redis-py's client in between.

They come from the client's own pool, which connects, authenticates and sets their timeouts, and
reads replies. Left out is what the client does around each command, which takes longer than the
call. If anything else takes part in a call (instrumentation, a subclass, retries, TLS, a cache, a
pool that waits), :meth:`ScriptConnections.run` declines, and the client is used.

A script is called as a function of a library (``FCALL``): a function's tables are built once, which
saves a third of the server's time. Where that is refused, EVALSHA is sent instead.

Nothing is sent twice, except what the server refused to run: a script whose reply was lost may have
charged.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Final, NamedTuple

from ratelimit_ext.engine.scripts import Script

try:
    from hiredis import pack_command
except ImportError:  # redis-py is used without it
    pack_command = None  # type: ignore[assignment]
try:
    from redis.observability.providers import get_observability_instance
except ImportError:  # an earlier version has no metrics of its own
    get_observability_instance = None  # type: ignore[assignment]

#: How many idle connections are kept from the pool at most, and never more than half of it.
MOST_IDLE: Final = 32

#: What instrumentation replaces, on the class or on the client.
_METHODS: Final = ("evalsha", "execute_command", "parse_response", "_execute_command")
_PLAIN: Final = frozenset(["Connection", "UnixDomainSocketConnection"])
#: Options of a pool that ask for more than a plain connection.
_OPTIONS: Final = ("credential_provider", "encoding", "encoding_errors", "redis_connect_func")
#: The server's errors for a function that it did not run, by text.
_UNKNOWN: Final = "Function not found"
_FULL: Final = "command not allowed when used memory > 'maxmemory'."
_FORBIDDEN: Final = re.compile(
    r"unknown command ['`]FCALL['`]|.* no permissions to run the 'fcall' "  # ` before Redis 7
)


class _Line(NamedTuple):
    """A connection, its socket, and whether the socket has something to read."""

    connection: Any
    socket: Any
    readable: Callable[[int], list[Any]]


class ScriptConnections:
    """Idle connections of a client's pool. For all threads; a forked child begins without any."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._usable = _is_plain(client)
        self._has_functions = True
        if not self._usable:
            return
        self._class = type(client)
        self._methods = [getattr(self._class, name, None) for name in _METHODS]
        self._pool = client.connection_pool
        self._most_idle = min(MOST_IDLE, self._pool.max_connections // 2)
        self._process = os.getpid()
        self._idle: list[_Line] = []

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[int | str]) -> Any:
        """The reply to a script; ``None`` if nothing was run and the client has to be used.
        Raises what the client raises."""
        if not self._usable or self._is_observed():
            return None
        words = (len(keys), *keys, *arguments)
        if self._has_functions:
            try:
                return self._call_function(script, words)
            except Exception as error:
                refusal = str(error)
                if _FORBIDDEN.match(refusal):
                    self._has_functions = False
                elif refusal not in (_UNKNOWN, _FULL):
                    raise
        return self._call("EVALSHA", script.sha, *words)

    def _call_function(self, script: Script, words: Sequence[Any]) -> Any:
        """The reply of the script's function. If functions are flushed as soon as they are loaded,
        the server's error is raised."""
        try:
            return self._call("FCALL", script.function, *words)
        except Exception as error:
            if str(error) != _UNKNOWN or not self._load(script):
                raise
        return self._call("FCALL", script.function, *words)

    def _load(self, script: Script) -> bool:
        """Store the script's library in the server; false if the server refuses."""
        try:
            self._client.function_load(script.library, replace=True)
        except Exception as error:
            if str(error) == _FULL:
                return False
            if type(error).__name__ not in ("ResponseError", "NoPermissionError"):
                raise
            self._has_functions = False
        return self._has_functions

    def _call(self, *words: Any) -> Any:
        command = pack_command(words)
        line = self._take()
        if line is None:
            return None
        connection = line.connection
        reply = None
        try:
            connection.send_packed_command((command,))
            reply = connection.read_response()
        finally:
            # After an error the pool brings the connection into order.
            if (
                reply is not None
                and len(self._idle) < self._most_idle
                and not connection.should_reconnect()
            ):
                self._idle.append(line)
            else:
                self._pool.release(connection)
        return reply

    def _is_observed(self) -> bool:
        """Whether the client was instrumented, which may happen at any time."""
        client, own, methods = self._client, self._class, self._methods
        # By identity: a wrapper may be equal to what it wraps.
        return (
            client.connection_pool is not self._pool
            or own.evalsha is not methods[0]
            or own.execute_command is not methods[1]
            or own.parse_response is not methods[2]
            or getattr(own, "_execute_command", None) is not methods[3]
            or not client.__dict__.keys().isdisjoint(_METHODS)
            or _collects_metrics()
        )

    def _take(self) -> _Line | None:
        """An idle connection, or one more of the pool; ``None`` if it has to be used otherwise."""
        if self._process != os.getpid():
            self._process, self._idle = os.getpid(), []
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            # Readable before a command: the server has closed it, or announces something.
            if _socket_of(line.connection) is line.socket and not line.readable(0):
                return line
            self._pool.release(line.connection)
        connection = self._pool.get_connection()
        socket = _socket_of(connection)
        if getattr(connection.retry, "_retries", 1) != 0 or socket is None:
            self._usable = False
            self._pool.release(connection)
            return None
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return _Line(connection, socket, poll.poll)


def _socket_of(connection: Any) -> Any:
    """Its socket; ``None`` while it is not connected. redis-py has no public name for it."""
    return connection._sock  # noqa: SLF001


def _is_plain(client: Any) -> bool:
    """Whether the client and its pool are redis-py's own classes, without extras."""
    own, pool = type(client), getattr(client, "connection_pool", None)
    can_pack: Any = pack_command
    if can_pack is None or not hasattr(select, "poll") or pool is None:
        return False
    module = sys.modules.get("redis.client")
    if module is None or own is not module.Redis or client.connection is not None:
        return False
    if type(pool) is not sys.modules["redis.connection"].ConnectionPool or pool.cache is not None:
        return False
    lines = pool.connection_class
    if lines.__module__ != "redis.connection" or lines.__name__ not in _PLAIN:
        return False
    if any(pool.connection_kwargs.get(option) is not None for option in _OPTIONS):
        return False
    return client.response_callbacks.keys().isdisjoint(["EVALSHA", "FCALL"]) and all(
        _is_original(getattr(own, name, None), own) for name in _METHODS if hasattr(own, name)
    )


def _is_original(method: Any, own: type) -> bool:
    """Whether a method is a plain function of the class's package. A wrapper may copy the names of
    what it wraps, but not the file of its code."""
    package = Path(sys.modules[own.__module__].__file__ or "").parent
    return isinstance(method, FunctionType) and package in Path(method.__code__.co_filename).parents


def _collects_metrics() -> bool:
    """Whether redis-py's own metrics are switched on."""
    instance: Any = get_observability_instance
    return instance is not None and instance().get_provider_manager() is not None
