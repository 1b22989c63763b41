"""Limits that apply together, and would be told as one, or say the same twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.mistakes import Mistakes
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.strategies import ALIASES


def check_buckets(
    placed: Iterable[Placed],
    default_strategy: str | None,
    mistakes: Mistakes,
    *,
    beside: Iterable[PolicyLimit] = (),
) -> None:
    """Note a name that is used twice, and limits without names that differ in the amount alone.

    ``beside`` are limits that apply as well and have been checked; their names are taken.
    """
    names = {limit.name: limit for limit in beside if limit.name}
    buckets: dict[tuple[object, ...], PolicyLimit] = {}
    for limit, place, _ in placed:
        if limit.name and limit.name in names:
            mistakes.add(
                place.at("name"),
                f"found {limit.name!r}, which is also the name of {names[limit.name].source}. "
                "Limits that apply together need names of their own.",
            )
            continue
        names[limit.name] = limit
        for bucket in _buckets(limit, default_strategy):
            other = buckets.setdefault(bucket, limit)
            if other is not limit:
                mistakes.add(
                    place,
                    f"{limit.limit!r} applies together with {other.limit!r} of {other.source}: "
                    "both have the same period, strategy and key, and no name, so that only the "
                    "smaller would ever decide. Keep one, or give one of them a name.",
                )


def _buckets(limit: PolicyLimit, default_strategy: str | None) -> Iterator[tuple[object, ...]]:
    """What tells limits apart for a person. Two that differ in their amounts alone are one too
    many, though each would be counted for itself."""
    given = limit.strategy or default_strategy or ""
    strategy = ALIASES.get(given, given)
    for _, period_us in limit.rates:
        identity = (limit.unit, limit.key, limit.scope, limit.per_method)
        yield (limit.name, period_us, strategy, *identity)
