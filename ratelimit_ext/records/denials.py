"""The latest denials, so that an operator can see later why a caller was denied.

A process gathers denials in memory, and :mod:`~ratelimit_ext.records.recorder` writes them
to the limits' storage: the first of a limit and identity at once, with those so far, and those that
follow within half a minute as one count. The storage keeps about 10,000 for two days.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Protocol

from limits.storage import MemoryStorage, RedisStorage, Storage

from ratelimit_ext.core import clock
from ratelimit_ext.core.decision import Verdict, is_endless
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent
from ratelimit_ext.core.key import escaped, parsed_key
from ratelimit_ext.engine.denial_cache import Recollection
from ratelimit_ext.records.store import SharedClient, storage_prefix

#: About how many records the storage keeps, and for how many seconds.
MOST_RECORDS: Final = 10_000
KEEP_S: Final = 2 * 86_400
#: Denials of one limit and identity are counted for this long, in seconds, after the first.
COUNT_S: Final = 30.0
#: How many limits and identities a process counts at the same time. Others are only a number.
MOST_RUNS: Final = 500
#: How many callers of one bucket it distinguishes meanwhile, and how many identities of one caller.
MOST_CALLERS: Final = 100
MOST_NAMES: Final = 4
#: How many records a process keeps while the storage is down.
MOST_UNSENT: Final = 1000
#: Longer texts are cut: a limit by a function and an endpoint have no length of their own.
LONGEST_TEXT: Final = 100
AT_ONCE: Final = 1000
#: The storage may keep a few more than :data:`MOST_RECORDS`.
MOST_READ: Final = 2 * MOST_RECORDS

NOT_KEPT: Final = (
    "This storage keeps no denials; set RATELIMIT_STORAGE_URI to a Redis or Valkey server."
)
SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class DenialRecord:
    """A denial by a limit; or, if ``count`` is above 1 or ``until`` after ``at``, that many alike.

    ``at`` and ``until`` are in seconds since 1970. ``identity`` is what the name of the bucket has:
    a long one is known by its hash. ``callers`` are what other limits of the request count: of a
    limit that many share, they say whom it denied. ``capacity``, ``remaining`` and ``cost`` are in
    units, dollars
    in micro-dollars; ``capacity`` is 0 for a guard. ``wait_ms`` is ``None`` if no wait is enough,
    or if the denial has no known end. ``degraded`` says how it was decided without the storage.
    Without a limit: denials that were too many to be kept.
    """

    at: float
    until: float
    count: int = 1
    identity: str = ""
    limit: str = ""
    amount: str = ""
    unit: str = ""
    capacity: int = 0
    remaining: int = 0
    cost: int = 0
    wait_ms: int | None = 0
    endpoint: str = ""
    reason: str = ""
    degraded: str = ""
    request_id: str = ""
    callers: Sequence[str] = ()


FIELDS: Final = frozenset(each.name for each in fields(DenialRecord))


class DenialStore(Protocol):
    """Where records are kept. Every method may raise ``StorageUnavailable``."""

    def write(self, records: Sequence[DenialRecord]) -> None: ...
    def read(self, most: int) -> Iterable[DenialRecord]:
        """Those that were written last, the first one first."""
        ...


class _Run:
    """The denials of one bucket and caller since the first."""

    __slots__ = ("count", "first", "is_written", "last_s")

    def __init__(self, first: DenialRecord) -> None:
        self.first = first
        self.last_s = first.at
        self.count = 0  # after the first, and not yet written
        self.is_written = False


class Denials:
    """The latest denials of an extension: gathers those of this process, reads those of all."""

    def __init__(self) -> None:
        self.store: DenialStore | None = None
        #: Returns the id of the current request, empty without one.
        self.request_id: Callable[[], str] | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what was gathered, as a forked child: its parent writes it."""
        self._changes = threading.Lock()
        #: By the bucket, and what each limit of the request counts: the caller.
        self._runs: dict[tuple[str, tuple[str, ...]], _Run] = {}
        #: How many callers of a bucket are among them.
        self._callers: Counter[str] = Counter()
        self._unsent: deque[DenialRecord] = deque(maxlen=MOST_UNSENT)
        self._uncounted = 0

    def note(self, event: DecisionEvent) -> None:
        """Gather the denials of a decision. Does not wait."""
        decision, now_s = event.decision, clock.now_us() / 1_000_000
        # Of a denial from memory, verdicts of now would have to be computed.
        verdicts = decision.known if isinstance(decision, Recollection) else decision.verdicts
        identities = tuple([identity for _, identity, _ in event.charges])
        with self._changes:
            for verdict in verdicts:
                if verdict.allowed or not verdict.enforced:
                    continue
                key, caller = verdict.charge.key, identities
                run = self._runs.get((key, caller))
                if run is None and self._callers[key] >= MOST_CALLERS:
                    caller = ()
                    run = self._runs.get((key, caller))
                if run is not None:
                    run.count += 1
                    run.last_s = now_s
                elif len(self._runs) >= MOST_RUNS:
                    self._uncounted += 1
                else:
                    self._callers[key] += 1
                    first = self._record(event, verdict, now_s, has_caller=bool(caller))
                    self._runs[key, caller] = _Run(first)

    def flush(self, *, all_of_them: bool = False) -> None:
        """Write what was gathered. Raises ``StorageUnavailable``: then it is kept, and the oldest
        is dropped if it is too much."""
        store = self.store
        if store is None:
            return
        now_s = clock.now_us() / 1_000_000
        with self._changes:
            self._unsent.extend(self._due(now_s, all_of_them=all_of_them))
            records = list(self._unsent)
            self._unsent.clear()
        if not records:
            return
        try:
            store.write(records)
        except StorageUnavailable:
            with self._changes:
                self._unsent.extendleft(reversed(records))
            raise

    def read(self, since_s: float = 0.0, *, most: int = MOST_READ) -> list[DenialRecord]:
        """The denials since then, in seconds since 1970, the first one first, of the ``most``
        entries that were written last; denials of one limit and identity without a pause of a
        minute are one record.

        Raises ``ValueError`` if the storage keeps none, and ``StorageUnavailable``.
        """
        if self.store is None:
            raise ValueError(NOT_KEPT)
        self.flush()
        least_s = max(since_s, clock.now_us() / 1_000_000 - KEEP_S)
        found = [each for each in self.store.read(most) if each.until >= least_s]
        joined = _joined(sorted(found, key=lambda record: (record.at, record.until)))
        return sorted(joined, key=lambda record: record.at)

    def _due(self, now_s: float, *, all_of_them: bool) -> Iterator[DenialRecord]:
        """What is to be written now."""
        for key, run in list(self._runs.items()):
            if not run.is_written:
                run.is_written = True
                yield replace(run.first, until=run.last_s, count=1 + run.count)
                run.count = 0
            if all_of_them or now_s - run.first.at >= COUNT_S:
                del self._runs[key]
                self._callers[key[0]] -= 1
                if run.count:
                    yield replace(run.first, until=run.last_s, count=run.count, request_id="")
        self._callers = +self._callers
        if self._uncounted:
            yield DenialRecord(now_s, now_s, self._uncounted)
            self._uncounted = 0

    def _record(
        self, event: DecisionEvent, verdict: Verdict, now_s: float, *, has_caller: bool
    ) -> DenialRecord:
        charge = verdict.charge
        names = [parsed_key(own.key) for _, _, own in event.charges] if has_caller else []
        callers = dict.fromkeys([each.identity for each in names if each])
        written = next(found.written for found, _, own in event.charges if own.key == charge.key)
        name, limit = parsed_key(charge.key), charge.limit
        return DenialRecord(
            at=now_s,
            until=now_s,
            identity=name.identity if name else "",
            limit=limit.name or _cut(written),
            amount=_cut(written),
            unit=limit.unit,
            capacity=limit.capacity if limit.visible else 0,
            remaining=verdict.remaining,
            cost=charge.cost,
            wait_ms=None if is_endless(verdict) else verdict.retry_after_ms,
            endpoint=_cut(event.endpoint),
            reason=verdict.reason,
            degraded=event.degraded,
            request_id=_cut(self.request_id()) if self.request_id else "",
            callers=[each for each in callers if name and each != name.identity][:MOST_NAMES],
        )


