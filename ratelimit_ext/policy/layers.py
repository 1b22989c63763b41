"""What stands inside a blueprint applies beside what the blueprint has, unless it says otherwise.

Flask-Limiter's rule for decorators is the opposite: a view's own limits replace its blueprint's. In
a file that would drop a limit that is written two lines further up, so a limit inside a blueprint
with limits or plans overrides nothing by default.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.policy import Limits

Lists = Mapping[str, Sequence[Placed]]


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

    def reaching(self, name: str, *, blueprint: bool = False) -> tuple[str, ...]:
        """The blueprints around a name whose limits apply there, the outermost first.

        A nested blueprint that overrides hides those around it from its own views, but not from
        the blueprints inside it: that is Flask-Limiter's rule. ``blueprint`` says that the name is
        known to be one.
        """
        if name in self.overriding:
            return ()
        outer = tuple(around(name))
        hidden = not blueprint and outer and outer[-1] in self.overriding
        return outer[-1:] if hidden else outer

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

    def once(
        self, names: Mapping[str, Place], speaking: Collection[str], *, blueprints: bool = False
    ) -> dict[str, Place]:
        """Those of the names that no blueprint among ``speaking`` reaches.

        So what all of them have in common, a plan or the limits of a group, is charged once.
        ``blueprints`` says that the names are known to be some.
        """
        return {
            name: place
            for name, place in names.items()
            if not any(outer in speaking for outer in self.reaching(name, blueprint=blueprints))
        }
