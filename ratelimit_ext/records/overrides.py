"""Overrides: amounts that an operator gives single identities, for some time or until removed.

They are kept in the limits' storage, beside a log of who changed what. Each process reads them at
its first request and then from a thread, every two seconds. It decides with what it has read, so no
later request waits, and an override acts in every process within five seconds. The end of an
override is exact.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final
from weakref import ref

from ratelimit_ext.core.errors import OperatorError, StorageUnavailable
from ratelimit_ext.core.threads import forget_in_child, start_thread
from ratelimit_ext.records.store import MemoryRecords, RecordStore, from_json, require_store

EVERY_S: Final = 2.0
MOST_OVERRIDES: Final = 1000
KIND: Final = "overrides"
MOST_ENTRIES: Final = 1000
LONGEST_REASON: Final = 200
#: The end of the year 9999, in seconds since 1970: no later instant can be shown.
LATEST_S: Final = 253_402_300_799

_logger = logging.getLogger("ratelimit_ext")


@dataclass(frozen=True, slots=True)
class Override:
    """An identity's own ``amount`` of the limit of that name, as a limit string.

    ``until`` and ``at``, when it was set, are in seconds since 1970; ``None``: until it is removed.
    """

    limit: str
    identity: str
    amount: str
    until: float | None = None
    reason: str = ""
    by: str = ""
    at: float = 0.0

    def is_valid(self, now_s: float) -> bool:
        return self.until is None or now_s < self.until


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A change by an operator: ``action`` is ``override``, ``clear-override``, ``reset``, or an
    application's word, such as ``block``. Times are as in :class:`Override`."""

    action: str
    identity: str
    limit: str = ""
    amount: str = ""
    until: float | None = None
    reason: str = ""
    by: str = ""
    at: float = 0.0


