"""What commands print: tables for people, JSON for programs, CSV for spreadsheets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from chatapp.operators import spreadsheet
from ratelimit_ext.terminal import by_operator, echo_json, echo_table, with_json

F = TypeVar("F", bound=Callable[..., Any])


def changes(command: F) -> F:
    """Give a command that changes something the options --reason, --by and --json."""
    return by_operator(with_json(command))


def echo_done(sentence: str, *, as_json: bool, **facts: object) -> None:
    """Print what a command has changed: the sentence, or with `--json` the facts."""
    if as_json:
        echo_json(facts)
    else:
        click.echo(sentence)


def echo_rows(
    rows: Iterable[Sequence[object]],
    heads: tuple[str, ...],
    *,
    as_json: bool,
    empty: str = "",
) -> None:
    """Print rows: as aligned columns, or with `--json` as objects, by the heads in small letters.

    Without any, `empty` is printed on standard error: standard output stays empty for scripts.
    """
    rows = list(rows)
    if as_json:
        names = [head.lower().replace(" ", "_") for head in heads]
        echo_json([dict(zip(names, row, strict=True)) for row in rows])
    elif not rows and empty:
        click.echo(empty, err=True)
    else:
        echo_table(heads, ([_cell(value) for value in row] for row in rows))


def echo_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print CSV in which no cell is a formula."""
    sys.stdout.writelines(spreadsheet.lines(heads, rows))


def _cell(value: object) -> str:
    match value:
        case dict():
            text = ", ".join(f"{name}={each}" for name, each in value.items())
        case list() | tuple():
            text = ", ".join(map(str, value))
        case _:
            text = "" if value is None else str(value)
    return text or "-"
