"""What is said to a caller who has used up a plan."""

from __future__ import annotations

from typing import Final

from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy_limit import PolicyLimit

#: What a limit counts, for one and for many.
_UNITS: Final = {"requests": ("call", "calls")}

_SECOND_US: Final = 1_000_000
#: The longest that fits without a rest is the one that is said.
_PERIODS: Final = (
    (86_400 * _SECOND_US, "day", "a day"),
    (3_600 * _SECOND_US, "hour", "an hour"),
    (60 * _SECOND_US, "minute", "a minute"),
    (_SECOND_US, "second", "a second"),
)


def plan_sentence(
    plan: Plan,
    limit: PolicyLimit,
    next_plan: Plan | None,
    rate: tuple[int, int] | None = None,
) -> str:
    """A sentence that names the plan, what it allows, and what the next one would.

    ``rate`` is the (amount, period in microseconds) that denied, where the limit has several.
    The next plan is named where it allows more.
    """
    amount, period_us = rate or limit.rates[0]
    one, many = _UNITS.get(limit.unit, (limit.unit, limit.unit))
    said = f"{amount:,} {one if amount == 1 else many} {period_words(period_us, limit.anchor)}"
    spent = "it is used up" if amount == 1 else "they are used up"
    more = "" if next_plan is None else _more(limit, next_plan, amount, period_us)
    return f"The {plan.title} plan allows {said}, and {spent}{more}."


def _more(limit: PolicyLimit, next_plan: Plan, amount: int, period_us: int) -> str:
    """What the next plan allows of the same; empty where that is not more."""
    same = [other for other in next_plan.limits if other.name == limit.name]
    if not same:
        return f"; the {next_plan.title} plan has no such limit"
    for other_amount, other_period_us in same[0].rates:
        if (other_period_us, same[0].anchor) == (period_us, limit.anchor):
            more = f"; the {next_plan.title} plan allows {other_amount:,}"
            return more if other_amount > amount else ""
    other_amount, other_period_us = same[0].rates[0]
    period = period_words(other_period_us, same[0].anchor)
    more = f"; the {next_plan.title} plan allows {other_amount:,} {period}"
    return more if other_amount * period_us > amount * other_period_us else ""


def period_words(period_us: int, anchor: str | None = None) -> str:
    """A period as one says it after an amount.

    >>> period_words(86_400_000_000), period_words(30 * 86_400_000_000), period_words(90_000_000)
    ('a day', 'every 30 days', 'every 90 seconds')
    """
    if anchor is not None:
        return f"a calendar {anchor}"
    for unit_us, word, one in _PERIODS:
        count, rest = divmod(period_us, unit_us)
        if count and not rest:
            return one if count == 1 else f"every {count:,} {word}s"
    return f"every {period_us / _SECOND_US:g} seconds"
