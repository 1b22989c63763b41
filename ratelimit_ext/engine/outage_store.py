"""What is decided while the storage is down: one file for all workers of a host.

It has the buckets with the limits of those that have changed, and what is on its way to the
storage. Each decision is one transaction, so workers that are killed or reloaded lose nothing, and
their successors go on where they stopped. It is a file of SQLite, which knows how to do that. It is
not synced: it survives the end of all processes, not that of the machine, so its name has the boot.

Without a file, or if it fails, the store is this process's alone; if it is locked, only until it is
free again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from ratelimit_ext.core import clock
from ratelimit_ext.core.charge import Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import Script
from ratelimit_ext.engine.entry import Entry, limit_of_text
from ratelimit_ext.engine.memory import SWEEP_EVERY, Buckets, Kept, UnreadableBucket, without_line
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US

#: Of the tables and their values. Another one is another file.
FORMAT: Final = 6
#: How many buckets are kept at most, in a file and without one, where they need 250 MB and 30 MB;
#: then the oldest are forgotten.
MOST_BUCKETS: Final = 1_000_000
MOST_ALONE: Final = 100_000
#: How long a worker waits for the others, of which a busy machine may stop one in the middle of a
#: decision, before it goes on without them; how often it looks then whether the file is free; and
#: the pause between two attempts: SQLite's pauses grow to 0.1 s, while a decision takes 0.1 ms.
BUSY_S: Final = 5.0
LOOK_S: Final = 0.5
ATTEMPT_S: Final = 0.0002
#: What the storage's clock has to differ by until it is set again here.
STEP_US: Final = 1_000_000
#: Files of earlier boots are removed after this time.
OLD_S: Final = 86_400.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

FAILED: Final = (
    "What is decided without the storage is not shared with other workers, and lost if this "
    "process ends: cannot use %s (%s). Make it writable, or set RATELIMIT_SETTLEMENTS_DIR."
)
LOCKED: Final = (
    "%s has been locked for %.0f s: this process enforces its own share until the file is free"
)
FREE: Final = "%s is free again and has the decisions made meanwhile"
DAMAGED: Final = "%s is corrupt (%s) and is recreated; its pending charges are lost."

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS buckets (
    key TEXT PRIMARY KEY, state BLOB, expiry INTEGER, handed BLOB, known_at REAL, changed TEXT);
CREATE INDEX IF NOT EXISTS changed ON buckets (key) WHERE changed IS NOT NULL;
CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY AUTOINCREMENT, entry BLOB);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value REAL);
"""
_PUT: Final = "INSERT OR REPLACE INTO"
_PUT_BUCKET: Final = """
INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state,
expiry = excluded.expiry, handed = excluded.handed, known_at = excluded.known_at,
changed = excluded.changed"""
_DROP_OLDEST: Final = """
DELETE FROM buckets WHERE rowid IN (SELECT rowid FROM buckets ORDER BY rowid LIMIT ?)"""

T = TypeVar("T")
_logger = logging.getLogger("ratelimit_ext")


class Batch(NamedTuple):
    """What is on its way to the storage, oldest first."""

    number: int
    entry: Entry


@dataclass(slots=True)
class Bucket:
    """A bucket: its state, and when it no longer matters; its state as the storage has it; when the
    storage was asked for that, by the monotonic clock; its limit as text if it has changed since. A
    state is what :meth:`Buckets.take_out` returns."""

    state: bytes | None = None
    expiry_us: int = 0
    handed: bytes | None = None
    known_at: float = 0.0
    changed: str | None = None

    @property
    def as_handed(self) -> Kept:
        return None if self.handed is None else (self.handed, LONGEST_LIFETIME_US)

    def has(self, hold: Hold) -> bool:
        """Return whether a call holds something here: its record begins with the 48 random bits of
        its id."""
        return self.state is not None and hold.id.to_bytes(6, "little") in without_line(self.state)


_columns: Final = attrgetter(*Bucket.__slots__)


