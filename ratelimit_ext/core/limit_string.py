"""The string of a limit: the only parser.

``30/minute``, ``100 per 2 days``, ``5/second;1000/day`` as in the library `limits`, also as
``5/s`` and ``0.5/second`` (1 per 2 seconds); ``5 usd/day`` for money; and the forms of single
strategies, such as ``4 in flight`` (:class:`Form`). Several limits are separated by ``;``, ``,`` or
``|``. An amount or a period above the largest that can be counted is that largest one.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal

from ratelimit_ext.core.charge import LONGEST_LEASE_S
from ratelimit_ext.core.errors import ConfigurationError, not_allowed, shown
from ratelimit_ext.core.limit import (
    LONGEST_PERIOD_US,
    MOST_AMOUNT,
    OPTION_NAMES,
    Limit,
    LimitOptions,
)
from ratelimit_ext.core.money import MICRO, micro_dollars, shown_dollars
from ratelimit_ext.core.traits import TABLE, Form, strategies_with, traits_of

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
_RATE: Final = r"""
    (?P<amount>[0-9]+) (?P<fraction>\.[0-9]{1,30})? \s* (?: (?P<usd>usd) \s* )?
    (?: / | per ) \s* (?P<count>[0-9]+)? \s* (?P<period>[a-z]+)
"""

#: How every strategy without a form of its own is written.
RATE_FORM: Final = Form("{rate}", text="{rate}", example="30/minute", keyword="")

_LENGTH: Final = re.compile(r"\s*([0-9]{1,99})\s*([a-z]+)\s*")
_WORD: Final = re.compile(r"[a-z]+")
_HOURS: Final = re.compile(r"(\d{1,2})-(\d{1,2})")
#: Longer texts are refused before they are searched or cached, because callers may send them.
LONGEST_TEXT: Final = 500
_PERCENT: Final = re.compile(r"(\d{1,3})%")
#: How steep the line of a fair budget may be, and how much may be added to a wait.
MOST_PACE: Final = 100
MOST_SPREAD: Final = 10
#: Every word for a period, without "m": it may be a minute or a month. `limits` has no weeks.
_PERIOD_OF: Final = {
    **{word: (1, period) for period in PERIODS for word in (period, f"{period}s")},
    **dict.fromkeys(("s", "sec", "secs"), (1, "second")),
    **dict.fromkeys(("min", "mins"), (1, "minute")),
    **dict.fromkeys(("h", "hr", "hrs"), (1, "hour")),
    "d": (1, "day"),
    **dict.fromkeys(("w", "week", "weeks"), (7, "day")),
}
_NO_PERIODS: Final = {"per", "usd", *_PERIOD_OF}


@dataclass(frozen=True, slots=True)
class ParsedLimit:
    """One limit of a string.

    ``unit`` and ``strategy`` are ``None`` if the options decide them. An amount in ``usd`` is in
    micro-dollars. ``text`` is the limit as it is written.
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
        return min(self.count * PERIODS[self.period] * 1_000_000, LONGEST_PERIOD_US)

    def merged(self, options: LimitOptions) -> LimitOptions:
        """Return the options of this limit. The string takes precedence."""
        unit = self.unit or options.unit
        # A string may state what no keyword can: "4 in flight".
        merged: dict[str, Any] = {"strategy": self.strategy or options.strategy}
        return replace(options, **merged | {"unit": None if unit == "requests" else unit})

    def limit(self, options: LimitOptions, strategy: str) -> Limit:
        """Return the limit itself, with ``strategy`` unless the string states one.

        Raises :class:`ConfigurationError` for an invalid combination.
        """
        strategy = self.strategy or strategy
        form = traits_of(strategy).form
        if form is not None and self.strategy is None:
            # Otherwise "5/minute" with the strategy "block" would be a limit that never denies.
            raise ConfigurationError(
                f"found {self.text!r} with the strategy {strategy!r}. Write {form.example!r}, or "
                "change the strategy."
            )
        words: dict[str, Any] = {word: getattr(options, word) for word in OPTION_NAMES}
        words |= {"strategy": strategy, "unit": self.unit or options.unit or "requests"}
        words["candidate"] = self._candidate(options)
        words["keep"] = self._keep(options, words["unit"])
        words["wait"] = None if options.wait is None else wait_us(options.wait)
        words |= _fairness(options)
        if options.fair is not None and traits_of(strategy).ends_with_calls:
            _check_line(options)
        idle = words.pop("idle")
        period_us = self.period_us if idle is None else _idle_us(idle, strategy)
        return Limit(self.amount, period_us, multiple=self.multiple, **words)

    def _keep(self, options: LimitOptions, unit: str) -> tuple[tuple[str, int], ...]:
        if bool(options.keep) != (options.priority is not None):
            has, lacks = ("keep", "priority") if options.keep else ("priority", "keep")
            raise ConfigurationError(
                f"found {has} without {lacks}: priority gives the class of a request, and keep "
                "reserves a part for each class. Write both, or none."
            )
        kept = []
        pairs: Any = dict(options.keep).items()  # as written, of any types
        for name, stated in pairs:
            try:
                units = micro_dollars(stated) if unit == "usd" else stated
            except ValueError:
                units = None
            if not (isinstance(name, str) and name) or type(units) is not int or units < 0:
                raise ConfigurationError(
                    f"found {shown(stated)} kept for {shown(name)}; allowed: the name of a class, "
                    f"and {'dollars' if unit == 'usd' else 'a whole number'} from 0 up."
                )
            kept.append((name, units))
        return tuple(kept)

    def _candidate(self, options: LimitOptions) -> int | None:
        if options.candidate is None:
            return None
        found, amount = shown(options.candidate), self.with_amount(options.candidate).amount
        if options.mode == "shadow":
            tried = "a limit in shadow, which is tried itself. Remove it, or mode."
            raise ConfigurationError(f"found {found} beside {tried}")
        if amount == self.amount:
            raise ConfigurationError(f"found {found}, the amount of the limit itself. Remove it.")
        return amount

    def with_amount(self, text: object) -> ParsedLimit:
        """Return the limit of a string that changes only the amount, as "20 usd/day" for "5
        usd/day".

        Raises :class:`ConfigurationError` for any other string.
        """
        try:
            parsed = parse(text)
        except ConfigurationError:
            parsed = ()  # the forms of other limits would not help
        kinds = {(part.period_us, part.unit, part.strategy) for part in (self, *parsed)}
        if len(parsed) != 1 or len(kinds) != 1 or not self.form.has_amount:
            hint = "" if parsed else _remedy(text)
            raise ConfigurationError(not_allowed(text, f"{self.text!r} with another amount") + hint)
        return parsed[0]

    @property
    def form(self) -> Form:
        return (TABLE[self.strategy].form if self.strategy else None) or RATE_FORM

    def __str__(self) -> str:
        """Return the limit as it is shown, however it was written."""
        is_usd = self.unit == "usd"
        amount = f"{shown_dollars(self.amount)} usd" if is_usd else str(self.amount)
        # Without a plural, requests are shown as `limits` shows them.
        rate = f"{amount} per {self.count} {self.period}{'s' * (is_usd and self.count > 1)}"
        return self.form.text.format(rate=rate, amount=amount, multiple=self.multiple)


