"""Changes that are sent together, as a line of JSON: what is kept on disk for a storage that is
down."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit import Limit, limit_of
from ratelimit_ext.engine.engine import Engine, Marker
from ratelimit_ext.strategies.strategy import LONGEST_LIFETIME_US

#: How many limits are kept as text.
MOST_LIMITS: Final = 4096
_texts: Final[dict[int, tuple[Limit, str]]] = {}
_VERBS: Final = frozenset(["adjust", "settle", "release", "resume"])


class Entry(NamedTuple):
    """``until`` is in seconds since 1970, or 0 without an end; ``marker_us`` is the lifetime of the
    marker, if there is one."""

    changes: Sequence[Change]
    marker: str | None
    marker_us: int
    until: float = 0

    def send(self, engine: Engine) -> None:
        """Raises as the engine does."""
        once = None if self.marker is None else Marker(self.marker, self.marker_us)
        engine.settle(self.changes, once=once)

    def encode(self) -> bytes:
        changes, marker = ",".join(map(_text, self.changes)), json.dumps(self.marker)
        end = f'"marker":{marker},"marker_us":{self.marker_us},"until":{self.until}'
        return f'{{"changes":[{changes}],{end}}}\n'.encode()

    @classmethod
    def decode(cls, text: bytes) -> Entry:
        """Raises any exception for anything else."""
        words = json.loads(text)
        marker, marker_us, until = words["marker"], words["marker_us"], words["until"]
        if not isinstance(marker, str | None) or not math.isfinite(until):
            raise ValueError(f"no marker, or no end: {shown(marker)}, {shown(until)}")
        if not 0 < _whole(marker_us) <= LONGEST_LIFETIME_US:
            raise ValueError("no marker lives as long")
        return cls([*map(_change, words["changes"])], marker, marker_us, float(until))


def text_of_limit(limit: Limit) -> str:
    """Return the limit as JSON, for :func:`limit_of_text`. It is kept: each call needs it."""
    cached = _texts.get(id(limit))
    if cached is None:
        if len(_texts) >= MOST_LIMITS:
            _texts.clear()
        cached = _texts[id(limit)] = limit, json.dumps(dict(limit.words()), separators=(",", ":"))
    return cached[1]


def limit_of_text(text: bytes | str) -> Limit:
    """Raises any exception for anything else."""
    return _limit(json.loads(text))


def _text(change: Change) -> str:
    """Return the change as JSON, in a fifth of the time that an encoder takes."""
    (limit, key, cost, *_), (hold_id, lease_us, *_), verb, numbers, _, expiry_us = change
    words = f'{{"verb":"{verb}","limit":{text_of_limit(limit)},"key":{quoted(key)},"cost":{cost},'
    words += f'"hold":[{hold_id},{lease_us}],"numbers":[{",".join(map(str, numbers))}]'
    return f'{words},"expiry_us":{expiry_us}}}' if expiry_us else f"{words}}}"


def _change(words: dict[str, Any]) -> Change:
    key, verb = words["key"], words["verb"]
    if not isinstance(key, str) or verb not in _VERBS:
        raise ValueError(f"no change: {shown(key)}, {shown(verb)}")
    charge = Charge(_limit(words["limit"]), key, _whole(words["cost"]))
    hold, numbers = Hold(*map(_whole, words["hold"])), tuple(map(_whole, words["numbers"]))
    return Change(charge, hold, verb, numbers, expiry_us=_whole(words.get("expiry_us", 0)))


def _limit(words: dict[str, Any]) -> Limit:
    return limit_of(tuple([(name, _hashable(value)) for name, value in words.items()]))


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{shown(value)} is not a whole number")
    return value
