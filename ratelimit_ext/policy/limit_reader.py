"""Reads lists of limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit import OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import states_guard
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.rules import check_limit, parsed_limits
from ratelimit_ext.policy.schema import KEYWORDS
from ratelimit_ext.policy.section import Section
from ratelimit_ext.policy.table import known_keys, table_of


class Placed(NamedTuple):
    """A limit, where it stands, and whether ``override_defaults`` is written there."""

    limit: PolicyLimit
    place: Place
    says_override: bool


class LimitReader:
    """Reads limits, noting mistakes. ``default_strategy`` is that of limits that name none."""

    def __init__(self, default_strategy: str | None, mistakes: Mistakes) -> None:
        self.default_strategy = default_strategy
        self._mistakes = mistakes

    def read_list(self, value: object, place: Place, section: Section) -> list[Placed]:
        """The limits of a list that are sound."""
        if not isinstance(value, list | tuple) or not value:
            self._mistakes.add(place, _not_a_list(value))
            return []
        placed = [
            self._read(entry, place.at(position), section) for position, entry in enumerate(value)
        ]
        return [entry for entry in placed if entry is not None]

    def _read(self, value: object, place: Place, section: Section) -> Placed | None:
        """One limit; ``None`` where it has mistakes."""
        before = len(self._mistakes)
        entries: dict[str, object] = {}
        at_string = place.at("limit")
        limit = None
        with self._mistakes.noted_at(place):
            if isinstance(value, str):
                entries, at_string = {"limit": value}, place
            else:
                # A keyword that means nothing here is known, so that it is told why.
                known = ("limit", *KEYWORDS)
                entries = known_keys(table_of(value), place, known, self._mistakes)
            limit = self._limit(entries, place, at_string, section)
        if limit is None or len(self._mistakes) > before:
            return None
        return Placed(limit, place, "override_defaults" in entries)

    def _limit(
        self, entries: dict[str, object], place: Place, at_string: Place, section: Section
    ) -> PolicyLimit | None:
        parsed = None
        with self._mistakes.noted_at(at_string if "limit" in entries else place):
            if "limit" not in entries:
                raise Mistake('"limit" is missing; write for example limit = "30/minute".')
            parsed = parsed_limits(entries["limit"])
        keywords = self._keywords(entries, place, section)
        if parsed is None:
            return None
        text = str(entries["limit"])
        words = keywords.keys() & set(OPTION_NAMES)
        options = LimitOptions(**{word: keywords.pop(word) for word in words})
        if states_guard(text, options) and "override_defaults" not in entries:
            keywords["override_defaults"] = False  # a guard applies beside other limits
        limit = PolicyLimit(
            source=str(place), place=place, text=text, parsed=parsed, options=options, **keywords
        )
        misspelt = "strategy" in entries and options.strategy is None
        check_limit(limit, place, None if misspelt else self.default_strategy, self._mistakes)
        return limit

    def _keywords(
        self, entries: dict[str, object], place: Place, section: Section
    ) -> dict[str, Any]:
        keywords: dict[str, Any] = {"override_defaults": section.override_defaults}
        for word, value in entries.items():
            if word == "limit":
                continue
            with self._mistakes.noted_at(place.at(word)):
                if word in section.refused:
                    raise Mistake(f"means nothing here: {section.refused[word]}. Remove it.")
                keywords[word] = KEYWORDS[word](value, place.origin.python)
        if section.needs_name and "name" not in entries:
            self._mistakes.add(
                place,
                '"name" is missing; the limit of a plan needs one, so that usage is kept when a '
                'caller changes to a plan with the same name in it. Write name = "plan".',
            )
        return self._with_scope(keywords, place, section)

    def _with_scope(
        self, keywords: dict[str, Any], place: Place, section: Section
    ) -> dict[str, Any]:
        """The keywords with the bucket's scope, as the section has it."""
        scope = keywords.get("scope")
        if scope is not None and keywords.get("shared") is False:
            self._mistakes.add(
                place.at("shared"),
                f"found false beside scope = {scope!r}, which names a bucket that is shared. "
                "Remove one of the two.",
            )
        shared = keywords.get("shared", section.shared) or scope is not None
        return {**keywords, "shared": shared, "scope": scope or (section.scope if shared else None)}


def _not_a_list(value: object) -> str:
    if isinstance(value, list | tuple):
        remedy = "Remove the key where no limit is meant."
    elif isinstance(value, Mapping):
        remedy = "In a file, the name of a list of tables stands in two pairs of brackets."
    else:
        remedy = "Put it in brackets."
    allowed = 'a list of at least one limit, such as ["30/minute"]'
    return f"found {shown(value)}; allowed: {allowed}. {remedy}"
