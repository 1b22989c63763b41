"""Where records lie: beside the limits, in their storage."""

from __future__ import annotations

from typing import Any

from limits.storage import RedisStorage, Storage

from ratelimit_ext.core.errors import StorageUnavailable


def storage_prefix(storage: Storage) -> str:
    """What every name in the storage begins with."""
    return str(getattr(storage, "key_prefix", "LIMITS"))


class SharedClient:
    """The client of a storage, for what lies beside the limits."""

    def __init__(self, storage: RedisStorage) -> None:
        self._client: Any = storage.get_connection()
        errors = storage.base_exceptions
        # OSError: this process has no file descriptor left for a connection.
        self._errors: tuple[Any, ...] = (
            OSError,
            *(errors if isinstance(errors, tuple) else (errors,)),
        )

    def run(self, command: str, *arguments: object) -> Any:
        """The reply of a command. Raises ``StorageUnavailable``."""
        try:
            return getattr(self._client, command)(*arguments)
        except Exception as error:
            # Those of a cluster have no base in common with the client's others.
            name = type(error).__name__
            if not isinstance(error, self._errors) and not name.endswith("ClusterException"):
                raise
            raise StorageUnavailable(f"the storage failed: {error}") from error
