"""The last valid policy: a worker whose policy is invalid starts with it instead.

gunicorn's master ends if a worker cannot start. A typo in the policy would end the service at a
reload, or as soon as one worker dies. Only the first start ends with the mistake, as there is no
valid policy yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from flask import Flask

#: The file with the last valid policy; gunicorn's master sets the variable.
VARIABLE: Final = "GUNICORN_VALID_POLICY"
#: The setting that names the policy file.
SETTING: Final = "RATELIMIT_POLICY_FILE"

Create: TypeAlias = Callable[[Mapping[str, object]], Flask]


def created(create_app: Create, default: Path, mistakes: tuple[type[Exception], ...]) -> Flask:
    """The application; with the last valid policy if the current one is invalid.

    ``default`` is the policy file if no variable names one. Raises one of ``mistakes`` if the
    application cannot start with either policy.
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
            "The policy is invalid; the last valid one stays in use. Correct the file, check it "
            "with `flask --app wsgi chat policy check`, and send HUP to the master. %s",
            mistake,
        )
        return app
    # Not if the file has changed since the application read it.
    if before is not None and before == _content(file):
        _keep(Path(kept), before)
    return app


def configured_file(default: Path) -> Path:
    """The policy file of the environment, or the default."""
    return Path(os.environ.get(SETTING, "").strip() or default)


def _created_with(
    kept: Path, create_app: Create, mistakes: tuple[type[Exception], ...], mistake: Exception
) -> Flask:
    """The application with the last valid policy. Raises ``mistake`` if that does not help: then it
    is not a mistake of the policy."""
    if not _content(kept):
        raise mistake
    try:
        return create_app({SETTING: str(kept)})
    except mistakes:
        raise mistake from None


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _keep(kept: Path, policy: bytes) -> None:
    """Write it atomically: several workers start at once, and any may be killed meanwhile."""
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        written.write_bytes(policy)
        written.replace(kept)
    except OSError:
        return  # a later mistake then stops starting workers, as without this file
