"""What can go wrong, named after the remedy and not after the place."""

from __future__ import annotations


class ConfigurationError(ValueError):
    """A limit, a policy or a setting that cannot be carried out.

    The message says where it stands, what was found, what is allowed and what to do.
    """


class StorageUnavailable(RuntimeError):
    """The storage gave no answer in time, or an answer that says it cannot serve.

    Nothing is known about whether the charges were taken; the cause is chained.
    """


class StorageFull(StorageUnavailable):
    """The storage answers and has no memory for the bucket ``key`` of an unknown identity.

    Nothing was charged. Identities that the storage knows are decided as always.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"the storage is full (maxmemory) and cannot store {key}")
        self.key = key
