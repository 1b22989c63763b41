"""The limits of the present request before its provider, by their names in the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chatapp.providers import Quota, QuotaUnit
from chatapp.upstream.learned import allowance_of
from ratelimit_ext import Limiter

#: The cool-down of a model, `unless blocked`.
COOL_DOWN: Final = "provider"
#: The provider's own quotas, `as reported`.
INPUT_QUOTA: Final = "provider-input-tokens"
QUOTAS: Final = ("provider-requests", "provider-tokens", INPUT_QUOTA, "provider-output-tokens")
#: Set for an hour after a call whose usage was not reported; `unless blocked` in shadow.
UNBILLED: Final = "unbilled"
UNBILLED_S: Final = 3600.0
#: Stops a key that spends far more than usual.
SURGE: Final = "surge"
#: Everything that is counted by model: charged anew where another model is asked.
OF_THE_MODEL: Final = ("model", "blocked-model", COOL_DOWN, *QUOTAS)

#: The first pause of a provider that names none, in seconds.
FIRST_PAUSE_S: Final = 1.0


class LimiterGate:
    """A Gate of `chatapp.upstream.guard` over the extension.

    What it notes and closes it may note after the request, as a stream does; an attempt is admitted
    within it. ``shares_pauses``: a refusal says something about calls of others. That of a special
    tier, which few may use, does not.
    """

    def __init__(
        self, limiter: Limiter, needs: Mapping[QuotaUnit, int], *, shares_pauses: bool
    ) -> None:
        self._limiter = limiter
        self._reservation = limiter.reservation
        self._shares_pauses = shares_pauses
        self._unbilled = limiter.verdict(UNBILLED)
        #: What the call is counted as by its provider, before it is made.
        self.needs = needs

    def admit_again(self) -> float | None:
        """See Gate."""
        return self._limiter.admit_again(COOL_DOWN, *QUOTAS)

    def admit_model(self) -> float | None:
        """The same after the request was changed to another model."""
        return self._limiter.admit_again(*OF_THE_MODEL)

    def hold_more(self) -> bool:
        """Hold what the present request may use beyond what is held for it; whether there was
        enough of every limit."""
        return self._limiter.admit_again() is None

    @property
    def was_not_billed(self) -> bool:
        """Whether a call of the caller's was lately not billed as far as we know."""
        return self._unbilled is not None and not self._unbilled.allowed

    def note_unbilled(self) -> None:
        """The present call may be billed, and its usage was not reported."""
        if self._unbilled is not None:
            self._reservation.block(UNBILLED, for_s=UNBILLED_S)

    def pause_s(self) -> float:
        """See Gate."""
        return self._limiter.wait_again(COOL_DOWN)

    def exceeds(self, quotas: Sequence[Quota]) -> bool:
        """See Gate."""
        return any(self.needs.get(quota.unit, 0) > quota.limit for quota in quotas)

    def cool_down(self, for_s: float | None) -> None:
        """See Gate."""
        if not self._shares_pauses:
            return
        named = for_s is not None
        wait_s = for_s if for_s is not None else FIRST_PAUSE_S
        self._reservation.block(COOL_DOWN, for_s=wait_s, grows=not named)

    def learn(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        """See Gate."""
        for quota in quotas:
            told = allowance_of(quota)
            self._reservation.report(
                quota.unit,
                amount=told.amount,
                used=told.used,
                period_s=told.period_s,
                as_of=asked_at,
            )
