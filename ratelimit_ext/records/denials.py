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
from dataclasses import asdict, dataclass, replace
from typing import Final

from ratelimit_ext.core import clock
from ratelimit_ext.core.decision import Verdict, is_endless
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import DecisionEvent
from ratelimit_ext.core.key import parsed_key
from ratelimit_ext.engine.denial_cache import CachedDecision
from ratelimit_ext.records.store import RecordStore, from_json, require_store

KIND: Final = "denials"
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
#: The storage may keep a few more than :data:`MOST_RECORDS`.
MOST_READ: Final = 2 * MOST_RECORDS


@dataclass(frozen=True, slots=True)
class DenialRecord:
    """A denial by a limit; or, if ``count`` is above 1 or ``until`` after ``at``, that many alike.

    ``at`` and ``until`` are in seconds since 1970. ``identity`` is what the name of the bucket has:
    a long one is known by its hash. ``callers`` are what other limits of the request count: of a
    limit that many share, they say whom it denied. ``capacity``, ``remaining`` and ``cost`` are in
    units, dollars in micro-dollars; ``capacity`` is 0 for a guard. ``wait_ms`` is ``None`` if no
    wait is enough, or if the denial has no known end. ``degraded`` says how it was decided without
    the storage. Without a limit: denials that were too many to be kept.
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
    #: The classes for which the denied one leaves a part.
    kept_for: Sequence[str] = ()
    #: Of a member of a group: what they have used, the share of each, and how many there are.
    share: Sequence[int] = ()


@dataclass(slots=True)
class _Run:
    """The denials of one bucket and caller since the first. ``count`` are those after it that are
    not yet written."""

    first: DenialRecord
    last_s: float
    count: int = 0
    is_written: bool = False


class Denials:
    def __init__(self) -> None:
        self.store: RecordStore | None = None
        #: Returns the id of the current request, empty without one.
        self.request_id: Callable[[], str] | None = None
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        #: By the bucket, and what each limit of the request counts, with the class: the caller.
        self._runs: dict[tuple[str, tuple[str, ...]], _Run] = {}
        #: How many callers of a bucket are among them.
        self._callers: Counter[str] = Counter()
        self._unsent: deque[DenialRecord] = deque(maxlen=MOST_UNSENT)
        self._uncounted = 0

    def note(self, event: DecisionEvent) -> None:
        decision, now_s = event.decision, clock.now_us() / 1_000_000
        # Of a denial from memory, verdicts of now would have to be computed.
        verdicts = (
            decision.cached_verdicts if isinstance(decision, CachedDecision) else decision.verdicts
        )
        identities = [identity for _, identity, _ in event.charges]
        with self._lock:
            for verdict in verdicts:
                if verdict.allowed or not verdict.enforced:
                    continue
                key = verdict.charge.key
                caller = (*identities, "", *verdict.charge.limit.part.kept_for)
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
                    self._runs[key, caller] = _Run(first, now_s)

    def flush(self, *, all_of_them: bool = False) -> None:
        """Write what was gathered. Raises ``StorageUnavailable``: then it is kept, and the oldest
        is dropped if it is too much."""
        if self.store is None:
            return
        now_s = clock.now_us() / 1_000_000
        with self._lock:
            self._unsent.extend(self._due(now_s, all_of_them=all_of_them))
            records = list(self._unsent)
            self._unsent.clear()
        if not records:
            return
        try:
            self.write(records)
        except StorageUnavailable:
            with self._lock:
                self._unsent.extendleft(reversed(records))
            raise

    def write(self, records: Iterable[DenialRecord]) -> None:
        texts = [json.dumps(asdict(record), ensure_ascii=False) for record in records]
        require_store(self.store, KIND).change("denials", [KIND], MOST_RECORDS, KEEP_S, *texts)

    def read(self, since_s: float = 0.0, *, most: int = MOST_READ) -> list[DenialRecord]:
        """Return the denials since then, in seconds since 1970, the first one first, of the
        ``most`` entries that were written last; denials of one limit and identity without a pause
        of a minute are one record.

        Raises ``OperatorError`` if the storage keeps none, and ``StorageUnavailable``.
        """
        store = require_store(self.store, KIND)
        self.flush()
        least_s = max(since_s, clock.now_us() / 1_000_000 - KEEP_S)
        records = [from_json(DenialRecord, text) for text in store.latest(KIND, most)]
        late = [record for record in records if record.until >= least_s]
        joined = _joined(sorted(late, key=lambda record: (record.at, record.until)))
        return sorted(joined, key=lambda record: record.at)

    def _due(self, now_s: float, *, all_of_them: bool) -> Iterator[DenialRecord]:
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
        names = [parsed_key(c.key) for _, _, c in event.charges] if has_caller else []
        callers = dict.fromkeys([name.identity for name in names if name])
        if verdict.share:  # the member is who was denied
            callers = {_cut(event.identities[charge.key]): None, **callers}
        written = next(limit.written for limit, _, c in event.charges if c.key == charge.key)
        name, limit = parsed_key(charge.key), charge.limit
        return DenialRecord(
            at=now_s,
            until=now_s,
            identity=name.identity if name else "",
            limit=limit.name or _cut(written),
            amount=_cut(limit.with_burst(written)),
            unit=limit.unit,
            capacity=limit.capacity if limit.visible else 0,
            remaining=verdict.remaining,
            cost=charge.cost,
            wait_ms=None if is_endless(verdict) else verdict.retry_after_ms,
            endpoint=_cut(event.endpoint),
            reason=verdict.reason,
            degraded=event.degraded,
            request_id=_cut(self.request_id()) if self.request_id else "",
            callers=[caller for caller in callers if name and caller != name.identity][:MOST_NAMES],
            kept_for=limit.part.kept_for,
            share=verdict.share[:3] if verdict.share else (),
        )


def _joined(records: Iterable[DenialRecord]) -> Iterator[DenialRecord]:
    """Denials of the same limit and identity, for the same reason, as one with their count."""
    runs: dict[tuple[str, ...], DenialRecord] = {}
    for record in records:
        same = (record.identity, record.limit, record.amount, record.reason, record.degraded)
        key = (*same, *record.callers, "", *record.kept_for)
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
