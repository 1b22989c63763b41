"""What commands print: tables for people, JSON for programs, and errors as one sentence with exit
status 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import click
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.store import Owner, UnknownOwnerError
from chatapp.database.migration import COMMAND
from ratelimit_ext import StorageUnavailable
from ratelimit_ext.cli import echo_json, echo_table


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


def _cell(value: object) -> str:
    """A value in a table."""
    match value:
        case dict():
            text = ", ".join(f"{name}={each}" for name, each in value.items())
        case list() | tuple():
            text = ", ".join(map(str, value))
        case _:
            text = "" if value is None else str(value)
    return text or "-"


@contextmanager
def reported_errors() -> Iterator[None]:
    """Report unknown users, keys and teams, and errors of the database and the limits' storage."""
    try:
        yield
    except UnknownOwnerError as error:
        raise unknown(error.owner, error.name) from error
    except (ValueError, StorageUnavailable) as error:  # of the limits
        raise click.ClickException(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise click.ClickException(
            f"The database failed: {reason}. If it is new, or of another version, run `{COMMAND}`."
        ) from error


def unknown(owner: Owner, name: str) -> click.ClickException:
    """There is no such user, key or team."""
    # A key's text may have its secret in it.
    shown = name[:16] if owner == "key" else repr(name)
    return click.ClickException(
        f"There is no {owner} {shown}; `chat {owner}s list` lists the {owner}s."
    )
