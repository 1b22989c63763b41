"""Mistakes in a policy: all of them in one error, each with its place, what was found, what is
allowed and what to do.

The one table that translates pydantic's errors is here; its own messages are never shown.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean, shown
from ratelimit_ext.core.limit import MOST_AMOUNT

Path: TypeAlias = tuple[str | int, ...]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_KEY: Final = 60


class Mistake(ValueError):
    """A mistake without its place: what was found, what is allowed, what to do."""


def unknown_identity(name: str, identities: Collection[str]) -> str:
    there_is = unknown("identity", name, identities)
    return f'{there_is} Register it before init_app with @limiter.identity("{name}").'


def unknown(kind: str, name: str, names: Collection[str], among: str = "; registered") -> str:
    return f"there is no {kind} {name!r}{among}: {listed(names)}.{did_you_mean(name, names)}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, names))) or "none"


# -- places ----------------------------------------------------------------------------------


class Origin(ABC):
    """What a document is read from. ``python``: its values are Python's and may be functions."""

    python = True

    def __init__(self, document: object = None) -> None:
        self.document = document

    @abstractmethod
    def source(self, path: Path) -> str:
        """Return the place in short, for a person who knows the file."""

    def located(self, path: Path) -> str:
        """Return the place with file and line, where there are any."""
        return self.source(path)

    def line(self, path: Path) -> int:
        """Return the line, counted from 1; 0 if unknown."""
        return 0


class AppConfig(Origin):
    """A key of ``app.config``."""

    def __init__(self, key: str, document: object = None) -> None:
        super().__init__(document)
        self._key = key

    def source(self, path: Path) -> str:
        """As it is written in Python."""
        keys = (str(key) if isinstance(key, int) else _quoted(key) for key in path)
        return "".join([f'app.config["{self._key}"]', *(f"[{key}]" for key in keys)])


class Code(Origin):
    """A limit in a decorator or a constructor."""

    def source(self, path: Path) -> str:
        text = str(part(self.document, "limit"))
        return ", ".join([f"limit {text!r}", *(str(key) for key in path if key != "limit")])


class CodeLine(Origin):
    """A decorator, by file and line."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    def source(self, path: Path) -> str:
        return self._source


class Place(NamedTuple):
    """A path of keys and positions in a document."""

    origin: Origin
    path: Path = ()

    def at(self, *keys: str | int) -> Place:
        """Return the place of a part, as it is written: a string may stand for a table with that
        limit, and a list for a table with those limits."""
        path, value = self.path, part(self.origin.document, *self.path)
        for key in keys:
            if (key, type(value)) not in (("limit", str), ("limits", list), ("limits", tuple)):
                path, value = (*path, key), part(value, key)
        return Place(self.origin, path)

    def around(self, levels: int) -> Place:
        """Return the place that many levels further out."""
        return Place(self.origin, self.path[:-levels])

    @property
    def located(self) -> str:
        """The exact place, with file and line."""
        return self.origin.located(self.path)

    @property
    def order(self) -> tuple[bool, int]:
        """Files come before ``app.config``, and their lines in order."""
        return self.origin.python, self.origin.line(self.path)

    def __str__(self) -> str:
        return self.origin.source(self.path)


def part(value: object, *path: str | int) -> object:
    """Return a part of a document; ``None`` if it has no such part."""
    for key in path:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def dotted(path: Path) -> str:
    """Return a path as TOML writes it.

    >>> dotted(("blueprints", "my.chat", "limits", 1, "burst"))
    'blueprints."my.chat".limits[1].burst'
    """
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            bare = len(key) <= _LONGEST_KEY and _BARE_KEY.fullmatch(key)
            text += "." * bool(text) + (key if bare else _quoted(key))
    return text


def _quoted(key: str) -> str:
    """Return a key in double quotes on one line, valid in TOML and Python."""
    return json.dumps(key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY] + "...")


# -- mistakes --------------------------------------------------------------------------------


class Mistakes:
    """The mistakes found so far, each with its place."""

    def __init__(self) -> None:
        self._mistakes: list[tuple[Place, str]] = []
        self._places: set[tuple[Origin, Path]] = set()

    def add(self, place: Place, text: object) -> None:
        self._mistakes.append((place, " ".join(str(text).split())))
        ends = range(len(place.path) + 1)
        self._places.update((place.origin, place.path[:end]) for end in ends)

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Note the mistake that ends the block, and go on after it."""
        try:
            yield
        except (Mistake, ConfigurationError) as error:
            self.add(place, error)

    def __len__(self) -> int:
        return len(self._mistakes)

    def __contains__(self, place: Place) -> bool:
        """Return whether a mistake was found there or inside."""
        return (place.origin, place.path) in self._places

    def raise_if_any(self, where: str = "the configured limits") -> None:
        """Raise one :class:`ConfigurationError` with a line for each mistake, by file and line."""
        if not self._mistakes:
            return
        # Sorting is stable: within a line, and where lines are unknown, the order found remains.
        ordered = sorted(self._mistakes, key=lambda mistake: mistake[0].order)
        lines = list(dict.fromkeys(f"  {place.located}: {text}" for place, text in ordered))
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigurationError("\n".join([f"{count} in {where}:", *lines]))


