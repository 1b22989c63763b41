"""Impossible requests of operators: one sentence each, and exit status 1 of commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from sqlalchemy.exc import SQLAlchemyError

from chatapp.accounts.store import Owner, UnknownOwnerError
from chatapp.database.migration import COMMAND
from ratelimit_ext import StorageUnavailable


@contextmanager
def reported_errors() -> Iterator[None]:
    """Report unknown users, keys and teams, and errors of the database and the limits' storage."""
    try:
        yield
    except UnknownOwnerError as error:
        raise unknown(error.owner, error.name) from error
    except ValueError as error:  # of the limits
        raise click.ClickException(str(error)) from error
    except StorageUnavailable as error:
        raise click.ClickException(f"The limits cannot be reached: {error}") from error
    except BrokenPipeError:  # as in `… | head`; click ends the command without a word
        raise
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
