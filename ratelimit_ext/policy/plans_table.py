"""Reads the table of plans."""

from __future__ import annotations

from collections.abc import Mapping

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy import readers, section
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.limit_reader import LimitReader
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.shared_buckets import check_buckets
from ratelimit_ext.policy.table import known_keys, named_entries, table_of

_KEYS = ("title", "next", "limits")


def read_plans(
    value: object, place: Place, reader: LimitReader, mistakes: Mistakes
) -> tuple[dict[str, Plan], dict[str, Place]]:
    """The plans that are sound, and the places of all of them."""
    plans: dict[str, Plan] = {}
    tables: dict[str, object] = {}
    with mistakes.noted_at(place):
        tables = dict(named_entries(table_of(value), place, mistakes))
    places = {name: place.at(name) for name in tables}
    for name, table in tables.items():
        with mistakes.noted_at(places[name]):
            plans[name] = _plan(name, table, places[name], reader, mistakes)
    _check_next(_following(tables), places, mistakes)
    return plans, places


def _plan(name: str, value: object, place: Place, reader: LimitReader, mistakes: Mistakes) -> Plan:
    readers.name(name)
    entries = known_keys(table_of(value), place, _KEYS, mistakes)
    title, following = name[0].upper() + name[1:], None
    with mistakes.noted_at(place.at("title")):
        title = readers.text(entries.get("title", title))
    with mistakes.noted_at(place.at("next")):
        following = _name_of_plan(entries["next"]) if "next" in entries else None
    if "limits" not in entries:
        raise Mistake(
            f"the plan has no limits. Write [[plans.{name}.limits]] with a name and a limit; to "
            'allow anything, a limit such as "1000000000/day".'
        )
    placed = reader.read_list(entries["limits"], place.at("limits"), section.PLAN)
    check_buckets(placed, reader.default_strategy, mistakes)
    limits = tuple(entry.limit for entry in placed)
    return Plan(source=str(place), name=name, title=title, limits=limits, next=following)


def _following(tables: Mapping[str, object]) -> dict[str, str]:
    """The next plan of each plan that names one, sound or not."""
    named = {name: t.get("next") for name, t in tables.items() if isinstance(t, Mapping)}
    return {name: after for name, after in named.items() if isinstance(after, str) and after}


def _name_of_plan(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Mistake(f"found {shown(value)}; allowed: the name of a plan.")
    return value


def _check_next(
    following: Mapping[str, str], places: Mapping[str, Place], mistakes: Mistakes
) -> None:
    told: set[str] = set()
    for name, after in following.items():
        place = places[name].at("next")
        if after not in places:
            known = ", ".join(map(repr, places))
            hint = did_you_mean(after, places)
            mistakes.add(place, f"found {shown(after)}; there are the plans {known}.{hint}")
        elif name not in told and (circle := _circle(name, following)):
            told.update(circle)
            way = " to ".join(map(repr, [*circle, name]))
            mistakes.add(place, f"the plans go in a circle: {way}. Remove the last plan's next.")


def _circle(name: str, following: Mapping[str, str]) -> list[str]:
    """The plans from ``name`` back to it; empty where one does not come back."""
    way = [name]
    while (after := following.get(way[-1])) is not None and after not in way:
        way.append(after)
    return way if after == name else []
