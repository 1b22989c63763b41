"""Pages of long lists: rows in an order, after a cursor that names the last row of a page."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from itertools import chain, dropwhile, islice
from typing import Any

from chatapp.actions.action import FieldError


def ordered(names: str, rows: Iterable[Any], cursor: str | None) -> Iterator[Any]:
    """Yield the rows after the cursor, by these fields, downward after a minus. Rows of an iterator
    are in order already."""
    found = rows if isinstance(rows, Iterator) else iter(sorted(rows, key=_order(names)))
    if not cursor:
        return found
    order, after = _order(names), _read_cursor(cursor)
    found = dropwhile(lambda each: order(each) <= after, found)
    try:
        return chain(list(islice(found, 1)), found)
    except TypeError:  # a cursor of another list
        raise _invalid_cursor() from None


def page(
    names: str, rows: Iterable[Any], *, limit: int, cursor: str | None
) -> tuple[list[Any], str | None]:
    """Return a page of at most ``limit`` rows, and the cursor of the next; None after the last."""
    part = list(islice(ordered(names, rows, cursor), limit + 1))
    more = _cursor(_order(names)(part[limit - 1])) if len(part) > limit else None
    return part[:limit], more


def instant_of(cursor: str) -> datetime:
    """Return the time of the cursor, in a list that is ordered by time first."""
    try:
        return datetime.fromisoformat(_read_cursor(cursor)[0]).astimezone(UTC)
    except (IndexError, TypeError, ValueError, OverflowError):
        raise _invalid_cursor() from None


def _order(names: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    fields = [(name.lstrip("-"), name[0] == "-") for name in names.split()]
    return lambda row: [-row[name] if is_down else _text_or(row[name]) for name, is_down in fields]


def _text_or(value: Any) -> Any:
    """Return a value as cursors have it."""
    return value.isoformat() if isinstance(value, date) else "" if value is None else value


def _cursor(place: list[Any]) -> str:
    return urlsafe_b64encode(json.dumps(place, default=str).encode()).decode()


def _read_cursor(text: str) -> list[Any]:
    try:
        found = json.loads(urlsafe_b64decode(text))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _invalid_cursor()
    return found


def _invalid_cursor() -> FieldError:
    return FieldError("cursor", '"cursor" is not of this list; send the "next" of its last page.')
