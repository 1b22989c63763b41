"""Whether a table asks for the caller's plan."""

from __future__ import annotations

from collections.abc import Mapping

from ratelimit_ext.policy import readers
from ratelimit_ext.policy.mistakes import Mistakes
from ratelimit_ext.policy.place import Place


def plans_asked(entries: Mapping[str, object], place: Place, mistakes: Mistakes) -> Place | None:
    """The place of ``plans = true``; ``None`` where it is false or not written.

    What is neither true nor false is noted, and counts as asking: no plan shall seem to apply
    nowhere because of it.
    """
    if entries.get("plans", False) is False:
        return None
    with mistakes.noted_at(place.at("plans")):
        readers.truth(entries["plans"])
    return place.at("plans")
