"""The nodes of a Redis Cluster: sends each call to the owner of its slot, once.

The client (redis-py's or valkey-py's) knows the nodes, connects and authenticates. It would send a
call again after a lost reply, which could charge twice, so calls go over the connections of its
pools directly. All calls of a round are sent before the first reply is read.

Nothing is sent twice, except what a node refused to run: it does not own the slot (MOVED, ASK), the
slot is being moved (TRYAGAIN), or it does not know the script.

A node that failed is left alone: calls for it fail at once, and calls for others are not affected.
A thread reads the cluster's layout and tries the node until it answers or has no slots.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.threads import forget_in_child, start_thread
from ratelimit_ext.engine.arguments import Script
from ratelimit_ext.engine.connection import (
    CALM_S,
    CLOSED,
    FORBIDDEN,
    FULL,
    LONGEST_WAIT_S,
    NEVER,
    NO_CONNECTION,
    UNKNOWN,
    Deadline,
    PoolQueue,
    comes_late,
    limit_pool,
    limited,
)

#: How often a failed node, and the layout, are looked at.
PROBE_S: Final = 0.1
#: How long after a change of the layout was noticed it is not read again.
QUIET_S: Final = 1.0
#: How long to wait before a call for a slot that is being moved is sent again.
TRY_AGAIN_S: Final = 0.005
#: How long such calls are sent again if the client has no `socket_timeout`.
LONGEST_S: Final = 5.0
#: A node that has had less than this share of the deadline to reply has not failed.
PATIENCE: Final = 0.5
#: How often one call is redirected at most.
MOST_ROUNDS: Final = 200
_FAILED: Final = "last_failed_node_name"
_OF_CLUSTERS: Final = "ClusterException"

_logger = logging.getLogger("ratelimit_ext")


@dataclass(slots=True, eq=False)
class NodeCall:
    """A command for the owner of a slot, and afterwards its reply or its error.

    ``words`` are a whole command, or with a script its keys and arguments.
    """

    slot: int
    words: tuple[Any, ...]
    script: Script | None = None
    #: The command that runs the script: FCALL, EVALSHA or EVAL.
    command: str = ""
    #: Whether a node was given the script's library for this call.
    is_loaded: bool = False
    #: The node that is asked although it does not own the slot yet.
    asked: Any = None
    #: Whether the slot is being moved.
    is_busy: bool = False
    reply: Any = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.reply is not None or self.error is not None

    def packed(self) -> list[tuple[Any, ...]]:
        script, words = self.script, self.words
        if script is not None:
            names = {"FCALL": script.function, "EVALSHA": script.sha, "EVAL": script.text}
            words = (self.command, names[self.command], *self.words)
        return [words] if self.asked is None else [("ASKING",), words]


class Nodes:
    """Sends calls to the nodes of a cluster. For all threads; a forked child starts over.

    ``errors`` are the client's exceptions for a storage that cannot serve.
    """

    def __init__(self, client: Any, errors: type[Exception] | tuple[type[Exception], ...]) -> None:
        self._client = client
        self._layout = client.nodes_manager
        package = sys.modules[type(client).__module__.partition(".")[0]]
        library = package.exceptions
        client_errors = errors if isinstance(errors, tuple) else (errors,)
        clusters = [value for name, value in vars(library).items() if name.endswith(_OF_CLUSTERS)]
        #: All that can be wrong with a node; some of the client's own have no base in common.
        self.errors: tuple[type[Exception], ...] = (*client_errors, *clusters, OSError)
        self._refusal: type[Exception] = library.ResponseError
        self._client_of: Callable[[Any], Any] = (
            getattr(client, "get_redis_connection", None) or client.get_valkey_connection
        )
        #: For pools that require a command's name: those of valkey-py, and of redis-py before 5.3.
        taken = signature(package.ConnectionPool.get_connection).parameters["command_name"]
        self._words = ("FCALL",) if taken.default is taken.empty else ()
        #: Whether the layout can be asked of another node than the one that has failed.
        options = signature(self._layout.initialize).parameters
        self._avoids_failed = _FAILED in options
        #: Whether reading the layout closes all connections of the node that is asked: in redis-py
        #: before 7, and valkey-py.
        self._closes_asked = "disconnect_startup_nodes_pools" not in options
        self._has_functions = True
        self._timeout_s: float = self._layout.connection_kwargs.get("socket_timeout") or NEVER
        self._deadline = Deadline()
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Forget which nodes have failed: in a forked child, whose thread is gone."""
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None
        #: The threads that wait for a connection of a node, by its name.
        self._queues: dict[str, PoolQueue] = {}
        #: The failed nodes by name, with what they failed with.
        self._failed: dict[str, Exception] = {}
        self._is_stale = False
        self._read_at = float("-inf")

    def deadline(self, share: float = 1.0) -> float:
        """Return when calls that begin now have to be over, by the monotonic clock: after the
        client's ``socket_timeout``, or a share of it; ``NEVER`` without one."""
        return time.monotonic() + self._timeout_s * share

    def run(self, calls: Sequence[NodeCall], until: float) -> None:
        """Run the calls, each once, at the same time. Each has a reply or an error afterwards."""
        for call in calls:
            if call.script is not None and not call.command:
                call.command = "FCALL" if self._has_functions else "EVALSHA"
        ends = time.monotonic() + LONGEST_S if until == NEVER else until
        waiting = list(calls)
        self._deadline.ends = until
        try:
            for _ in range(MOST_ROUNDS):
                self._round(waiting)
                waiting = [call for call in waiting if not call.is_done]
                if not waiting or time.monotonic() >= ends - 2 * TRY_AGAIN_S:
                    break
                if any(call.is_busy for call in waiting):
                    time.sleep(TRY_AGAIN_S)
        finally:
            self._deadline.ends = NEVER
        for call in waiting:
            call.error = ShardUnavailable(
                f"slot {call.slot} is being moved, or the nodes disagree about its owner"
            )

    def masters(self) -> list[Any]:
        return [self._client_of(node) for node in self._client.get_primaries()]

    def _round(self, calls: Sequence[NodeCall]) -> None:
        """Send these calls, then read their replies. A call without any is to be sent again."""
        by_node: dict[str, tuple[Any, list[NodeCall]]] = {}
        for call in calls:
            try:
                node = call.asked or self._layout.get_node_from_slot(call.slot)
            except self.errors as error:
                self._note_change()
                call.error = self._unavailable(None, error)
                continue
            by_node.setdefault(node.name, (node, []))[1].append(call)
        sent: list[tuple[Any, list[NodeCall], Any, Any]] = []
        try:
            # In the same order in all threads: each may wait for connections that others have.
            for _, (node, node_calls) in sorted(by_node.items(), key=lambda item: item[0]):
                if (line := self._send(node, node_calls)) is not None:
                    sent.append((node, node_calls, *line))
        finally:
            for node, node_calls, pool, connection in sent:
                self._receive(node, node_calls, pool, connection)

    def _send(self, node: Any, calls: Sequence[NodeCall]) -> tuple[Any, Any] | None:
        """Return the pool and the connection on which calls were sent; ``None`` if they failed."""
        failed = self._failed.get(node.name)
        if failed is not None:
            self._fail(calls, node, failed)
            return None
        pool: Any = None
        connection: Any = None
        is_sent = False
        began, until = time.monotonic(), self._deadline.ends
        try:
            pool = self._client_of(node).connection_pool
            ends = began + LONGEST_WAIT_S if until == NEVER else until
            queue = self._queues.get(node.name)
            if queue is None:
                if until < NEVER:
                    limit_pool(pool, self._deadline, self._timeout_s)
                queue = self._queues.setdefault(node.name, PoolQueue(pool))
            connection = queue.run(lambda: pool.get_connection(*self._words), ends)
            if until < NEVER:
                # The client itself has made one, to read the layout.
                limited(connection, self._deadline, self._timeout_s)
            commands = [command for call in calls for command in call.packed()]
            connection.send_packed_command(connection.pack_commands(commands))
            is_sent = True
        except self.errors as error:
            self._note_failure(node, error, began)
            self._fail(calls, node, error)
        finally:
            if connection is not None and not is_sent:
                connection.disconnect()
                pool.release(connection)
                self._queues[node.name].note_release()
        return (pool, connection) if is_sent else None

    def _receive(self, node: Any, calls: Sequence[NodeCall], pool: Any, connection: Any) -> None:
        unread, began, until = list(calls), time.monotonic(), self._deadline.ends
        try:
            while unread:
                call = unread[0]
                if call.asked is not None:
                    _read(connection, began, until)
                try:
                    call.reply = _read(connection, began, until)
                except self._refusal as error:
                    self._note_refusal(call, node, error)
                del unread[0]
        except self.errors as error:
            self._note_failure(node, error, began)
            self._fail(unread, node, error)
        finally:
            if unread:
                connection.disconnect()
            pool.release(connection)
            self._queues[node.name].note_release()

    def _note_refusal(self, call: NodeCall, node: Any, error: Exception) -> None:
        """What follows from a refusal: the call is sent again, or has failed."""
        name, text, asked = type(error).__name__, str(error), call.asked
        call.asked, call.is_busy = None, False
        if name == "MovedError":
            self._note_moved(error)
        elif name == "AskError":
            refusal: Any = error
            call.asked = self._layout.get_node(host=refusal.host, port=refusal.port)
            if call.asked is None:
                self._note_change()
                call.error = self._unavailable(node, error)
        elif name == "TryAgainError":
            call.asked, call.is_busy = asked, True
        elif call.script is not None and self._is_unknown(call, node, text, name):
            call.asked = asked
        else:
            if name in ("ClusterDownError", "MasterDownError"):
                self._note_change()
            call.error = self._unavailable(node, error)

    def _fail(self, calls: Sequence[NodeCall], node: Any, error: Exception) -> None:
        for call in calls:
            call.error = self._unavailable(node, error)

    def _unavailable(self, node: Any, error: Exception) -> StorageUnavailable:
        """Return the error of a call; that of the cluster if no master serves."""
        name = "the cluster" if node is None else f"cluster node {node.name}"
        is_down = all(master.name in self._failed for master in self._client.get_primaries())
        kind = StorageUnavailable if is_down else ShardUnavailable
        unavailable = kind(f"{name} failed: {error}")
        unavailable.__cause__ = error
        return unavailable

    def _is_unknown(self, call: NodeCall, node: Any, text: str, name: str) -> bool:
        """Return whether the node did not run the script because it does not know it, or not as
        this command. Afterwards it does, or the command is another."""
        if call.command == "EVALSHA" and name == "NoScriptError":
            call.command = "EVAL"  # which also loads it
            return True
        if call.command != "FCALL":
            return False
        if FORBIDDEN.match(text):
            self._has_functions = False
        elif text not in (UNKNOWN, FULL):
            return False
        elif text == UNKNOWN and not call.is_loaded:  # else it was flushed again at once
            call.is_loaded = self._load(call.script, node)
            if call.is_loaded:
                return True
        call.command = "EVALSHA"
        return True

    def _load(self, script: Script | None, node: Any) -> bool:
        """Store the script's library in the node; false if it refuses."""
        assert script is not None
        try:
            self._client_of(node).function_load(script.library, replace=True)
        except self._refusal as error:
            self._has_functions = str(error) == FULL or type(error).__name__ == "ReadOnlyError"
            return False
        except self.errors:
            return False
        return True

    # -- the layout ----------------------------------------------------------------------------

    def _note_moved(self, error: Any) -> None:
        """A slot has another owner, which the error names. Others may have moved with it."""
        try:
            if hasattr(self._layout, "move_slot"):
                self._layout.move_slot(error)
            else:
                self._layout.update_moved_exception(error)
        except KeyError:  # a slot without an owner until now
            pass
        self._note_change()

    def _note_change(self) -> None:
        """The layout may have changed: the thread reads it."""
        if time.monotonic() - self._read_at > QUIET_S:
            with self._lock:
                self._is_stale = True
                self._start()

    def _note_failure(self, node: Any, error: Exception, began: float) -> None:
        """The node failed: until the thread finds that it answers, nothing is sent to it."""
        if NO_CONNECTION.search(str(error)):
            return  # this worker's own limit
        had_s = self._deadline.ends - began
        if type(error).__name__ == "TimeoutError" and had_s < PATIENCE * self._timeout_s:
            return
        with self._lock:
            if self._start() and node.name not in self._failed:
                self._failed[node.name] = error
                _logger.warning("Cluster node %s does not serve: %s", node.name, error)
            self._awake.set()

    def _start(self) -> bool:
        """Start the thread if it does not run; false if it cannot be started."""
        if self._thread is None:
            self._thread = start_thread("cluster", _watch, weakref.ref(self))
        return self._thread is not None

    def _look_again(self) -> threading.Event | None:
        """One turn of the thread: read the layout and try failed nodes. Returns what ends the pause
        until the next turn; ``None``: there is nothing to look at."""
        try:
            self._awake.clear()
            self._is_stale = False
            if not self._read_layout():
                self._is_stale = True
            owners = {node.name: node for node in self._client.get_primaries()}
            for name in list(self._failed):
                if name not in owners or self._answers(owners[name]):
                    del self._failed[name]
                    _logger.warning("Cluster node %s has recovered or no longer owns slots", name)
            with self._lock:
                if self._failed or self._is_stale:
                    return self._awake
                self._thread = None
                return None
        except BaseException:  # without the thread, nodes would stay failed for ever
            self._failed, self._thread = {}, None
            raise

    def _read_layout(self) -> bool:
        """Ask the nodes who owns which slots; false if none answers."""
        failed = next(iter(self._failed), None)
        if self._closes_asked:  # other threads wait for replies: ask on new connections
            known = self._layout.startup_nodes
            made = {name: type(node)(node.host, node.port) for name, node in known.items()}
            self._layout.startup_nodes = made
        try:
            self._layout.initialize(**{_FAILED: failed} if self._avoids_failed else {})
        except self.errors as error:
            _logger.debug("The cluster's layout could not be read: %s", error)
            return False
        self._read_at = time.monotonic()
        return True

    def _answers(self, node: Any) -> bool:
        try:
            return bool(self._client_of(node).ping())
        except self.errors:
            return False


def _watch(reference: weakref.ref[Nodes]) -> None:
    """The thread of a cluster's nodes. It ends with them, because they may not come back."""
    while (nodes := reference()) is not None:
        if (awake := nodes._look_again()) is None:  # noqa: SLF001
            return
        del nodes
        awake.wait(PROBE_S)


def _read(connection: Any, began: float, until: float) -> Any:
    """Return the next reply of a node, for which it waits since ``began``. Raises what the client
    raises, or ``TimeoutError``."""
    try:
        if until < NEVER:
            now_s = time.monotonic()
            wait_s = max(0.0, until - now_s - CALM_S)
            if not (
                connection.can_read(wait_s)
                or comes_late(connection.can_read, until, expected=now_s + wait_s, since=began)
            ):
                raise TimeoutError("no reply within the socket_timeout")
        return connection.read_response()
    except CLOSED as error:
        raise ConnectionError(f"closed while it was read: {error}") from error
