"""Reads a table of groups."""

from __future__ import annotations

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy import readers, section
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.group import Group
from ratelimit_ext.policy.limit_reader import LimitReader
from ratelimit_ext.policy.place import Place, dotted
from ratelimit_ext.policy.plans_asked import plans_asked
from ratelimit_ext.policy.table import known_keys, table_of

_KEYS = ("members", "plans", "limits")
_MEMBERS = '["chat", "api.ask"]'


def read_group(
    name: str, value: object, place: Place, reader: LimitReader, mistakes: Mistakes
) -> Group:
    """The group as far as it is sound. Raises :class:`Mistake` for what is no table with keys."""
    table = table_of(value)
    if not table:
        raise Mistake(f"the table is empty; allowed: {', '.join(_KEYS)}. Fill or remove it.")
    with mistakes.noted_at(place):
        readers.name(name)
    entries = known_keys(table, place, _KEYS, mistakes)
    members: dict[str, Place] = {}
    with mistakes.noted_at(place.at("members") if "members" in entries else place):
        if "members" not in entries:
            raise Mistake(f'"members" is missing; write for example members = {_MEMBERS}.')
        members = _members(entries["members"], place.at("members"), mistakes)
    plans = plans_asked(entries, place, mistakes)
    limits = []
    if "limits" in entries:
        limits = reader.read_list(entries["limits"], place.at("limits"), section.group(name))
    elif plans is None:
        mistakes.add(
            place,
            "the group has neither limits nor plans, and would do nothing. Write "
            f"[[{dotted(place.path)}.limits]] with a limit, or plans = true, or remove it.",
        )
    return Group(members, limits, plans)


def _members(value: object, place: Place, mistakes: Mistakes) -> dict[str, Place]:
    """The names, each with its place."""
    if not isinstance(value, list | tuple) or not value:
        brackets = " Put it in brackets." if isinstance(value, str) else ""
        raise Mistake(
            f"found {shown(value)}; allowed: a list of blueprints and endpoints, such as "
            f"{_MEMBERS}.{brackets}"
        )
    members: dict[str, Place] = {}
    for position, name in enumerate(value):
        at = place.at(position)
        if not isinstance(name, str) or not name.strip():
            mistakes.add(at, f"found {shown(name)}; allowed: the name of a blueprint or endpoint.")
        elif name in members:
            mistakes.add(at, f"found {shown(name)}, which is a member already. Remove one of them.")
        else:
            members[name] = at
    return members
