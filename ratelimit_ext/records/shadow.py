"""What limits in shadow and candidates would have denied, by the hour.

Each process counts, and :mod:`~ratelimit_ext.records.recorder` adds its counts to those in
the limits' storage, which keeps them for two days: totals for each shadow, and up to 1,000
identities an hour, by how often it would have denied them and by the most that they used.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final, NamedTuple

from ratelimit_ext.core import clock
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import ChargedLimit, DecisionEvent
from ratelimit_ext.core.key import escaped, parsed_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.records.store import RecordStore, require_store

KEEP_HOURS: Final = 48
#: How many identities a shadow keeps for each hour.
MOST_IDENTITIES: Final = 1000
#: How many shadows a process counts between two writes.
MOST_SHADOWS: Final = 100
HOUR_S: Final = 3600
KEPT: Final = "counts of shadows"
#: Of these strategies, the most that was used is the smallest amount that denies nothing.
WINDOWS: Final = frozenset({"fixed-window", "sliding-window"})


class Shadow(NamedTuple):
    """What is tried: a limit, its amount, and the amount that is enforced (empty: it is in shadow).

    ``capacity`` is the most that it holds, in units. ``is_window``: see :data:`WINDOWS`.
    """

    limit: str
    amount: str
    enforced: str
    unit: str
    capacity: int
    is_window: bool


@dataclass(slots=True)
class Counts:
    """What was counted of a shadow: admitted requests, and those that it would have denied;
    identities by their denials, and by the most that they used. ``is_rough``: the denials of an
    identity may be too many. ``is_partial``: not all identities are among the most used."""

    requests: int = 0
    denied: int = 0
    by_identity: Counter[str] = field(default_factory=Counter)
    used: dict[str, int] = field(default_factory=dict)
    is_rough: bool = False
    is_partial: bool = False

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.denied += other.denied
        self.by_identity.update(other.by_identity)
        for identity, used in other.used.items():
            self.used[identity] = max(used, self.used.get(identity, 0))
        self.is_rough = self.is_rough or other.is_rough
        self.is_partial = self.is_partial or other.is_partial

    def note(self, identity: str, used: int, *, is_denied: bool) -> None:
        self.requests += 1
        self.denied += is_denied
        if is_denied and (identity in self.by_identity or not self._is_full(self.by_identity)):
            self.by_identity[identity] += 1
        elif is_denied:
            self.is_rough = True
        if identity in self.used or not self._is_full(self.used):
            self.used[identity] = max(used, self.used.get(identity, 0))
        else:
            self.is_partial = True

    def enough(self) -> int | None:
        """Return the smallest amount that denies nothing to 99 of 100 identities; ``None`` if it is
        not known."""
        if self.is_partial or not self.used:
            return None
        return sorted(self.used.values())[ceil(0.99 * len(self.used)) - 1]

    def _is_full(self, identities: Mapping[str, int]) -> bool:
        return len(identities) >= MOST_IDENTITIES


class Shadows:
    def __init__(self) -> None:
        self.store: RecordStore | None = None
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[int, Shadow], Counts] = {}

    def note(self, event: DecisionEvent) -> None:
        verdicts = {verdict.charge.key: verdict for verdict in event.decision.verdicts}
        hour = clock.now_us() // (HOUR_S * 1_000_000)
        live: Verdict | None = None
        for charged_limit, _, charge in event.charges:
            verdict = verdicts[charge.key]
            if charge.limit.mode == "enforce":
                live = verdict
                continue
            if charge.meta or not charge.limit.is_shadow:
                continue
            name = parsed_key(charge.key)
            # A candidate follows its limit, whose count also has what the candidate would deny.
            counted = live if charged_limit.tried and live is not None else verdict
            # What `deduct_when` charges later has to fit now.
            used = counted.charge.limit.capacity - counted.remaining + charge.cost - charge.taken
            if counted is verdict and not verdict.allowed:
                used = charge.limit.capacity + 1
            key = hour, _shadow(charged_limit, charge.limit)
            with self._lock:
                counts = self._counts.get(key)
                if counts is None:
                    if len(self._counts) >= MOST_SHADOWS:
                        continue
                    counts = self._counts[key] = Counts()
                counts.note(name.identity if name else "", used, is_denied=not verdict.allowed)

    def flush(self) -> None:
        """Write what was counted. Raises ``StorageUnavailable``: then it is kept."""
        if self.store is None:
            return
        with self._lock:
            counted, self._counts = self._counts, {}
        while counted:
            key = next(iter(counted))
            try:
                self.add(*key, counted[key])
            except StorageUnavailable:
                with self._lock:
                    for shadow, counts in counted.items():
                        if len(self._counts) < MOST_SHADOWS or shadow in self._counts:
                            self._counts.setdefault(shadow, Counts()).add(counts)
                raise
            del counted[key]

    def read(self, hours: int) -> dict[Shadow, Counts]:
        """Return what was counted in the current hour and so many before it. Raises
        ``OperatorError`` if the storage keeps none, and ``StorageUnavailable``."""
        require_store(self.store, KEPT)
        self.flush()
        now = clock.now_us() // (HOUR_S * 1_000_000)
        total: dict[Shadow, Counts] = {}
        for hour in range(now - hours, now + 1):
            for shadow, counts in self.of_hour(hour).items():
                total.setdefault(shadow, Counts()).add(counts)
        return total

    def add(self, hour: int, shadow: Shadow, counts: Counts) -> None:
        text = json.dumps(shadow, ensure_ascii=False)
        denied = [word for pair in counts.by_identity.items() for word in pair]
        used = [word for pair in counts.used.items() for word in pair]
        words = (
            *(KEEP_HOURS * HOUR_S * 1000, MOST_IDENTITIES, text, counts.requests, counts.denied),
            *(int(counts.is_rough or counts.is_partial), len(counts.by_identity)),
        )
        require_store(self.store, KEPT).change("shadow", _names(hour, text), *words, *denied, *used)

    def of_hour(self, hour: int) -> dict[Shadow, Counts]:
        store, shadows = require_store(self.store, KEPT), {}
        totals = {name: int(value) for name, value in store.table(f"trials:{hour}").items()}
        for name, requests in totals.items():
            text, _, word = name.rpartition(":")
            if word == "requests":
                _, denied, used = _names(hour, text)
                shadows[Shadow(*json.loads(text))] = Counts(
                    requests,
                    totals.get(f"{text}:denied", 0),
                    Counter(store.scores(denied)),
                    dict(store.scores(used)),
                    f"{text}:rough" in totals,
                    f"{text}:partial" in totals,
                )
        return shadows


def _names(hour: int, text: str) -> tuple[str, str, str]:
    name = f"trials:{hour}:{escaped(text)}"
    return f"trials:{hour}", f"{name}:denied", f"{name}:used"


def _shadow(charged_limit: ChargedLimit, limit: Limit) -> Shadow:
    return Shadow(
        limit=limit.label,
        amount=charged_limit.tried or charged_limit.written,
        enforced=charged_limit.written if charged_limit.tried else "",
        unit=limit.unit,
        capacity=limit.capacity,
        is_window=limit.strategy in WINDOWS,
    )
