"""CSV for spreadsheets. These run a cell that begins like a formula, so such a cell is written
behind an apostrophe."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

# Some spreadsheets read the full-width signs for = + - @ as well.
FORMULA: Final = re.compile("'*[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")


def lines(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of CSV in which no cell is a formula."""
    yield from map(_line, chain([heads], rows))


def read(cell: str) -> str:
    """Return what :func:`lines` wrote as this cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _line(row: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_safe, row))
    return text.getvalue()


def _safe(value: object) -> object:
    """The cell; a negative number is one, and no formula."""
    if not isinstance(value, str):
        return value
    return f"'{value}" if FORMULA.match(value) else value
