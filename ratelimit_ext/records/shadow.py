"""What limits in shadow and candidates would have denied, by the hour.

Each process counts, and :mod:`~ratelimit_ext.records.recorder` adds its counts to those in
the limits' storage, which keeps them for two days: totals for each trial, and up to 1,000
identities an hour, by how often it would have denied them and by the most that they used.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from limits.storage import MemoryStorage, RedisStorage, Storage

from ratelimit_ext.core import clock
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.events import ChargedLimit, DecisionEvent
from ratelimit_ext.core.key import escaped, parsed_key
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.records.store import SharedClient, storage_prefix

KEEP_HOURS: Final = 48
#: How many identities a trial keeps for each hour.
MOST_IDENTITIES: Final = 1000
#: How many trials a process counts between two writes.
MOST_TRIALS: Final = 100
HOUR_S: Final = 3600
#: Of these strategies, the most that was used is the smallest amount that denies nothing.
WINDOWS: Final = frozenset({"fixed-window", "sliding-window"})

NOT_KEPT: Final = (
    "This storage keeps no counts of shadows; set RATELIMIT_STORAGE_URI to a Redis or Valkey "
    "server."
)
SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text("utf-8")


class Trial(NamedTuple):
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
    """What was counted of a trial: admitted requests, and those that it would have denied;
    identities by their denials, and by the most that they used. ``is_rough``: the denials of an
    identity may be too many. ``is_partial``: not all identities are among the most used."""

    requests: int = 0
    denied: int = 0
    by_identity: Counter[str] = field(default_factory=Counter)
    used: dict[str, int] = field(default_factory=dict)
    is_rough: bool = False
    is_partial: bool = False

    def add(self, other: Counts) -> None:
        """Add what was counted elsewhere, or at another time."""
        self.requests += other.requests
        self.denied += other.denied
        self.by_identity.update(other.by_identity)
        for identity, used in other.used.items():
            self.used[identity] = max(used, self.used.get(identity, 0))
        self.is_rough = self.is_rough or other.is_rough
        self.is_partial = self.is_partial or other.is_partial

    def note(self, identity: str, used: int, *, is_denied: bool) -> None:
        """Count a request."""
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

    def enough(self, share: float = 0.99) -> int | None:
        """The smallest amount that denies nothing to that share of the identities; ``None`` if it
        is not known."""
        if self.is_partial or not self.used:
            return None
        return sorted(self.used.values())[ceil(share * len(self.used)) - 1]

    def _is_full(self, identities: Mapping[str, int]) -> bool:
        return len(identities) >= MOST_IDENTITIES


class TrialStore(Protocol):
    """Where counts are kept. Every method may raise ``StorageUnavailable``."""

    def add(self, hour: int, trial: Trial, counts: Counts) -> None: ...
    def read(self, hours: Iterable[int]) -> dict[Trial, Counts]: ...


class Trials:
    """The trials of an extension: counts those of this process, reads those of all."""

    def __init__(self) -> None:
        self.store: TrialStore | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what was counted, as a forked child: its parent writes it."""
        self._changes = threading.Lock()
        self._counts: dict[tuple[int, Trial], Counts] = {}

    def note(self, event: DecisionEvent) -> None:
        """Count an admitted decision. Does not wait."""
        verdicts = {verdict.charge.key: verdict for verdict in event.decision.verdicts}
        hour = clock.now_us() // (HOUR_S * 1_000_000)
        live: Verdict | None = None
        for found, _, charge in event.charges:
            verdict = verdicts[charge.key]
            if charge.limit.mode == "enforce":
                live = verdict
                continue
            if charge.meta or not charge.limit.traits.on_trial:
                continue
            name = parsed_key(charge.key)
            # A candidate follows its limit, whose count also has what the candidate would deny.
            counted = live if found.tried and live is not None else verdict
            used = counted.charge.limit.capacity - counted.remaining
            if counted is verdict and not verdict.allowed:
                used = charge.limit.capacity + 1
            key = hour, _trial(found, charge.limit)
            with self._changes:
                counts = self._counts.get(key)
                if counts is None:
                    if len(self._counts) >= MOST_TRIALS:
                        continue
                    counts = self._counts[key] = Counts()
                counts.note(name.identity if name else "", used, is_denied=not verdict.allowed)

    def flush(self) -> None:
        """Write what was counted. Raises ``StorageUnavailable``: then it is kept."""
        if self.store is None:
            return
        with self._changes:
            counted, self._counts = self._counts, {}
        while counted:
            key = next(iter(counted))
            try:
                self.store.add(*key, counted[key])
            except StorageUnavailable:
                with self._changes:
                    for known, counts in counted.items():
                        if len(self._counts) < MOST_TRIALS or known in self._counts:
                            self._counts.setdefault(known, Counts()).add(counts)
                raise
            del counted[key]

    def read(self, hours: int) -> dict[Trial, Counts]:
        """What was counted in the current hour and so many before it. Raises ``ValueError`` if the
        storage keeps none, and ``StorageUnavailable``."""
        if self.store is None:
            raise ValueError(NOT_KEPT)
        self.flush()
        now = clock.now_us() // (HOUR_S * 1_000_000)
        return self.store.read(range(now - hours, now + 1))


