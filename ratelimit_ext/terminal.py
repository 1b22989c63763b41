"""What ``flask ratelimit`` and an application's own commands share: group, options, output."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

import click
from flask.cli import AppGroup

from ratelimit_ext.core.errors import ConfigurationError, OperatorError, StorageUnavailable
from ratelimit_ext.operators.texts import instant_s, printable
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


class Parsed(click.ParamType[T]):
    """An argument that a function reads, which raises ``OperatorError``."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self._parse(value)
        except OperatorError as error:
            self.fail(str(error), param, ctx)


UNTIL: Final = Parsed("time", instant_s)
SINCE: Final = Parsed("time", partial(instant_s, past=True))


def with_json(command: F) -> F:
    """Give a command the option ``--json``, which it gets as ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return option(command)


def by_operator(command: F) -> F:
    """Give a command the options of the log: who changes something, and why."""
    for option in (
        click.option("--by", default=_operator, help="Who does it; default: the user here."),
        click.option("--reason", default="", help="Why, for the log."),
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


def echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=plain))


def echo_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns. Callers choose some of the texts, so control characters are shown."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
