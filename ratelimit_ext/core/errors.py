"""Errors, named after the remedy, and helpers for their messages."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigurationError(ValueError):
    """An invalid limit, policy or setting.

    The message says where it is, what was found, what is allowed and what to do.
    """


class OperatorError(ValueError):
    """What an operator asked for cannot be done: a sentence for people, a ``code`` for programs."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class StorageUnavailable(RuntimeError):
    """The storage did not answer in time, or answered that it cannot serve.

    The cause is chained.
    """

    #: Whether the charges may have been taken nevertheless.
    may_have_charged = True


class ShardUnavailable(StorageUnavailable):
    """A shard of a cluster cannot serve. Requests that need only other shards are served."""


class StorageFull(StorageUnavailable):
    """The storage has no memory for the bucket ``key`` of an unknown identity.

    Nothing was charged. Identities that the storage knows are still decided.
    """

    may_have_charged = False

    def __init__(self, key: str) -> None:
        super().__init__(f"the storage is full and cannot store {key}")
        self.key = key


#: Longer names are not typing errors, and comparing them would take long.
LONGEST_NAME = 64


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a question that names the known word nearest to ``name``; empty if none is near.

    >>> did_you_mean("brust", ["burst", "limit"]), did_you_mean("key", ["limit", "key_func"])
    (" Did you mean 'burst'?", " Did you mean 'key_func'?")
    """
    choices = list(choices)
    near = difflib.get_close_matches(name[:LONGEST_NAME], choices, n=1)
    near = near or [c for c in choices if c.startswith(f"{name}_") or c.lower() == name.lower()]
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Return the sentence for a name that is not allowed.

    >>> unknown_name("unit", "token", ["tokens", "usd"])
    "unknown unit 'token'; allowed: 'tokens', 'usd'. Did you mean 'tokens'?"
    """
    allowed = list(allowed)
    listed = ", ".join(map(repr, allowed)) or "none"
    return f"unknown {kind} {name!r}; allowed: {listed}.{did_you_mean(str(name), allowed)}"


def checked_seconds(name: str, value: Any, *, most: float, hint: str) -> float:
    """Return a setting in seconds. ``ConfigurationError`` unless it is above 0, up to ``most``."""
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    if not 0 < seconds <= most:  # a NaN is neither
        raise ConfigurationError(
            f"{name}: found {value!r}; allowed: a number of seconds above 0, up to {most:g}. {hint}"
        )
    return seconds


def wait_text(wait_ms: int) -> str:
    """Return how long to wait, for a person: rounded up, in at most two units.

    >>> wait_text(400), wait_text(90_500), wait_text(7_500_000), wait_text(2_678_400_000)
    ('less than a second', '91 seconds', '2 hours 5 minutes', '31 days')
    """
    if wait_ms < 1000:
        return "less than a second"
    seconds = -(-wait_ms // 1000)
    hours, minutes = divmod(-(-seconds // 60), 60)
    many, unit, few, smaller = hours, "hour", minutes, "minute"
    if seconds < 120:
        many, unit, few = seconds, "second", 0
    elif hours >= 24:
        many, few = divmod(-(-seconds // 3600), 24)
        unit, smaller = "day", "hour"
    elif not hours:
        many, unit, few = minutes, "minute", 0
    rest = f" {few} {smaller}{'s'[: few != 1]}" if few else ""
    return f"{many:,} {unit}{'s'[: many != 1]}{rest}"


def not_allowed(value: object, allowed: str) -> str:
    """Return the sentence for a value that is not allowed.

    >>> not_allowed(3, "a text")
    'found 3 (a whole number); allowed: a text.'
    """
    return f"found {shown(value)}; allowed: {allowed}."


_LONGEST = 60
#: Larger whole numbers are described: Python refuses to print thousands of digits.
_MOST_BITS = 128


def shown(value: object) -> str:
    """``value`` for an error message; never fails.

    >>> shown("ten"), shown(True), shown(0.5), shown([1])
    ("'ten' (a string)", 'true', '0.5 (a number with a fraction)', 'a list')
    """
    if value is None or isinstance(value, bool):
        return "None" if value is None else str(value).lower()
    if isinstance(value, str):
        return f"{_short(value)} (a string)"
    if isinstance(value, int):
        fits = value.bit_length() <= _MOST_BITS
        return f"{int(value)} (a whole number)" if fits else "a whole number of very many digits"
    if isinstance(value, float):
        return f"{float(value)!r} (a number with a fraction)"
    return _described(value)


def _short(text: str) -> str:
    return repr(str(text) if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, dt.date | dt.time):
        return "a date or time"
    if callable(value):
        return f"the function {_name(value)}"
    return f"a value of the type {type(value).__name__!r}"


def _name(function: object) -> str:
    return _short(str(getattr(function, "__qualname__", type(function).__qualname__)))
