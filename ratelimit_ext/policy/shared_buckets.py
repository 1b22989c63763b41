"""Limits that apply together, and would be told as one, or say the same twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.limit_reader import Placed
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
    names = {limit.options.name: limit for limit in beside if limit.options.name}
    buckets: dict[tuple[object, ...], PolicyLimit] = {}
    for limit, place, _ in placed:
        name = limit.options.name
        if name and name in names:
            mistakes.add(
                place.at("name"),
                f"found {name!r}, which is also the name of {names[name].source}. "
                "Limits that apply together need names of their own.",
            )
            continue
        names[name] = limit
        for bucket in _buckets(limit, default_strategy):
            other = buckets.setdefault(bucket, limit)
            if other is not limit:
                mistakes.add(
                    place,
                    f"{limit.text!r} applies together with {other.text!r} of {other.source}: "
                    "both have the same period, strategy and key, and no name, so that only the "
                    "smaller would ever decide. Keep one, or give one of them a name.",
                )


def _buckets(limit: PolicyLimit, default_strategy: str | None) -> Iterator[tuple[object, ...]]:
    """What tells limits apart for a person. Two that differ in their amounts alone are one too
    many, though each would be counted for itself."""
    for parsed in limit.parsed:
        options = parsed.merged(limit.options)
        given = options.strategy or default_strategy or ""
        strategy = ALIASES.get(given, given)
        identity = (options.unit, limit.key, limit.scope, limit.per_method)
        yield (options.name, parsed.period_us, strategy, *identity)
