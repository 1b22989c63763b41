"""The sentence for a caller who has used up a plan."""

from __future__ import annotations

from typing import Final

from ratelimit_ext.core.limit_string import ParsedLimit
from ratelimit_ext.policy.policy import Plan, PolicyLimit

#: What a limit counts, for one and for many; dollars are counted in millionths.
_UNITS: Final = {
    "requests": ("call", "calls"),
    "calls": ("call at once", "calls at once"),
    "tokens": ("token", "tokens"),
    "input_tokens": ("input token", "input tokens"),
    "output_tokens": ("output token", "output tokens"),
}

_SECOND_US: Final = 1_000_000
#: The longest that fits without a remainder is used.
_PERIODS: Final = (
    (86_400 * _SECOND_US, "day", "a day"),
    (3_600 * _SECOND_US, "hour", "an hour"),
    (60 * _SECOND_US, "minute", "a minute"),
    (_SECOND_US, "second", "a second"),
)


def plan_sentence(plan: Plan, limit: PolicyLimit, next_plan: Plan | None) -> str:
    """Return a sentence that names the plan, what it allows, and what the next one would.

    It speaks of the first limit of the string. The next plan is named if it allows more.
    """
    parsed, anchor = limit.parsed[0], limit.options.anchor
    unit = _unit(limit, parsed)
    allowance = f"{_amount(parsed.amount, unit)}{_per(parsed, unit, anchor)}"
    alone = parsed.amount == 1 or unit == "usd"
    spent = ", and it is used up" if alone else ", and they are used up"
    more = "" if next_plan is None else _more(limit, next_plan)
    return f"The {plan.title} plan allows {allowance}{spent if parsed.amount else ''}{more}."


def amount_sentence(limit: PolicyLimit, parsed: ParsedLimit) -> str:
    """Return a sentence for a caller with an amount of their own in place of the plan's."""
    unit = _unit(limit, parsed)
    period = _per(parsed, unit, limit.options.anchor)
    return f"Your own limit of {_amount(parsed.amount, unit)}{period} is used up."


def _more(limit: PolicyLimit, next_plan: Plan) -> str:
    """Return what the next plan allows of the same; empty if that is not more."""
    own, anchor = limit.parsed[0], limit.options.anchor
    same = [other for other in next_plan.limits if other.options.name == limit.options.name]
    if not same:
        return f"; the {next_plan.title} plan has no such limit"
    (other,) = same
    for parsed in other.parsed:
        if (parsed.period_us, other.options.anchor) == (own.period_us, anchor):
            allowed = _number(parsed.amount, _unit(other, parsed))
            more = f"; the {next_plan.title} plan allows {allowed}"
            return more if parsed.amount > own.amount else ""
    parsed = other.parsed[0]
    unit = _unit(other, parsed)
    allowance = f"{_number(parsed.amount, unit)}{_per(parsed, unit, other.options.anchor)}"
    more = f"; the {next_plan.title} plan allows {allowance}"
    return more if parsed.amount * own.period_us > own.amount * parsed.period_us else ""


def _unit(limit: PolicyLimit, parsed: ParsedLimit) -> str:
    return parsed.merged(limit.options).unit or "requests"


def _amount(amount: int, unit: str) -> str:
    if unit == "usd":
        return _number(amount, unit)
    one, many = _UNITS.get(unit, (unit, unit))
    return f"{_number(amount, unit) if amount else 'no'} {one if amount == 1 else many}"


def _number(amount: int, unit: str) -> str:
    if unit != "usd":
        return f"{amount:,}"
    dollars, millionths = divmod(amount, 1_000_000)
    return f"${dollars:,}.{f'{millionths:06}'.rstrip('0'):0<2}"


def _per(parsed: ParsedLimit, unit: str, anchor: str | None) -> str:
    """Return the period; calls in flight have none, and sessions end otherwise."""
    if unit != "calls" and not parsed.form.has_rate:
        return f" a {parsed.form.keyword}"
    return "" if unit == "calls" else f" {period_words(parsed.period_us, anchor)}"


def period_words(period_us: int, anchor: str | None = None) -> str:
    """Return a period in words, to follow an amount.

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
