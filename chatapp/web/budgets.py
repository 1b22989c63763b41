"""The budgets of a decision, for spending alerts.

A budget is an enforced limit in dollars over a day or more, in a window: a token bucket has none,
and an hour's end would be noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from flask import Response

from chatapp.accounts import ADDRESS, TEAM, USER
from chatapp.alerts.alert import whose
from chatapp.alerts.watch import Alerts, Standing
from chatapp.web.call_limits import FIXED, MODELS, WARN_AT, is_near, window_s
from ratelimit_ext import (
    DecisionEvent,
    Event,
    JoinedIdentity,
    Limiter,
    StorageUnavailable,
    separated,
)

#: Names budgets that are nearly used up, with the percent that are used.
WARNING_HEADER: Final = "x-budget-warning"
MICRO: Final = 1_000_000
DAY_US: Final = 86_400 * MICRO
WINDOWS: Final = (FIXED, "sliding-window", "sliding-window-counter")


def listener(alerts: Alerts, limiter: Limiter) -> Callable[[Event], None]:
    """Notes each decision for the alerts. A request pays for finding its budgets; their verdicts
    are read later, by the alerts' thread."""

    def note(event: Event) -> None:
        # Shares of a limit, and what is repeated from memory, tell nothing new.
        if event.__class__ is not DecisionEvent or event.decision.degraded or event.cached:
            return
        dollars = [charge for _, _, charge in event.charges if charge.limit.unit == "usd"]
        buckets = tuple([charge.key for charge in dollars if _is_budget(charge.limit)])
        if buckets:
            refused = event.reason == "limit" and any(
                verdict.reason == "limit" and _is_budget(verdict.charge.limit)
                for verdict in event.denials
            )
            read = partial(_standings, event, limiter)
            alerts.get().note_decision(buckets, read, refused=refused)

    return note


def warn(limiter: Limiter, response: Response) -> Response:
    """Name the budgets of the request of which so much is used as their `warn_at` says."""
    near = []
    for shown in limiter.current.limits:
        limit, remaining = shown.verdict.charge.limit, shown.verdict.remaining
        percent = shown.keywords.get(WARN_AT)
        if percent is not None and is_near(limit.amount, remaining, percent):
            used = (limit.amount - remaining) * 100 // (limit.amount or 1)
            near.append(f"{limit.label};used={used}")
    if near:
        response.headers[WARNING_HEADER] = ", ".join(near)
    return response


def _is_budget(limit: Any) -> bool:
    return (
        limit.unit == "usd"
        and limit.period_us >= DAY_US
        and limit.mode == "enforce"
        and limit.traits.name in WINDOWS
    )


def _standings(event: DecisionEvent, limiter: Limiter) -> Iterator[Standing]:
    identities = event.identities
    user = next((i for i in identities.values() if i.startswith((USER, ADDRESS))), None)
    bounds = {charge.key: bound for bound, _, charge in event.charges}
    for verdict in event.decision.verdicts:
        charge = verdict.charge
        limit = charge.limit
        if not _is_budget(limit) or charge.key not in identities:
            continue
        reset_at_s = (event.decision.now_us + verdict.reset_after_us) / MICRO
        if limit.traits.name == FIXED:
            since, window = datetime.fromtimestamp(window_s(limit, reset_at_s)[0], UTC), reset_at_s
            resets_at = datetime.fromtimestamp(reset_at_s, UTC)
        else:
            now_s, period_s = event.decision.now_us / MICRO, limit.period_us / MICRO
            since, window = datetime.fromtimestamp(now_s - period_s, UTC), now_s // period_s
            resets_at = None
        bound, identity = bounds[charge.key], identities[charge.key]
        owner, *others = _parts(bound, identity)
        keywords = dict(bound.keywords)
        counts_all = not others and MODELS not in keywords and verdict.share is None
        yield Standing(
            identity=owner,
            user=user,
            name=f"{limit.label} of {', '.join(others)}" if others else limit.label,
            warn_at=keywords.get(WARN_AT, 0),
            has_forecast=counts_all and limit.anchor is not None and bool(whose(owner)),
            amount=limit.amount,
            used=limit.amount - verdict.remaining,
            count=partial(_counted, limiter, charge),
            refuses=event.reason == verdict.reason == "limit" and not verdict.allowed,
            since=since,
            window=window,
            resets_at=resets_at,
        )


def _parts(bound: Any, identity: str) -> list[str]:
    """Return the identities that the limit counts together, that of a caller first."""
    if not isinstance(bound.runtime.key_func, JoinedIdentity):
        return [identity]
    return sorted(separated(identity), key=lambda e: not e.startswith((USER, ADDRESS, TEAM)))


def _counted(limiter: Limiter, charge: Any) -> int | None:
    """Return what the limit has counted by now; None if the storage is down."""
    operators = limiter.operators
    if operators.storage_is_down:
        return None
    try:
        counted: int = charge.limit.amount - operators.look(charge).remaining
    except StorageUnavailable:
        return None
    return counted