def _fairness(options: LimitOptions) -> dict[str, Any]:
    """Return the words of a limit by ``fair``, ``pace``, ``hours`` and ``spread``. Raises
    :class:`ConfigurationError`."""
    pace, hours, spread = options.pace, options.hours, options.spread
    for word, value in (("pace", pace), ("hours", hours)):
        if value is not None and options.fair is None:
            raise ConfigurationError(
                f"found {word} = {shown(value)} without fair; only a budget that is shared fairly "
                f"has {word}. Add fair, or remove it."
            )
    is_number = isinstance(pace, int | float | Decimal) and not isinstance(pace, bool)
    if pace is not None and not (is_number and 1 <= pace <= MOST_PACE):
        raise ConfigurationError(
            f"found {shown(pace)}; allowed: a number from 1 to {MOST_PACE}. Below 1, a part of the "
            "budget would stay unused."
        )
    span = _HOURS.fullmatch(str(hours))
    if hours is not None and not (span and int(span[1]) < int(span[2]) <= 24):
        raise ConfigurationError(not_allowed(hours, 'two whole hours of a day, as in "8-18"'))
    if hours is not None and options.anchor is None:
        raise ConfigurationError(
            f"found hours = {shown(hours)} without an anchor; only a window of the calendar has "
            'hours. Add anchor = "day", "week" or "month", or remove it.'
        )
    percent = _PERCENT.fullmatch("10%" if spread is True else str(spread))
    if spread not in (None, False) and not (percent and 1 <= int(percent[1]) <= MOST_SPREAD):
        percents = f'true, or whole percents up to {MOST_SPREAD}, as in "{MOST_SPREAD}%"'
        raise ConfigurationError(not_allowed(spread, percents))
    return {
        "fair": options.fair is not None,
        "pace": 1000 if pace is None else int(Decimal(str(pace)) * 1000),
        "spread": int(percent[1]) if percent else 0,
    }


