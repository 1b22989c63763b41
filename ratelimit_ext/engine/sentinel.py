"""Follows the master that Sentinel names, before a failover loses charges.

Sentinel promotes a replica, and demotes the old master about ten seconds later. What is charged to
the old master in between is lost. So a thread of each process listens to all sentinels. About 0.1 s
before a replica is promoted, its sentinel announces it: from then on the pool gives no connection,
which opens the breaker, until the sentinels name the new master. Connections to the old one are
dropped then. The thread also asks each sentinel once a second, because announcements may be lost.

The sentinel with the highest epoch is right: others learn of a failover up to two seconds later.
"""

from __future__ import annotations

import logging
import selectors
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ratelimit_ext.core.threads import forget_in_child, start_thread

#: How often the sentinels are asked: in general, and during a failover.
ASK_S: Final = 1.0
ASK_IN_FAILOVER_S: Final = 0.1
#: How long the first call of a process waits for the first answer: most sentinels do not know yet
#: of a failover that is going on.
FIRST_S: Final = 0.5
#: For how long an answer is used instead of asking when a connection is made.
FRESH_S: Final = 3.0

#: Comes before a replica is promoted. The others may end the failover.
PROMOTES: Final = "+failover-state-send-slaveof-noone"
CHANNELS: Final = (PROMOTES, "+promoted-slave", "+switch-master")
ABORTS: Final = "-failover-abort-*"
#: In these states the old master still takes writes that the new one does not get.
PROMOTING: Final = frozenset(["send_slaveof_noone", "wait_promotion"])
IN_FAILOVER: Final = "Sentinel is replacing the master"
REFUSED: Final = (
    "A sentinel refuses to announce failovers: %s. A planned one loses up to a second of charges. "
    "Let its user subscribe: +subscribe +psubscribe &*"
)

Address = tuple[str, int]

_logger = logging.getLogger("ratelimit_ext")


class _Answer(NamedTuple):
    epoch: int
    address: Address
    is_promoting: bool


class MasterWatch:
    """Lets a Sentinel client's pool follow the master, for all threads. A fork starts over."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._sentinels, self._service = pool.sentinel_manager, pool.service_name
        self._clients = tuple(self._sentinels.sentinels)  # the list itself is reordered
        library = type(pool).__module__.partition(".")[0]
        self._errors = sys.modules[f"{library}.exceptions"]
        base = "ValkeyError" if library == "valkey" else "RedisError"
        self._failures = (getattr(self._errors, base), OSError)
        self._take, self._discover = pool.get_connection, self._sentinels.discover_master
        self.forget()
        forget_in_child(self)
        pool.get_connection = self._get_connection
        self._sentinels.discover_master = self._discover_master

    def forget(self) -> None:
        """In a forked child: the thread has stayed in the parent."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: The subscription to each sentinel, by its place.
        self._lines: dict[int, Any] = {}
        self._refused: set[int] = set()
        #: Whether a replica is about to be promoted.
        self._is_promoting = False
        self._answer: _Answer | None = None
        self._answered_at = float("-inf")
        #: Whether the sentinels were asked, even if none has answered.
        self._were_asked = threading.Event()

    # -- the pool ------------------------------------------------------------------------------

    def _get_connection(self, *words: Any, **options: Any) -> Any:
        """Return a connection to the master; raise the client's error while it is replaced."""
        if self._thread is None:
            self._start()
        if not self._were_asked.is_set() and self._thread is not None:
            self._were_asked.wait(FIRST_S)
        if self._is_promoting:
            raise self._errors.MasterDownError(IN_FAILOVER)
        return self._take(*words, **options)

    def _discover_master(self, service: str) -> Address:
        is_fresh = time.monotonic() - self._answered_at < FRESH_S
        if (answer := self._answer) is not None and is_fresh and service == self._service:
            return answer.address
        address: Address = self._discover(service)
        return address

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = start_thread("sentinel", _follow, weakref.ref(self))

    # -- the thread ----------------------------------------------------------------------------

    def _look_again(self) -> None:
        """One turn of the thread: ask all sentinels, then wait for an announcement."""
        try:
            self._note(list(self._ask()))
            self._were_asked.set()
            self._listen(ASK_IN_FAILOVER_S if self._is_promoting else ASK_S)
        except Exception:  # a thread that ends would not be missed until the next failover
            _logger.exception("Querying the sentinels failed")
            self._were_asked.set()
            time.sleep(ASK_S)

    def _listen(self, within_s: float) -> None:
        """Read what the sentinels announce, at most until the first announcement."""
        ends = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            for place, line in list(self._lines.items()):
                socket = line.connection._sock  # noqa: SLF001 - redis-py has no public name for it
                if socket is None:
                    self._drop(place)
                else:
                    selector.register(socket, selectors.EVENT_READ, place)
            while (left_s := ends - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    if self._read(key.data):
                        return

    def _read(self, place: int) -> bool:
        """Read what a sentinel has announced. Returns whether to ask now."""
        is_of_ours = False
        try:
            while (message := self._lines[place].get_message(timeout=0)) is not None:
                if self._service in _text(message["data"]).split():
                    is_of_ours = True
                    self._is_promoting |= _text(message["channel"]) == PROMOTES
        except self._failures:
            self._drop(place)
            return True
        return is_of_ours

    def _ask(self) -> Iterator[_Answer]:
        for place, client in enumerate(self._clients):
            try:
                if place not in self._lines and place not in self._refused:
                    self._subscribe(place, client)
                state = client.sentinel_master(self._service)
                address = client.sentinel_get_master_addr_by_name(self._service)
            except self._failures:
                self._drop(place)
                continue
            ip = getattr(self._sentinels, "_force_master_ip", None) or _text(address[0])
            is_old = (_text(state["ip"]), int(state["port"])) == (_text(address[0]), address[1])
            is_promoting = is_old and _text(state.get("failover-state", "")) in PROMOTING
            yield _Answer(int(state["config-epoch"]), (ip, int(address[1])), is_promoting)

    def _subscribe(self, place: int, client: Any) -> None:
        line = client.pubsub()
        try:
            line.subscribe(*CHANNELS)
            line.psubscribe(ABORTS)
            for _ in range(len(CHANNELS) + 1):
                line.parse_response()
        except self._errors.ResponseError as error:
            line.close()
            self._refused.add(place)
            _logger.warning(REFUSED, error)
        else:
            self._lines[place] = line

    def _drop(self, place: int) -> None:
        if (line := self._lines.pop(place, None)) is not None:
            line.close()

    def _note(self, answers: list[_Answer]) -> None:
        """Follow the sentinel with the highest epoch."""
        if not answers:
            if time.monotonic() - self._answered_at > FRESH_S:
                self._is_promoting = False
            return
        epoch = max(answer.epoch for answer in answers)
        latest = [answer for answer in answers if answer.epoch == epoch]
        before, self._answer = self._answer, latest[0]
        self._answered_at = time.monotonic()
        if before is not None and before.address != latest[0].address:
            _logger.warning("Sentinel names another master: %s:%s", *latest[0].address)
        self._pool.get_master_address()  # drops idle connections to another
        self._is_promoting = any(answer.is_promoting for answer in latest)


def _follow(reference: weakref.ref[MasterWatch]) -> None:
    """The thread of a watch. It ends with the client."""
    while (watch := reference()) is not None:
        watch._look_again()  # noqa: SLF001
        del watch


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
