"""Asking a provider: bounded attempts, and what its answers and refusals mean for everybody.

A provider that refuses for want of room is left alone by all workers for as long as it asks, or
for a second that grows where it says nothing. The SDKs do not retry here: a call that timed out may
have been billed, and an attempt that no limit has seen would be one too many. So each further
attempt is admitted like the first, and what was late is not asked again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from chatapp.providers import ErrorKind, ProviderError, Quota

#: What closes a provider's models to everybody for a while.
NO_ROOM: Final[frozenset[ErrorKind]] = frozenset({"rate_limited", "overloaded"})
#: What is worth another attempt, of the same model or of another. Not a timeout, which may be
#: billed twice.
TRIED_AGAIN: Final = NO_ROOM | {"unavailable"}

#: How long a caller waits for further attempts at most, in seconds: his thread is taken meanwhile,
#: and a longer wait is better told to him.
PATIENCE_S: Final = 2.0
#: The pause after a refusal that names none. Where nobody was refused, a part of it by chance, so
#: that those who failed together do not come together.
PAUSE_S: Final = 1.0
#: No pause for all callers is longer, whatever the provider says: after it a few calls try whether
#: the provider has room again, and a refusal begins the next pause.
LONGEST_COOL_DOWN_S: Final = 60.0


class Answered(Protocol):
    """What an attempt brings: it tells of the provider's quotas."""

    @property
    def quotas(self) -> Sequence[Quota]: ...


A = TypeVar("A", bound=Answered)


class Gate(Protocol):
    """The limits of the present request, as far as they stand before its provider."""

    def admit_again(self) -> float | None:
        """Charge another attempt; the wait in seconds where there is no room for it."""
        ...

    def cool_down(self, for_s: float | None) -> None:
        """Let nobody ask this model for so long; None: for a second, and longer each time."""
        ...

    def pause_s(self) -> float:
        """For how long nobody may ask this model, in seconds; 0 where it may be asked."""
        ...

    def exceeds(self, quotas: Sequence[Quota]) -> bool:
        """Whether this call alone is more than one of these ever holds."""
        ...

    def learn(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """Note what the provider told of its quotas to whom it was asked by at ``asked_at`` (of
        the monotonic clock)."""
        ...


class Guard:
    """Asks for one call. ``sleep`` answers whether its caller has left meanwhile, for whom nobody
    is asked again."""

    def __init__(self, gate: Gate, *, most_attempts: int, sleep: Callable[[float], bool]) -> None:
        self._gate = gate
        self._most_attempts = most_attempts
        self._sleep = sleep
        #: How often the provider was asked so far.
        self.attempts = 0

    def ask(self, attempt: Callable[[], A]) -> A:
        """What the first successful attempt brings; ProviderError of the last where none is."""
        patience_s = PATIENCE_S
        while True:
            self.attempts += 1
            asked_at = time.monotonic()
            try:
                answered = attempt()
            except ProviderError as error:
                error.was_retried = self.attempts > 1
                self.met(error, asked_at=asked_at)
                patience_s = self._waited(error, patience_s)
            else:
                self._gate.learn(answered.quotas, asked_at=asked_at)
                return answered

    def ask_once(self, attempt: Callable[[], A]) -> A:
        """The same with a single attempt, for a second choice."""
        self._most_attempts = self.attempts + 1
        return self.ask(attempt)

    def met(self, error: ProviderError, *, asked_at: float) -> None:
        """Let everybody know of a refusal, also of one in the middle of a stream."""
        self._gate.learn(error.quotas, asked_at=asked_at)
        # A call that is too large for the provider says nothing of its room for others.
        if error.kind in NO_ROOM and not self._gate.exceeds(error.quotas):
            wait_s = error.retry_after_s
            self._gate.cool_down(None if wait_s is None else min(wait_s, LONGEST_COOL_DOWN_S))

    def _waited(self, error: ProviderError, patience_s: float) -> float:
        """Wait until another attempt is admitted, and tell what is left of the patience; raise the
        error where there will be none."""
        if error.kind not in TRIED_AGAIN or self._gate.exceeds(error.quotas):
            raise error
        if self.attempts >= self._most_attempts:
            # Where the provider names no wait, the pause that follows from it is told.
            unnamed = error.kind in NO_ROOM and error.retry_after_s is None
            raise _with_wait(error, self._gate.pause_s()) if unnamed else error
        if error.kind in NO_ROOM:
            wait_s: float | None = error.retry_after_s or PAUSE_S
        else:
            wait_s = PAUSE_S * random.uniform(0.25, 0.5)  # noqa: S311 - no secret
        while wait_s is not None:
            if wait_s > patience_s:
                raise _with_wait(error, wait_s)
            if self._sleep(wait_s):
                raise error
            patience_s -= wait_s
            wait_s = self._gate.admit_again()
        return patience_s


def _with_wait(error: ProviderError, wait_s: float) -> ProviderError:
    """The same error, with the wait that is known now."""
    if error.kind in NO_ROOM:
        error.retry_after_s = max(wait_s, error.retry_after_s or 0.0)
    return error
