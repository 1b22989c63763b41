"""What the views of /admin share: how they write amounts and times, and their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from chatapp.accounts import TEAM, USER
from chatapp.blueprints.admin.access import bp, query
from chatapp.blueprints.admin.chart import dollars
from ratelimit_ext.operators import span_text, time_text

T = TypeVar("T")

#: How many rows a table without pages has at most, and how many a page of one with pages.
MOST: Final = 200
PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a table that has ``count``; ``number`` is 1 for the first page."""

    rows: Sequence[T]
    number: int
    count: int

    @property
    def first(self) -> int:
        """The place of its first row among all, from 1."""
        return (self.number - 1) * PAGE + 1

    @property
    def last(self) -> int:
        """The place of its last row."""
        return self.first + len(self.rows) - 1


@bp.context_processor
def formats() -> dict[str, object]:
    """How templates write amounts and times, and know users."""
    return {
        "dollars": dollars,
        "span": span_text,
        "time": time_text,
        "user_prefix": USER,
        "team_prefix": TEAM,
    }


def page_of(rows: Sequence[T]) -> Page[T]:
    """The page that the query asks for; the last one if it has too high a number."""
    asked = query("page")[:6]
    most = max(1, -(-len(rows) // PAGE))
    number = min(max(1, int(asked)), most) if asked.isascii() and asked.isdigit() else 1
    return Page(rows[(number - 1) * PAGE : number * PAGE], number, len(rows))


def choice(name: str, allowed: list[str], default: str) -> str:
    """The value in the query; the default for any that is not allowed."""
    value = query(name, default)
    return value if value in allowed else default