class MemoryTrials:
    """In this process, under a name of a dictionary that its owner may empty."""

    def __init__(self, kept: dict[str, Any], name: str) -> None:
        self._kept = kept
        self._name = name

    def add(self, hour: int, trial: Trial, counts: Counts) -> None:
        hours: dict[int, dict[Trial, Counts]] = self._kept.setdefault(self._name, {})
        for old in [each for each in hours if each <= hour - KEEP_HOURS]:
            del hours[old]
        total = hours.setdefault(hour, {}).setdefault(trial, Counts())
        total.add(counts)
        if len(total.by_identity) > MOST_IDENTITIES:
            total.by_identity = Counter(dict(total.by_identity.most_common(MOST_IDENTITIES)))
            total.is_rough = True
        if len(total.used) > MOST_IDENTITIES:
            total.used = dict(list(total.used.items())[:MOST_IDENTITIES])
            total.is_partial = True

    def read(self, hours: Iterable[int]) -> dict[Trial, Counts]:
        kept: dict[int, dict[Trial, Counts]] = self._kept.get(self._name, {})
        return _summed(kept.get(hour, {}) for hour in hours)


class RedisTrials:
    """In Redis or Valkey. All keys are in one slot of a cluster."""

    def __init__(self, storage: RedisStorage, name: str) -> None:
        self._run = SharedClient(storage).run
        self._name = f"{name}:trials:{{operators}}"

    def add(self, hour: int, trial: Trial, counts: Counts) -> None:
        text = json.dumps(trial, ensure_ascii=False)
        denied = [word for pair in counts.by_identity.items() for word in pair]
        used = [word for pair in counts.used.items() for word in pair]
        words = (
            *(KEEP_HOURS * HOUR_S * 1000, MOST_IDENTITIES, text, counts.requests, counts.denied),
            *(int(counts.is_rough or counts.is_partial), len(counts.by_identity)),
        )
        self._run("eval", SCRIPT, 3, *self._keys(hour, text), *words, *denied, *used)

    def read(self, hours: Iterable[int]) -> dict[Trial, Counts]:
        return _summed(self._of_hour(hour) for hour in hours)

    def _of_hour(self, hour: int) -> dict[Trial, Counts]:
        stored: Mapping[Any, Any] = self._run("hgetall", f"{self._name}:{hour}")
        totals = {_text(name): int(value) for name, value in stored.items()}
        found = {}
        for name, requests in totals.items():
            text, _, word = name.rpartition(":")
            if word != "requests":
                continue
            _, denied, used = self._keys(hour, text)
            found[Trial(*json.loads(text))] = Counts(
                requests,
                totals.get(f"{text}:denied", 0),
                Counter(self._scores(denied)),
                self._scores(used),
                f"{text}:rough" in totals,
                f"{text}:partial" in totals,
            )
        return found

    def _scores(self, key: str) -> dict[str, int]:
        pairs = self._run("zrange", key, 0, -1, False, True)  # noqa: FBT003 - redis-py's order
        return {_text(identity): int(score) for identity, score in pairs}

    def _keys(self, hour: int, text: str) -> tuple[str, str, str]:
        own = f"{self._name}:{hour}:{escaped(text)}"
        return f"{self._name}:{hour}", f"{own}:denied", f"{own}:used"


def trial_store(storage: Storage | None, key_prefix: str) -> TrialStore | None:
    """The store beside the limits; ``None`` if the storage keeps no counts."""
    if storage is None:
        return None
    name = ":".join(filter(None, (storage_prefix(storage), escaped(key_prefix))))
    if isinstance(storage, MemoryStorage):
        held: Any = storage.storage
        return MemoryTrials(held, f"{name}:trials")
    return RedisTrials(storage, name) if isinstance(storage, RedisStorage) else None


def _trial(found: ChargedLimit, limit: Limit) -> Trial:
    return Trial(
        limit=limit.label,
        amount=found.tried or found.written,
        enforced=found.written if found.tried else "",
        unit=limit.unit,
        capacity=limit.capacity,
        is_window=limit.strategy in WINDOWS,
    )


def _summed(parts: Iterable[Mapping[Trial, Counts]]) -> dict[Trial, Counts]:
    total: dict[Trial, Counts] = {}
    for part in parts:
        for trial, counts in part.items():
            total.setdefault(trial, Counts()).add(counts)
    return total


def _text(raw: str | bytes) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
