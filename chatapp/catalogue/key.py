"""A key of an upstream, by its source.

Its secret is only in the header of a request: no log, error, representation or identity of a limit
has it. They name a key by its variable or its file.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from pathlib import Path
from stat import S_ISREG
from typing import Final

log = logging.getLogger(__name__)

VARIABLE: Final = "env:"
FILE: Final = "file:"
ALLOWED: Final = '"env:NAME" (a variable) or "file:/PATH" (a file, with an absolute path)'
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A header may not have more.
SECRET_MAX_BYTES: Final = 16 * 1024


class Key:
    """A key by its source. ``name`` is the variable or the file, which is read when it changes.
    ValueError if the source is invalid, without quoting it: it may be the key itself."""

    __slots__ = ("_file", "_read_of", "_secret", "changed_at", "name", "version")

    def __init__(self, source: str) -> None:
        self._file: Path | None = None
        self._read_of: tuple[int, int, int] | None = None
        self._secret: str | None = None
        #: Counts the secrets that the file has had, and since when it has the last one.
        self.version = 0
        self.changed_at = -math.inf
        if source.startswith(VARIABLE) and NAME.fullmatch(source.removeprefix(VARIABLE)):
            self.name = source.removeprefix(VARIABLE)
            self._secret = self._valid(os.environ.get(self.name, ""))
        elif source.startswith(FILE) and Path(source.removeprefix(FILE)).is_absolute():
            self.name = source.removeprefix(FILE)
            self._file = Path(self.name)
            if self._file.exists() and not self._file.is_file():
                raise ValueError(
                    "is not a regular file; write the path of a file that holds the key"
                )
        else:
            raise ValueError(
                f"does not say where the key is; write {ALLOWED}, never the key itself"
            )

    def __repr__(self) -> str:
        return f"Key({self.name!r})"

    @property
    def secret(self) -> str | None:
        """The key; None if the variable is not set or the file has never had a valid one."""
        if self._file is not None:
            self._look_at(self._file)
        return self._secret

    def _look_at(self, file: Path) -> None:
        """Read the file if it has changed. The last valid key stays in use."""
        try:
            stat = file.stat()
            state = stat.st_mtime_ns, stat.st_ino, stat.st_size
            if state == self._read_of or not S_ISREG(stat.st_mode):
                return
            with file.open("rb") as opened:
                secret = self._valid(opened.read(SECRET_MAX_BYTES + 1).decode())
        except (OSError, ValueError):
            return
        self._read_of = state
        if secret is not None and secret != self._secret:
            self.changed_at = -math.inf if self._secret is None else time.monotonic()
            self._secret = secret
            self.version += 1

    def _valid(self, text: str) -> str | None:
        """Return the key in this text; None, with a warning, if no header could have it."""
        secret = text.strip()
        is_word = secret.isascii() and secret.isprintable() and {*secret}.isdisjoint(" \"'")
        if secret and not (is_word and len(secret) <= SECRET_MAX_BYTES):
            log.warning("%s is not one word of ASCII without quotes, and is not used", self.name)
            return None
        return secret or None