def _check_line(options: LimitOptions) -> None:
    """Raise :class:`ConfigurationError` for what calls in flight that members share cannot have."""
    if options.pace is not None:
        raise ConfigurationError(
            f"found pace = {shown(options.pace)} for calls in flight; only a budget has a pace. "
            "Remove it."
        )
    if options.wait is None:
        raise ConfigurationError(
            "found fair without wait: for calls in flight, fair orders the queue, which only wait "
            'makes. Add wait = "20 seconds", or remove fair.'
        )


def parse(text: object) -> tuple[ParsedLimit, ...]:
    """Return the limits of a string. Raises :class:`ConfigurationError` for an invalid one.

    >>> [str(each) for each in parse("5 usd/day; 30/minute")]
    ['5 usd per 1 day', '30 per 1 minute']
    """
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise ConfigurationError(_invalid(text))
    return _parse(text)


# Functions return strings at every request.
@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[ParsedLimit, ...]:
    try:
        return tuple([_parsed(part) for part in _SEPARATOR.split(text)])
    except ValueError:
        raise ConfigurationError(_invalid(text)) from None


def _parsed(part: str) -> ParsedLimit:
    """One limit. Raises ``ValueError`` if it is invalid."""
    for name, form in _forms():
        if match := _compiled(form.pattern).fullmatch(part):
            groups = match.groupdict()
            multiple = groups.get("multiple")
            return ParsedLimit(
                part.strip(),
                strategy=name,
                multiple=int(multiple) if multiple else None,
                **(_rate(groups, form) if "usd" in groups else _amount(groups, form)),
            )
    raise ValueError(part)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    pattern = rf"\s* (?: {pattern.replace('{rate}', _RATE)} ) \s*"
    return re.compile(pattern, re.IGNORECASE | re.VERBOSE)


def _amount(groups: dict[str, Any], form: Form) -> dict[str, Any]:
    amount = min(int(groups.get("amount") or form.amount), MOST_AMOUNT)
    return {"amount": amount, "period": form.period, "unit": form.unit}


