"""The application of a command, its extensions, and errors as one sentence with exit status 1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, cast

import click
import flask
from limits.storage import MemoryStorage

from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.web.commands import EXTENSION
from ratelimit_ext.web.extension import Limiter

NOT_SHARED: Final = (
    "The limits are in the memory of each worker (memory://), which no command can see or change. "
    "Set RATELIMIT_STORAGE_URI to a storage that all share, or start the server that has it."
)


def application() -> flask.Flask:
    return cast(flask.Flask, cast(Any, flask.current_app)._get_current_object())


def enabled_limiters() -> list[Limiter]:
    """The application's extensions that limit something."""
    limiters: list[Limiter] = flask.current_app.extensions[EXTENSION]
    enabled = [limiter for limiter in limiters if limiter.enabled]
    if not enabled:
        raise click.ClickException("Rate limits are disabled (RATELIMIT_ENABLED).")
    return enabled


def shared_limiters() -> list[Limiter]:
    """Those whose storage is the workers'. ClickException if it is this process's memory."""
    limiters = enabled_limiters()
    if any(isinstance(limiter.storage, MemoryStorage) for limiter in limiters):
        raise click.ClickException(NOT_SHARED)
    return limiters


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Report errors as one sentence, with exit status 1."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except StorageUnavailable as error:
        raise click.ClickException(f"The limits cannot be read: {error}") from error
