"""Errors of commands: one sentence, and exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from sqlalchemy.exc import SQLAlchemyError

from chatapp.database.migration import COMMAND
from ratelimit_ext import StorageUnavailable


@contextmanager
def reported() -> Iterator[None]:
    """Report errors of the database and of the limits' storage."""
    try:
        yield
    except (ValueError, StorageUnavailable) as error:  # of the limits
        raise click.ClickException(str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise click.ClickException(
            f"The database failed: {reason}. If it is new, or of another version, run `{COMMAND}`."
        ) from error