def _rate(groups: dict[str, Any], form: Form) -> dict[str, Any]:
    usd, whole = groups["usd"], int(groups["amount"])
    numerator, denominator = Decimal(f"{whole}{groups['fraction'] or ''}").as_integer_ratio()
    count = int(groups.get("count") or 1)
    if count == 0:  # which `limits` reads as 1
        raise ValueError(count)
    if usd:
        whole = -(-numerator * MICRO // denominator)
    else:  # 1.5 a minute are 3 in 2 minutes
        whole, count = numerator, count * denominator
    if (word := groups.get("period", form.period).lower()) not in _PERIOD_OF:
        raise ValueError(word)
    times, period = _PERIOD_OF[word]
    return {
        "amount": min(whole, MOST_AMOUNT),
        "count": count * times,
        "period": period,
        "unit": "usd" if usd else None,
    }


def wait_us(text: object) -> int:
    """Return a length such as "20 seconds" in microseconds. Raises :class:`ConfigurationError`.

    >>> wait_us("20 seconds"), wait_us("2 min")
    (20000000, 120000000)
    """
    bound = f'{LONGEST_LEASE_S // 3600} hours, such as "20 seconds"'
    return _length_us(text, LONGEST_LEASE_S * MICRO, shown(text), bound)


def _length_us(text: object, most_us: int, found: str, bound: str) -> int:
    length_us = (length_s(text) or 0) * MICRO
    if not 0 < length_us <= most_us:
        raise ConfigurationError(
            f"found {found}; allowed: a length of time above 0, up to {bound}."
        )
    return length_us


def lease_bound(text: object, options: LimitOptions) -> tuple[Literal["wait", "idle"], str] | None:
    """Return the keyword that the lease bounds, and its value, if the limit has one."""
    if options.wait is not None:
        return "wait", options.wait
    is_session = states_strategy(text, options, strategies_with("idle"))
    return ("idle", options.idle or "1 hour") if is_session else None


def check_lease(limit: str, word: str, text: str, lease_s: float) -> None:
    """Raise :class:`ConfigurationError` if a request may ``wait`` for longer than its lease, or a
    session that is ``idle`` for that long would end while one of its calls runs."""
    bound_s = length_s(text) or 0
    if bound_s > lease_s if word == "wait" else bound_s < lease_s:
        option, change = ("a wait", "Shorten") if word == "wait" else ("an idle time", "Lengthen")
        than, lease = ("longer", "raise") if word == "wait" else ("shorter", "lower")
        raise ConfigurationError(
            f"{limit}: found {option} that is {than} than the lease of {lease_s:g} s. {change} it, "
            f"or {lease} RATELIMIT_LEASE_SECONDS."
        )


def _idle_us(text: object, strategy: str) -> int:
    if "idle" not in traits_of(strategy).options:
        raise ConfigurationError(
            f"found idle={shown(text)} beside a limit of another kind; only a session ends so. "
            'Write "5 usd per session", or remove it.'
        )
    bound = f'{LONGEST_PERIOD_US // 86_400 // MICRO} days, such as "30 minutes"'
    return _length_us(text, LONGEST_PERIOD_US, f"idle={shown(text)}", bound)


def length_s(text: object) -> int | None:
    """Return a length of time in seconds, wherever one is written: "20 seconds", "2 weeks", "90s",
    "15m". Return ``None`` for another text. "m" is a minute: no length is in months."""
    match = _LENGTH.fullmatch(text.lower()) if isinstance(text, str) else None
    word = "min" if match and match[2] == "m" else match and match[2]
    if match is None or word not in _PERIOD_OF:
        return None
    times, period = _PERIOD_OF[word]
    return int(match[1]) * times * PERIODS[period]


def states_strategy(text: object, options: LimitOptions, strategies: tuple[str, ...]) -> bool:
    """Return whether the string or its options state one of the strategies; false for an invalid
    string and for a function, whose string is unknown."""
    if options.strategy in strategies:
        return True
    try:
        return isinstance(text, str) and any(each.strategy in strategies for each in parse(text))
    except ConfigurationError:
        return False


def stated_units(text: str, options: LimitOptions) -> set[str]:
    """Return what the limits of a valid string count."""
    return {limit.merged(options).unit or "requests" for limit in parse(text)}


def states_guard(text: object, options: LimitOptions) -> bool:
    """Return whether the limit is a guard, which applies beside others and overrides none."""
    guards = tuple([name for name, traits in TABLE.items() if traits.guard])
    return states_strategy(text, options, guards)


def _forms() -> list[tuple[str | None, Form]]:
    forms: list[tuple[str | None, Form]] = [(t.name, t.form) for t in TABLE.values() if t.form]
    return [*forms, (None, RATE_FORM)]  # which would read a session as a period


def _invalid(value: object) -> str:
    *examples, last = [f'"{form.example}"' for name, form in _forms() if name]
    return (
        f'found {shown(value)}; allowed: amount per period, as "30/minute", "100 per day", '
        f'"5/second;1000/day" or "5 usd/day"; {"; ".join(examples)} and {last}.'
        f"{_remedy(value)}"
    )


def _remedy(value: object) -> str:
    """Return what was probably meant; empty if unknown."""
    words = str(value)[:LONGEST_TEXT].lower()
    if "$" in words:
        return ' Dollars are written "5 usd/day".'
    for _, form in _forms():
        if form.keyword and form.keyword in words:
            return f' It is written "{form.example}".'
    if "token" in words:
        return ' The unit is a keyword beside the string: "90000/minute" with unit = "tokens".'
    meant = _WORD.sub(_nearest_period, words)
    return f" Did you mean {meant!r}?" if meant != words else ""


def _nearest_period(word: re.Match[str]) -> str:
    """Return the period nearest to a misspelt one; the word itself if none is near."""
    text = word[0]
    near = () if text in _NO_PERIODS else difflib.get_close_matches(text, [*PERIODS, "week"], n=1)
    return "minute" if text == "m" else near[0] if near else text
