"""What commands print: tables, and errors as one sentence with exit status 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.store import Owner, UnknownOwnerError
from chatapp.database.migration import COMMAND
from ratelimit_ext import StorageUnavailable


def echo_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print aligned columns."""
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


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
