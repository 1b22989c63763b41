"""The string of a limit: that of `limits`, and forms for what it has no words for.

``30/minute``, ``100 per day``, ``5/second;1000/day`` as ever; ``5 usd/day`` and
``0.50 usd per hour`` for money; ``4 in flight`` for calls at once; ``1 usd/hour or 20 x usual`` for
a surge; ``unless blocked`` and ``as reported`` for what others decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from limits import (
    RateLimitItem,
    RateLimitItemPerMinute,
    RateLimitItemPerSecond,
    parse_many,
)

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.limit import GUARDS, MOST_AMOUNT
from ratelimit_ext.core.money import micro_dollars
from ratelimit_ext.web.item import Keywords, with_keywords

_USD: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*usd\s*((?:/|per\b).+)", re.IGNORECASE)
_IN_FLIGHT: Final = re.compile(r"\s*(\d+)\s+in\s+flight\s*", re.IGNORECASE)
_SURGE: Final = re.compile(r"(.+?)\s+or\s+(\d+)\s*x\s+usual\s*", re.IGNORECASE)
_BLOCK: Final = re.compile(r"\s*unless\s+blocked\s*", re.IGNORECASE)
_REPORTED: Final = re.compile(r"\s*as\s+reported\s*", re.IGNORECASE)
_OWN: Final = re.compile(r"usd|flight|usual|blocked|reported", re.IGNORECASE)
_SEPARATORS: Final = re.compile(r"[,;|]")


def items_of(text: str, keywords: Keywords) -> tuple[RateLimitItem, ...]:
    """The items of a limit string. Raises ``ValueError`` for what is none."""
    if not _OWN.search(str(text)):
        return tuple(with_keywords(item, keywords) for item in parse_many(text))
    return tuple(item for part in _SEPARATORS.split(text) for item in _items_of(part, keywords))


def _items_of(part: str, keywords: Keywords) -> tuple[RateLimitItem, ...]:
    if surge := _SURGE.fullmatch(part):
        amount, multiple = surge.groups()
        return items_of(amount, keywords._replace(strategy="surge", multiple=int(multiple)))
    if _BLOCK.fullmatch(part):
        return (with_keywords(RateLimitItemPerSecond(1), keywords._replace(strategy="block")),)
    if _REPORTED.fullmatch(part):
        told = keywords._replace(strategy="reported")
        return (with_keywords(RateLimitItemPerMinute(MOST_AMOUNT), told),)
    if money := _USD.fullmatch(part):
        amount, period = money.groups()
        if keywords.unit not in ("requests", "usd"):
            raise ConfigurationError(
                f"the limit {part.strip()!r} is in usd, and its unit {keywords.unit!r}. Leave "
                "the unit out."
            )
        dollars = keywords._replace(unit="usd")
        return items_of(f"{micro_dollars(amount)} {period}", dollars)
    if flight := _IN_FLIGHT.fullmatch(part):
        slots = keywords._replace(unit="calls", strategy="concurrency")
        return (with_keywords(RateLimitItemPerSecond(int(flight.group(1))), slots),)
    return tuple(with_keywords(item, keywords) for item in parse_many(part))


def states_guard(text: object, keywords: Mapping[str, object]) -> bool:
    """Whether the limit is a guard, which stands beside other limits and overrides none."""
    if keywords.get("strategy") in GUARDS:
        return True
    return isinstance(text, str) and any(form.search(text) for form in (_SURGE, _BLOCK, _REPORTED))
