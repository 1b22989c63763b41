"""A table whose keys are known: what is not known is a mistake, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.place import Place


def table_of(value: object) -> Mapping[object, object]:
    """The value, if it is a table."""
    if not isinstance(value, Mapping):
        brackets = " In a file, its name stands in one pair of brackets."
        hint = brackets if isinstance(value, list | tuple) else ""
        raise Mistake(f"found {shown(value)}; allowed: a table.{hint}")
    return value


def known_keys(
    table: Mapping[object, object],
    place: Place,
    known: Collection[str],
    mistakes: Mistakes,
    *,
    hint: str = "",
) -> dict[str, object]:
    """The entries under known keys. The others are noted, with the known name that is nearest.

    ``hint`` is for an unknown key that holds a table, and is near no known name.
    """
    entries: dict[str, object] = {}
    for key, value in named_entries(table, place, mistakes):
        if key in known:
            entries[key] = value
            continue
        own = f" {hint}" if hint and isinstance(value, Mapping) else ""
        meant = did_you_mean(key, known) or own
        mistakes.add(place.at(key), f"unknown key; allowed: {', '.join(known)}.{meant}")
    return entries


def named_entries(
    table: Mapping[object, object], place: Place, mistakes: Mistakes
) -> Iterator[tuple[str, object]]:
    """The entries whose key is a name that is not empty; the others are noted."""
    for key, value in table.items():
        if isinstance(key, str) and key.strip():
            yield key, value
        else:
            mistakes.add(place, f"found the key {shown(key)}; allowed: a name.")
