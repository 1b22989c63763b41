"""The last valid policy: a worker that finds an invalid one at its start loads that instead.

gunicorn's master ends if a worker cannot start. One typo in the policy would end the service at a
reload, or as soon as one worker dies. The first start still ends with the mistake: no policy has
been valid yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from flask import Flask

#: Where a worker keeps the policy that it has started with; the master sets it.
VARIABLE: Final = "GUNICORN_VALID_POLICY"
POLICY_FILE: Final = "RATELIMIT_POLICY_FILE"

Create: TypeAlias = Callable[[Mapping[str, object]], Flask]


def created(create_app: Create, default: Path, mistakes: tuple[type[Exception], ...]) -> Flask:
    """The application; with the last valid policy if the present one keeps it from starting.

    ``default`` is the file of the policy if no variable names one. Raises one of ``mistakes`` if
    the application cannot start with either.
    """
    kept = os.environ.get(VARIABLE)
    if not kept:
        return create_app({})
    file = configured_file(default)
    before = _content(file)
    try:
        app = create_app({})
    except mistakes as mistake:
        app = _created_with(Path(kept), create_app, mistakes, mistake)
        app.logger.error(
            "The policy cannot be used, and the last valid one stays in use. Correct the file and "
            "send HUP to the master; `flask --app wsgi chat policy check` checks it. %s",
            mistake,
        )
        return app
    # The file may have changed since the application has read it.
    if before is not None and before == _content(file):
        _keep(Path(kept), before)
    return app


def configured_file(default: Path) -> Path:
    """The file of the policy by the environment."""
    return Path(os.environ.get(POLICY_FILE, "").strip() or default)


def _created_with(
    kept: Path, create_app: Create, mistakes: tuple[type[Exception], ...], mistake: Exception
) -> Flask:
    """The application with the kept policy. Raises the mistake if it is none of the policy's."""
    if not _content(kept):
        raise mistake
    try:
        return create_app({POLICY_FILE: str(kept)})
    except mistakes:
        raise mistake from None


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _keep(kept: Path, policy: bytes) -> None:
    """Write it as a whole: several workers start at once, and one may be killed meanwhile."""
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        written.write_bytes(policy)
        written.replace(kept)
    except OSError:
        return  # then a mistake later stops the workers that start, as without this file