class OutageStore(Buckets):
    """See the module. All of it is used in :meth:`run`."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self.path = path
        #: Connections of the parent process: to close one would be to end it there.
        self._inherited: list[sqlite3.Connection | None] = []
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._may_begin_anew = True
        #: The file that is locked, and its connection; ``path`` is None meanwhile.
        self._locked: tuple[Path, sqlite3.Connection | None] | None = None
        self._look_at = 0.0
        #: Called when that is free again: what was decided meanwhile is taken from the one store,
        #: and noted in the other.
        self.take: Callable[[], Any] = lambda: None
        self.note: Callable[[Any], object] = lambda _: None
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.RLock()
        self._is_running = False
        #: What the transaction has read or changed; ``None``: there is no such bucket.
        self._read: dict[str, Bucket | None] = {}
        self._written: set[str] = set()
        self._facts: dict[str, float | None] = {}
        self._until_sweep = SWEEP_EVERY

    def forget(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._inherited.append(self._connection)
        self._connection = None
        if self._locked is not None:
            self.path, database = self._locked
            self._inherited.append(database)
            self._locked = None
        self._begin()

    @property
    def is_shared(self) -> bool:
        """Whether the workers of this host have it in common."""
        return self.path is not None

    # -- transactions --------------------------------------------------------------------------

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, which is done once: in one transaction of the host. If the
        file fails it is done again, without the file."""
        with self.lock:
            if self._is_running:
                return work()
            if self._locked is not None and time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + LOOK_S
                self._return(*self._locked)
            while True:
                try:
                    return self._transaction(work)
                except (sqlite3.Error, UnreadableBucket) as error:
                    if self.path is None:
                        raise
                    self._begin_anew(self.path, error)

    def _transaction(self, work: Callable[[], T]) -> T:
        database = self._connection or self._opened()
        self._is_running = True
        try:
            _begin(database)
            result = work()
            self._write()
            database.execute("COMMIT")
            return result
        finally:
            self._is_running = False
            self._read.clear()
            self._written.clear()
            self._facts.clear()
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")

    def _opened(self) -> sqlite3.Connection:
        if self.path is None:
            return self._connected(":memory:")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path.parent):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
                self._inode = self.path.stat().st_ino
                self._remove_old(self.path)
                return self._connected(str(self.path))
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error

    def _connected(self, name: str) -> sqlite3.Connection:
        database = sqlite3.connect(
            name, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_SCHEMA)
            database.execute("PRAGMA busy_timeout = 0")
        except sqlite3.Error:
            database.close()
            raise
        self._connection = database
        return database

    def _return(self, path: Path, database: sqlite3.Connection | None) -> None:
        """Go back to the file, if it is free."""
        try:
            if database is not None:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error:
            return
        taken, alone = self._transaction(self.take), self._connection
        self._locked, self.path, self._connection = None, path, database
        if alone is not None:
            alone.close()
        _logger.warning(FREE, path)
        self.run(lambda: self.note(taken))

    def _begin_anew(self, path: Path, error: Exception) -> None:
        """With an empty file if this one is damaged; else without, or until it is free again."""
        if "locked" in str(error):
            _logger.error(LOCKED, path, BUSY_S)
            self._locked, self._look_at = (path, self._connection), time.monotonic() + LOOK_S
            self.path = self._connection = None
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if isinstance(error, sqlite3.OperationalError) or not self._may_begin_anew:
            _logger.error(FAILED, path, error)
            self.path = None
            return
        self._may_begin_anew = False
        with contextlib.suppress(OSError), _locked(path.parent):
            if path.stat().st_ino == self._inode:  # else another worker was faster
                _logger.error(DAMAGED, path, error)
                _remove(path)

    def _remove_old(self, path: Path) -> None:
        stem = path.stem.rpartition("-")[0]
        for other in path.parent.glob(f"{stem}-*{path.suffix}"):
            if other != path and other.stat().st_mtime < time.time() - OLD_S:
                _remove(other)

    def _all(self, query: str, *words: object) -> list[Any]:
        assert self._connection is not None
        return self._connection.execute(query, words).fetchall()

    def _all_locked(self, query: str, *words: object) -> list[Any]:
        """Return rows of a locked file, which can mostly be read."""
        database = None if self._locked is None else self._locked[1]
        with contextlib.suppress(sqlite3.OperationalError):
            return [] if database is None else database.execute(query, words).fetchall()
        return []

    # -- time ----------------------------------------------------------------------------------

    def now_us(self) -> int:
        """Return the time of the storage, as far as it is known, by the monotonic clock."""
        ahead_us = self._fact("ahead us")
        if ahead_us is None:
            ahead_us = clock.now_us() - _monotonic_us()
            self._set("ahead us", ahead_us)
        return _monotonic_us() + int(ahead_us)

    def set_clock(self, ahead_us: int, known_at: float) -> None:
        """Set the clock by the latest decision of the storage that workers know: it was then so far
        ahead of the monotonic one."""
        before_us = self._fact("ahead us")
        differs = before_us is None or abs(ahead_us - before_us) > STEP_US
        if differs and known_at >= (self._fact("clock set by") or 0.0):
            self._set("ahead us", ahead_us)
            self._set("clock set by", known_at)

    def _fact(self, name: str) -> float | None:
        if name not in self._facts:
            rows = self._all("SELECT value FROM facts WHERE name = ?", name)
            self._facts[name] = rows[0][0] if rows else None
        return self._facts[name]

    def _set(self, name: str, value: float) -> None:
        self._facts[name] = value
        self._all(f"{_PUT} facts VALUES (?, ?)", name, value)

    # -- buckets -------------------------------------------------------------------------------

    def bucket(self, key: str) -> Bucket | None:
        """Return the bucket, also one that is over."""
        if key in self._read:
            return self._read[key]
        query = "SELECT state, expiry, handed, known_at, changed FROM buckets WHERE key = ?"
        rows = self._all(query, key)
        bucket = Bucket(*rows[0]) if rows else None
        if not rows and (rows := self._all_locked(query, key)):  # what was used before counts
            bucket = Bucket(state := rows[0][0], rows[0][1], state)
        self._read[key] = bucket
        return bucket

    def changing(self, key: str) -> Bucket:
        """Return the bucket, to be changed."""
        bucket = self._read[key] = self.bucket(key) or Bucket()
        self._written.add(key)
        return bucket

    def state(self, key: str, now_us: int) -> Kept:
        """Return a bucket that still matters. Drop one that does not."""
        bucket = self.bucket(key)
        if bucket is not None and bucket.state is not None and bucket.expiry_us > now_us:
            return bucket.state, bucket.expiry_us
        self.drop([key])
        return None

    def keep(self, key: str, state: Kept) -> None:
        if state is None:
            self.drop([key])
        elif (bucket := self.bucket(key)) is None or (bucket.state, bucket.expiry_us) != state:
            bucket = self.changing(key)
            bucket.state, bucket.expiry_us = state

    def evaluate(
        self, script: Script, keys: Sequence[str], now_us: int, *words: Any
    ) -> Sequence[Any]:
        """See :meth:`Buckets.evaluate`. Memory has the buckets only during the script."""
        self.sweep(now_us)
        distinct = tuple(dict.fromkeys(keys))  # changes may concern one bucket
        try:
            self.put_back([(key, self.state(key, now_us)) for key in distinct])
            reply = super().evaluate(script, keys, now_us, *words)
        finally:
            states = self.take_out(distinct)
        for key, state in zip(distinct, states, strict=True):
            self.keep(key, state)
        return reply

    def drop(self, keys: Sequence[str]) -> int:
        """See :meth:`Buckets.drop`. That they have changed stays known: a call may go on."""
        dropped = 0
        for key in keys:
            bucket = self.bucket(key)
            if bucket is not None:
                dropped += bucket.state is not None
                self._read[key] = Bucket(changed=bucket.changed)
                self._written.add(key)
        return dropped

    def named(self, prefix: str) -> list[str]:
        self._write()
        rows = self._all("SELECT key FROM buckets WHERE substr(key, 1, ?) = ?", len(prefix), prefix)
        return [key for (key,) in rows]

    def sweep(self, now_us: int) -> None:
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._write()
            self._all("DELETE FROM buckets WHERE expiry <= ? AND changed IS NULL", now_us)
            ((count,),) = self._all("SELECT count(*) FROM buckets")
            most = MOST_BUCKETS if self.is_shared else MOST_ALONE
            self._all(_DROP_OLDEST, max(0, count - most))
            self._until_sweep = max(SWEEP_EVERY, min(count, most))  # it reads all of them
            self._read.clear()

    def changed(self, most: int) -> list[tuple[str, Limit]]:
        """Return the buckets that have changed since they were handed back."""
        self._write()
        query = "SELECT key, changed FROM buckets WHERE changed IS NOT NULL LIMIT ?"
        return [(key, _read(limit_of_text, text)) for key, text in self._all(query, most)]

    def _write(self) -> None:
        assert self._connection is not None
        gone, kept = [], []
        for key in self._written:
            bucket = self._read[key]
            if bucket is None or (bucket.state is None and bucket.changed is None):
                gone.append((key,))
            else:
                kept.append((key, *_columns(bucket)))
        if gone:
            self._connection.executemany("DELETE FROM buckets WHERE key = ?", gone)
        if kept:
            self._connection.executemany(_PUT_BUCKET, kept)
        self._written.clear()

    # -- the way back --------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to hand back."""
        if self._locked is not None and self.run(lambda: self._locked) is not None:
            return False  # it may have something
        if self._connection is None and not (self.path is not None and self.path.exists()):
            return True
        return self.run(lambda: not (self.batches() or self.changed(1)))

    @property
    def handed_at(self) -> float:
        """When something was last handed back, by the monotonic clock."""
        return self._fact("handed at") or 0.0

    def add(self, entry: Entry) -> None:
        self._all("INSERT INTO batches (entry) VALUES (?)", entry.encode())

    def moves(self, key: str, hold: Hold) -> bool:
        """Return whether what a call holds of a bucket is on its way to the storage, or in a locked
        file."""
        # A batch of moved calls releases none of them: see OutageEngine._release.
        words = '"verb":"resume"', quoted(key), f'"hold":[{hold.id},'
        query = (
            "SELECT 1 FROM batches WHERE instr(entry, ?) AND instr(entry, ?) AND instr(entry, ?)"
        )
        if self._all(query, *map(str.encode, words)):
            return True
        rows = self._all_locked("SELECT state FROM buckets WHERE key = ?", key)
        return any(Bucket(state).has(hold) for (state,) in rows)

    def batches(self) -> bool:
        return bool(self._all("SELECT 1 FROM batches LIMIT 1"))

    def next_batch(self, after: int = 0) -> Batch | None:
        """Return the oldest batch after this one that is on its way, without changes that no longer
        matter."""
        now_us = self.now_us()
        query = "SELECT number, entry FROM batches WHERE number > ? ORDER BY number LIMIT 1"
        while rows := self._all(query, after):
            batch = Batch(after := rows[0][0], _read(Entry.decode, rows[0][1]))
            left = [change for change in batch.entry.changes if change.expiry_us > now_us]
            if left:
                return batch._replace(entry=batch.entry._replace(changes=left))
            self.sent(batch)
        return None

    def sent(self, batch: Batch) -> None:
        self._all("DELETE FROM batches WHERE number = ?", batch.number)
        self._set("handed at", time.monotonic())


def outage_path(directory: Path, storage: str) -> Path:
    """Return where the workers of this host keep decisions of the storage of this address."""
    try:
        boot_id = _BOOT_ID.read_text("ascii").strip()
    except OSError:  # not Linux
        boot_id = platform.node()
    words = [hashlib.sha256(word.encode()).hexdigest()[:12] for word in (storage, boot_id)]
    return directory / f"outage{FORMAT}-{'-'.join(words)}.sqlite"


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Of the processes of a host, one at a time."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin(database: sqlite3.Connection) -> None:
    ends = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= ends:
                raise
            time.sleep(ATTEMPT_S)
        else:
            return


def _monotonic_us() -> int:
    return int(time.monotonic() * 1_000_000)


def _read(made: Callable[[bytes], T], text: bytes) -> T:
    """Return what is made of a text. Raises ``sqlite3.DatabaseError`` if it is damaged."""
    try:
        return made(text)
    except Exception as error:
        raise sqlite3.DatabaseError(f"a value is unreadable: {error}") from error
