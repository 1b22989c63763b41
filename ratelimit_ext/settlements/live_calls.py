"""The calls of this process that hold something, in a file that outlives it.

A call is written before it is admitted, and erased when it is settled or denied. So the file of a
process that was killed names the calls that it left, and the process that claims the file ends
their leases: it is part of the :mod:`~ratelimit_ext.settlements.journal`, and locked like its
other files.

Each call has a cell, so nothing is appended or rewritten. The file is not mapped into memory: on a
full disk a write is an error then, and not the end of the process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import Final

from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.settlements.journal import (
    CALLS_SUFFIX,
    CELL,
    Entry,
    Journal,
    JournalFile,
    head_of,
)

#: Calls of a process that have a cell; beyond them the oldest is forgotten.
MOST_CALLS: Final = 4096
MOST_LIMITS: Final = 4096
FREE: Final = b"\0"

NOT_KEPT: Final = (
    "If this process is killed, the slots of its calls stay taken until their leases end: cannot "
    "write to %s (%s). Make it writable, or set RATELIMIT_SETTLEMENTS_DIR."
)

_logger = logging.getLogger("ratelimit_ext")


class LiveCalls:
    """The live calls of a process, for the storage of a journal. A release is sent again for
    ``kept_s`` longer than the lease."""

    def __init__(self, journal: Journal, kept_s: float) -> None:
        self._directory = journal.directory
        self._head = head_of(journal.storage)
        self._kept_us = int(kept_s * 1_000_000)
        self._limits: dict[int, tuple[Limit, str]] = {}
        self._file: JournalFile | None = None
        self.forget()

    def forget(self) -> None:
        """In a forked child: close the file, which is the parent's."""
        self._lock = threading.Lock()
        if self._file is not None:
            self._file.close()
        self._file = None
        self._has_failed = False
        #: The cells by the calls' holds, the oldest first.
        self._cells: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0  # the first has the head

    def begin(self, hold: Hold, charges: Iterable[Charge]) -> None:
        """Note what a call will hold. Never raises."""
        text = self._line(hold, charges)
        if not text:
            return
        try:
            with self._lock:
                file = self._file = self._file or JournalFile.create(
                    self._directory, self._head, suffix=CALLS_SUFFIX
                )
                cell = self._cells[hold.id] = self._cell()
            file.put(cell * CELL, text)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _logger.error(NOT_KEPT, self._directory, error)
        else:
            self._has_failed = False

    def end(self, hold: Hold) -> None:
        """Note that a call holds nothing any more."""
        with self._lock:
            cell, file = self._cells.pop(hold.id, None), self._file
        if cell is None or file is None:
            return
        with contextlib.suppress(OSError):  # released once more, it changes nothing
            file.put(cell * CELL, FREE)
        self._free.append(cell)

    def close(self) -> None:
        """At the end of the process: remove the file, unless calls go on. One that begins
        afterwards gets a new one."""
        with self._lock:
            if self._file is not None and not self._cells:
                self._file.release()
                self._file = None

    def _cell(self) -> int:
        if self._free:
            return self._free.pop()  # the last one used: few pages are touched
        if self._used < MOST_CALLS:
            self._used += 1
            return self._used
        return self._cells.pop(next(iter(self._cells)))

    def _line(self, hold: Hold, charges: Iterable[Charge]) -> bytes:
        """Return a line of the journal that releases the hold, without the charges that do not fit
        into a cell. It is written for each call, so its parts are kept."""
        words, room = list[str](), CELL - 200
        ending = f'"hold":[{hold.id},{hold.lease_us}]}}'
        for charge in charges:
            cached = self._limits.get(id(charge.limit))
            if cached is None:
                cached = charge.limit, Entry.words_of_release(charge.limit)
                if len(self._limits) >= MOST_LIMITS:
                    self._limits.clear()
                self._limits[id(charge.limit)] = cached
            word = f'{cached[1]}"key":{quoted(charge.key)},"cost":{charge.cost},{ending}'
            room -= len(word) + 1
            if room < 0:
                break
            words.append(word)
        if not words:
            return b""
        kept_us = hold.lease_us + self._kept_us
        return (
            f'{{"changes":[{",".join(words)}],"marker":null,"marker_us":{kept_us},"until":0}}\n'
        ).encode()
