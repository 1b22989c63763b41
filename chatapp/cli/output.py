"""What commands print: tables for people, JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Any, Final

import click

from chatapp.actions.action import plain
from chatapp.operators import spreadsheet
from ratelimit_ext.operators import printable, time_text
from ratelimit_ext.terminal import echo_json as echo_plain_json
from ratelimit_ext.terminal import echo_table, progress_bar

#: The width of a list in a table's cell: a team may have 10,000 members.
WIDTH: Final = 120
INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")
echo_json: Final = partial(echo_plain_json, default=plain)


def echo_done(sentence: str, *, as_json: bool, **facts: object) -> None:
    """Print what a command has changed: the sentence, or with `--json` the facts."""
    if as_json:
        echo_json(facts)
    else:
        click.echo(sentence)


def echo_table_of(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] = (), empty: str = ""
) -> None:
    """Print rows as aligned columns, long lists cut. Those with a question mark need a value in
    one of the rows, as do all if none are named.

    Without rows, `empty` is printed on standard error: standard output stays empty for scripts.
    """
    if not rows:
        click.echo(empty or "There is nothing to list.", err=True)
        return
    optional = {name.rstrip("?") for name in columns or rows[0] if not columns or name[-1] == "?"}
    names = [
        name
        for name in (column.rstrip("?") for column in columns or rows[0])
        if name not in optional or not all(_is_empty(row.get(name)) for row in rows)
    ]
    heads = [name.upper().replace("_", " ") for name in names]
    echo_table(heads, [[_cell(row.get(name), WIDTH) for name in names] for row in rows])


def echo_fields(item: Mapping[str, Any]) -> None:
    for name, value in item.items():
        if not _is_empty(value):
            click.echo(printable(f"{name.replace('_', ' ')}: {_cell(value)}"))


def watched(items: Sequence[Any]) -> Iterator[Any]:
    """Yield the items of long work, with a progress bar if a terminal shows it."""
    with progress_bar("Writing", len(items)) as bar:
        for item in items:
            yield item
            bar(1)


def echo_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print CSV in which no cell is a formula."""
    sys.stdout.writelines(spreadsheet.lines(heads, rows))


def _is_empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _cell(value: object, width: float = math.inf) -> str:
    match value:
        case Mapping():
            text = _cell([f"{name}={_cell(item)}" for name, item in value.items()], width)
        case list() | tuple():
            items = [_cell(item) for item in value]
            ends = accumulate(len(item) + 2 for item in items)
            shown = max(1, sum(end <= width for end in ends))
            more = [f"{len(items) - shown:,} more"] if len(items) > shown else []
            text = ", ".join(items[:shown] + more)
        case float():
            text = f"{value:.6f}".rstrip("0").rstrip(".")
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = time_text(value.timestamp())
        case str() if INSTANT.fullmatch(value):
            text = time_text(datetime.fromisoformat(value).timestamp())
        case _:
            text = "" if value is None else str(value)
    return text or "-"
