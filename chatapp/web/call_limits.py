"""The limits of calls: of the current one, and what the caller has left of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from chatapp.alerts.alert import whose
from chatapp.calls.upstream_quota import period_s_of
from chatapp.ledger.forecast import Budget, Forecast
from chatapp.ledger.reports import Reports
from chatapp.upstreams import Quota
from chatapp.web.errors import unavailable
from ratelimit_ext import LimitedRequest, Limiter, RequestLimit, Verdict, calendar_window

log = logging.getLogger(__name__)

# Names of limits in the policy.
#: The cool-down of a model, `unless blocked`.
COOL_DOWN: Final = "provider"
#: The provider's own quotas, `as reported`.
INPUT_QUOTA: Final = "provider-input-tokens"
QUOTAS: Final = ("provider-requests", "provider-tokens", INPUT_QUOTA, "provider-output-tokens")
#: Stops a key that spends far more than usual.
SURGE: Final = "surge"
#: Everything that is counted by model: charged again for a fallback.
OF_THE_MODEL: Final = ("model", "blocked-model", COOL_DOWN, *QUOTAS)

#: Keywords of a limit: see `policy_keywords.py`.
MODELS: Final = "models"
AT_LIMIT: Final = "at_limit"
WARN_AT: Final = "warn_at"

# The endpoint with the caller's limits in the policy; the providers' endpoints share their buckets.
ENDPOINT: Final = "chat.chat"
METHOD: Final = "POST"
MICRO: Final = 1_000_000
FIXED: Final = "fixed-window"
DAY_S: Final = 86_400


class RequestLimits:
    """`CallLimits` over the extension. What follows the call works after the request as well.

    ``shares_pauses``: a refusal says something about other callers' calls, unlike one of a special
    tier, which few callers may use.
    """

    def __init__(self, limits: LimitedRequest, *, shares_pauses: bool) -> None:
        self._limits = limits
        self._reservation = reservation = limits.reservation
        self.renew: Callable[..., None] = reservation.renew
        self.settle: Callable[..., None] = reservation.settle
        self.cancel = reservation.cancel
        self._shares_pauses = shares_pauses

    @property
    def renewal_is_due(self) -> bool:
        return self._reservation.renewal_is_due

    def admit_attempt(self) -> float | None:
        return self._limits.admit_again(COOL_DOWN, *QUOTAS)

    def admit_fallback(self) -> float | None:
        return self._limits.admit_again(*OF_THE_MODEL)

    def budget(self) -> tuple[int, bool] | None:
        left = self._limits.remaining_budget
        return None if left is None else (int(left.scaleb(6)), self._limits.is_alone)

    def cool_down(self, for_s: float) -> None:
        if self._shares_pauses:
            self._reservation.block(COOL_DOWN, for_s=for_s)

    def report(self, quotas: Sequence[Quota], *, asked_at: float) -> None:
        for quota in quotas:
            self._reservation.report(
                quota.unit,
                amount=quota.limit,
                used=quota.limit - quota.remaining,
                period_s=period_s_of(quota),
                as_of=asked_at,
            )


def scarcest_limits(limiter: Limiter, units: Collection[str]) -> list[Verdict]:
    """For each of these units, the limit of the current request that is nearest to exhaustion."""
    by_unit: dict[str, list[Verdict]] = {}
    for verdict in limiter.current.verdicts:
        unit = verdict.charge.limit.unit
        if unit in units:
            by_unit.setdefault(unit, []).append(verdict)
    return [min(verdicts, key=_scarcity) for verdicts in by_unit.values()]


def _scarcity(verdict: Verdict) -> tuple[bool, float, int]:
    """Denied limits first, then the smallest remaining share, then the latest reset."""
    left = verdict.remaining / max(1, verdict.charge.limit.capacity)
    return verdict.allowed, left, -verdict.reset_after_us


class RemainingLimit:
    """What the caller has left of one limit.

    ``amount`` and ``remaining`` are in its unit (dollars as micro-dollars), ``since`` (when its
    fixed window began; None: it has none) and ``reset_at`` are in seconds since 1970 by this
    process's clock, ``identity`` is the subject that it counts.

    ``share`` is what a member of a team has of a budget that it shares fairly.

    ``anchor`` is the unit of the calendar that a window follows, and ``period_s`` the length of the
    current one: a month has 28 to 31 days. ``keywords`` are chatapp's own of the limit.
    """

    def __init__(self, shown: RequestLimit, ahead_s: float) -> None:
        verdict, limit = shown.verdict, shown.verdict.charge.limit
        reset_at, self.period_s = shown.window.reset_time, limit.period_us // MICRO
        self.since: float | None = None
        if limit.traits.name == FIXED:
            # The reset of an unused window is now. It begins now if it follows no calendar.
            first_s = self.period_s if limit.anchor is None else 1
            more_s = 0 if verdict.reset_after_us else first_s
            begin, self.period_s = window_s(limit, reset_at + more_s)
            self.since = begin + ahead_s
        self.name = limit.name or str(shown.limit)
        self.unit = limit.unit
        self.amount = limit.amount
        self.burst = limit.burst
        self.remaining = verdict.remaining
        self.reset_at = reset_at + ahead_s
        self.identity = shown.request_args[-2]  # before the scope, after the prefix if there is one
        self.anchor = limit.anchor
        self.keywords = shown.keywords
        self.share = verdict.share
        self.forecast: Forecast | None = None

    def as_json(self) -> dict[str, object]:
        """For a client: amounts in dollars, times in seconds from now."""
        money = self.unit == "usd"
        entry: dict[str, object] = {
            "name": self.name,
            "unit": self.unit,
            "limit": self.amount / MICRO if money else self.amount,
            "remaining": self.remaining / MICRO if money else self.remaining,
            "reset_after": max(0.0, round(self.reset_at - time.time(), 3)),
        }
        if self.unit != "calls":  # calls at once have no period
            entry["period"] = self.period_s
        if self.anchor is not None:
            entry["anchor"] = self.anchor
        if self.burst is not None:
            entry["burst"] = self.burst
        if self.share is not None:
            used, of, members, ahead, until_us = self.share
            shown = {"used": used, "of": of, "ahead": ahead}
            entry["share"] = {
                **({word: units / MICRO for word, units in shown.items()} if money else shown),
                "members": members,
                "ahead_for": until_us / MICRO,
            }
        if self.forecast is not None:
            entry["forecast"] = self.forecast.as_json()
        entry |= self.keywords
        if (percent := self.keywords.get(WARN_AT)) is not None:
            entry["warning"] = is_near(self.amount, self.remaining, percent)
        return entry


def is_near(amount: int, remaining: int, percent: int) -> bool:
    return (amount - remaining) * 100 >= percent * amount


def remaining_limits(limiter: Limiter) -> list[RemainingLimit]:
    """Return what the current caller has left of the limits of a chat, the shortest period first;
    empty if limits are disabled. Nothing is charged; limits of models are left out."""
    limits, ahead_s = look(limiter)
    return [RemainingLimit(shown, ahead_s) for shown in limits]


def readable_limits(limiter: Limiter) -> list[RemainingLimit]:
    """Return the remaining limits; ApiError (503) if the storage does not answer."""
    try:
        return remaining_limits(limiter)
    except Exception as error:  # each storage has other errors
        log.exception("The limits of a caller cannot be read")
        cause = "The storage of the limits does not answer."
        raise unavailable("storage_unavailable", cause) from error


def look(limiter: Limiter) -> tuple[list[RequestLimit], float]:
    """Return the limits of a chat of the current caller, and by how many seconds this process's
    clock is ahead of the storage's: 0 if they differ by no more than the look took."""
    before = time.time()
    limits = limiter.current.peek(ENDPOINT, method=METHOD)
    for shown in limits[:1]:
        now = shown.window.reset_time - shown.verdict.reset_after_us / MICRO
        if not before <= now <= time.time():
            return limits, before - now
    return limits, 0.0


def with_forecast(limit: RemainingLimit, reports: Reports) -> RemainingLimit:
    """Return the limit, with a forecast if it is a calendar's budget of all calls of a caller."""
    owner, used = whose(limit.identity), limit.amount - limit.remaining
    counts_all = MODELS not in limit.keywords and limit.share is None
    is_budget = limit.unit == "usd" and limit.anchor is not None and limit.period_s >= DAY_S
    if limit.since is None or not (is_budget and counts_all and owner and used):
        return limit
    end = datetime.fromtimestamp(limit.reset_at, UTC)
    budget = Budget(limit.amount, used, datetime.fromtimestamp(limit.since, UTC), end)
    limit.forecast = reports.forecast(budget, **owner)
    return limit


def window_s(limit: Any, ends_at: float) -> tuple[float, int]:
    """Return when the fixed window of a limit began that ends then, in seconds since 1970, and its
    length in seconds."""
    if limit.anchor is None:
        return ends_at - limit.period_us / MICRO, limit.period_us // MICRO
    calendar = limit.anchor, limit.timezone, limit.week_starts
    begin_us, end_us = calendar_window(int(ends_at - 1) * MICRO, *calendar)
    return begin_us / MICRO, (end_us - begin_us) // MICRO
