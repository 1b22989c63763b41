"""The string of a limit: the only parser.

``30/minute``, ``100 per 2 days``, ``5/second;1000/day`` as in the library `limits`; ``5 usd/day``
for money, ``4 in flight`` for calls at once, ``1 usd/hour or 20 x usual`` for a surge,
``unless blocked`` and ``as reported`` for what others decide. Several limits are separated by
``;``, ``,`` or ``|``.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from ratelimit_ext.core.errors import LONGEST_NAME, ConfigurationError, shown
from ratelimit_ext.core.limit import (
    GUARDS,
    LONGEST_PERIOD_US,
    MOST_AMOUNT,
    Limit,
    LimitOptions,
)
from ratelimit_ext.core.money import MICRO, micro_dollars, shown_dollars

#: The periods with their seconds. A month has 30 days and a year 360, as in `limits`.
PERIODS: Final = MappingProxyType(
    {
        "second": 1,
        "minute": 60,
        "hour": 3_600,
        "day": 86_400,
        "month": 30 * 86_400,
        "year": 360 * 86_400,
    }
)

# `limits` allows a colon before the separator.
_SEPARATOR: Final = re.compile(r":?[,;|]")
_PART: Final = re.compile(
    r"""\s* (?:
        (?P<amount>[0-9]+) (?P<fraction>\.[0-9]+)? \s* (?: (?P<usd>usd) \s* )?
        (?: / | per ) \s* (?P<count>[0-9]+)? \s* (?P<period>[a-z]+)
        (?: \s+ or \s+ (?P<multiple>[0-9]+) \s* x \s+ usual )?
      | (?P<slots>[0-9]+) \s+ in \s+ flight
      | (?P<block>unless \s+ blocked)
      | (?P<reported>as \s+ reported)
    ) \s*""",
    re.IGNORECASE | re.VERBOSE,
)

_WORD: Final = re.compile(r"[a-z]+")
_FRACTION: Final = re.compile(r"\d+\.\d+\s*(?:/|per\b)")
_NO_PERIODS: Final = {"per", "usd", *PERIODS, *(f"{period}s" for period in PERIODS)}
_INITIALS: Final = {period[0]: period for period in ("second", "minute", "hour", "day")}
_LONGEST_DAYS: Final = LONGEST_PERIOD_US // 86_400_000_000


@dataclass(frozen=True, slots=True)
class ParsedLimit:
    """One limit of a string. ``unit`` and ``strategy`` are ``None`` if the string leaves them to
    the options; an amount in ``usd`` is in micro-dollars. ``text`` is the limit as it is written.
    """

    text: str
    amount: int
    count: int = 1
    period: str = "second"
    unit: str | None = None
    strategy: str | None = None
    multiple: int | None = None

    @property
    def period_us(self) -> int:
        """The period in microseconds."""
        return self.count * PERIODS[self.period] * 1_000_000

    def merged(self, options: LimitOptions) -> LimitOptions:
        """The options of this limit: what the string states comes before what they state."""
        unit = self.unit or options.unit
        strategy = self.strategy or options.strategy
        return replace(options, strategy=strategy, unit=None if unit == "requests" else unit)

    def limit(self, options: LimitOptions, strategy: str) -> Limit:
        """The limit itself, with ``strategy`` unless the string states one.

        Raises :class:`ConfigurationError` for an invalid combination.
        """
        return Limit(
            amount=self.amount,
            period_us=self.period_us,
            strategy=self.strategy or strategy,
            burst=options.burst,
            unit=self.unit or options.unit or "requests",
            name=options.name,
            mode=options.mode,
            anchor=options.anchor,
            timezone=options.timezone,
            multiple=self.multiple,
        )

    def __str__(self) -> str:
        """The limit for a person, in one spelling however it is written."""
        if self.strategy == "block":
            return "unless blocked"
        if self.strategy == "reported":
            return "as reported"
        if self.unit == "calls":
            return f"{self.amount} in flight"
        amount = f"{shown_dollars(self.amount)} usd" if self.unit == "usd" else str(self.amount)
        surge = "" if self.multiple is None else f" or {self.multiple} x usual"
        return f"{amount} per {self.count} {self.period}{surge}"


def parse(text: object) -> tuple[ParsedLimit, ...]:
    """The limits of a string. Raises :class:`ConfigurationError` for an invalid one.

    >>> [str(each) for each in parse("5 usd/day; 30/minute")]
    ['5 usd per 1 day', '30 per 1 minute']
    """
    if not isinstance(text, str):
        raise ConfigurationError(_invalid(text))
    return _parse(text)


# Functions return strings at every request.
@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[ParsedLimit, ...]:
    try:
        limits = tuple([_parsed(part) for part in _SEPARATOR.split(text)])
    except ValueError:
        raise ConfigurationError(_invalid(text)) from None
    for limit in limits:
        if not 1 <= limit.amount <= MOST_AMOUNT:
            usd = f"0.000001 to {MOST_AMOUNT // MICRO} usd"
            amounts = usd if limit.unit == "usd" else f"1 to {MOST_AMOUNT}"
            raise ConfigurationError(f"found {shown(text)}; allowed: an amount from {amounts}.")
        if limit.period_us > LONGEST_PERIOD_US:
            raise ConfigurationError(
                f"found {shown(text)}; allowed: a period of up to {_LONGEST_DAYS} days."
            )
    return limits


def _parsed(part: str) -> ParsedLimit:
    """One limit. Raises ``ValueError`` for what is none."""
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(part)
    text, found = part.strip(), match.groupdict()
    if found["block"]:
        return ParsedLimit(text, 1, strategy="block")
    if found["reported"]:
        return ParsedLimit(text, MOST_AMOUNT, period="minute", strategy="reported")
    if found["slots"]:
        return ParsedLimit(text, int(found["slots"]), unit="calls", strategy="concurrency")
    usd, multiple = found["usd"], found["multiple"]
    amount = found["amount"] + (found["fraction"] or "")
    return ParsedLimit(
        text,
        micro_dollars(amount) if usd else int(amount),
        count=int(found["count"] or 1) or 1,  # `limits` reads 5/0 minutes as 5/minute
        period=_period(found["period"].lower()),
        unit="usd" if usd else None,
        strategy="surge" if multiple else None,
        multiple=int(multiple) if multiple else None,
    )


def _period(word: str) -> str:
    if word in PERIODS:
        return word
    if word.endswith("s") and word[:-1] in PERIODS:
        return word[:-1]
    raise ValueError(word)


def states_strategy(text: object, options: LimitOptions, strategies: tuple[str, ...]) -> bool:
    """Whether the string or its options state one of the strategies; false for an invalid string
    and for a function, whose string is unknown."""
    if options.strategy in strategies:
        return True
    return isinstance(text, str) and not _strategies(text).isdisjoint(strategies)


@lru_cache(maxsize=1024)
def _strategies(text: str) -> frozenset[str | None]:
    """What the limits of a string state as their strategies."""
    try:
        return frozenset([limit.strategy for limit in parse(text)])
    except ConfigurationError:
        return frozenset()


def states_guard(text: object, options: LimitOptions) -> bool:
    """Whether the limit is a guard. A guard applies beside other limits and overrides none."""
    return states_strategy(text, options, GUARDS)


def _invalid(value: object) -> str:
    return (
        f'found {shown(value)}; allowed: amount per period, as "30/minute", "100 per day", '
        '"5/second;1000/day" or "5 usd/day"; "4 in flight"; "1 usd/hour or 20 x usual"; '
        f'"unless blocked" and "as reported".{_remedy(str(value).lower())}'
    )


def _remedy(words: str) -> str:
    """What was probably meant; empty if unknown."""
    if "$" in words:
        return ' Dollars are written "5 usd/day".'
    if "flight" in words:
        return ' Calls at once are written "4 in flight".'
    if "token" in words:
        return ' The unit is a keyword beside the string: "90000/minute" with unit = "tokens".'
    if _FRACTION.search(words):
        return ' The amount is a whole number: 1.5 a minute are written "3 per 2 minutes".'
    meant = _WORD.sub(_nearest_period, words)
    return f" Did you mean {meant!r}?" if meant != words else ""


def _nearest_period(word: re.Match[str]) -> str:
    """The period nearest to a misspelt one; the word itself if none is near."""
    found = word[0]
    if found in _NO_PERIODS:
        return found
    near = difflib.get_close_matches(found[:LONGEST_NAME], PERIODS, n=1)
    return _INITIALS.get(found) or (near[0] if near else found)
