"""Whether what is said of a limit goes together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ratelimit_ext.core.charge import checked_cost
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import micro_dollars, shown_dollars
from ratelimit_ext.policy.mistakes import Mistake, Mistakes
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.shown import shown

_DAY_US: Final = 86_400_000_000
#: What "day" and "month" are to the limit's string, which knows no calendar.
_ANCHORED_US: Final = {"day": _DAY_US, "month": 30 * _DAY_US}
_PARTS: Final = re.compile(r"[,;|]")
_AMOUNT: Final = re.compile(r"\d+")


def check_limit(limit: PolicyLimit, place: Place, strategy: str | None, mistakes: Mistakes) -> None:
    """Note what the core refuses, at the keyword that it is about.

    ``strategy`` is the one in force; ``None`` where it is unknown, and nothing is held against it.
    """
    with mistakes.noted_at(place.at("timezone")):
        _check_timezone(limit)
    with mistakes.noted_at(place.at("unit")):
        _check_money(limit)
    check_name(limit.name, limit.limit, len(limit.rates), place, mistakes)
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


def check_contradictions(
    text: str,
    keywords: Mapping[str, Any],
    stated: Mapping[str, Any],
    place: Place,
    mistakes: Mistakes,
) -> None:
    """Note keywords that say something else than the string does."""
    for word in stated.keys() & keywords.keys():
        if keywords[word] != stated[word]:
            mistakes.add(
                place.at(word),
                f"found {keywords[word]!r} beside {text!r}, which says {stated[word]!r} "
                "itself. Remove it.",
            )


def check_name(name: str, text: str, limits: int, place: Place, mistakes: Mistakes) -> None:
    """Note a name that several limits of one string would have."""
    if name and limits > 1:
        mistakes.add(
            place.at("name"),
            f"found {name!r} beside {text!r}, which is {limits} limits: headers and answers could "
            "not tell them apart. Write each by itself, with a name of its own.",
        )


def _check_money(limit: PolicyLimit) -> None:
    for part in _PARTS.split(limit.limit):
        if limit.unit == "usd" and "usd" not in part.lower() and _AMOUNT.search(part):
            raise Mistake(
                f"found 'usd' beside {part.strip()!r}, which states no dollars. Write "
                f"{_AMOUNT.sub(_in_dollars, part.strip(), count=1)!r}."
            )


def _in_dollars(amount: re.Match[str]) -> str:
    return f"{amount[0]} usd"


def _check_cost(limit: PolicyLimit, strategy: str, capacity: int) -> None:
    cost = limit.cost
    if strategy == "block" and cost != 1:
        raise Mistake('found a cost, but "unless blocked" counts nothing. Remove it.')
    if limit.unit == "calls" and cost != 1:
        raise Mistake(f"found a cost, but in {limit.limit!r} each call is one. Remove it.")
    if not callable(cost) and _units(cost, limit.unit) > capacity and limit.mode == "enforce":
        most = f"{shown_dollars(capacity)} usd" if limit.unit == "usd" else capacity
        raise Mistake(
            f"found {cost}, but {limit.limit!r} holds at most {most}: no call could ever "
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


def _check_anchor(limit: PolicyLimit, period_us: int) -> None:
    anchor = limit.anchor
    if anchor is not None and period_us != _ANCHORED_US[anchor]:
        raise Mistake(
            f"found {anchor!r} beside {limit.limit!r}; the window of a calendar {anchor} needs "
            f'a limit per {anchor}, such as "1000/{anchor}".'
        )
