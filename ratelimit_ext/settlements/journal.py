"""The settlement journal: what a process has queued, in files that outlive it.

A line is appended when the storage could not take a settlement, and a file is deleted when all its
lines are sent. So nothing has to be written at the end of a process, and a killed one loses nothing
either; while the storage answers there is no file. Nothing is noted when a line is sent: a second
settlement changes nothing, and a correction has its marker.

A process locks its files as long as it lives. A file that can be locked belongs to a process that
has ended, and the process that locks it takes it over. Files are not synced: they survive the end
of a process, not that of the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.errors import ConfigurationError, shown
from ratelimit_ext.core.limit import Limit, limit_of
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US

#: Where an application keeps its journal; relative to its instance path. ``""``: nowhere.
DIRECTORY: Final = "RATELIMIT_SETTLEMENTS_DIR"
DEFAULT_DIRECTORY: Final = "settlements"

VERSION: Final = 1
SUFFIX: Final = ".jsonl"
#: Of the file of live calls, whose lines have a cell each (live_calls.py). The first has the head.
CALLS_SUFFIX: Final = ".calls"
SUFFIXES: Final = {SUFFIX, CALLS_SUFFIX}
CELL: Final = 4096
DAMAGED_SUFFIX: Final = ".damaged"
#: After so many lines a new file is begun, so that the disk forgets what has been sent.
MOST_LINES: Final = 1000
#: A larger file is not a journal.
MOST_BYTES: Final = 64 * 1024 * 1024

_logger = logging.getLogger("ratelimit_ext")

NOT_KEPT: Final = (
    "Queued settlements are lost if this process ends: cannot write to %s (%s). "
    "Make it writable, or set RATELIMIT_SETTLEMENTS_DIR."
)
UNREADABLE: Final = "The settlements of an earlier process in %s are left there: %s"
DAMAGED: Final = "%d of %d settlements in %s are unreadable; the others are sent, the file is kept"
OTHER_STORAGE: Final = (
    "they belong to the storage %s, and this application uses %s. Delete the file, or start with "
    "the other storage to send them."
)


class Entry(NamedTuple):
    """What is kept of a batch: changes that are sent together until ``until``, in seconds since
    1970, with their marker and its lifetime."""

    changes: Sequence[Change]
    marker: str | None
    marker_us: int
    until: float

    @staticmethod
    def words_of_release(limit: Limit) -> str:
        """Return how a release of a charge of this limit begins, up to the charge's key."""
        return f'{{"verb":"release","limit":{json.dumps(dict(limit.words()))},'

    def encode(self) -> bytes:
        words = self._asdict() | {"changes": [_plain(change) for change in self.changes]}
        return json.dumps(words, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Entry:
        """Raises any exception for anything else."""
        words = json.loads(text)
        if not math.isfinite(words["until"]):
            raise ValueError("it has no end")
        if not 0 < _whole(words["marker_us"]) <= LONGEST_LIFETIME_US:
            raise ValueError("no marker lives as long")
        return cls(
            changes=[_change(change) for change in words["changes"]],
            marker=None if words["marker"] is None else _text(words["marker"]),
            marker_us=words["marker_us"],
            until=float(words["until"]),
        )


class JournalFile:
    """An open file that this process has locked, and how many of its lines are not sent yet."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.is_damaged = False
        self.lines = self.unsent = 0

    @property
    def is_open(self) -> bool:
        """Whether it is still locked. If not, what is written to it is an ``OSError``."""
        return self._descriptor >= 0

    @classmethod
    def create(cls, directory: Path, head: bytes, *, suffix: str = SUFFIX) -> JournalFile:
        """A new file. It gets its name when it is locked and has its head. Raises ``OSError``."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{suffix}"
        unnamed = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        file = cls(path, os.open(unnamed, flags, 0o600))
        try:
            fcntl.flock(file._descriptor, fcntl.LOCK_EX)
            file._write(head)
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

    def append(self, line: bytes) -> None:
        """Add a line. Raises ``OSError``, and leaves the file as it was."""
        self._write(line)
        self.lines += 1
        self.unsent += 1

    def read(self) -> list[bytes]:
        """Its lines, the head first. Raises ``ValueError`` if it is too large."""
        size = os.fstat(self._descriptor).st_size
        if size > MOST_BYTES:
            raise ValueError(f"it has {size} bytes")
        with open(self._descriptor, "rb", closefd=False) as opened:
            data = opened.read()
        if self.path.suffix != CALLS_SUFFIX:
            return data.splitlines(keepends=True)
        cells = [data[at : at + CELL] for at in range(0, size, CELL)]
        return [cell[: cell.find(b"\n") + 1] for cell in cells if cell[:1] != b"\0"]

    @property
    def changed_at(self) -> float:
        """In seconds since 1970."""
        return os.fstat(self._descriptor).st_mtime

    def put(self, at: int, data: bytes) -> None:
        if os.pwrite(self._descriptor, data, at) < len(data):
            raise OSError("the disk is full")

    def release(self) -> None:
        """Note that one line need not be sent any more. After the last one the file is removed; a
        damaged one is renamed."""
        self.unsent -= 1
        if self.unsent > 0 or not self.is_open:
            return
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

    def _write(self, data: bytes) -> None:
        begin = os.fstat(self._descriptor).st_size
        try:
            self.put(begin, data)
        except OSError:
            os.ftruncate(self._descriptor, begin)
            raise


class Journal:
    """The files of one storage in a directory. Not safe for several threads.

    ``storage`` is the address of the storage; settlements of another one are left alone.
    """

    def __init__(self, directory: Path, storage: str) -> None:
        self.directory = directory
        self.storage = storage
        self._current: JournalFile | None = None
        #: All that are open, also those that were taken over.
        self._files: list[JournalFile] = []
        self._reported: set[Path] = set()
        #: Those of the reported that are never sent.
        self._refused: set[Path] = set()
        self._has_failed = False

    def append(self, entry: Entry) -> JournalFile | None:
        """Keep an entry; returns its file, or ``None`` if it fails, which is logged once."""
        try:
            file = self._current
            if file is None or not file.is_open or file.lines >= MOST_LINES:
                file = JournalFile.create(self.directory, head_of(self.storage))
                self._current = file
                self._files.append(file)
            file.append(entry.encode())
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _logger.error(NOT_KEPT, self.directory, error)
            return None
        self._has_failed = False
        return file

    def has_others(self) -> bool:
        """Return whether there are files that this process may take over, now or later: a queue
        that another process may leave, or the calls of one that has ended."""
        return any(path.suffix == SUFFIX or _is_left(path) for path in self._others())

    def take_over(self, now: float) -> Iterator[tuple[JournalFile, list[Entry]]]:
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
            file.unsent = len(entries)
            if entries:
                self._files.append(file)
                yield file, entries
            else:
                file.release()

    def forget(self) -> None:
        """In a forked child: close the files, which are the parent's."""
        for file in self._files:
            if file.is_open:
                file.close()
        self._files.clear()
        self._current = None

    def _others(self) -> list[Path]:
        """Return the files of other processes that may be sent."""
        self._files = [file for file in self._files if file.is_open]
        skipped = self._refused.union(file.path for file in self._files)
        try:
            paths = sorted(self.directory.iterdir())
        except OSError:  # no such directory yet
            return []
        return [path for path in paths if path.suffix in SUFFIXES and path not in skipped]

    def _read(self, file: JournalFile, now: float) -> list[Entry]:
        """Return the entries of the file. Raises ``ValueError`` if they are not to be sent."""
        head, *texts = file.read() or [b""]
        try:
            words = json.loads(head)
            version, storage = words["settlements"], words["storage"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("it does not begin like a journal of settlements") from None
        if version != VERSION:
            raise ValueError(f"its format is {version!r}; this release reads {VERSION}")
        entries = []
        for text in texts:
            try:
                entries.append(Entry.decode(text))
            except Exception:  # noqa: BLE001 - damaged data can fail anywhere
                file.is_damaged = True
        if file.path.suffix == CALLS_SUFFIX:
            # Its calls went on until their process ended; that of another storage may be long ago.
            end = now if storage == self.storage else file.changed_at
            entries = [e._replace(until=end + e.marker_us / 1_000_000) for e in entries]
        if storage != self.storage and any(entry.until > now for entry in entries):
            raise ValueError(OTHER_STORAGE % (storage, self.storage))
        if file.is_damaged:
            _logger.error(DAMAGED, len(texts) - len(entries), len(texts), file.path)
        return entries


def head_of(storage: str) -> bytes:
    return json.dumps({"settlements": VERSION, "storage": storage}).encode() + b"\n"


def _is_left(path: Path) -> bool:
    try:
        file = JournalFile.claim(path)
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


def _plain(change: Change) -> dict[str, Any]:
    limit, key, cost = change.charge[:3]
    words: dict[str, Any] = {
        "verb": change.verb,
        "key": key,
        "limit": dict(limit.words()),
        "cost": cost,
    }
    if change.verb == "adjust":
        return words | {"receipt": change.receipt, "delta": change.numbers[1]}
    words["hold"] = list(change.hold[:2])
    if change.verb == "release":
        return words | {"undone": change.numbers[1:] == (1,)}
    return words | {"actual": change.numbers[1], "unseen": change.numbers[2:] == (1,)}


def _change(words: dict[str, Any]) -> Change:
    limit = limit_of(tuple(words["limit"].items()))
    charge = Charge(limit, _text(words["key"]), _whole(words["cost"]))
    receipt = words.get("receipt")
    # Only what changes read of a verdict matters here.
    verdict = Verdict(charge, True, 0, 0, 0, None if receipt is None else _whole(receipt))  # noqa: FBT003
    if words["verb"] == "adjust":
        return Change.adjust(verdict, _whole(words["delta"]))
    hold_id, lease_us = map(_whole, words["hold"])
    if words["verb"] == "settle":
        actual, unseen = _whole(words["actual"]), words.get("unseen") is True
        return Change.settle(verdict, Hold(hold_id, lease_us), actual, unseen=unseen)
    if words["verb"] == "release":
        return Change.release(charge, Hold(hold_id, lease_us), undone=words.get("undone") is True)
    raise ValueError(f"unknown change {words['verb']!r}")


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{shown(value)} is not a whole number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not a string")
    return value
