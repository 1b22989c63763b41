"""What ``flask ratelimit`` and an application's own commands share: group, options, output."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import click
from flask.cli import AppGroup

from ratelimit_ext.core.errors import ConfigurationError, OperatorError, StorageUnavailable
from ratelimit_ext.operators.texts import printable
from ratelimit_ext.web import commands
from ratelimit_ext.web.errors import plain

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LateGroup = commands.LateGroup


class OperatorGroup(AppGroup):
    """Commands whose errors are one sentence, with exit status 1. ``hints`` are what to do, by the
    codes of errors."""

    def __init__(self, name: str, *, hints: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self._hints = hints

    def operator_error(self, error: Exception) -> OperatorError | None:
        """Return the error as one of an operator's; ``None`` for one that no operator can mend."""
        if isinstance(error, StorageUnavailable):
            return OperatorError("storage", f"The limits cannot be reached: {error}")
        if isinstance(error, ConfigurationError):
            return OperatorError("configuration", str(error))
        return error if isinstance(error, OperatorError) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            known_error = self.operator_error(error)
            if known_error is None:
                raise
            sentence = " ".join(filter(None, [str(known_error), self._hints.get(known_error.code)]))
            raise click.ClickException(sentence) from error


def with_json(command: F) -> F:
    """Give a command the option ``--json``, which it gets as ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return option(command)


def by_operator(command: F) -> F:
    """Give a command the options of the log: who changes something, and why."""
    for option in (
        click.option("--by", default=_operator, help="Who changes it; default: your user name."),
        click.option("--reason", default="", help="Why, for the log of changes."),
    ):
        command = option(command)
    return command


def _operator() -> str:
    with contextlib.suppress(Exception):  # a container may know no user of this number
        return os.environ.get("SUDO_USER") or getpass.getuser()
    return "unknown"


@contextlib.contextmanager
def progress_bar(label: str, length: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function that moves a progress bar by so many steps. Without a terminal at the error
    output it does nothing. ``length`` is ``None`` if unknown."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    bar: Any
    steps = count() if length is None else range(length)
    with click.progressbar(steps, label=label, show_pos=True, file=sys.stderr) as bar:
        yield bar.update


def echo_json(value: object, *, default: Callable[[Any], Any] = plain) -> None:
    click.echo(json.dumps(value, indent=2, default=default))


def echo_list(
    rows: Sequence[T],
    heads: Sequence[str],
    cells: Callable[[T], Sequence[str]],
    *,
    as_json: bool,
    fields: Callable[[T], object],
    empty: str,
) -> None:
    """Print a table of the ``cells`` of each row, or JSON of its ``fields``. Without rows, standard
    output stays empty for scripts, and ``empty`` is printed on standard error."""
    if as_json:
        echo_json([fields(row) for row in rows])
    elif rows:
        echo_table(heads, map(cells, rows))
    else:
        click.echo(empty, err=True)


def echo_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns, by the pager if they are longer than the terminal. Callers choose some
    of the texts, so control characters are shown."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    is_long = sys.stdout.isatty() and len(lines) >= shutil.get_terminal_size().lines
    echo = click.echo_via_pager if is_long else click.echo
    echo("\n".join("  ".join(cells).rstrip() for cells in padded))