class Overrides:
    """The overrides of an extension, as this process has read them last.

    ``by_limit`` are all by the name of the limit and the identity, also those that have ended; it
    is replaced and never changed. It is empty if there are none, which is all that most requests
    look at. ``keep`` gets each entry of the log, which ends with the storage.
    """

    #: Whether processes read the overrides from a thread. Tests that count commands read by hand.
    in_background = True

    def __init__(
        self, store: RecordStore | None, *, keep: Callable[[LogEntry], None] = lambda _: None
    ) -> None:
        self._store = store
        self._keep = keep
        self.by_limit: Mapping[str, Mapping[str, Override]] = MappingProxyType({})
        #: Those with an override, of any limit.
        self.identities: frozenset[str] = frozenset()
        #: Changes with ``by_limit``.
        self.version = 0
        #: Whether this process reads them, or does not have to.
        self.is_watched = store is None
        self._starting = threading.Lock()
        self._ended = threading.Event()
        forget_in_child(self)

    def find(self, limit: str, identity: str) -> Override | None:
        """Return the override that is valid now."""
        override = self.by_limit.get(limit, _NONE).get(identity)
        return override if override is not None and override.is_valid(time.time()) else None

    def all(self) -> list[Override]:
        """Return the valid overrides in the storage, sorted. ``OperatorError`` if it keeps none."""
        self.refresh()
        now_s = time.time()
        overrides = [override for limit in self.by_limit.values() for override in limit.values()]
        valid = (override for override in overrides if override.is_valid(now_s))
        return sorted(valid, key=lambda override: (override.limit, override.identity))

    def set(self, override: Override) -> Override:
        """Store an override, in place of the last one of the same limit and identity.

        It is not checked whether the limit exists: :meth:`Operators.override` does that. Raises
        ``OperatorError`` for an end in the past or after the year 9999, and for too many.
        """
        now_s, until = time.time(), override.until
        if until is not None and not until > now_s:
            raise OperatorError("past_time", "The end of an override has to be in the future.")
        if until is not None and until > LATEST_S:
            raise OperatorError(
                "invalid_time",
                f"The end of an override is {until:g}; allowed: seconds since 1970, up to the year "
                "9999. Without an end it stays until it is cleared.",
            )
        override = replace(override, reason=override.reason[:LONGEST_REASON], at=now_s)
        if self._write(LogEntry("override", **asdict(override)), override) < 0:
            raise OperatorError(
                "too_many_overrides",
                f"There are {MOST_OVERRIDES} overrides, which is the most; remove some first.",
            )
        self.refresh()
        return override

    def clear(self, limit: str, identity: str, *, reason: str = "", by: str = "") -> bool:
        """Remove an override; False if there was none."""
        entry = LogEntry("clear-override", identity, limit, reason=reason, by=by, at=time.time())
        is_removed = self._write(entry, None) > 0
        self.refresh()
        return is_removed

    def note(self, action: str, identity: str, **facts: Any) -> None:
        """Write another change of an operator to the log, with these fields of its entry."""
        self.write(LogEntry(action, identity, **facts, at=time.time()), None)

    def log(self) -> list[LogEntry]:
        """Return the latest changes, the newest first."""
        texts = require_store(self._store, KIND).newest_first("log", MOST_ENTRIES)
        return [from_json(LogEntry, text) for text in texts]

    def refresh(self) -> None:
        """Read the overrides now. Raises ``OperatorError`` if the storage keeps none."""
        by_limit: dict[str, dict[str, Override]] = {}
        for text in require_store(self._store, KIND).table(KIND).values():
            override = from_json(Override, text)
            by_limit.setdefault(override.limit, {})[override.identity] = override
        if by_limit != self.by_limit:
            self.by_limit = by_limit
            self.identities = frozenset().union(*by_limit.values())
            self.version += 1

    def watch(self) -> None:
        """Read them now, and from now on in a thread; once in each process. Never raises."""
        with self._starting:  # other first requests wait, too
            if self.is_watched:
                return
            if self.in_background and not isinstance(self._store, MemoryRecords):
                self._try_refresh()
                if start_thread("overrides", _watch, ref(self), self._ended) is None:
                    return
            self.is_watched = True

    def close(self) -> None:
        """End the thread, at most one reading later."""
        self._ended.set()

    def forget(self) -> None:
        """In a forked child: the thread has stayed in the parent."""
        self._starting = threading.Lock()
        self.is_watched = self._store is None

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except StorageUnavailable as error:  # what was read last applies; an outage is logged once
            _logger.debug("The overrides cannot be read: %s", error)
        except Exception:
            _logger.exception("The overrides cannot be read")

    def _write(self, entry: LogEntry, override: Override | None) -> int:
        now_s = time.time()
        self.refresh()
        overrides = (o for limit in self.by_limit.values() for o in limit.values())
        ended = {field_of(o.limit, o.identity) for o in overrides if not o.is_valid(now_s)}
        ended.discard(field_of(entry.limit, entry.identity))
        return self.write(entry, override, ended)

    def write(self, entry: LogEntry, override: Override | None, removed: Iterable[str] = ()) -> int:
        """Write the entry, and the override if its action is one; returns as overrides.lua."""
        is_override = override is not None or entry.action == "clear-override"
        field = field_of(entry.limit, entry.identity) if is_override else ""
        stored = "" if override is None else json.dumps(asdict(override))
        words = json.dumps(asdict(entry)), MOST_ENTRIES, MOST_OVERRIDES, field, stored
        store = require_store(self._store, KIND)
        changed = store.change("overrides", [KIND, "log"], *words, *removed)
        if changed > 0:
            self._keep(entry)
        return changed


def field_of(limit: str, identity: str) -> str:
    return json.dumps([limit, identity])


def _watch(reference: ref[Overrides], ended: threading.Event) -> None:
    """Read again and again, until the extension is gone."""
    while not ended.wait(EVERY_S) and (overrides := reference()) is not None:
        overrides._try_refresh()  # noqa: SLF001 - its own thread
        del overrides


_NONE: Final[Mapping[str, Override]] = MappingProxyType({})
