"""The keywords of a limit, and the reader of each."""

# ruff: noqa: FBT001 - one signature for all readers, called by the table alone

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from decimal import Decimal
from http import HTTPMethod
from typing import Final

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit import ANCHORS, MODES, MOST_AMOUNT, UNITS
from ratelimit_ext.core.money import micro_dollars
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.identities import identity
from ratelimit_ext.policy.readers import (
    Reader,
    function,
    name,
    one_of,
    or_function,
    text,
    truth,
    whole_number,
)
from ratelimit_ext.strategies import ALIASES, STRATEGIES, strategy_named

_STRATEGY: Final = one_of(*sorted([*STRATEGIES, *ALIASES]))


def strategy(value: object, python: bool) -> str:
    """A strategy's own name, where an alias was given too."""
    given: str = _STRATEGY(value, python)
    strategy_named(given)
    return ALIASES.get(given, given)


def timezone(value: object, _: bool) -> str:
    """The name of a time zone that is known here."""
    if isinstance(value, str):
        try:
            zoneinfo.ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            pass
        else:
            return value
    known = zoneinfo.available_timezones()
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    install = "" if known else " This system has no time zones: install the package tzdata."
    raise Mistake(
        f'found {shown(value)}; allowed: a time zone such as "Europe/Berlin".{hint}{install}'
    )


def methods(value: object, _: bool) -> tuple[str, ...]:
    """Methods in capitals. HEAD is not one of them: it is counted as GET."""
    allowed = [method.value for method in HTTPMethod if method is not HTTPMethod.HEAD]
    if not isinstance(value, list | tuple) or not value:
        raise Mistake(f'found {shown(value)}; allowed: a list of methods such as ["POST"].')
    given = [method.upper() if isinstance(method, str) else method for method in value]
    for method in given:
        if method == "HEAD":
            raise Mistake('found "HEAD"; HEAD is counted as GET. Write "GET".')
        if method not in allowed:
            hint = did_you_mean(method, allowed) if isinstance(method, str) else ""
            raise Mistake(
                f"found {shown(method)} in the list; allowed: {', '.join(allowed)}.{hint}"
            )
    return tuple(dict.fromkeys(given))


def cost(value: object, python: bool) -> int | float | str:
    """A whole number, or an amount of dollars as it is written."""
    if isinstance(value, float | str) or (python and isinstance(value, Decimal)):
        try:
            micro_dollars(value)
        except ValueError:
            pass
        else:
            return value  # type: ignore[return-value]  # a Decimal is none of its own
    elif type(value) is int and 0 <= value <= MOST_AMOUNT:
        return value
    raise Mistake(
        f"found {shown(value)}; allowed: a whole number from 0 to {MOST_AMOUNT}; for a limit in "
        "usd an amount of dollars such as 0.01."
    )


#: Every keyword but ``limit`` itself.
KEYWORDS: Final[Mapping[str, Reader]] = {
    "name": name,
    "strategy": strategy,
    "burst": whole_number(1),
    "unit": one_of(*UNITS),
    "key": identity,
    "cost": or_function(cost),
    "mode": one_of(*MODES),
    "anchor": one_of(*ANCHORS),
    "timezone": timezone,
    "methods": methods,
    "per_method": truth,
    "override_defaults": truth,
    "error_message": or_function(text),
    "shared": truth,
    "scope": name,
    "exempt_when": function(0),
    "deduct_when": function(1),
    "on_breach": function(1),
}
