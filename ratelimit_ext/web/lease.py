"""The lease: how long a call may give no sign of life before what it holds goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ratelimit_ext.core.errors import ConfigurationError

#: The key of an application's configuration, and what holds without it, in seconds.
LEASE: Final = "RATELIMIT_LEASE_SECONDS"
DEFAULT_LEASE_S: Final = 120.0
#: For a day a dead worker's calls would take the room of others. No call is silent for so long.
LONGEST_LEASE_S: Final = 86_400


def lease_s(config: Mapping[str, Any]) -> float:
    """The lease that an application has configured. Raises ``ConfigurationError``."""
    found = config.get(LEASE, DEFAULT_LEASE_S)
    try:
        seconds = float("nan") if isinstance(found, bool) else float(found)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not 0 < seconds <= LONGEST_LEASE_S:  # a NaN is neither
        raise ConfigurationError(
            f"{LEASE}: found {found!r}; allowed: a number of seconds above 0, up to "
            f"{LONGEST_LEASE_S} (a day). It has to be longer than a call may be silent."
        )
    return seconds
