"""Whether what is said of a limit goes together, and which limits would share a bucket unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ratelimit_ext.core.limit import Limit
from ratelimit_ext.policy.mistakes import Mistake, Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.policy_limit import PolicyLimit

if TYPE_CHECKING:
    from ratelimit_ext.policy.limit_reader import Placed

_DAY_US = 86_400_000_000
#: What "day" and "month" are to the limit's string, which knows no calendar.
_ANCHORED_PERIODS = {"day": ("day", _DAY_US), "month": ("month", 30 * _DAY_US)}


def check_limit(
    limit: PolicyLimit,
    place: Place,
    at_string: Place,
    default_strategy: str | None,
    mistakes: Mistakes,
) -> None:
    """Note what the core refuses, each time with the keyword that it is about."""
    strategy = limit.strategy or default_strategy or _assumed(limit)
    for amount, period_us in limit.rates:
        before = len(mistakes)
        said: dict[str, Any] = {"amount": amount, "period_us": period_us, "name": limit.name}
        with mistakes.noted_at(at_string):
            Limit(**said)
        if len(mistakes) > before:
            continue
        said |= {"strategy": strategy, "unit": limit.unit, "mode": limit.mode}
        with mistakes.noted_at(place.at("burst")):
            capacity = Limit(**said, burst=limit.burst).capacity
            _check_cost(limit, capacity, place, mistakes)
        with mistakes.noted_at(place.at("anchor")):
            Limit(**said, anchor=limit.anchor, timezone=limit.timezone)
            _check_anchor(limit, period_us)
    if limit.anchor is None and limit.timezone != "UTC":
        mistakes.add(
            place.at("timezone"),
            f"found {limit.timezone!r} without an anchor; only a window of the calendar has a time "
            'zone. Add anchor = "day" or "month", or remove it.',
        )


def _assumed(limit: PolicyLimit) -> str:
    """Where neither the limit nor the caller names a strategy: one that burst or anchor fits."""
    return "token-bucket" if limit.burst is not None else "fixed-window"


def _check_cost(limit: PolicyLimit, capacity: int, place: Place, mistakes: Mistakes) -> None:
    if isinstance(limit.cost, int) and limit.cost > capacity:
        mistakes.add(
            place.at("cost"),
            f"found {limit.cost}, but {limit.limit!r} holds at most {capacity}: no call could ever "
            "pass. Lower the cost or raise the limit.",
        )


def _check_anchor(limit: PolicyLimit, period_us: int) -> None:
    if limit.anchor is None:
        return
    word, needed_us = _ANCHORED_PERIODS[limit.anchor]
    if period_us != needed_us:
        raise Mistake(
            f"found {limit.anchor!r} beside {limit.limit!r}; the window of a calendar {word} needs "
            f'a limit per {word}, such as "1000/{word}".'
        )


def check_buckets(placed: Iterable[Placed], mistakes: Mistakes) -> None:
    """Note limits that apply together and would be told or counted as one."""
    names: dict[str, PolicyLimit] = {}
    buckets: dict[tuple[object, ...], PolicyLimit] = {}
    for limit, place in placed:
        if limit.name and limit.name in names:
            mistakes.add(
                place.at("name"),
                f"found {limit.name!r}, which is also the name of {names[limit.name].source}. "
                "Limits that apply together need names of their own.",
            )
            continue
        names[limit.name] = limit
        for bucket in _buckets(limit):
            if bucket in buckets:
                mistakes.add(
                    place,
                    f"{limit.limit!r} would be counted in one bucket with "
                    f"{buckets[bucket].limit!r} of {buckets[bucket].source}: they have the same "
                    "period and strategy, and no name. Give one of them a name.",
                )
            buckets[bucket] = limit


def _buckets(limit: PolicyLimit) -> Iterable[tuple[object, ...]]:
    """What tells a limit's buckets apart; the amount does not, so that it can be changed."""
    for _, period_us in limit.rates:
        yield (
            limit.name, period_us, limit.strategy, limit.unit, limit.key, limit.scope,
            limit.per_method,
        )  # fmt: skip
