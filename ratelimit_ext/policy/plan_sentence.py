"""The sentence for a caller who has used up a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ratelimit_ext.core.limit_string import ParsedLimit

if TYPE_CHECKING:
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
_DAY_US: Final = 86_400 * _SECOND_US
#: The longest that fits without a remainder is used.
_PERIODS: Final = (
    (_DAY_US, "day", "a day"),
    (3_600 * _SECOND_US, "hour", "an hour"),
    (60 * _SECOND_US, "minute", "a minute"),
    (_SECOND_US, "second", "a second"),
)


def plan_sentence(plan: Plan, limit: PolicyLimit, next_plan: Plan | None) -> str:
    """Return a sentence that names the plan, what it allows, and what the next one would. For a
    quota of a day or longer, it also has the next plan's price and where to get it.

    It speaks of the first limit of the string. The next plan is named if it allows more.
    """
    parsed = limit.parsed[0]
    spent = "it is" if parsed.amount == 1 or _unit(limit, parsed) == "usd" else "they are"
    used = f", and {spent} used up" if parsed.amount else ""
    said = f"The {plan.title} plan allows {_allowance(limit, parsed)}{used}"
    if next_plan is None or not (more := _more(limit, next_plan)):
        return f"{said}."
    shorter, whole = more
    if parsed.period_us < _DAY_US or not (next_plan.price or next_plan.upgrade_url):
        return f"{said}; the {next_plan.title} plan {shorter}."
    price = next_plan.price and f", from {next_plan.price}"
    url = next_plan.upgrade_url and f": {next_plan.upgrade_url}"
    return f"{said}. Upgrade to {next_plan.title}{whole}{price}{url}."


def amount_sentence(limit: PolicyLimit, parsed: ParsedLimit) -> str:
    """Return a sentence for a caller with an amount of their own in place of the plan's."""
    return f"Your own limit of {_allowance(limit, parsed)} is used up."


def _more(limit: PolicyLimit, next_plan: Plan) -> tuple[str, str] | None:
    """Return what to write after the name of the next plan: if this limit is named before it, and
    if not; ``None`` if the next plan does not allow more."""
    rate, anchor = limit.parsed[0], limit.options.anchor
    same = [other for other in next_plan.limits if other.options.name == limit.options.name]
    if not same:
        return "has no such limit", ", which has no such limit"
    (other,) = same
    periods = [(parsed.period_us, other.options.anchor) for parsed in other.parsed]
    is_alike = (rate.period_us, anchor) in periods
    parsed = other.parsed[periods.index((rate.period_us, anchor)) if is_alike else 0]
    if parsed.amount * rate.period_us <= rate.amount * parsed.period_us:
        return None
    unit = _unit(other, parsed)
    per = _per(parsed, unit, other.options.anchor)
    shorter = f"allows {_number(parsed.amount, unit)}{'' if is_alike else per}"
    return shorter, f" for {_amount(parsed.amount, unit)}{per}"


def _allowance(limit: PolicyLimit, parsed: ParsedLimit) -> str:
    unit, burst = _unit(limit, parsed), limit.options.burst
    at_once = "" if burst in (None, parsed.amount) else f", {_number(burst, unit)} at once"
    return f"{_amount(parsed.amount, unit)}{_per(parsed, unit, limit.options.anchor)}{at_once}"


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
