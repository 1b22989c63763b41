"""The fixtures of chatapp's tests: an application in an environment without keys."""

from __future__ import annotations

from tests.chatapp.conftest import (
    bare_environment,
    database_url,
    empty_database,
    make_app,
    threads_end_with_the_test,
)

__all__ = [
    "bare_environment",
    "database_url",
    "empty_database",
    "make_app",
    "threads_end_with_the_test",
]
