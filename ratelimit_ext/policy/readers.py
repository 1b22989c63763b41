"""Readers of single values.

A reader takes the value and whether it is Python's (so that it may be a function), and returns what
is meant; it raises :class:`Mistake` for what is not allowed.
"""

# ruff: noqa: FBT001, FBT002 - one signature for all readers, called by the table of keywords

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from ratelimit_ext.core.errors import shown
from ratelimit_ext.core.limit import MOST_AMOUNT
from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistake
from ratelimit_ext.policy.functions import checked, resolved

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
        if not python:
            return reader(value, python)
        if callable(value):
            return checked(value, 0)
        try:
            return reader(value, python)
        except Mistake as mistake:
            raise Mistake(f"{mistake} A function without arguments is allowed as well.") from None

    return read
