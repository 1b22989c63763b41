"""Limits that are stated in code, held to the rules of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ratelimit_ext.policy.keywords import timezone
from ratelimit_ext.policy.limit_rules import check_contradictions, check_limit, check_name
from ratelimit_ext.policy.mistakes import Mistakes
from ratelimit_ext.policy.place import Path, Place
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.rates import no_limit
from ratelimit_ext.strategies import ALIASES


@dataclass(frozen=True, slots=True)
class Code:
    """A limit in Python as the origin of its keywords."""

    text: str
    python: bool = True

    def source(self, path: Path) -> str:
        """The limit, and the keyword that is meant."""
        return ", ".join([f"limit {self.text!r}", *map(str, path)])

    def located(self, path: Path) -> str:
        """The same: the traceback has the line."""
        return self.source(path)

    def line(self, path: Path) -> int:
        """None."""
        return 0


def check_stated(
    text: str,
    said: Mapping[str, Any],
    limits: Sequence[PolicyLimit],
    default_strategy: str | None,
) -> None:
    """Raise ``ConfigurationError`` for what a file could not say either.

    ``said`` are the keywords beside the string ``text``, ``limits`` what both of them make.
    """
    mistakes = Mistakes()
    place = Place(Code(text))
    if "timezone" in said:
        with mistakes.noted_at(place.at("timezone")):
            timezone(said["timezone"], True)  # noqa: FBT003 - the signature of all readers
    check_name(said.get("name", ""), text, len(limits), place, mistakes)
    for limit in limits:
        made = {"strategy": limit.strategy, "unit": limit.unit}
        check_contradictions(text, said, made, place, mistakes)
        strategy = limit.strategy or default_strategy
        check_limit(limit, place, strategy and ALIASES.get(strategy, strategy), mistakes)
    mistakes.raise_if_any("a limit")


def refuse_string(text: object) -> NoReturn:
    """Raise ``ConfigurationError`` for a string that cannot be parsed."""
    mistakes = Mistakes()
    mistakes.add(Place(Code(str(text))), no_limit(text))
    mistakes.raise_if_any("a limit")
    raise AssertionError  # there is one
