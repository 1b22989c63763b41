"""What an extension writes of its decisions for operators, from a thread of its own.

A request only counts in this process; the storage is asked every two seconds, by the thread.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from functools import partial
from operator import attrgetter, itemgetter
from typing import Final
from weakref import WeakSet, ref

from ratelimit_ext.core.errors import OperatorError, StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent, Event, Events
from ratelimit_ext.core.threads import forget_in_child, start_thread
from ratelimit_ext.records.counters import Counters
from ratelimit_ext.records.denials import Denials
from ratelimit_ext.records.shadow import Shadows
from ratelimit_ext.records.store import MemoryRecords, RecordStore

EVERY_S: Final = 2.0

NOT_WRITTEN: Final = "What is recorded for operators cannot be written: %s"

_logger = logging.getLogger("ratelimit_ext")


class Recorder:
    """A listener that gathers what happens, and writes it in the background."""

    #: Whether a thread writes. Tests that count commands write by hand.
    in_background = True

    def __init__(self, events: Events, store: RecordStore | None) -> None:
        self._events = events
        self.denials = Denials()
        self.shadows = Shadows()
        self.counters = Counters()
        self.use(store)
        self._was_refused = False
        self.forget()
        _all.add(self)
        forget_in_child(self)

    def require_enabled(self) -> Recorder:
        """Return this recorder. Raises ``OperatorError`` unless :meth:`remember` was called."""
        if self.note not in self._events.listeners:
            raise OperatorError(
                "not_remembered",
                "Denials are not remembered; call limiter.remember_denials() in the application.",
            )
        return self

    def remember(self, *, request_id: Callable[[], str] | None) -> None:
        self.denials.request_id = request_id
        if self.note not in self._events.listeners:
            self._events.add(self.note)

    def use(self, store: RecordStore | None) -> None:
        self.denials.store = self.shadows.store = store
        self._writes_at_once = isinstance(store, MemoryRecords)
        self.counters.store = None if self._writes_at_once else store

    def note(self, event: Event) -> None:
        """Gather an event. Does not wait."""
        if event.__class__ is not DecisionEvent:
            return
        if self.counters.store is not None:
            self.counters.note(event)
        if event.reason is not None:
            self.denials.note(event)
        elif True in map(attrgetter("limit.is_shadow"), map(itemgetter(2), event.charges)):
            self.shadows.note(event)
        elif self._writes_at_once:
            return
        if self._writes_at_once:
            self.flush()
        elif not self._is_started:
            self._start()

    def flush(self, *, all_of_them: bool = False) -> None:
        """Write what was gathered. Never raises."""
        denials = partial(self.denials.flush, all_of_them=all_of_them)
        for write in (denials, self.shadows.flush, self.counters.flush):
            try:
                write()
            except StorageUnavailable as error:  # it is kept
                if not _is_refusal(error):  # the others would wait for it, too
                    _logger.debug(NOT_WRITTEN, error)
                    return
                if not self._was_refused:  # only an outage is logged elsewhere
                    _logger.error(NOT_WRITTEN, error)
                self._was_refused = True
            except Exception:
                _logger.exception(NOT_WRITTEN, "an unexpected error")

    def forget(self) -> None:
        """In a forked child: the thread, and what it writes, have stayed in the parent."""
        self.denials.forget()
        self.shadows.forget()
        self.counters.forget()
        self._starting = threading.Lock()
        self._is_started = False

    def _start(self) -> None:
        with self._starting:
            if self._is_started:
                return
            if self.in_background and start_thread("records", _write, ref(self)) is None:
                return
            self._is_started = True


def _is_refusal(error: StorageUnavailable) -> bool:
    """Return whether the storage has answered: a right is missing, or its memory is full."""
    cause = type(error.__cause__)
    return any(cls.__name__ == "ResponseError" for cls in cause.__mro__)


def _write(reference: ref[Recorder]) -> None:
    """Write again and again, until the extension is gone."""
    while not _ended.wait(EVERY_S) and (recorder := reference()) is not None:
        recorder.flush()
        del recorder


_ended: Final = threading.Event()
_all: Final[WeakSet[Recorder]] = WeakSet()


def _close_all() -> None:
    _ended.set()
    for recorder in list(_all):
        recorder.flush(all_of_them=True)


atexit.register(_close_all)
