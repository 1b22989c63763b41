"""Where records lie: beside the limits, in their storage; with ``memory://``, in this process."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

from limits.storage import MemoryStorage, RedisStorage, Storage

from ratelimit_ext.core import clock
from ratelimit_ext.core.errors import OperatorError, StorageUnavailable
from ratelimit_ext.core.key import escaped

AT_ONCE = 1000
#: All Lua files here, read at the start: later there may be no descriptor, or another version.
SCRIPTS: Final = {
    file.stem: file.read_text("utf-8") for file in Path(__file__).parent.glob("*.lua")
}


def record_store(storage: Storage | None, key_prefix: str) -> RecordStore | None:
    """Return the store beside the limits; ``None`` if the storage keeps no records."""
    prefix = "" if storage is None else storage_prefix(storage)
    prefix = f"{prefix}:{escaped(key_prefix)}" if key_prefix else prefix
    if isinstance(storage, MemoryStorage):
        return MemoryRecords(cast(Any, storage.storage), prefix)
    return RedisRecords(storage, prefix) if isinstance(storage, RedisStorage) else None


T = TypeVar("T")


def from_json(kind: type[T], text: str) -> T:
    """Return the record of this dataclass, without fields of a newer release."""
    names = {field.name for field in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in json.loads(text).items() if name in names})


def require_store(store: RecordStore | None, what: str) -> RecordStore:
    """Return the store. Raises ``OperatorError`` without one."""
    if store is None:
        raise OperatorError(
            "not_kept",
            f"This storage keeps no {what}; set RATELIMIT_STORAGE_URI to a Redis or Valkey server.",
        )
    return store


def storage_prefix(storage: Storage) -> str:
    return str(getattr(storage, "key_prefix", "LIMITS"))


class RedisRecords:
    """The records of an extension in Redis or Valkey, a cluster's too: all names are in one slot.
    They begin with the kind of record. Every method may raise ``StorageUnavailable``."""

    def __init__(self, storage: RedisStorage, prefix: str) -> None:
        self._prefix = prefix
        self._client: Any = storage.get_connection()
        # OSError: this process has no file descriptor left for a connection.
        self._errors: Any = OSError, storage.base_exceptions

    def change(self, script: str, names: Sequence[str], *words: str | int) -> int:
        """Run a script of this folder. Its head says what the words are, and what it returns."""
        keys = [self._key(name) for name in names]
        return cast(int, self._run("eval", SCRIPTS[script], len(keys), *keys, *words))

    def table(self, name: str) -> Mapping[str, Any]:
        stored = self._run("hgetall", self._key(name))
        return {_text(field): _text(value) for field, value in stored.items()}

    def scores(self, name: str) -> Mapping[str, int]:
        pairs = self._run("zrange", self._key(name), 0, -1, False, True)  # noqa: FBT003 - redis-py's order
        return {_text(member): int(score) for member, score in pairs}

    def newest_first(self, name: str, most: int) -> list[str]:
        return [_text(value) for value in self._run("lrange", self._key(name), 0, most - 1)]

    def latest(self, name: str, most: int) -> list[str]:
        """Return those of a stream that were written last, the first one first."""
        last, texts = "+", list[str]()
        while len(texts) < most:
            count = min(most - len(texts), AT_ONCE)
            entries = self._run("xrevrange", self._key(name), last, "-", count)
            if not entries:
                break
            texts += [_text(text) for _, entry in entries for text in entry.values()]
            last = f"({_text(entries[-1][0])}"
        return texts[::-1]

    def _key(self, name: str) -> str:
        kind, colon, rest = name.partition(":")
        return f"{self._prefix}:{kind}:{{operators}}{colon}{rest}"

    def _run(self, command: str, *arguments: object) -> Any:
        try:
            return getattr(self._client, command)(*arguments)
        except Exception as error:
            # Those of a cluster have no base in common with the client's others.
            bases = str(type(error).__mro__)
            if not isinstance(error, self._errors) and "ClusterException" not in bases:
                raise
            raise StorageUnavailable(f"the storage failed: {error}") from error


class MemoryRecords:
    """The same in a dictionary that its owner may empty. Each script is a method."""

    def __init__(self, held: dict[str, Any], prefix: str) -> None:
        self._held = held
        self._prefix = prefix
        self._lock = threading.Lock()

    def change(self, script: str, names: Sequence[str], *words: str | int) -> int:
        run: Callable[..., int] = getattr(self, f"_{script}")
        with self._lock:
            return run(*names, *words)

    def table(self, name: str) -> Mapping[str, Any]:
        return dict(self._held.get(self._key(name), {}))

    scores = table

    def newest_first(self, name: str, most: int) -> list[str]:
        return list(self._held.get(self._key(name), ()))[:most]

    def latest(self, name: str, most: int) -> list[str]:
        return list(self._held.get(self._key(name), ()))[-most:]

    def _key(self, name: str) -> str:
        return f"{self._prefix}:records:{name}"

    def _part(self, name: str, made: Callable[[], Any]) -> Any:
        return self._held.setdefault(self._key(name), made())

    def _denials(self, name: str, most: int, _: int, *texts: str) -> int:
        entries = self._part(name, list)
        entries += texts
        del entries[:-most]
        return len(entries)

    def _overrides(self, name: str, log: str, *words: Any) -> int:
        entry, most_entries, most, field, override, *removed = words
        overrides, entries = self._part(name, Counter), self._part(log, list)
        for ended in removed:
            overrides.pop(ended, None)
        if override:
            if field not in overrides and len(overrides) >= most:
                return -1
            overrides[field] = override
        elif field and overrides.pop(field, None) is None:
            return 0
        entries.insert(0, entry)
        del entries[most_entries:]
        return 1

    def _shadow(self, hour: str, denied: str, used: str, *words: Any) -> int:
        lifetime_ms, most, shadow, requests, denials, is_rough, pairs, *rest = words
        self._expire((hour, denied, used), lifetime_ms)
        totals, counts, maxima = (self._part(name, Counter) for name in (hour, denied, used))
        totals[f"{shadow}:requests"] += requests
        totals[f"{shadow}:denied"] += denials
        notes = {"rough", "partial"} if is_rough else set()
        for identity, count in _pairs(rest[: 2 * pairs]):
            if identity not in counts and len(counts) >= most:
                counts[identity] = counts.pop(min(counts, key=counts.__getitem__))
                notes.add("rough")
            counts[identity] += count
        for identity, count in _pairs(rest[2 * pairs :]):
            if identity in maxima or len(maxima) < most:
                maxima[identity] = max(count, maxima[identity])
            else:
                notes.add("partial")
        totals.update({f"{shadow}:{note}": 1 for note in notes})
        return 0

    def _expire(self, names: Iterable[str], lifetime_ms: int) -> None:
        """Keep these for their lifetime, and drop others whose lifetime is over."""
        now_ms, ends = clock.now_us() // 1000, self._part("ends", dict)
        ends.update(dict.fromkeys(names, now_ms + lifetime_ms))
        for name in [name for name, end in ends.items() if end <= now_ms]:
            self._held.pop(self._key(name), None)
            del ends[name]


RecordStore: TypeAlias = RedisRecords | MemoryRecords


def _pairs(words: Sequence[Any]) -> Iterable[tuple[str, int]]:
    return zip(words[::2], words[1::2], strict=True)


def _text(raw: str | bytes) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
