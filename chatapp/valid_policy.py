"""The last valid policy and providers.toml: a worker whose files are invalid starts with those.

gunicorn's master ends if a worker cannot start. A typo in a file would end the service at a reload,
or as soon as one worker dies. Only the first start ends with the mistake, as no file has been valid
yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from itertools import chain, combinations
from pathlib import Path
from typing import Final, TypeAlias

from flask import Flask

#: The file with the last valid policy, beside which the others are; gunicorn's master sets the
#: variable.
VARIABLE: Final = "GUNICORN_VALID_POLICY"
#: The settings that name the files.
POLICY: Final = "RATELIMIT_POLICY_FILE"
PROVIDERS: Final = "CHATAPP_PROVIDERS_FILE"
#: What a file is called in the log, and the command that checks it.
NAMES: Final = {
    POLICY: ("policy", "ratelimit check"),
    PROVIDERS: ("providers file", "chat providers check"),
}

Create: TypeAlias = Callable[[Mapping[str, object]], Flask]


def created(
    create_app: Create, defaults: Mapping[str, Path], mistakes: tuple[type[Exception], ...]
) -> Flask:
    """The application; with the last valid files instead of those that are invalid.

    ``defaults`` are the files by their settings, if no variable names one. Raises one of
    ``mistakes`` if the application cannot start with any of them.
    """
    kept = os.environ.get(VARIABLE)
    if not kept:
        return create_app({})
    files = {setting: configured_file(setting, default) for setting, default in defaults.items()}
    last = {setting: Path(kept).with_name(f"{setting}.toml") for setting in defaults}
    before = {setting: _content(file) for setting, file in files.items()}
    try:
        app = create_app({})
    except mistakes as mistake:
        app, invalid = _created_with(last, create_app, mistakes, mistake)
        for setting in invalid:
            name, command = NAMES[setting]
            app.logger.error(
                "The %s is invalid; the last valid one stays in use. Correct the file, check it "
                "with `flask --app wsgi %s`, and send HUP to the master. %s",
                *(name, command, mistake),
            )
        return app
    for setting, content in before.items():
        # Not if the file has changed since the application read it.
        if content is not None and content == _content(files[setting]):
            _keep(last[setting], content)
    return app


def configured_file(setting: str, default: Path) -> Path:
    """The file of the environment, or the default."""
    return Path(os.environ.get(setting, "").strip() or default)


def _created_with(
    last: Mapping[str, Path],
    create_app: Create,
    mistakes: tuple[type[Exception], ...],
    mistake: Exception,
) -> tuple[Flask, tuple[str, ...]]:
    """The application with as few of the last valid files as possible, and their settings. Raises
    ``mistake`` if that does not help: then it is not a mistake of a file."""
    kept = [setting for setting, file in last.items() if _content(file)]
    sizes = range(1, len(kept) + 1)
    for chosen in chain.from_iterable(combinations(kept, size) for size in sizes):
        try:
            return create_app({setting: str(last[setting]) for setting in chosen}), chosen
        except mistakes:
            continue
    raise mistake


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _keep(kept: Path, content: bytes) -> None:
    """Write it atomically: several workers start at once, and any may be killed meanwhile."""
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        written.write_bytes(content)
        written.replace(kept)
    except OSError:
        return  # a later mistake then stops starting workers, as without this file