# -- pydantic's errors -----------------------------------------------------------------------

NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}"
NAME_ALLOWED: Final = "a name of 1 to 64 letters, digits, _, -, . and spaces"
#: Keywords that may be functions without arguments if they are written in Python.
_OR_FUNCTION: Final = frozenset({"cost", "error_message"})

#: Types of pydantic's errors that lead to the same sentence as another.
_SAME: Final = {
    "dict_type": "model_type",
    "too_short": "list_type",
    "greater_than_equal": "int_type",
    "less_than_equal": "int_type",
}
#: What is allowed, by the type of pydantic's error and the last key of its location; "*" is any.
_ALLOWED: Final = {
    ("model_type", "*"): "a table",
    ("list_type", "members"): 'a list of blueprints and endpoints, such as ["chat", "api.ask"]',
    ("list_type", "*"): 'a list of at least one limit, such as ["30/minute"]',
    ("bool_type", "*"): "true or false, without quotes",
    ("int_type", "*"): f"a whole number from 1 to {MOST_AMOUNT}",
    ("*", "members"): "the name of a blueprint or endpoint",
    ("*", "name"): NAME_ALLOWED,
    ("*", "scope"): NAME_ALLOWED,
    ("*", "next"): "the name of a plan",
    ("*", "upgrade_url"): "an address that begins with https:// or http://",
    ("*", "*"): "a text in quotes",
}
_MISSING: Final = {
    "version": '"version" is missing. Write version = 1 as the first line.',
    "limit": '"limit" is missing. Write for example limit = "30/minute".',
    "limits": "the plan has no limits. Write [[{plan}.limits]] with a name and a limit; to allow "
    'anything, limit = "1000000000/day".',
    "name": '"name" is missing. A limit of a plan needs one, to keep the usage of a caller who '
    'changes plans. Write for example name = "plan".',
}


def sentence(error: Mapping[str, Any], keys: Collection[str], *, python: bool) -> str:
    """Return the sentence for an error of pydantic's; ``keys`` are those of its table."""
    kind, path, value = _SAME.get(error["type"], error["type"]), error["loc"], error["input"]
    key = next((key for key in reversed(path) if isinstance(key, str)), "")
    if kind == "extra_forbidden":
        return unknown_key(key, value, keys)
    if kind == "missing":
        return _MISSING[key].format(plan=dotted(path[:-1]))
    if kind == "value_error":  # a Mistake of our own validators
        said = str(error["ctx"]["error"])
    else:
        ranked = ((kind, key), (kind, "*"), ("*", key), ("*", "*"))
        allowed = next(_ALLOWED[pair] for pair in ranked if pair in _ALLOWED)
        said = f"found {shown(value)}; allowed: {allowed}.{_brackets(kind, value)}"
    if python and key in _OR_FUNCTION and not callable(value):
        said += " A function without arguments is allowed as well."
    return said


def unknown_key(key: str, value: object, keys: Collection[str]) -> str:
    """Return the sentence, with the key that was meant; for a table of a blueprint, how a nested
    one is written."""
    nested = isinstance(value, Mapping) and "routes" in keys and "version" not in keys
    remedy = ' Write a nested blueprint with its whole name in quotes: [blueprints."outer.inner"].'
    hint = did_you_mean(key, keys) or remedy * nested
    return f"unknown key; allowed: {', '.join(keys)}.{hint}"


def _brackets(kind: str, value: object) -> str:
    """Return what to do with a table for a list, and the reverse."""
    if kind == "model_type" and isinstance(value, list):
        return " In a file, write its name in single brackets."
    if kind != "list_type":
        return ""
    if isinstance(value, Mapping):
        return " In a file, write its name in double brackets."
    return " Fill the list or remove the key." if value == [] else " Put it in brackets."
