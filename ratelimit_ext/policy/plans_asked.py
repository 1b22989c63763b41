"""Whether a table asks for the caller's plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy import readers
from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.place import Place


@dataclass(frozen=True, slots=True)
class PlansAsked:
    """The place of ``plans = true``, and what was found there, for an error message."""

    place: Place
    found: str


def plans_asked(
    entries: Mapping[str, object], place: Place, mistakes: Mistakes
) -> PlansAsked | None:
    """How the table asks for plans; ``None`` where ``plans`` is false or not written.

    What is neither true nor false is noted, and counts as asking: no plan shall seem to apply
    nowhere because of it.
    """
    value = entries.get("plans", False)
    if value is False:
        return None
    place = place.at("plans")
    with mistakes.noted_at(place):
        readers.truth(value)
    return PlansAsked(place, shown(value))
