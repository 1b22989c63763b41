"""What goes together: the parts of a limit, limits that apply together, and plans in a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ratelimit_ext.core.charge import checked_cost
from ratelimit_ext.core.errors import did_you_mean, not_allowed, shown
from ratelimit_ext.core.limit import DEFAULT_STRATEGY, Limit, LimitOptions
from ratelimit_ext.core.limit_string import ParsedLimit
from ratelimit_ext.core.money import micro_dollars, shown_dollars
from ratelimit_ext.core.traits import strategies_with, traits_of
from ratelimit_ext.policy.errors import Mistake, Mistakes, Place
from ratelimit_ext.policy.policy import PolicyLimit
from ratelimit_ext.strategies import ALIASES

_DAY_US: Final = 86_400_000_000
#: The periods that a string states by "day", "week" and "month".
_ANCHORED_US: Final = {"day": _DAY_US, "week": 7 * _DAY_US, "month": 30 * _DAY_US}
_AMOUNT: Final = re.compile(r"\d+")

# -- one limit -------------------------------------------------------------------------------


def check_limit(limit: PolicyLimit, default_strategy: str | None, mistakes: Mistakes) -> None:
    """Note each mistake at the keyword it is about, for a policy and for a limit in code.

    ``default_strategy`` is the extension's; ``None`` if unknown: then ``burst`` and ``anchor`` are
    not checked against it.
    """
    options, limits, place = limit.options, limit.parsed, limit.place
    if options.anchor is None and options.timezone != "UTC":
        mistakes.add(
            place.at("timezone"),
            f"found {options.timezone!r} without an anchor; only a calendar window has a time "
            'zone. Add anchor = "day", "week" or "month", or remove it.',
        )
    if options.anchor != "week" and options.week_starts != "monday":
        mistakes.add(
            place.at("week_starts"),
            f"found {options.week_starts!r} without a calendar week; only that has a first day. "
            'Add anchor = "week", or remove it.',
        )
    if options.reserve and limit.deduct_when is None:
        mistakes.add(
            place.at("reserve"),
            "found true without deduct_when; only what the response decides is reserved. Add "
            "deduct_when, or remove it.",
        )
    if options.wait is not None and limit.deduct_when is not None and not options.reserve:
        mistakes.add(
            place.at("wait"),
            f"found {options.wait!r} beside deduct_when; what only the response charges has no "
            "place in line. Add reserve = true, or remove one of the two.",
        )
    if options.fair is not None and options.fair == limit.key:
        mistakes.add(
            place.at("fair"),
            f"found {shown(options.fair)}, by which the limit counts already: each of its budgets "
            "has one member. Count by what members share, such as a team, or remove fair.",
        )
    if options.fair is not None and limit.deduct_when is not None and not options.reserve:
        mistakes.add(
            place.at("fair"),
            "found beside deduct_when, which charges after a call, when no share can deny it. Add "
            "reserve = true, or remove one of the two.",
        )
    if options.name and len(limits) > 1:
        mistakes.add(
            place.at("name"),
            f"found {options.name!r} beside {limit.text!r}, which is {len(limits)} limits: headers "
            "could not tell them apart. Write each by itself, with a name of its own.",
        )
    for parsed in limits:
        before = len(mistakes)
        _check_contradictions(parsed, options, place, mistakes)
        if len(mistakes) == before:
            _check_combination(parsed, limit, place, default_strategy, mistakes)


def _check_contradictions(
    parsed: ParsedLimit, options: LimitOptions, place: Place, mistakes: Mistakes
) -> None:
    for word in ("strategy", "unit"):
        text, given = getattr(parsed, word), getattr(options, word)
        if text and given and text != given:
            mistakes.add(
                place.at(word),
                f"found {given!r} beside {parsed.text!r}, which states {text!r} itself. Remove it.",
            )
    if options.unit == "usd" and parsed.unit is None and parsed.form.has_amount:
        meant = _AMOUNT.sub(lambda amount: f"{amount[0]} usd", parsed.text, count=1)
        mistakes.add(
            place.at("unit"),
            f"found 'usd' beside {parsed.text!r}, which states no dollars. Write {meant!r}.",
        )


def _check_combination(
    parsed: ParsedLimit,
    limit: PolicyLimit,
    place: Place,
    default_strategy: str | None,
    mistakes: Mistakes,
) -> None:
    """Note what the core refuses: without ``burst``, ``idle`` and ``anchor``, then with each."""
    options = limit.options
    fitting = DEFAULT_STRATEGY if options.burst is None else strategies_with("burst")[0]
    strategy = options.strategy or default_strategy or fitting
    strategy = ALIASES.get(strategy, strategy)
    # Without an anchor, a time zone has no effect.
    zone = options.timezone
    plain = LimitOptions(unit=options.unit, name=options.name, mode=options.mode, timezone=zone)
    before = len(mistakes)
    with mistakes.at(place):
        parsed.limit(plain, strategy)
    if len(mistakes) > before:
        return  # with burst or anchor, the core would only repeat it
    with mistakes.at(place.at("burst")):
        counted = parsed.limit(replace(plain, burst=options.burst), strategy)
        with mistakes.at(place.at("cost")):
            _check_cost(limit, parsed, counted)
    for word in ("idle", "anchor", "candidate", "wait"):
        if (value := getattr(options, word)) is not None:
            with mistakes.at(place.at(word)):
                parsed.limit(replace(plain, **{word: value}), strategy)
                if word == "anchor":
                    _check_anchor(value, parsed)
    if options.keep or options.priority is not None:
        with mistakes.at(place.at("keep" if options.keep else "priority")):
            shared = replace(plain, keep=options.keep, priority=options.priority)
            parsed.limit(replace(shared, burst=options.burst), strategy)
    fair = replace(plain, fair=options.fair, anchor=options.anchor, wait=options.wait)
    for word in ("fair", "pace", "hours", "spread"):
        if (value := getattr(options, word)) is not None and len(mistakes) == before:
            with mistakes.at(place.at(word)):
                fair = replace(fair, **{word: value})
                parsed.limit(fair, strategy)


def _check_cost(limit: PolicyLimit, parsed: ParsedLimit, counted: Limit) -> None:
    cost, unit, capacity = limit.cost, counted.unit, counted.capacity
    strategy = parsed.strategy or limit.options.strategy
    if cost != 1 and strategy and traits_of(strategy).one_per_call:
        raise Mistake(f"found a cost, but {parsed.text!r} counts each call as 1. Remove it.")
    if not callable(cost):
        _check_type(cost, unit)
    if counted.never_admits(cost):
        most = f"{shown_dollars(capacity)} usd" if unit == "usd" else capacity
        raise Mistake(
            f"found {cost}, but {parsed.text!r} holds at most {most}: every call would be denied. "
            "Lower the cost or raise the limit."
        )


def _check_type(cost: Any, unit: str) -> None:
    allowed = "a whole number from 0 up"
    try:
        if unit != "usd":
            checked_cost(cost, unit)
        else:
            allowed = "an amount of dollars from 0 up, such as 0.01"
            micro_dollars(cost)
    except ValueError:
        raise Mistake(not_allowed(cost, allowed)) from None


def _check_anchor(anchor: str, parsed: ParsedLimit) -> None:
    if parsed.period_us != _ANCHORED_US[anchor]:
        raise Mistake(
            f"found {anchor!r} beside {parsed.text!r}; a calendar {anchor} needs a limit per "
            f'{anchor}, such as "1000/{anchor}".'
        )


# -- limits that apply together --------------------------------------------------------------


def check_buckets(
    limits: Iterable[PolicyLimit],
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
    for limit in limits:
        place, name = limit.place, limit.options.name
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
                    f"{limit.text!r} applies together with {other.text!r} of {other.source}, with "
                    "the same period, strategy and key, and no name: only the smaller would ever "
                    "decide. Remove one, or give one of them a name.",
                )


def _buckets(limit: PolicyLimit, default_strategy: str | None) -> Iterator[tuple[object, ...]]:
    """Yield what distinguishes limits for a person; the amount alone does not."""
    for parsed in limit.parsed:
        options = parsed.merged(limit.options)
        given = options.strategy or default_strategy or ""
        strategy = ALIASES.get(given, given)
        identity = (options.unit, limit.key, limit.scope, limit.per_method)
        yield (options.name, parsed.period_us, strategy, *identity)


# -- plans -----------------------------------------------------------------------------------


def check_next(
    following: Mapping[str, str], places: Mapping[str, Place], mistakes: Mistakes
) -> None:
    """Note a next plan that does not exist, and plans that lead back to themselves."""
    noted: set[str] = set()
    for name, after in following.items():
        place = places[name].at("next")
        if after not in places:
            plans = ", ".join(map(repr, places))
            hint = did_you_mean(after, places)
            mistakes.add(place, f"found {shown(after)}; allowed: one of the plans {plans}.{hint}")
        elif name not in noted and (circle := _circle(name, following)):
            noted.update(circle)
            way = " to ".join(map(repr, [*circle, name]))
            mistakes.add(place, f"the plans form a circle: {way}. Remove next from the last one.")


def _circle(name: str, following: Mapping[str, str]) -> list[str]:
    """Return the plans from ``name`` back to it; empty if the way does not lead back."""
    way = [name]
    while (after := following.get(way[-1])) is not None and after not in way:
        way.append(after)
    return way if after == name else []
