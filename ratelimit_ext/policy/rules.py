"""Whether the parts of a limit go together: its string, its options and its cost.

The rules are the same for a policy and for a limit in code.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from ratelimit_ext.core.charge import checked_cost
from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit import NO_OPTIONS, OPTION_NAMES, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit, parse
from ratelimit_ext.core.money import micro_dollars, shown_dollars
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.place import Code, Place
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.schema import KEYWORDS
from ratelimit_ext.strategies import ALIASES

_DAY_US: Final = 86_400_000_000
#: The periods that a string states by "day" and "month".
_ANCHORED_US: Final = {"day": _DAY_US, "month": 30 * _DAY_US}
_AMOUNT: Final = re.compile(r"\d+")


_option_values: Final = attrgetter(*OPTION_NAMES)


def parsed_limits(value: object) -> tuple[ParsedLimit, ...]:
    """The limits of a string. Raises ``ConfigurationError`` or ``Mistake`` for an invalid one."""
    limits = parse(value)
    if len({(each.period_us, each.unit, each.strategy) for each in limits}) < len(limits):
        raise Mistake(
            f"found {value!r}, in which two limits have the same period: only the smaller would "
            "ever deny. Keep the smaller one."
        )
    return limits


def check_limit(
    limit: PolicyLimit, place: Place, default_strategy: str | None, mistakes: Mistakes
) -> None:
    """Add each mistake, at the keyword that it is about.

    ``default_strategy`` is the extension's; ``None`` if unknown: then ``burst`` and ``anchor`` are
    not checked against it.
    """
    options, limits = limit.options, limit.parsed
    with mistakes.noted_at(place.at("timezone")):
        _check_timezone(options)
    if options.name and len(limits) > 1:
        mistakes.add(
            place.at("name"),
            f"found {options.name!r} beside {limit.text!r}, which is {len(limits)} limits: headers "
            "and answers could not tell them apart. Write each by itself, with a name of its own.",
        )
    for each in limits:
        before = len(mistakes)
        _check_contradictions(each, options, place, mistakes)
        if len(mistakes) == before:
            _check_combination(each, limit, place, default_strategy, mistakes)


def check_in_code(
    text: object, options: LimitOptions, cost: object, default_strategy: str | None
) -> None:
    """Raise ``ConfigurationError`` with all mistakes of a limit that is written in Python."""
    # What a function returns is known at the request; the cache shall not keep the function.
    cost = _function if callable(cost) else cost
    values = _option_values(options)
    try:
        _check_in_code(text, cost, default_strategy, *values)
    except TypeError:  # a value that has no hash
        _check_in_code.__wrapped__(text, cost, default_strategy, *values)


def _function() -> None:
    """Stands for a cost that is a function."""


# Blocks inside views come here at every request. Typed: a cost of True equals 1 and is invalid.
@lru_cache(maxsize=1024, typed=True)
def _check_in_code(text: object, cost: Any, default_strategy: str | None, *values: Any) -> None:
    mistakes, place = Mistakes(), Place(Code(str(text)))
    defaults = _option_values(NO_OPTIONS)
    options = zip(OPTION_NAMES, values, defaults, strict=True)
    given = {word: value for word, value, default in options if value != default}
    for word, value in {**given, "cost": cost}.items():
        with mistakes.noted_at(place.at(word)):
            given[word] = KEYWORDS[word](value, True)  # noqa: FBT003 - the signature of all readers
    with mistakes.noted_at(place):
        parsed = parsed_limits(text)
        if not mistakes:
            cost = given.pop("cost")
            limit = PolicyLimit(
                source="",
                text=str(text),
                parsed=parsed,
                options=LimitOptions(**given),
                cost=cost,
            )
            check_limit(limit, place, default_strategy, mistakes)
    mistakes.raise_if_any("a limit")


def _check_timezone(options: LimitOptions) -> None:
    if options.anchor is None and options.timezone != "UTC":
        raise Mistake(
            f"found {options.timezone!r} without an anchor; only a window of the calendar has a "
            'time zone. Add anchor = "day" or "month", or remove it.'
        )


def _check_contradictions(
    parsed: ParsedLimit, options: LimitOptions, place: Place, mistakes: Mistakes
) -> None:
    for word in ("strategy", "unit"):
        own, given = getattr(parsed, word), getattr(options, word)
        if own and given and own != given:
            mistakes.add(
                place.at(word),
                f"found {given!r} beside {parsed.text!r}, which says {own!r} itself. Remove it.",
            )
    states_amount = parsed.strategy in (None, "surge")
    if options.unit == "usd" and parsed.unit is None and states_amount:
        mistakes.add(
            place.at("unit"),
            f"found 'usd' beside {parsed.text!r}, which states no dollars. Write "
            f"{_AMOUNT.sub(_in_dollars, parsed.text, count=1)!r}.",
        )


def _in_dollars(amount: re.Match[str]) -> str:
    return f"{amount[0]} usd"


def _check_combination(
    parsed: ParsedLimit,
    limit: PolicyLimit,
    place: Place,
    default_strategy: str | None,
    mistakes: Mistakes,
) -> None:
    """Add what the core refuses: first without ``burst`` and ``anchor``, then with each of them."""
    options = limit.options
    fitting = "token-bucket" if options.burst is not None else "fixed-window"
    strategy = options.strategy or default_strategy or fitting
    strategy = ALIASES.get(strategy, strategy)
    plain = LimitOptions(unit=options.unit, name=options.name, mode=options.mode)
    before = len(mistakes)
    with mistakes.noted_at(place):
        parsed.limit(plain, strategy)
    if len(mistakes) > before:
        return  # with burst or anchor, the core would only say the same again
    with mistakes.noted_at(place.at("burst")):
        burst = replace(plain, burst=options.burst)
        capacity = parsed.limit(burst, strategy).capacity
        with mistakes.noted_at(place.at("cost")):
            _check_cost(limit, parsed, capacity)
    with mistakes.noted_at(place.at("anchor")):
        parsed.limit(replace(plain, anchor=options.anchor, timezone=options.timezone), strategy)
        _check_anchor(options.anchor, parsed)


def _check_cost(limit: PolicyLimit, parsed: ParsedLimit, capacity: int) -> None:
    cost, unit = limit.cost, parsed.unit or limit.options.unit or "requests"
    if "block" in (parsed.strategy, limit.options.strategy) and cost != 1:
        raise Mistake('found a cost, but "unless blocked" counts nothing. Remove it.')
    if unit == "calls" and cost != 1:
        raise Mistake(f"found a cost, but in {parsed.text!r} each call is one. Remove it.")
    if not callable(cost) and _units(cost, unit) > capacity and limit.options.mode == "enforce":
        most = f"{shown_dollars(capacity)} usd" if unit == "usd" else capacity
        raise Mistake(
            f"found {cost}, but {parsed.text!r} holds at most {most}: no call could ever "
            "pass. Lower the cost or raise the limit."
        )


def _units(cost: object, unit: str) -> int:
    """A cost that is written down, in the units that are counted."""
    if unit != "usd":
        try:
            return checked_cost(cost, unit)
        except ValueError:
            raise Mistake(f"found {shown(cost)}; allowed: a whole number from 0 up.") from None
    try:
        return micro_dollars(cost)  # type: ignore[arg-type]
    except ValueError:
        raise Mistake(
            f"found {shown(cost)}; allowed: an amount of dollars from 0 up, such as 0.01."
        ) from None


def _check_anchor(anchor: str | None, parsed: ParsedLimit) -> None:
    if anchor is not None and parsed.period_us != _ANCHORED_US[anchor]:
        raise Mistake(
            f"found {anchor!r} beside {parsed.text!r}; the window of a calendar {anchor} needs "
            f'a limit per {anchor}, such as "1000/{anchor}".'
        )