class MemoryDenials:
    """In this process, under a name of a dictionary that its owner may empty."""

    def __init__(self, kept: dict[str, Any], name: str) -> None:
        self._kept = kept
        self._name = name

    def write(self, records: Sequence[DenialRecord]) -> None:
        self._records().extend(records)

    def read(self, most: int) -> Iterable[DenialRecord]:
        return list(self._records())[-most:]

    def _records(self) -> deque[DenialRecord]:
        kept: deque[DenialRecord] = self._kept.setdefault(self._name, deque(maxlen=MOST_RECORDS))
        return kept


class RedisDenials:
    """In a stream of Redis or Valkey."""

    def __init__(self, storage: RedisStorage, name: str) -> None:
        self._run = SharedClient(storage).run
        self._stream = f"{name}:denials:{{operators}}"

    def write(self, records: Sequence[DenialRecord]) -> None:
        texts = [json.dumps(asdict(each), ensure_ascii=False) for each in records]
        self._run("eval", SCRIPT, 1, self._stream, MOST_RECORDS, KEEP_S, *texts)

    def read(self, most: int) -> Iterable[DenialRecord]:
        last = "+"
        found: list[DenialRecord] = []
        while len(found) < most:
            count = min(most - len(found), AT_ONCE)
            entries = self._run("xrevrange", self._stream, last, "-", count)
            if not entries:
                break
            for _, entry in entries:
                (text,) = entry.values()
                stored = json.loads(text)  # a newer release may write more
                found.append(DenialRecord(**{k: v for k, v in stored.items() if k in FIELDS}))
            name = entries[-1][0]
            last = f"({name.decode() if isinstance(name, bytes) else name}"
        return reversed(found)


def denial_store(storage: Storage | None, key_prefix: str) -> DenialStore | None:
    """The store beside the limits; ``None`` if the storage keeps no denials."""
    if storage is None:
        return None
    name = ":".join(filter(None, (storage_prefix(storage), escaped(key_prefix))))
    if isinstance(storage, MemoryStorage):
        held: Any = storage.storage
        return MemoryDenials(held, f"{name}:denials")
    return RedisDenials(storage, name) if isinstance(storage, RedisStorage) else None


def _joined(records: Iterable[DenialRecord]) -> Iterator[DenialRecord]:
    """Denials of the same limit and identity, for the same reason, as one with their count."""
    runs: dict[tuple[str, ...], DenialRecord] = {}
    for record in records:
        same = (record.identity, record.limit, record.amount, record.reason, record.degraded)
        key = (*same, *record.callers)
        run = runs.get(key)
        if run is not None and record.at - run.until <= 2 * COUNT_S:
            until = max(run.until, record.until)
            runs[key] = replace(run, until=until, count=run.count + record.count)
            continue
        if run is not None:
            yield run
        runs[key] = record
    yield from runs.values()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
