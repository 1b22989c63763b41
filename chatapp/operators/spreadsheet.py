"""CSV for spreadsheets. These run a cell that begins like a formula, so such a cell is written
behind an apostrophe. So is a part of a cell, as a spreadsheet may split lines at `;` and tabs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Final

# Some spreadsheets read the full-width signs for = + - @, too. A quotation mark does not protect.
_PART: Final = "(?:^|(?<=[;\t\r\n]))"
_SIGN: Final = "(?=['\"]*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20])"
FORMULA: Final = re.compile(f"{_PART}{_SIGN}")
WRITTEN: Final = re.compile(f"{_PART}'{_SIGN}")


def lines(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of CSV in which no cell is a formula."""
    yield from map(_line, chain([heads], rows))


def of_records(records: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield the lines of records that have the same keys; none without a record."""
    rows = iter(records)
    if (first := next(rows, None)) is not None:
        yield from lines(list(first), (list(row.values()) for row in chain([first], rows)))


def read(cell: str) -> str:
    return WRITTEN.sub("", cell)


def _line(row: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, row))
    return text.getvalue()


def _cell(value: object) -> object:
    """Return the cell as it is written. A negative number is no formula. JSON never begins like
    one, and has `;` only in its strings, where it can be escaped."""
    match value:
        case str():
            return FORMULA.sub("'", value)
        case float():
            return f"{value:.6f}"
        case datetime():
            return value.isoformat()
        case Mapping() | list() | tuple():
            return json.dumps(value, default=str).replace(";", "\\u003b")
        case _:
            return value
