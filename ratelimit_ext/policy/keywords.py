"""The keywords of a limit, and how the value of each is read.

A reader takes the value and whether it is Python's (so that it may be a function), and returns what
the limit gets; it raises :class:`Mistake` for what is not allowed.
"""

# ruff: noqa: FBT001, FBT002, FBT003 - one signature for all readers, called by the table alone

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable, Mapping
from http import HTTPMethod
from typing import Any, TypeAlias

from ratelimit_ext.core.limit import ANCHORS, MODES, MOST_AMOUNT, UNITS
from ratelimit_ext.policy.callables import checked, resolved
from ratelimit_ext.policy.identities import identity
from ratelimit_ext.policy.mistakes import Mistake, did_you_mean
from ratelimit_ext.policy.shown import shown
from ratelimit_ext.strategies import ALIASES, STRATEGIES, strategy_named

Reader: TypeAlias = Callable[[object, bool], Any]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}")


def name(value: object, _: bool = False) -> str:
    """A name that can stand in a header."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Mistake(
            f"found {shown(value)}; allowed: a name of 1 to 64 letters, digits, _, -, . and spaces."
        )
    return value


def text(value: object, _: bool = False) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise Mistake(f"found {shown(value)}; allowed: a text in quotes.")
    return value


def truth(value: object, _: bool = False) -> bool:
    """True or false, and nothing that only resembles them."""
    if not isinstance(value, bool):
        raise Mistake(f"found {shown(value)}; allowed: true or false, without quotes.")
    return value


def whole_number(least: int) -> Reader:
    """A reader of whole numbers; ``true`` is none."""

    def read(value: object, _: bool) -> int:
        if type(value) is not int or not least <= value <= MOST_AMOUNT:
            raise Mistake(
                f"found {shown(value)}; allowed: a whole number from {least} to {MOST_AMOUNT}."
            )
        return value

    return read


def one_of(*words: str) -> Reader:
    """A reader of one of the words."""

    def read(value: object, _: bool) -> str:
        if not isinstance(value, str) or value not in words:
            hint = did_you_mean(value, words) if isinstance(value, str) else ""
            allowed = ", ".join(f'"{word}"' for word in words)
            raise Mistake(f"found {shown(value)}; allowed: {allowed}.{hint}")
        return value

    return read


def strategy(value: object, _: bool) -> str:
    """A strategy's own name, where an alias was given too."""
    known = sorted([*STRATEGIES, *ALIASES])
    given: str = one_of(*known)(value, False)
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


def function(arguments: int) -> Reader:
    """A reader of functions; in a file they are named ``package.module:function``."""

    def read(value: object, python: bool) -> Callable[..., Any]:
        if isinstance(value, str):
            return resolved(value, arguments)
        if python and callable(value):
            return checked(value, arguments)
        own = "a function or " if python else ""
        raise Mistake(f'found {shown(value)}; allowed: {own}"package.module:function".')

    return read


def or_function(reader: Reader) -> Reader:
    """The reader, and in ``app.config`` a function without arguments as well."""

    def read(value: object, python: bool) -> Any:
        return checked(value, 0) if python and callable(value) else reader(value, python)

    return read


#: Every keyword but ``limit`` itself.
KEYWORDS: Mapping[str, Reader] = {
    "name": name,
    "strategy": strategy,
    "burst": whole_number(1),
    "unit": one_of(*UNITS),
    "key": identity,
    "cost": or_function(whole_number(0)),
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
