"""The string of a limit, and the rates it states."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from ratelimit_ext.core.limit import LONGEST_PERIOD_US, MOST_AMOUNT
from ratelimit_ext.core.spelling import LONGEST_NAME
from ratelimit_ext.policy.mistakes import Mistake
from ratelimit_ext.policy.shown import shown

#: Turns a string into (amount, period in microseconds) pairs; ``ValueError`` for a bad one.
Parse: TypeAlias = Callable[[str], Sequence[tuple[int, int]]]
Rates: TypeAlias = tuple[tuple[int, int], ...]

_USUAL: Final = re.compile(r"(\d+)\s*x\s+usual")
#: What words of the string say.
_STATED: Final = {
    "flight": {"unit": "calls", "strategy": "concurrency"},
    "blocked": {"strategy": "block"},
    "reported": {"strategy": "reported"},
}

_WORD: Final = re.compile(r"[a-z]+")
_FRACTION: Final = re.compile(r"\d+\.\d+\s*(?:/|per\b)")
_PERIODS: Final = ("second", "minute", "hour", "day", "month", "year")
_NO_PERIODS: Final = {"per", "usd", *_PERIODS, *(f"{period}s" for period in _PERIODS)}
_INITIALS: Final = {period[0]: period for period in ("second", "minute", "hour", "day")}
_LONGEST_DAYS: Final = LONGEST_PERIOD_US // 86_400_000_000


def rates_of(value: object, parse: Parse) -> tuple[str, Rates]:
    """The string itself and its rates; raises :class:`Mistake` for what is none."""
    if isinstance(value, str) and (rates := _parsed(value, parse)):
        for amount, period_us in rates:
            _check_range(value, amount, period_us)
        if len({period_us for _, period_us in rates}) < len(rates):
            raise Mistake(
                f"found {value!r}, in which two limits have the same period and would be counted "
                "in one bucket. Keep the smaller one."
            )
        return value, rates
    raise Mistake(no_limit(value))


def no_limit(value: object) -> str:
    """What is said of a string that is no limit."""
    return (
        f'found {shown(value)}; allowed: amount per period, as "30/minute", "100 per day", '
        '"5/second;1000/day" or "5 usd/day"; "4 in flight"; "1 usd/hour or 20 x usual"; '
        f'"unless blocked" and "as reported".{_remedy(str(value).lower())}'
    )


def _remedy(words: str) -> str:
    """What was probably meant; empty where nobody can tell."""
    if "$" in words:
        return ' Dollars are written "5 usd/day".'
    if "flight" in words:
        return ' Calls at once are written "4 in flight".'
    if "token" in words:
        return ' What is counted is said beside the string: "90000/minute" with unit = "tokens".'
    if _FRACTION.search(words):
        return ' The amount is a whole number: 1.5 a minute are written "3 per 2 minutes".'
    meant = _WORD.sub(_period_meant, words)
    return f" Did you mean {meant!r}?" if meant != words else ""


def _period_meant(word: re.Match[str]) -> str:
    """The period that is nearest to a word that is none; the word itself where none is near."""
    found = word[0]
    if found in _NO_PERIODS:
        return found
    near = difflib.get_close_matches(found[:LONGEST_NAME], _PERIODS, n=1)
    return _INITIALS.get(found) or (near[0] if near else found)


def implied(string: str) -> dict[str, Any]:
    """The keywords that the string itself states: ``5 usd/day`` its unit, ``4 in flight`` both.

    >>> implied("5 usd/day"), implied("4 in flight"), implied("30/minute")
    ({'unit': 'usd'}, {'unit': 'calls', 'strategy': 'concurrency'}, {})
    >>> implied("9/hour or 20 x usual"), implied("unless blocked")
    ({'strategy': 'surge', 'multiple': 20}, {'strategy': 'block'})
    """
    words = string.lower()
    said: dict[str, Any] = {"unit": "usd"} if "usd" in words else {}
    if surge := _USUAL.search(words):
        return {**said, "strategy": "surge", "multiple": int(surge.group(1))}
    for word, keywords in _STATED.items():
        if word in words:
            return {**said, **keywords}
    return said


def _parsed(value: str, parse: Parse) -> Rates:
    try:
        return tuple((amount, period_us) for amount, period_us in parse(value))
    except ValueError:
        return ()


def _check_range(value: str, amount: int, period_us: int) -> None:
    if not 1 <= amount <= MOST_AMOUNT:
        raise Mistake(f"found {shown(value)}; allowed: an amount from 1 to {MOST_AMOUNT}.")
    if not 1 <= period_us <= LONGEST_PERIOD_US:
        raise Mistake(f"found {shown(value)}; allowed: a period of up to {_LONGEST_DAYS} days.")
