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
from ratelimit_ext.policy.policy_limit import PolicyLimit

Lists = Mapping[str, Sequence[Placed]]


def around(name: str) -> Iterator[str]:
    """The blueprints that a route or blueprint of this name can lie in.

    >>> list(around("outer.inner.post"))
    ['outer', 'outer.inner']
    """
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def layered(lists: Lists, limited: Collection[str]) -> Mapping[str, Limits]:
    """The limits by name; ``limited`` are the names that have limits or plans."""
    return MappingProxyType(
        {name: tuple(_limits(name, placed, limited)) for name, placed in lists.items()}
    )


def _limits(name: str, placed: Sequence[Placed], limited: Collection[str]) -> Iterator[PolicyLimit]:
    inside = any(outer in limited for outer in around(name))
    for limit, _, says_override in placed:
        yield replace(limit, override_defaults=False) if inside and not says_override else limit


def once(asking: Sequence[Mapping[str, Place]], lists: Sequence[Lists]) -> list[Mapping[str, str]]:
    """What asks for plans, each with the place that does, so that no plan is charged twice.

    Left out is a name that asked before, and one inside a blueprint that asks, unless a limit of
    its own overrides that blueprint.
    """
    every = {name for names in asking for name in names}
    seen: set[str] = set()
    kept: list[Mapping[str, str]] = []
    for names in asking:
        alone = [
            name
            for name in names
            if name not in seen
            and (_overrides(name, lists) or not any(outer in every for outer in around(name)))
        ]
        kept.append(MappingProxyType({name: str(names[name]) for name in alone}))
        seen.update(names)
    return kept


def _overrides(name: str, lists: Sequence[Lists]) -> bool:
    entries = [entry for named in lists for entry in named.get(name, ())]
    return any(limit.override_defaults and says for limit, _, says in entries)
