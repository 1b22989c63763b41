"""The keys of an upstream: which one is next. chatapp/catalogue/key.py says where a secret goes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from chatapp.catalogue.key import Key
from chatapp.upstreams import UpstreamError

log = logging.getLogger(__name__)

#: How long a key that its upstream rejects is set aside, in seconds. A lack of credit, and even a
#: rejection, can end without a change here.
SET_ASIDE_S: Final = 600.0
AGAIN: Final = "every 10 minutes"
#: How long a call with the secret before the last change may still be rejected, in seconds.
CHANGE_S: Final = 60.0
#: The pause of a key whose quota is used up, if its upstream names none, and the longest one.
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
#: Callers choose the names of models, and each may have pauses of its own.
PAUSES_MOST: Final = 1000
#: The model of a pause that applies to all models.
EVERY_MODEL: Final = ""


class RefusedKey(NamedTuple):
    """A key that its upstream refuses until then, if that is known: for a ``model`` whose quota is
    used up, or for every one because of a spending cap or a lack of credit."""

    upstream: str
    key: str
    ends_at: datetime | None
    model: str = EVERY_MODEL


class Keys:
    """The keys of one upstream, used in turn. Safe from any thread.

    A key that may not call a model at the moment is paused for it. While all are paused, the one
    whose pause ends first is used, so that its caller gets the upstream's answer.
    """

    def __init__(self, upstream: str, keys: Sequence[Key]) -> None:
        self._upstream = upstream
        self._keys = tuple(keys)
        self._by_name = {key.name: key for key in keys}
        #: When a pause ends: of a key's name and version, for a model or EVERY_MODEL.
        self._pauses: dict[tuple[str, int, str], float] = {}
        self._logged: set[tuple[str, int, str]] = set()
        self._turn = 0
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def are_missing(self) -> bool:
        """Whether the upstream needs a key and has none."""
        return bool(self._keys) and all(key.secret is None for key in self._keys)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(key.name for key in self._keys if key.secret is None)

    def secret(self, name: str) -> tuple[str, str] | None:
        """Return the name and the secret of that key, or of the first one that has a secret; None
        if the upstream needs none."""
        for key in filter(None, (self._by_name.get(name), *self._keys)):
            if (secret := key.secret) is not None:
                return key.name, secret
        return None

    def next(self, model: str) -> str:
        """Return the name of the key for the next call of that model; "" without keys."""
        with self._lock:
            usable = next(self._usable(model), None)
            if usable is not None:
                return usable
            ready = [key for key in self._keys if key.secret is not None]
            first = min(ready, key=lambda key: self._until(key, model), default=None)
            return first.name if first else ""

    def other(self, model: str, tried: Collection[str]) -> str | None:
        """Return the name of a key for the same call that is not paused; None without another."""
        with self._lock:
            return next((name for name in self._usable(model) if name not in tried), None)

    def pause(self, name: str, model: str, for_s: float) -> None:
        """Do not use the key for that model and time, if the upstream still has it."""
        if name not in self._by_name:
            return
        with self._lock:
            now = time.monotonic()
            if len(self._pauses) >= PAUSES_MOST:
                self._pauses = {pause: end for pause, end in self._pauses.items() if end > now}
            if len(self._pauses) < PAUSES_MOST:
                self._pauses[name, self._by_name[name].version, model] = now + for_s

    def note(self, name: str, model: str, error: UpstreamError) -> RefusedKey | None:
        """Pause the key if the upstream has refused it. A rejected key is logged once; one at a
        spending cap once a day, and returned, as is one whose quota is used up for long."""
        key = self._by_name.get(name or next(iter(self.names), ""))
        if key is None:
            return None
        now, named_s = datetime.now(UTC), error.retry_after_s
        ends_at = None if named_s is None else now + timedelta(seconds=named_s)
        match error.kind:
            case "overloaded" if error.retry_after_s is None:
                pass  # the upstream is, for all its keys
            case "rate_limited" | "overloaded":
                self.pause(key.name, model, min(named_s or PAUSE_S, LONGEST_PAUSE_S))
                if error.kind == "rate_limited" and (named_s or 0.0) > LONGEST_PAUSE_S:
                    return RefusedKey(self._upstream, key.name, ends_at, model)
            case "auth" if error.status == 403:  # it may be allowed to call other models
                self.pause(key.name, model, SET_ASIDE_S)
                self._log(key, f"may not call {model}", "403")
            case "auth" if time.monotonic() - key.changed_at < CHANGE_S:
                pass
            case "auth":
                self.pause(key.name, EVERY_MODEL, SET_ASIDE_S)
                self._log(key, "was rejected", "401")
            case "quota":
                self.pause(key.name, EVERY_MODEL, named_s or SET_ASIDE_S)
                what = "has reached a spending cap or has no credit left"
                if self._log(key, what, f"quota on {now:%Y-%m-%d}", ends_at=ends_at):
                    return RefusedKey(self._upstream, key.name, ends_at)
        return None

    def _log(self, key: Key, problem: str, kind: str, *, ends_at: datetime | None = None) -> bool:
        """Log it, unless that was done before."""
        with self._lock:
            was_logged = (key.name, key.version, kind) in self._logged
            self._logged.add((key.name, key.version, kind))
        if not was_logged:
            again = f"at {ends_at:%Y-%m-%d %H:%M} UTC" if ends_at else AGAIN
            log.error(
                "The key %s of the upstream %s %s. It is tried again %s.",
                *(key.name, self._upstream, problem, again),
            )
        return not was_logged

    def _usable(self, model: str) -> Iterator[str]:
        """Yield the names of the keys that are not paused, in turn. The caller has the lock."""
        count, now = len(self._keys), time.monotonic()
        for place in range(self._turn, self._turn + count):
            key = self._keys[place % count]
            if key.secret is not None and self._until(key, model) <= now:
                self._turn = (place + 1) % count
                yield key.name

    def _until(self, key: Key, model: str) -> float:
        """Return when the key's pause ends; 0 if it is not paused."""
        pauses = ((key.name, key.version, name) for name in (model, EVERY_MODEL))
        return max(self._pauses.get(pause, 0.0) for pause in pauses)
