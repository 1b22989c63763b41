"""The seam between a call and the limits of its request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from chatapp.estimates.estimate import Estimate
from chatapp.providers import Quota


class AttemptLimits(Protocol):
    """The limits in front of a provider, for each attempt at one call."""

    def admit_attempt(self) -> float | None:
        """Charge another attempt. Returns the wait in seconds if it is denied."""
        ...

    def cool_down(self, for_s: float | None) -> None:
        """Close the model to all callers for that time; None: for a second, longer each time."""
        ...

    def pause_s(self) -> float:
        """The rest of the model's cool-down in seconds; 0 if the model is open."""
        ...

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """Record the provider's quotas as of ``asked_at``, an instant of the monotonic clock."""
        ...


class CallLimits(AttemptLimits, Protocol):
    """The limits of one request. Those that follow the call may be used after the request."""

    @property
    def was_not_billed(self) -> bool:
        """Whether a recent call of the caller was not billed as far as we know."""
        ...

    @property
    def renewal_is_due(self) -> bool:
        """Whether the reservation must be renewed before it expires."""
        ...

    def admit_fallback(self) -> float | None:
        """Charge the limits of the fallback model. Returns the wait in seconds if denied."""
        ...

    def hold(self, estimate: Estimate) -> bool:
        """Reserve this estimate instead of the smaller one; False if a limit denies it."""
        ...

    def budget_micro_usd(self) -> int | None:
        """What the caller's dollar limits have left for this call; None without such a limit."""
        ...

    def calls_in_flight(self) -> int:
        """The caller's calls in flight, including this one; 0 without such a limit."""
        ...

    def note_unbilled(self) -> None:
        """Record that this call may be billed although no usage was reported."""
        ...

    def renew(self, **costs: Any) -> None:
        """Keep at least these costs reserved, by unit."""
        ...

    def settle(self, **costs: Any) -> None:
        """Correct the reservation to these costs, by unit."""
        ...

    def cancel(self) -> None:
        """Refund the whole reservation."""
        ...
