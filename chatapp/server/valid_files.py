"""The last valid policy, providers.toml and managed settings, for those whose files are invalid.

A typo in a file would end a worker that starts, and every command: also the one that revokes a
leaked key. Each worker of gunicorn keeps the files that it has started with. A worker uses them if
another one has served; the first start ends with the mistake.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeAlias

import click
from flask import Flask

#: The directory of the last valid files. gunicorn's master sets the variable.
DIRECTORY: Final = "GUNICORN_VALID_FILES"
DEFAULT_DIRECTORY: Final = Path(__file__).parents[2] / "instance" / "valid-files"
#: Set in a worker of gunicorn.conf.py: "1" if a worker has served before it, else empty.
HAS_SERVED: Final = "GUNICORN_HAS_SERVED"
#: The settings that name the files.
POLICY: Final = "RATELIMIT_POLICY_FILE"
PROVIDERS: Final = "CHATAPP_PROVIDERS_FILE"
MANAGED: Final = "CHATAPP_MANAGED_SETTINGS_FILE"
POLICY_FILE: Final = Path(__file__).parents[1] / "policy.toml"
PROVIDERS_FILE: Final = Path(__file__).parents[1] / "providers.toml"
#: The files that a reload reads, by the settings that name another one.
FILES: Final = {POLICY: POLICY_FILE, PROVIDERS: PROVIDERS_FILE, MANAGED: Path(os.devnull)}
#: What a file is called in the log, and the command that checks it.
NAMES: Final = {
    POLICY: ("policy", "flask --app wsgi ratelimit check"),
    PROVIDERS: ("providers file", "flask --app wsgi chat providers check"),
    MANAGED: ("file of managed settings", "python -m json.tool"),
}
MODEL_SETTINGS: Final = ("CHATAPP_DEFAULT_MODEL", "CHATAPP_FALLBACK_MODELS")
#: The settings that name what the files define.
WITHOUT_NAMES: Final = dict.fromkeys(("CHATAPP_PLANS", *MODEL_SETTINGS))
WITHOUT_POLICY: Final = {**WITHOUT_NAMES, POLICY: str(Path(__file__).with_name("no_policy.toml"))}
WITHOUT_PROVIDERS: Final = {**WITHOUT_NAMES, PROVIDERS: None}
WITHOUT: Final[Mapping[str, Mapping[str, str | None]]] = {
    POLICY: WITHOUT_POLICY,
    PROVIDERS: WITHOUT_PROVIDERS,
    MANAGED: {MANAGED: None},
}

Config: TypeAlias = Mapping[str, object]
Create: TypeAlias = Callable[[Config], Flask]


def created(
    create_app: Create, mistakes: tuple[type[Exception], ...], *, of_command: Config | None
) -> Flask:
    """Return the application; with the last valid files instead of those that are invalid.

    ``of_command`` is the configuration of a command, which starts whatever its files are; None for
    a server. Raises one of ``mistakes`` if the application cannot start.
    """
    overrides = dict(of_command or {})
    files = {setting: configured_file(setting) for setting in FILES if setting not in overrides}
    before = {file: _content(file) for file in files.values()}
    try:
        app = create_app(overrides)
    except mistakes as mistake:
        if of_command is None and not os.environ.get(HAS_SERVED):
            raise
        for config in _replacements(files, is_command=of_command is not None):
            with suppress(*mistakes):
                app = create_app({**config, **overrides})
                break
        else:
            raise
        _report(app, config, mistake, is_command=of_command is not None)
        return app
    if HAS_SERVED in os.environ:
        for file, content in before.items():
            # Not if the file has changed since the application read it.
            if content and content == _content(file):
                _keep(_last_valid(file), content)
    return app


def configured_file(setting: str) -> Path:
    return Path(os.environ.get(setting, "").strip() or FILES[setting])


def _replacements(files: Mapping[str, Path], *, is_command: bool) -> Iterable[Config]:
    """Yield the configurations to try: as few of the last valid files as possible. A command does
    without the names that the files define, or without a file of which none was ever valid."""
    if is_command:
        yield WITHOUT_NAMES
    spare: dict[str, Config] = {}
    for setting, file in files.items():
        if _content(last := _last_valid(file)):
            spare[setting] = {setting: str(last)}
        elif is_command:
            spare[setting] = WITHOUT[setting]
    yield from spare.values()
    yield {name: value for config in spare.values() for name, value in config.items()}


def _report(app: Flask, config: Config, mistake: Exception, *, is_command: bool) -> None:
    """Name the files that are replaced, and the mistake."""
    if config is WITHOUT_NAMES:
        warning = (
            f"This command does without {', '.join(config)}. Correct the mistake before the start"
        )
        click.echo(f"Warning: {warning}:\n{mistake}", err=True)
    for setting in config.keys() & NAMES.keys():
        name, command = NAMES[setting]
        is_last = config[setting] not in {WITHOUT_POLICY[POLICY], None}
        used = "the last valid one stays in use" if is_last else "none was valid before"
        warning = f"The {name} is invalid; {used}. Correct the file, "
        warning += f"check it with `{command}`, and send HUP to the master."
        if is_command:
            click.echo(f"Warning: {warning}\n{mistake}", err=True)
        else:
            app.logger.error("%s %s", warning, mistake)


def _last_valid(file: Path) -> Path:
    directory = Path(os.environ.get(DIRECTORY) or DEFAULT_DIRECTORY)
    return directory / f"{sha256(os.fsencode(file.absolute())).hexdigest()[:16]}.toml"


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
