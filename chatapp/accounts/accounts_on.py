"""A mark that accounts were on, outside the database, which may lose its keys.

A SQLite database that was copied without its journal has no key, nor has another database that
DATABASE_URL names by mistake. Without a mark the server would let everyone in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from chatapp.database.connection import Database, create_private

#: Of the file beside a SQLite database, after the name of that.
SUFFIX: Final = ".accounts-on"
KEY: Final = "chatapp:accounts-on"
#: A new worker prolongs it.
KEEP_S: Final = 400 * 24 * 3600


class AccountsOn:
    """A file beside a SQLite database, and a key in the limits' storage.

    ``storage`` returns that storage, a `limits.storage.RedisStorage`, or None if it is another one.
    ``is_down`` tells whether it is known not to answer, ``prefix`` belongs to this server's limits.
    """

    def __init__(
        self,
        database: Database,
        storage: Callable[[], Any] = lambda: None,
        *,
        is_down: Callable[[], bool] = lambda: False,
        prefix: str = "",
    ) -> None:
        file = database.file
        self._file = None if file is None else file.with_name(f"{file.name}{SUFFIX}")
        self._storage = storage
        self._is_down = is_down
        self._key = f"{prefix}{KEY}"

    def is_set(self) -> bool | None:
        """Return whether it is set; None if the storage does not answer."""
        if self._file is not None and self._file.exists():
            return True
        if (storage := self._storage()) is None:
            return False
        if self._is_down():
            return None
        try:
            return bool(storage.get_connection().exists(storage.prefixed_key(self._key)))
        except Exception:  # noqa: BLE001 - a cluster's errors have no base in common
            return None

    def set(self) -> None:
        """Set it wherever that is possible."""
        if self._file is not None:
            with suppress(OSError):
                create_private(self._file)
        if (storage := self._storage()) is not None:
            with suppress(Exception):  # as above
                storage.get_connection().set(storage.prefixed_key(self._key), 1, ex=KEEP_S)

    def clear(self) -> None:
        """Remove it. Raises OSError, or the errors of the storage."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if (storage := self._storage()) is not None:
            storage.get_connection().delete(storage.prefixed_key(self._key))
