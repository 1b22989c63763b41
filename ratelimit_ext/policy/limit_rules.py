"""Whether what is said of a limit goes together."""

from __future__ import annotations

from typing import Any, Final

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.policy.mistakes import Mistake, Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.policy_limit import PolicyLimit

_DAY_US: Final = 86_400_000_000
#: What "day" and "month" are to the limit's string, which knows no calendar.
_ANCHORED_US: Final = {"day": _DAY_US, "month": 30 * _DAY_US}


def check_limit(limit: PolicyLimit, place: Place, strategy: str | None, mistakes: Mistakes) -> None:
    """Note what the core refuses, at the keyword that it is about.

    ``strategy`` is the one in force; ``None`` where it is unknown, and nothing is held against it.
    """
    with mistakes.noted_at(place.at("timezone")):
        _check_timezone(limit)
    for amount, period_us in limit.rates:
        said: dict[str, Any] = {
            "amount": amount,
            "period_us": period_us,
            "strategy": strategy or _fitting(limit),
            "unit": limit.unit,
            "name": limit.name,
            "mode": limit.mode,
            "multiple": limit.multiple,
        }
        before = len(mistakes)
        with mistakes.noted_at(place):
            Limit(**said)
        if len(mistakes) > before:
            continue  # with burst or anchor, the core would only say the same again
        with mistakes.noted_at(place.at("burst")):
            capacity = Limit(**said, burst=limit.burst).capacity
            with mistakes.noted_at(place.at("cost")):
                _check_cost(limit, said["strategy"], capacity)
        with mistakes.noted_at(place.at("anchor")):
            Limit(**said, anchor=limit.anchor, timezone=limit.timezone)
            _check_anchor(limit, period_us)


def _fitting(limit: PolicyLimit) -> str:
    return "token-bucket" if limit.burst is not None else "fixed-window"


def _check_timezone(limit: PolicyLimit) -> None:
    if limit.anchor is None and limit.timezone != "UTC":
        raise Mistake(
            f"found {limit.timezone!r} without an anchor; only a window of the calendar has a time "
            'zone. Add anchor = "day" or "month", or remove it.'
        )


def _check_cost(limit: PolicyLimit, strategy: str, capacity: int) -> None:
    if strategy == "block" and limit.cost != 1:
        raise Mistake('found a cost, but "unless blocked" counts nothing. Remove it.')
    if isinstance(limit.cost, int) and limit.cost > capacity:
        raise Mistake(
            f"found {limit.cost}, but {limit.limit!r} holds at most {capacity}: no call could ever "
            "pass. Lower the cost or raise the limit."
        )


def _check_anchor(limit: PolicyLimit, period_us: int) -> None:
    anchor = limit.anchor
    if anchor is not None and period_us != _ANCHORED_US[anchor]:
        raise Mistake(
            f"found {anchor!r} beside {limit.limit!r}; the window of a calendar {anchor} needs "
            f'a limit per {anchor}, such as "1000/{anchor}".'
        )
