"""An error before it has a shape: what every shape needs to tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# The SDKs of both providers obey a Retry-After up to here; beyond, some sleep for days and some
# hammer, so they are told not to retry at all.
LONGEST_OBEYED_WAIT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Trouble:
    """``sentence`` says what was found and what to do, ``code`` the same for a program.

    ``param`` is the field of the body that it is about, ``retry_after_s`` how long to wait before
    trying again, ``hopeless`` that no retry will help, ``unit`` what the limit counts that denied,
    ``request_id`` the id that a provider gave the request.
    """

    status: int
    code: str
    sentence: str
    param: str | None = None
    retry_after_s: int | None = None
    hopeless: bool = False
    unit: str | None = None
    request_id: str | None = None

    @property
    def retry_is_useless(self) -> bool:
        """Whether a client should show the error instead of trying again."""
        return self.hopeless or (self.retry_after_s or 0) > LONGEST_OBEYED_WAIT_S

    @property
    def headers(self) -> dict[str, str]:
        """What tells clients' retry loops whether and when."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.retry_is_useless:
            headers["x-should-retry"] = "false"
        return headers


def whole_seconds(wait_s: float) -> int:
    """A wait in whole seconds, never shorter than it is."""
    return max(1, math.ceil(wait_s))
