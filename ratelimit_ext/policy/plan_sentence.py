"""What is said to a caller who has used up a plan."""

from __future__ import annotations

from typing import Final

from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.policy_limit import PolicyLimit

#: What a limit counts, for one and for many; dollars are counted in millionths.
_UNITS: Final = {
    "requests": ("call", "calls"),
    "calls": ("call at once", "calls at once"),
    "tokens": ("token", "tokens"),
    "input_tokens": ("input token", "input tokens"),
    "output_tokens": ("output token", "output tokens"),
}

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
    said = f"{_amount(amount, limit)}{_per(period_us, limit)}"
    alone = amount == 1 or limit.unit == "usd"
    spent = "it is used up" if alone else "they are used up"
    more = "" if next_plan is None else _more(limit, next_plan, amount, period_us)
    return f"The {plan.title} plan allows {said}, and {spent}{more}."


def _more(limit: PolicyLimit, next_plan: Plan, amount: int, period_us: int) -> str:
    """What the next plan allows of the same; empty where that is not more."""
    same = [other for other in next_plan.limits if other.name == limit.name]
    if not same:
        return f"; the {next_plan.title} plan has no such limit"
    (other,) = same
    for other_amount, other_period_us in other.rates:
        if (other_period_us, other.anchor) == (period_us, limit.anchor):
            more = f"; the {next_plan.title} plan allows {_number(other_amount, other)}"
            return more if other_amount > amount else ""
    other_amount, other_period_us = other.rates[0]
    said = f"{_number(other_amount, other)}{_per(other_period_us, other)}"
    more = f"; the {next_plan.title} plan allows {said}"
    return more if other_amount * period_us > amount * other_period_us else ""


def _amount(amount: int, limit: PolicyLimit) -> str:
    if limit.unit == "usd":
        return _number(amount, limit)
    one, many = _UNITS.get(limit.unit, (limit.unit, limit.unit))
    return f"{_number(amount, limit)} {one if amount == 1 else many}"


def _number(amount: int, limit: PolicyLimit) -> str:
    if limit.unit != "usd":
        return f"{amount:,}"
    dollars, millionths = divmod(amount, 1_000_000)
    return f"${dollars:,}.{f'{millionths:06}'.rstrip('0'):0<2}"


def _per(period_us: int, limit: PolicyLimit) -> str:
    """The period; calls in flight have none."""
    return "" if limit.unit == "calls" else f" {period_words(period_us, limit.anchor)}"


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
