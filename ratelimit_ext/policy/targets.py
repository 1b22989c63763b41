"""Reads ``RATELIMIT_BLUEPRINTS`` of ``app.config`` into a draft."""

from __future__ import annotations

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy import section
from ratelimit_ext.policy.draft import Draft
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.limit_reader import LimitReader
from ratelimit_ext.policy.place import AppConfig, Place
from ratelimit_ext.policy.plans_asked import plans_asked
from ratelimit_ext.policy.table import known_keys, named_entries, table_of


def read_targets(value: object, reader: LimitReader, draft: Draft, mistakes: Mistakes) -> None:
    """Read blueprints or endpoints, each with a list of limits or a table with plans and limits."""
    place = Place(AppConfig("RATELIMIT_BLUEPRINTS"))
    with mistakes.noted_at(place):
        for name, entry in named_entries(table_of(value), place, mistakes):
            draft.add_target(name, place.at(name))
            with mistakes.noted_at(place.at(name)):
                _target(name, entry, place.at(name), reader, draft, mistakes)


def _target(
    name: str, value: object, place: Place, reader: LimitReader, draft: Draft, mistakes: Mistakes
) -> None:
    kind = section.blueprint(name)
    if isinstance(value, list | tuple):
        draft.targets[name] += reader.read_list(value, place, kind)
        return
    if isinstance(value, str):
        raise Mistake(f"found {shown(value)}; allowed: a list. Write [{value[:40]!r}].")
    entries = known_keys(table_of(value), place, ("plans", "limits"), mistakes)
    if not entries:
        raise Mistake("the table has neither limits nor plans. Fill or remove it.")
    if "limits" in entries:
        draft.targets[name] += reader.read_list(entries["limits"], place.at("limits"), kind)
    plans = plans_asked(entries, place, mistakes)
    if plans is not None:
        draft.plan_targets[name] = plans
