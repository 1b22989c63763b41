"""What the views of /admin share: how they write amounts and times, their choices and downloads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Generic, TypeAlias, TypeVar

from flask import Response, render_template
from flask.typing import ResponseReturnValue

from chatapp.accounts import TEAM, USER
from chatapp.blueprints.admin.access import CSV, address, bp, query
from chatapp.blueprints.admin.chart import dollars
from chatapp.operators import spreadsheet
from chatapp.services import current_services
from ratelimit_ext import OperatorError, separated
from ratelimit_ext.operators import span_text, time_text

T = TypeVar("T")
#: The rows of a table to download, by their heads.
Records: TypeAlias = Iterable[Mapping[str, Any]]

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
        return self.first + len(self.rows) - 1


@bp.context_processor
def formats() -> dict[str, object]:
    """Return how templates write amounts and times, and know users."""
    return {
        "dollars": dollars,
        "download_address": _download,
        "span": span_text,
        "time": time_text,
        "identities_of": lru_cache(_identities_of),
        "user_prefix": USER,
        "team_prefix": TEAM,
    }


def _identities_of(identity: str | None, limit: str) -> list[str | None]:
    """Return the identities that the limit counts together; mostly one."""
    if identity is None or "," not in identity:
        return [identity]
    is_several = False
    with suppress(OperatorError):  # there may be no limits
        rows = current_services().limiter.operators.rows()
        is_several = any(row.name == limit and len(row.kinds) > 1 for row in rows)
    return [*separated(identity)] if is_several else [identity]


def shown(template: str, tables: Mapping[str, Records], **context: object) -> ResponseReturnValue:
    """Return the view, or as CSV all rows of the table that the query names."""
    name = query(CSV)
    if name not in tables:
        return render_template(template, **context)
    file = f"{name}-{datetime.now(UTC):%Y-%m-%d}.csv"
    return Response(
        "".join(spreadsheet.of_records(tables[name])),
        mimetype="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{file}"'},
    )


def _download(table: str) -> str:
    """Return the address of a table as CSV, with what the view is filtered by."""
    return address(CSV, "done", "page", **{CSV: table})


def page_of(rows: Sequence[T]) -> Page[T]:
    """Return the page that the query asks for; the last one if it has too high a number."""
    text = query("page")[:6]
    most = max(1, -(-len(rows) // PAGE))
    number = min(max(1, int(text)), most) if text.isascii() and text.isdigit() else 1
    return Page(rows[(number - 1) * PAGE : number * PAGE], number, len(rows))


def choice(name: str, allowed: list[str], default: str) -> str:
    """Return the value in the query; the default for any that is not allowed."""
    value = query(name, default)
    return value if value in allowed else default
