"""A breaker in front of an engine whose storage may be down: then no request waits for it.

It opens

- at once if the connection is refused, or the server says that it cannot serve (it is a replica, is
  loading, cannot save, rejects the password, its cluster is down);
- after two failures of any other kind (no reply within the deadline, a lost connection), of which
  the second call began after the first had failed, if nothing succeeded in between. So neither one
  slow call opens it nor a pause that holds up many calls at once.

While it is open every call fails at once. A thread of each process asks the storage five times a
second (:meth:`StorageEngine.probe`) and closes the breaker. All workers close it at the same time,
0.4 s after the first of them has found the storage serving: by then each has charged to it what it
has decided meanwhile (:class:`~ratelimit_ext.engine.outage.OutageEngine`). There is no thread while
nothing has failed.

Some failures concern one call only, and do not open it: no connection of the pool became free, this
process has no file descriptor left, one shard of a cluster of which others serve, a script that
fails on one key. A full server (``StorageFull``) is no failure.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol, TypeVar

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import NO_HOLD, Charge, Hold
from ratelimit_ext.core.decision import Decision
from ratelimit_ext.core.errors import (
    ConfigurationError,
    ShardUnavailable,
    StorageFull,
    StorageUnavailable,
)
from ratelimit_ext.core.events import StorageEvent
from ratelimit_ext.core.threads import forget_in_child, start_thread
from ratelimit_ext.engine.connection import NO_CONNECTION
from ratelimit_ext.engine.engine import Engine, Marker, causes
from ratelimit_ext.engine.outage import PAUSE_S, OutageEngine

#: How often the storage is asked whether it serves.
PROBE_S: Final = 0.2
#: How long after the first worker has found it serving all workers return to it. In the last part
#: of it nothing is decided without the storage any more.
RETURN_S: Final = 0.4
QUIET_S: Final = PAUSE_S / 2
#: How long a worker charges to the storage what it has decided, before it returns and later.
HAND_BACK_S: Final = 0.2
#: A call that begins later than this after a failure is no longer the second of two.
FORGOTTEN_S: Final = 5.0
#: How often an outage that lasts is logged.
LOG_EVERY_S: Final = 10.0

#: What a server says that cannot serve, by the client's class or the first words.
_NO_SERVICE: Final = frozenset(
    [
        "AuthenticationError",
        "AuthorizationError",
        "BusyLoadingError",
        "ClusterDownError",
        "MasterDownError",
        "NoPermissionError",
        "ReadOnlyError",
    ]
)
_REFUSALS: Final = re.compile(r"(?:.*[ -])?(?:READONLY|MISCONF|NOREPLICAS|BUSY|NOAUTH|WRONGPASS) ")
_NO_ADDRESS: Final = (ConnectionRefusedError, FileNotFoundError, PermissionError, socket.gaierror)
_UNREACHABLE: Final = frozenset([errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN])
_NO_DESCRIPTOR: Final = frozenset([errno.EMFILE, errno.ENFILE])
#: Errors of the caller, and of a server that serves.
_NO_FAILURE: Final = (StorageFull, ConfigurationError, ValueError, NotImplementedError)
NO_DESCRIPTOR: Final = (
    "This process has no file descriptor left for the storage, which is not down: %s. "
    "Raise its limit (ulimit -n). Requests follow their on_failure meanwhile."
)
SINGLE: Final = (
    "The storage did not decide a request, though it does not seem to be down: %s. Such requests "
    "follow their on_failure."
)
_EXPECTED: Final = (StorageUnavailable, *_NO_FAILURE)

T = TypeVar("T")

_logger = logging.getLogger("ratelimit_ext")


class StorageEngine(Engine, Protocol):
    """An engine that can be asked whether its storage serves."""

    def probe(self) -> int:
        """Ask whether scripts run and writes are taken. Returns for how many microseconds workers
        have found it so, since it was back. Raises if not."""
        ...


class Breaker:
    def __init__(self, engine: StorageEngine) -> None:
        self._engine = engine
        #: Decides while this one is open.
        self.outage: OutageEngine | None = None
        #: Called when it has opened or closed.
        self.changed: Callable[[StorageEvent], object] = lambda _: None
        self._begin()
        forget_in_child(self)

    def _begin(self) -> None:
        self.is_open = False
        self._reason = ""
        #: When the first of the calls failed since the last success, by the monotonic clock.
        self._failed_at: float | None = None
        self._opened_at = 0.0
        #: Whether this worker has shared what it knew of buckets with the others of its host.
        self._is_published = True
        #: When to log again that the outage lasts, and what was logged then.
        self._log_at, self._logged = 0.0, ""
        #: Whether the log says that single requests are decided without the storage.
        self._is_noted = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """Start over: in a forked child, which has no thread."""
        if self.outage is not None:
            self.outage.forget()
            self.outage.is_deciding = False
        self._begin()

    # -- the engine ----------------------------------------------------------------------------

    def admit(
        self,
        charges: Sequence[Charge],
        *,
        take: bool = True,
        hold: Hold = NO_HOLD,
        now_us: int | None = None,
    ) -> Decision:
        if self.is_open:
            raise self._refusal()
        began, outside = time.monotonic(), sys.exception()
        try:
            decision = self._engine.admit(charges, take=take, hold=hold, now_us=now_us)
        except Exception as error:  # noqa: BLE001 - raised again
            self._fail(error, began, outside)
        if self._failed_at is not None:
            self._failed_at = None
        if self.outage is not None:
            self.outage.last.note((began, decision))
        return decision

    def settle(
        self, changes: Sequence[Change], *, once: Marker | None = None, now_us: int | None = None
    ) -> int:
        outage, began = self.outage, time.monotonic()
        try:
            applied = self._guarded(lambda: self._engine.settle(changes, once=once, now_us=now_us))
        except StorageUnavailable:
            if outage is not None:
                outage.credit(began, changes)  # they are sent again later
            raise
        if applied and outage is not None:
            outage.last.note((began, changes))
        return applied

    def clear(self, keys: Sequence[str]) -> int:
        count = self._guarded(lambda: self._engine.clear(keys))
        if self.outage is not None:
            self.outage.last.forget(frozenset(keys).__contains__)
        return count

    def reset(self, prefix: str) -> int:
        count = self._guarded(lambda: self._engine.reset(prefix))
        if self.outage is not None:
            self.outage.last.forget(lambda key: key.startswith(prefix))
        return count

    def check(self) -> None:
        """Ask the storage whether it serves; a failure counts as one of a call."""
        with contextlib.suppress(StorageUnavailable):
            self._guarded(self._engine.probe)

    def _guarded(self, call: Callable[[], T]) -> T:
        if self.is_open:
            raise self._refusal()
        began, outside = time.monotonic(), sys.exception()
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - raised again
            self._fail(error, began, outside)
        self._failed_at = None
        return result

    # -- failures ------------------------------------------------------------------------------

    def _fail(self, error: Exception, began: float, outside: BaseException | None) -> NoReturn:
        """Note the error of a call, and raise it as one of an engine."""
        self._note(error, began, outside)
        if isinstance(error, _EXPECTED):
            raise error
        raise StorageUnavailable(f"the storage failed: {error}") from error

    def _note(self, error: Exception, began: float, outside: BaseException | None = None) -> None:
        """Note an error of the engine; opens the breaker if it is an outage. ``outside``: what the
        caller was handling. A request may come because of another failure."""
        if isinstance(error, _NO_FAILURE):
            return
        chain = list(causes(error, outside=outside))
        kind = _kind(chain)
        if kind == "outage" and isinstance(error, StorageUnavailable):
            error.may_have_charged = False
        if kind == "outage" or (kind == "failure" and self._is_second(began)):
            self._open(str(error))
        if not self.is_open:
            self._note_single(chain)
        if kind != "single":
            self.wake()

    def _note_single(self, chain: Sequence[BaseException]) -> None:
        """Log that single requests are decided without the storage, which is not down."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._log_at:
                return
            self._log_at, self._is_noted = now_s + LOG_EVERY_S, True
            if self.outage is not None:
                self.outage.decided.clear()
        if _lacks_descriptors(chain):
            _logger.error(NO_DESCRIPTOR, chain[0])
        else:
            _logger.warning(SINGLE, chain[0])

    def _refusal(self) -> StorageUnavailable:
        """Return what a call raises while the breaker is open."""
        refusal = StorageUnavailable(self._reason)
        refusal.may_have_charged = False
        return refusal

    def _is_second(self, began: float) -> bool:
        """Return whether another call had failed before this one began."""
        if self._failed_at is None or began - self._failed_at > FORGOTTEN_S:
            self._failed_at = time.monotonic()
            return False
        return began >= self._failed_at

    def _open(self, reason: str) -> None:
        with self._lock:
            if self.is_open:
                return
            self._reason, self._opened_at, self._failed_at = reason, time.monotonic(), None
            self.is_open = True
            self._log_at, self._logged = self._opened_at + LOG_EVERY_S, ""
            self._is_noted = False
            if self.outage is not None:
                self.outage.is_deciding = True
                self.outage.decided.clear()
                self._is_published = False
        _logger.error(
            "The storage is down; limits follow their on_failure until it is back: %s", reason
        )
        self.changed(StorageEvent(is_down=True, reason=reason, down_s=0.0))

    def _close(self) -> None:
        with self._lock:
            down_s = time.monotonic() - self._opened_at
            if self.outage is not None:
                self.outage.is_deciding = False
            self.is_open = False
        self.changed(StorageEvent(is_down=False, reason=self._reason, down_s=down_s))
        _logger.warning("The storage is back after %.1f s; %s", down_s, self._counted())

    def _counted(self) -> str:
        counts = {} if self.outage is None else self.outage.decided
        listed = ", ".join([f"{name} {count}" for name, count in counts.items()])
        return f"requests decided without it: {listed or 'none'}"

    # -- the thread ----------------------------------------------------------------------------

    def wake(self) -> None:
        """Start the recovery thread if it is not running."""
        with self._lock:
            if self._thread is None:
                self._thread = start_thread("breaker", _watch, weakref.ref(self))

    def _look_again(self) -> float | None:
        """One turn of the thread. Returns the pause until the next one; ``None``: it is over."""
        began = time.monotonic()
        try:
            is_done = self._look()
            with self._lock:
                if not self.is_open and (self.outage is None or self.outage.is_handed_back):
                    self._thread = None
                    if self._is_noted:
                        self._is_noted = False
                        _logger.warning("The storage decides again; %s", self._counted())
                    return None
        except Exception as error:  # noqa: BLE001 - a thread that ends would end the recovery
            if not self.is_open:
                self._note(error, began)
            self._log_outage(error)
            return PROBE_S
        return 0.0 if is_done else PROBE_S

    def _log_outage(self, error: Exception) -> None:
        """Log that the outage continues, if it affected requests since the last log line."""
        now_s, counted = time.monotonic(), self._counted()
        if self.is_open and now_s >= self._log_at and counted != self._logged:
            self._log_at, self._logged = now_s + LOG_EVERY_S, counted
            _logger.error("The storage is still down: %s; %s", error, counted)

    def _look(self) -> bool:
        """Ask the storage; if it serves, hand back what was decided without it, and close the
        breaker. Returns whether all was handed back. Raises if the storage does not serve."""
        engine, outage = self._engine, self.outage
        if outage is not None and not self._is_published:
            self._is_published = True
            outage.publish()
        if outage is not None and not (self.is_open or outage.is_handed_back):
            # Single requests were decided here. The storage has to know at once: it decides others.
            is_done = outage.hand_back(engine, within_s=HAND_BACK_S)
            self._failed_at = None
            return is_done
        served_since = time.monotonic() - engine.probe() / 1_000_000
        if outage is None:
            self._failed_at = None
            if self.is_open:
                self._close()
            return True
        outage.hand_back(engine, within_s=HAND_BACK_S)
        if self.is_open:
            _wait_until(served_since + RETURN_S - QUIET_S)
            outage.goes_on.clear()
            try:
                outage.hand_back(engine, within_s=QUIET_S)
                _wait_until(served_since + RETURN_S)
                self._close()
            finally:
                outage.goes_on.set()
        return outage.hand_back(engine, within_s=HAND_BACK_S)


