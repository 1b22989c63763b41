"""The limits of the current request for its call, by their names in the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from flask import g

from chatapp.calls.provider_quota import quota_level
from chatapp.estimates.estimate import Estimate
from chatapp.providers import Quota
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
#: Everything that is counted by model: charged again for a fallback.
OF_THE_MODEL: Final = ("model", "blocked-model", COOL_DOWN, *QUOTAS)

#: The first pause after a refusal that names none, in seconds.
FIRST_PAUSE_S: Final = 1.0


class RequestLimits:
    """`CallLimits` over the extension.

    It is made within the request; what follows the call works after the request as well.
    ``shares_pauses``: a refusal says something about other callers' calls. That is not so for a
    special tier, which few callers may use.
    """

    def __init__(self, limiter: Limiter, *, shares_pauses: bool) -> None:
        self._limiter = limiter
        self._reservation = limiter.reservation
        self._shares_pauses = shares_pauses
        self._unbilled = limiter.verdict(UNBILLED)

    @property
    def was_not_billed(self) -> bool:
        return self._unbilled is not None and not self._unbilled.allowed

    @property
    def renewal_is_due(self) -> bool:
        return self._reservation.renewal_is_due

    def admit_attempt(self) -> float | None:
        return self._limiter.admit_again(COOL_DOWN, *QUOTAS)

    def admit_fallback(self) -> float | None:
        return self._limiter.admit_again(*OF_THE_MODEL)

    def hold(self, estimate: Estimate) -> bool:
        g.held = estimate  # read by the estimators of the limits
        if self._limiter.admit_again() is None:
            return True
        g.pop("held")
        return False

    def budget_micro_usd(self) -> int | None:
        budget = self._limiter.remaining_budget()
        return None if budget is None else int(budget.scaleb(6))

    def calls_in_flight(self) -> int:
        return self._limiter.calls_in_flight()

    def pause_s(self) -> float:
        return self._limiter.wait_again(COOL_DOWN)

    def cool_down(self, for_s: float | None) -> None:
        if not self._shares_pauses:
            return
        wait_s = FIRST_PAUSE_S if for_s is None else for_s
        self._reservation.block(COOL_DOWN, for_s=wait_s, grows=for_s is None)

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        for quota in quotas:
            level = quota_level(quota)
            self._reservation.report(
                quota.unit,
                amount=level.amount,
                used=level.used,
                period_s=level.period_s,
                as_of=asked_at,
            )

    def note_unbilled(self) -> None:
        if self._unbilled is not None:
            self._reservation.block(UNBILLED, for_s=UNBILLED_S)

    def renew(self, **costs: Any) -> None:
        self._reservation.renew(**costs)

    def settle(self, **costs: Any) -> None:
        self._reservation.settle(**costs)

    def cancel(self) -> None:
        self._reservation.cancel()
