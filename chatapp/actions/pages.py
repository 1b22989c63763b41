"""Pages of long lists, and lists as CSV: rows in an order, after a cursor that names the last row
of a page."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from itertools import chain, count, dropwhile, islice
from typing import Any

from chatapp.actions.action import FieldError, Listed
from chatapp.operators import spreadsheet


def csv_of(names: str, rows: Iterable[Any], query: Listed) -> Iterator[str]:
    """Yield the rows that the query asks for as lines of CSV: all of them without a limit."""
    return spreadsheet.of_records(islice(_ordered(names, rows, query.cursor), query.limit))


def page(
    names: str, rows: Iterable[Any], query: Listed, *, most: int | None = None
) -> tuple[list[Any], str | None]:
    """Return the page that the query asks for, of at most ``most`` rows without a limit, and the
    cursor of the next; None after the last."""
    cursor = query.cursor
    rest = _ordered(names, rows, cursor)
    part = list(islice(rest, query.limit or most))
    if next(rest, None) is None:
        return part, None
    places = list(map(_order(names), part))
    last = places[-1]
    after, given = _read_cursor(cursor) if cursor else ([], 0)
    return part, _cursor(last, places.count(last) + (given if last == after else 0))


def instant_of(cursor: str) -> datetime:
    """Return the time of the cursor, in a list that is ordered by time first."""
    try:
        return datetime.fromisoformat(_read_cursor(cursor)[0][0]).astimezone(UTC)
    except (IndexError, TypeError, ValueError, OverflowError):
        raise _invalid_cursor() from None


def _ordered(names: str, rows: Iterable[Any], cursor: str | None) -> Iterator[Any]:
    """Yield the rows after the cursor, by these fields, downward after a minus. Rows of an iterator
    are in order already."""
    order = _order(names)
    rest = rows if isinstance(rows, Iterator) else iter(sorted(rows, key=order))
    if not cursor:
        return rest
    after, given = _read_cursor(cursor)
    numbers = count(1)

    def is_given(row: Any) -> bool:
        place = order(row)
        return place < after or (place == after and next(numbers) <= given)

    rest = dropwhile(is_given, rest)
    try:
        return chain(list(islice(rest, 1)), rest)
    except TypeError:  # a cursor of another list
        raise _invalid_cursor() from None


def _order(names: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    fields = [(name.lstrip("-"), name[0] == "-") for name in names.split()]
    return lambda row: [-row[name] if is_down else _text_or(row[name]) for name, is_down in fields]


def _text_or(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else "" if value is None else value


def _cursor(place: list[Any], given: int) -> str:
    return urlsafe_b64encode(json.dumps([place, given], default=str).encode()).decode()


def _read_cursor(text: str) -> tuple[list[Any], int]:
    """Return the place of the last row that was given, and how many of that place were given: two
    changes may be of the same second."""
    try:
        match json.loads(urlsafe_b64decode(text)):
            case [list(place), int(given)]:
                return place, given
    except (ValueError, RecursionError):
        pass
    raise _invalid_cursor()


def _invalid_cursor() -> FieldError:
    return FieldError("cursor", '"cursor" is invalid; send the "next" of the page before.')
