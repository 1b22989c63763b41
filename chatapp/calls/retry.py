"""Attempts at one call: how many, after which waits, and what a refusal means for other callers.

After a provider has refused a call because of its load and named a wait, no worker calls that model
with that key until it is over; requests wait that long if they may (web/current_call.py). Without a
named wait, calls go on (throttle.py).

The SDKs do not retry here: a call that timed out may have been billed, and no limit would see the
second attempt. So each attempt is admitted like the first, and a timeout is not retried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final, Protocol, TypeVar

from chatapp.calls.upstream_quota import exceeds
from chatapp.upstreams import ErrorKind, Quota, QuotaUnit, UpstreamError

#: Errors that tell a provider's load.
REFUSED_FOR_LOAD: Final[frozenset[ErrorKind]] = frozenset({"rate_limited", "overloaded"})
#: Errors worth another attempt, of the model or its fallback. A timeout may be billed twice.
RETRYABLE: Final = REFUSED_FOR_LOAD | {"unavailable"}

#: Errors of one key: another key of the upstream may do at once. So may it if a wait was named.
OF_THE_KEY: Final[frozenset[ErrorKind]] = frozenset({"rate_limited", "auth", "quota"})

#: The longest total wait for further attempts, in seconds: the call occupies a thread meanwhile,
#: and a client can wait longer itself.
PATIENCE_S: Final = 2.0
#: The pause after a refusal that names none. After another failure the pause is a random part of
#: it, so that callers that failed together do not retry together.
PAUSE_S: Final = 1.0
#: The longest cool-down, even if the provider names a longer one. After it, a few calls try the
#: provider, and a refusal begins the next cool-down.
LONGEST_COOL_DOWN_S: Final = 60.0


class AttemptLimits(Protocol):
    """The limits in front of a provider, for each attempt at one call."""

    def admit_attempt(self) -> float | None:
        """Charge another attempt. Returns the wait in seconds if it is denied."""

    def cool_down(self, for_s: float) -> None:
        """Close the model, with this key, to all callers for that time."""

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """Record the provider's quotas as of ``asked_at``, an instant of the monotonic clock."""


class Answer(Protocol):
    """The result of an attempt, with the provider's quotas."""

    @property
    def quotas(self) -> Sequence[Quota]: ...


A = TypeVar("A", bound=Answer)


@dataclass(slots=True, eq=False, repr=False)
class Retry:
    """The attempts at one call.

    ``quota_use`` is what the provider counts the call as. ``sleep`` returns True if the client has
    disconnected, which ends the attempts.

    In `run` and `run_once`, ``other_key`` switches the call to another key of the upstream, and
    returns False if none is left; such an attempt is one more than ``most_attempts``. It is not
    kept: what refers to each other waits for the garbage collector, for which all threads wait.
    """

    limits: AttemptLimits
    _: KW_ONLY
    quota_use: Mapping[QuotaUnit, int]
    most_attempts: int
    sleep: Callable[[float], bool]
    #: So far.
    attempts: int = 0

    def run(self, attempt: Callable[[], A], other_key: Callable[[], bool] = lambda: False) -> A:
        """Return the first successful attempt's answer; raises the last one's UpstreamError."""
        patience_s = PATIENCE_S
        while True:
            self.attempts += 1
            asked_at = time.monotonic()
            try:
                answer = attempt()
            except UpstreamError as error:
                self.note(error, asked_at=asked_at)
                patience_s = self._wait(error, patience_s, other_key)
            else:
                self.limits.report(answer.quotas, asked_at=asked_at)
                return answer

    def run_once(
        self, attempt: Callable[[], A], other_key: Callable[[], bool] = lambda: False
    ) -> A:
        """Return the same with a single attempt, for a fallback."""
        self.most_attempts = self.attempts + 1
        return self.run(attempt, other_key)

    def note(self, error: UpstreamError, *, asked_at: float) -> None:
        """Share what an error says about the provider, also one in the middle of a stream."""
        self.limits.report(error.quotas, asked_at=asked_at)
        # A call that is larger than the whole quota says nothing about the provider's load.
        if _names_wait(error) and not exceeds(self.quota_use, error.quotas):
            self.limits.cool_down(min(error.retry_after_s or 0.0, LONGEST_COOL_DOWN_S))

    def _wait(
        self, error: UpstreamError, patience_s: float, other_key: Callable[[], bool]
    ) -> float:
        """Wait until another attempt is admitted. Returns the rest of the patience; raises the
        error if there is no further attempt."""
        is_refused_for_key = error.kind in OF_THE_KEY or _names_wait(error)
        is_too_large = exceeds(self.quota_use, error.quotas)
        if is_refused_for_key and not is_too_large and self._take_key(other_key):
            self.most_attempts += 1
            return patience_s
        if error.kind not in RETRYABLE or is_too_large or self.attempts >= self.most_attempts:
            raise error
        if error.kind in REFUSED_FOR_LOAD:
            wait_s: float | None = error.retry_after_s or PAUSE_S
        else:
            wait_s = PAUSE_S * random.uniform(0.25, 0.5)  # noqa: S311 - no secret
        while wait_s is not None:
            if wait_s > patience_s:
                if error.kind in REFUSED_FOR_LOAD:
                    error.retry_after_s = max(wait_s, error.retry_after_s or 0.0)
                raise error
            if self.sleep(wait_s):
                raise error
            patience_s -= wait_s
            wait_s = self.limits.admit_attempt()
        return patience_s

    def _take_key(self, other_key: Callable[[], bool]) -> bool:
        """Switch to a key whose limits admit the call; False without one."""
        while other_key():
            if self.limits.admit_attempt() is None:
                return True
        return False


def _names_wait(error: UpstreamError) -> bool:
    return error.kind in REFUSED_FOR_LOAD and error.retry_after_s is not None
