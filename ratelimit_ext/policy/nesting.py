"""What stands inside a blueprint applies beside what the blueprint has, unless it says otherwise.

Flask-Limiter's rule for decorators is the opposite: a view's own limits replace its blueprint's. In
a file that would drop a limit that is written two lines further up, so a limit inside a blueprint
with limits or plans overrides nothing by default.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.policy import Limits

Lists = Mapping[str, Sequence[Placed]]
Asking = TypeVar("Asking")


def around(name: str) -> Iterator[str]:
    """The blueprints that a route or blueprint of this name can lie in.

    >>> list(around("outer.inner.post"))
    ['outer', 'outer.inner']
    """
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


class Layers:
    """Which blueprints reach into which names. ``lists`` are all limits by name, of every kind.

    ``limited`` are the names that have limits or plans.
    """

    def __init__(self, lists: Sequence[Lists], limited: Collection[str]) -> None:
        self._inside = {name for name in limited if any(outer in limited for outer in around(name))}
        #: The names inside others that say ``override_defaults``. One limit speaks for all beside
        #: it: a nested blueprint overrides only where each of its limits does, and a route where
        #: one does. That is Flask-Limiter's rule.
        self.overriding = frozenset(
            name
            for named in lists
            for name, entries in named.items()
            if name in self._inside
            and any(limit.override_defaults and says for limit, _, says in entries)
        )

    def reaching(self, name: str) -> tuple[str, ...]:
        """The blueprints around a name whose limits apply there, the outermost first.

        A nested blueprint that overrides hides those around it from all that lies inside it, the
        blueprints too. Flask-Limiter's rule for decorators spares those; here, what the hidden one
        and the hiding one have in common would be charged twice in them.
        """
        if name in self.overriding:
            return ()
        reaching: list[str] = []
        for outer in around(name):
            reaching = [outer] if outer in self.overriding else [*reaching, outer]
        return tuple(reaching)

    def layered(self, lists: Lists) -> Mapping[str, Limits]:
        """The limits by name, each overriding what is around its name, or not."""
        return MappingProxyType(
            {name: self._at_name(name, placed) for name, placed in lists.items()}
        )

    def _at_name(self, name: str, placed: Sequence[Placed]) -> Limits:
        limits = tuple(entry.limit for entry in placed)
        if name not in self._inside:
            return limits
        overrides = name in self.overriding
        return tuple(replace(limit, override_defaults=overrides) for limit in limits)

    def once(self, names: Mapping[str, Asking], speaking: Collection[str]) -> dict[str, Asking]:
        """Those of the names that no blueprint among ``speaking`` reaches.

        So what all of them have in common, a plan or the limits of a group, is charged once.
        """
        return {
            name: asking
            for name, asking in names.items()
            if not any(outer in speaking for outer in self.reaching(name))
        }