def _watch(reference: weakref.ref[Breaker]) -> None:
    """The thread of a breaker. It ends with the breaker, because its storage may not come back."""
    while (breaker := reference()) is not None:
        pause_s = breaker._look_again()  # noqa: SLF001
        if pause_s is None:
            return
        del breaker
        time.sleep(pause_s)


def _wait_until(instant: float) -> None:
    time.sleep(max(0.0, instant - time.monotonic()))


def _kind(chain: Sequence[BaseException]) -> str:
    """Of an error and its causes. ``outage``: the storage cannot serve; ``failure``: it may be one,
    if it comes again; ``single``: of this call alone."""
    if isinstance(chain[0], ShardUnavailable) or _lacks_descriptors(chain):
        return "single"
    for cause in chain:
        names, text = {cls.__name__ for cls in type(cause).__mro__}, str(cause)
        if isinstance(cause, OSError):
            is_outage = isinstance(cause, _NO_ADDRESS) or cause.errno in _UNREACHABLE
            return "outage" if is_outage else "failure"
        if not names.isdisjoint(_NO_SERVICE) or _REFUSALS.match(text):
            return "outage"
        if "ResponseError" in names or NO_CONNECTION.search(text):
            return "single"
    return "failure"


def _lacks_descriptors(chain: Sequence[BaseException]) -> bool:
    return any(getattr(cause, "errno", None) in _NO_DESCRIPTOR for cause in chain)
