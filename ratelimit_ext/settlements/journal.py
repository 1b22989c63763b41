"""The settlement journal: what a process has queued, and its calls in flight, in a file that
outlives it.

The file has a cell for each. A call that holds something is written before it is admitted, and
erased when it is settled or denied. A settlement is written if the storage could not take it, and
erased when it is sent. So nothing has to be written at the end of a process, and a killed one loses
nothing either: its file names the settlements to be sent and the calls whose leases are to be
ended. A line that is sent twice changes nothing: a hold is settled once, and a correction has its
marker.

A process locks its file as long as it lives. A file that can be locked belongs to a process that
has ended, and the process that locks it takes it over. Nothing is appended or rewritten. Files are
not synced: they survive the end of a process, not that of the machine. They are not mapped into
memory: on a full disk a write is an error then, and not the end of the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, Charge, Hold
from ratelimit_ext.core.errors import ConfigurationError, shown
from ratelimit_ext.engine.entry import Entry

#: Where an application keeps its journal; relative to its instance path. ``""``: nowhere.
DIRECTORY: Final = "RATELIMIT_SETTLEMENTS_DIR"
DEFAULT_DIRECTORY: Final = "settlements"

VERSION: Final = 1
SUFFIX: Final = ".journal"
DAMAGED_SUFFIX: Final = ".damaged"
#: Of a cell. The head has the first one, and a longer line has several.
CELL: Final = 4096
FREE: Final = b"\0"
#: The last byte of the head's cell if settlements wait: others look for them until they are gone.
WAITING: Final = b"w"
#: Calls of a process that are in its file; beyond them the oldest is forgotten.
MOST_CALLS: Final = 4096
#: A larger file is not a journal.
MOST_BYTES: Final = 256 * 1024 * 1024

_logger = logging.getLogger("ratelimit_ext")

NOT_KEPT: Final = (
    "Queued settlements are lost if this process ends: cannot write to %s (%s). "
    "Make it writable, or set RATELIMIT_SETTLEMENTS_DIR."
)
CALLS_NOT_KEPT: Final = (
    "If this process is killed, the slots of its calls stay taken until their leases end: cannot "
    "write to %s (%s). Make it writable, or set RATELIMIT_SETTLEMENTS_DIR."
)
UNREADABLE: Final = "The settlements of an earlier process in %s are left there: %s"
DAMAGED: Final = "%d of %d settlements in %s are unreadable; the others are sent, the file is kept"
OTHER_STORAGE: Final = (
    "they belong to the storage %s, and this application uses %s. Delete the file, or start with "
    "the other storage to send them."
)


class JournalFile:
    """An open file that this process has locked, how many of its lines are in use, and how many of
    them are settlements that wait."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.is_damaged = False
        self.used = self.waiting = 0
        #: The cells that are free, by how many adjacent ones they are; those after the last.
        self._free: dict[int, list[range]] = defaultdict(list)
        self._end = 1

    @classmethod
    def create(cls, directory: Path, head: bytes) -> JournalFile:
        """A new file. It gets its name when it is locked and has its head. Raises ``OSError``."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        unnamed = path.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        file = cls(path, os.open(unnamed, flags, 0o600))
        try:
            fcntl.flock(file._descriptor, fcntl.LOCK_EX)
            file.put(0, head)
            unnamed.rename(path)
        except OSError:
            unnamed.unlink(missing_ok=True)
            file.close()
            raise
        return file

    @classmethod
    def claim(cls, path: Path) -> JournalFile | None:
        """Return the file of a process that has ended; ``None`` if it has not, or if another one
        was faster. Raises ``OSError``."""
        try:
            file = cls(path, os.open(path, os.O_RDWR))
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file._descriptor).st_nlink:
                return file
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks
            file.close()
            raise
        file.close()
        return None

    def take(self, size: int) -> range:
        """Return free cells for a line of so many bytes: the last ones used, so that few pages are
        touched."""
        count = -(-size // CELL)
        self.used += 1
        if self._free[count]:
            return self._free[count].pop()
        cells = range(self._end, self._end + count)
        self._end = cells.stop
        return cells

    def put(self, cell: int, data: bytes) -> None:
        """Write to a cell, and to those after it. Raises ``OSError``."""
        if os.pwrite(self._descriptor, data, cell * CELL) < len(data):
            raise OSError("the disk is full")

    def erase(self, cells: range) -> None:
        """Note that a line no longer matters. A damaged file keeps all its lines."""
        self.used -= 1
        if not self.is_damaged:
            with contextlib.suppress(OSError):  # it is sent again, which changes nothing
                self.put(cells.start, bytes((len(cells) - 1) * CELL + 1))
            self._free[len(cells)].append(cells)

    def note_waiting(self, more: int) -> None:
        self.waiting += more
        with contextlib.suppress(OSError):  # then another process sees it only when it looks again
            os.pwrite(self._descriptor, WAITING if self.waiting else FREE, CELL - 1)

    def read(self) -> Iterator[tuple[range, bytes]]:
        """Yield the lines and their cells, the head first. Raises ``ValueError`` if it is too
        large."""
        descriptor, size, at = self._descriptor, os.fstat(self._descriptor).st_size, 0
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes")
        while piece := os.pread(descriptor, CELL, at * CELL):
            text, end = piece, at + 1
            while b"\n" not in piece and FREE not in piece and piece:
                piece = os.pread(descriptor, CELL, end * CELL)
                text, end = text + piece, end + bool(piece)
            if text[:1] != FREE:
                yield range(at, end), text[: text.find(b"\n") + 1]
            at = end

    @property
    def changed_at(self) -> float:
        """In seconds since 1970."""
        return os.fstat(self._descriptor).st_mtime

    def remove(self) -> None:
        """Remove the file, in which nothing matters any more. Rename a damaged one."""
        with contextlib.suppress(OSError):  # it is sent again, which changes nothing
            if self.is_damaged:
                self.path.rename(self.path.with_suffix(DAMAGED_SUFFIX))
            else:
                self.path.unlink()
        self.close()

    def close(self) -> None:
        # The number may be another file's soon.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class Line(NamedTuple):
    journal: Journal
    file: JournalFile
    cells: range

    def sent(self) -> None:
        """Note that it need not be sent any more. There is no file if nothing is in it."""
        self.journal.erase(self, waiting=1)
        self.journal.close(self.file)


class Journal:
    """The files of one storage in a directory: the own one, and those that were taken over.

    ``storage`` is the address of the storage; settlements of another one are left alone.
    """

    def __init__(self, directory: Path, storage: str) -> None:
        self.directory = directory
        self.storage = storage
        self._head = json.dumps({"settlements": VERSION, "storage": storage}).encode() + b"\n"
        self._files: set[JournalFile] = set()
        self.forget()

    def forget(self) -> None:
        """In a forked child: close the files, which are the parent's."""
        self._lock = threading.Lock()
        for file in self._files:
            file.close()
        self._files = set()
        self._own: JournalFile | None = None
        #: The lines of calls by their holds, the oldest first.
        self._calls: OrderedDict[int, Line] = OrderedDict()
        self._reported: set[Path] = set()
        #: Those of the reported that are never sent.
        self._refused: set[Path] = set()
        #: What could not be written last, and was logged.
        self._failed: set[str] = set()

    # -- what this process does ----------------------------------------------------------------

    def begin(self, hold: Hold, charges: Iterable[Charge]) -> None:
        """Note what a call will hold, to be released after its end. Never raises."""
        if releases := [Change.release(charge, hold) for charge in charges]:
            if len(self._calls) >= MOST_CALLS:
                self.erase(self._calls.popitem(last=False)[1])
            entry = Entry(releases, None, hold.lease_us + int(KEPT_AFTER_LEASE_S * 1_000_000))
            if line := self._write(entry.encode(), CALLS_NOT_KEPT):
                self._calls[hold.id] = line

    def end(self, hold_id: int) -> None:
        if line := self._calls.pop(hold_id, None):
            self.erase(line)

    def append(self, entry: Entry) -> Line | None:
        """Keep an entry; returns where, or ``None`` if it fails, which is logged once."""
        if line := self._write(entry.encode(), NOT_KEPT):
            with self._lock:
                line.file.note_waiting(1)
        return line

    def erase(self, line: Line, *, waiting: int = 0) -> None:
        with self._lock:
            if line.file in self._files:
                line.file.erase(line.cells)
                if waiting:
                    line.file.note_waiting(-waiting)

    def close(self, file: JournalFile | None = None) -> None:
        """Remove this file, or at the end of the process its own, unless something is in it. A call
        that begins afterwards gets a new one."""
        with self._lock:
            file = file or self._own
            if file in self._files and not file.used:
                self._files.discard(file)
                self._own = None if file is self._own else self._own
                file.remove()

    def _write(self, text: bytes, not_kept: str) -> Line | None:
        try:
            with self._lock:
                if self._own is None:
                    self._own = JournalFile.create(self.directory, self._head)
                    self._files.add(self._own)
                line = Line(self, self._own, self._own.take(len(text)))
            try:
                line.file.put(line.cells.start, text)
            except OSError:
                self.erase(line)
                self.close(line.file)
                raise
        except OSError as error:
            if not_kept not in self._failed:
                self._failed.add(not_kept)
                _logger.error(not_kept, self.directory, error)
            return None
        self._failed.discard(not_kept)
        return line

    # -- what others have left -----------------------------------------------------------------

    def has_others(self) -> bool:
        """Return whether there are files that this process may take over."""
        return any(map(_is_left, self._others()))

    def take_over(self, now: float) -> Iterator[tuple[Path, list[tuple[Line, Entry]]]]:
        """Files of processes that have ended, each with its entries. What cannot be read or sent
        stays where it is, and is logged once; one that cannot be opened now is tried again. ``now``
        is in seconds since 1970."""
        for path in self._others():
            file = None
            try:
                file = JournalFile.claim(path)
                if file is None:
                    continue
                entries = self._read(file, now)
            except (OSError, ValueError) as error:
                if path not in self._reported:
                    self._reported.add(path)
                    _logger.error(UNREADABLE, path, error)
                if isinstance(error, ValueError):
                    self._refused.add(path)
                if file is not None:
                    file.close()
                continue
            with self._lock:
                self._files.add(file)
                file.used = file.waiting = len(entries)
            if entries:
                yield path, entries
            else:
                self.close(file)

    def _others(self) -> list[Path]:
        """Return the files of other processes that may be sent."""
        skipped = self._refused.union([file.path for file in tuple(self._files)])
        try:
            paths = sorted(self.directory.iterdir())
        except OSError:  # no such directory yet
            return []
        return [path for path in paths if path.suffix == SUFFIX and path not in skipped]

    def _read(self, file: JournalFile, now: float) -> list[tuple[Line, Entry]]:
        """Return the entries of the file. Raises ``ValueError`` if they are not to be sent."""
        lines = file.read()
        _, head = next(lines, (None, b""))
        try:
            words = json.loads(head)
            version, storage = words["settlements"], words["storage"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("it does not begin like a journal of settlements") from None
        if version != VERSION:
            raise ValueError(f"its format is {version!r}; this release reads {VERSION}")
        entries, damaged = [], 0
        for cells, text in lines:
            try:
                entry = Entry.decode(text)
            except Exception:  # noqa: BLE001 - damaged data can fail anywhere
                file.is_damaged, damaged = True, damaged + 1
                continue
            if storage != self.storage:
                # Its calls went on until their process ended, which may be long ago.
                until = entry.until or file.changed_at + entry.marker_us / 1_000_000
                if until > now:
                    raise ValueError(OTHER_STORAGE % (storage, self.storage))
                entry = entry._replace(until=until)
            entries.append((Line(self, file, cells), entry))
        if damaged:
            _logger.error(DAMAGED, damaged, damaged + len(entries), file.path)
        return entries


def _is_left(path: Path) -> bool:
    """Return whether its process has ended, or may leave settlements that wait."""
    try:
        with path.open("rb") as opened:
            if opened.read(CELL)[-1:] == WAITING:
                return True
        file = JournalFile.claim(path)
    except FileNotFoundError:  # it was sent
        return False
    except OSError:  # a file system without locks, which taking it over reports
        return True
    if file is not None:
        file.close()
    return file is not None


def journal_directory(config: Mapping[str, Any], instance_path: str) -> Path | None:
    """Return the configured directory, or ``None``. Raises ``ConfigurationError``."""
    value = config.get(DIRECTORY, DEFAULT_DIRECTORY)
    if value == "":
        return None
    if not isinstance(value, str | os.PathLike):
        raise ConfigurationError(
            f"{DIRECTORY}: found {shown(value)}; allowed: a path, relative to the application's "
            'instance path, or "" to keep queued settlements in memory only.'
        )
    return Path(instance_path, value)


def storage_address(uri: str) -> str:
    """Return what of a storage's URI identifies it: without user, password and options.

    >>> storage_address("rediss://app:secret@host:6379/0?ssl_cert_reqs=none")
    'rediss://host:6379/0'
    """
    address, _, query = uri.partition("?")
    scheme, mark, rest = address.partition("://")
    hosts, slash, path = rest.partition("/")
    database = "".join(f"?db={number}" for number in parse_qs(query).get("db", ()))
    return f"{scheme}{mark}{hosts.rpartition('@')[2]}{slash}{path}{database}"
