"""Reads the document of a policy file into a draft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy import section
from ratelimit_ext.policy.draft import Draft, Lists
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.groups_table import read_group
from ratelimit_ext.policy.limit_reader import LimitReader
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plans_asked import PlansAsked, plans_asked
from ratelimit_ext.policy.plans_table import read_plans
from ratelimit_ext.policy.section import Section
from ratelimit_ext.policy.table import known_keys, named_entries, table_of

VERSION = 1

_KEYS = ("version", "application", "default", "blueprints", "routes", "groups", "plans")
_NESTED = 'A nested blueprint is written with its whole name in quotes: [blueprints."outer.inner"].'


class DocumentReader:
    """Reads one document; mistakes are noted, and what is sound goes to the draft."""

    def __init__(self, reader: LimitReader, draft: Draft, mistakes: Mistakes) -> None:
        self._reader = reader
        self._draft = draft
        self._mistakes = mistakes
        self.plan_places: dict[str, Place] = {}

    def read(self, document: Mapping[Any, object], place: Place) -> None:
        """Read all tables of the document."""
        entries = known_keys(document, place, _KEYS, self._mistakes)
        with self._mistakes.noted_at(place.at("version") if "version" in entries else place):
            _check_version(entries)
        draft, read_list = self._draft, self._reader.read_list
        if "application" in entries:
            at, kind = place.at("application"), section.APPLICATION
            draft.application += read_list(entries["application"], at, kind)
        if "default" in entries:
            at, kind = place.at("default"), section.DEFAULT
            draft.default += read_list(entries["default"], at, kind)
        for name, table, at in self._tables(entries, "blueprints", place):
            with self._mistakes.noted_at(at):
                self._blueprint(name, table, at)
        for name, table, at in self._tables(entries, "routes", place):
            self._route(name, table, at)
        for name, table, at in self._tables(entries, "groups", place):
            with self._mistakes.noted_at(at):
                draft.add_group(read_group(name, table, at, self._reader, self._mistakes))
        if "plans" in entries:
            draft.plans, self.plan_places = read_plans(
                entries["plans"], place.at("plans"), self._reader, self._mistakes
            )

    def _tables(
        self, entries: Mapping[str, object], key: str, place: Place
    ) -> list[tuple[str, object, Place]]:
        """The entries of a table of tables, each with its place."""
        place = place.at(key)
        with self._mistakes.noted_at(place):
            table = table_of(entries.get(key, {}))
            named = named_entries(table, place, self._mistakes)
            return [(name, value, place.at(name)) for name, value in named]
        return []

    def _blueprint(self, name: str, value: object, place: Place) -> None:
        keys = ("plans", "limits", "routes")
        entries = known_keys(table_of(value), place, keys, self._mistakes, hint=_NESTED)
        draft = self._draft
        kind = section.blueprint(name)
        self._limits_and_plans(entries, place, kind, name, draft.blueprints, draft.plan_blueprints)
        for route, table, at in self._tables(entries, "routes", place):
            self._route(f"{name}.{route}", table, at)
        if not entries:
            raise Mistake("the table is empty; allowed: limits, plans, routes. Fill or remove it.")

    def _route(self, endpoint: str, value: object, place: Place) -> None:
        with self._mistakes.noted_at(place):
            entries = known_keys(table_of(value), place, ("plans", "limits"), self._mistakes)
            draft = self._draft
            self._limits_and_plans(
                entries, place, section.ROUTE, endpoint, draft.routes, draft.plan_routes
            )
            if not entries:
                raise Mistake("the table is empty; allowed: limits, plans. Fill or remove it.")

    def _limits_and_plans(
        self,
        entries: Mapping[str, object],
        place: Place,
        kind: Section,
        name: str,
        lists: Lists,
        plans: dict[str, PlansAsked],
    ) -> None:
        if "limits" in entries:
            lists[name] += self._reader.read_list(entries["limits"], place.at("limits"), kind)
        asked = plans_asked(entries, place, self._mistakes)
        if asked is not None:
            plans[name] = asked


def _check_version(entries: Mapping[str, object]) -> None:
    if "version" not in entries:
        raise Mistake(f'"version" is missing; write version = {VERSION} as the first line.')
    version = entries["version"]
    if type(version) is not int or version != VERSION:
        raise Mistake(
            f"found {shown(version)}; allowed: {VERSION}, the version of the format of this file."
        )
