"""CSV for spreadsheets. These run a cell that begins like a formula, so such a cell is written
behind an apostrophe."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Final

# Some spreadsheets read the full-width signs for = + - @ as well.
FORMULA: Final = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def lines(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of CSV in which no cell is a formula."""
    yield from map(_line, chain([heads], rows))


def of_records(records: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield the lines of records that have the same keys; none without a record."""
    rows = iter(records)
    if (first := next(rows, None)) is not None:
        yield from lines(list(first), (list(each.values()) for each in chain([first], rows)))


def read(cell: str) -> str:
    """Return what :func:`lines` wrote as this cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _line(row: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, row))
    return text.getvalue()


def _cell(value: object) -> object:
    """A negative number is one, and no formula; JSON begins like none."""
    match value:
        case str():
            return f"'{value}" if FORMULA.match(value) else value
        case float():
            return f"{value:.6f}"
        case datetime():
            return value.isoformat()
        case Mapping() | list() | tuple():
            return json.dumps(value, default=str)
        case _:
            return value
