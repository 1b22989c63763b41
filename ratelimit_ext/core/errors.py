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
