"""An error before it has a wire format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# The SDKs of both providers obey a Retry-After up to here; beyond, some sleep for days and some
# retry at once, so they are asked not to retry at all.
LONGEST_OBEYED_WAIT_S: Final = 60


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """An error for a client.

    ``message`` says what was found and what to do, ``code`` the same for a program, ``param`` is
    the field of the body, ``retry_after_s`` the wait before a retry, ``is_final``: no retry helps,
    ``unit`` is the unit of the limit that denied, ``request_id`` the provider's id of the request.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    is_final: bool = False
    unit: str | None = None
    request_id: str | None = None

    @property
    def retry_is_useless(self) -> bool:
        """Whether a client should show the error instead of retrying."""
        return self.is_final or (self.retry_after_s or 0) > LONGEST_OBEYED_WAIT_S

    @property
    def headers(self) -> dict[str, str]:
        """The headers that control clients' retries."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.retry_is_useless:
            headers["x-should-retry"] = "false"
        return headers


def whole_seconds(wait_s: float) -> int:
    """A wait in whole seconds, rounded up, at least 1."""
    return max(1, math.ceil(wait_s))
