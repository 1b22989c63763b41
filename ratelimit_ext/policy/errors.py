"""Mistakes in a policy: all of them in one error, each with its place, what was found, what is
allowed and what to do.

The one table that translates pydantic's errors is here; its own messages are never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias

from ratelimit_ext.core.errors import ConfigurationError, shown
from ratelimit_ext.core.limit import MOST_AMOUNT
from ratelimit_ext.core.spelling import did_you_mean

Path: TypeAlias = tuple[str | int, ...]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_KEY: Final = 60


class Mistake(ValueError):
    """A mistake without its place: what was found, what is allowed, what to do."""


# -- places ----------------------------------------------------------------------------------


class Origin:
    """What a document is read from. ``python``: its values are Python's and may be functions."""

    python = True

    def __init__(self, document: object = None) -> None:
        self.document = document

    def source(self, path: Path) -> str:
        """The place in short, for a person who knows the file."""
        raise NotImplementedError

    def located(self, path: Path) -> str:
        """The place with file and line, where there are any."""
        return self.source(path)

    def line(self, path: Path) -> int:
        """The line, counted from 1; 0 if unknown."""
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
        """The limit and the keyword."""
        text = str(_part(self.document, "limit"))
        return ", ".join([f"limit {text!r}", *(str(key) for key in path if key != "limit")])


@dataclass(frozen=True, slots=True)
class Place:
    """A path of keys and positions in a document."""

    origin: Origin
    path: Path = ()

    def at(self, *keys: str | int) -> Place:
        """The place of a part, as it is written: a string may stand for a table with that limit,
        and a list for a table with those limits."""
        path, value = self.path, self.origin.document
        for key in path:
            value = _part(value, key)
        for key in keys:
            if (key, type(value)) not in (("limit", str), ("limits", list), ("limits", tuple)):
                path, value = (*path, key), _part(value, key)
        return Place(self.origin, path)

    def around(self, levels: int) -> Place:
        """The place that many levels further out."""
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


def _part(value: object, key: str | int) -> object:
    """A part of a document; ``None`` if it has no such part."""
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list | tuple) and isinstance(key, int):
        return value[key]
    return None


def dotted(path: Path) -> str:
    """A path as TOML writes it.

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
    """A key in double quotes on one line, valid in TOML and Python."""
    return json.dumps(key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY] + "...")


# -- mistakes --------------------------------------------------------------------------------


class Mistakes:
    """The mistakes found so far, each with its place."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def add(self, place: Place, text: object) -> None:
        """Note a mistake, as one line."""
        self._found.append((place, " ".join(str(text).split())))

    def at(self, place: Place) -> _Collected:
        """A context that notes the mistake that ends its block, and goes on after it."""
        return _Collected(self, place)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, place: Place) -> bool:
        """Whether a mistake was found there or inside."""
        origin, depth = place.origin, len(place.path)
        return any(
            found.origin is origin and found.path[:depth] == place.path for found, _ in self._found
        )

    def raise_if_any(self, where: str = "the limits by configuration") -> None:
        """Raise one :class:`ConfigurationError` with a line for each mistake, by file and line."""
        if not self._found:
            return
        # Sorting is stable: within a line, and where lines are unknown, the order found remains.
        found = sorted(self._found, key=lambda mistake: mistake[0].order)
        lines = list(dict.fromkeys(f"  {place.located}: {text}" for place, text in found))
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigurationError("\n".join([f"{count} in {where}:", *lines]))


class _Collected:
    def __init__(self, mistakes: Mistakes, place: Place) -> None:
        self._mistakes, self._place = mistakes, place

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Mistake | ConfigurationError):
            return False
        self._mistakes.add(self._place, error)
        return True


# -- pydantic's errors -----------------------------------------------------------------------

NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}"
NAME_ALLOWED: Final = "a name of 1 to 64 letters, digits, _, -, . and spaces"
_WHOLE_NUMBER: Final = f"a whole number from 1 to {MOST_AMOUNT}"
_TABLE: Final = "a table.{brackets}"
_LIST: Final = 'a list of at least one limit, such as ["30/minute"].{brackets}'
_MEMBERS: Final = 'a list of blueprints and endpoints, such as ["chat", "api.ask"].{brackets}'

#: Sentences by the type of pydantic's error and the last key of its location; "*" is any.
_SENTENCES: Final[Mapping[tuple[str, str], str]] = {
    ("extra_forbidden", "*"): "unknown key; allowed: {keys}.{nearest}",
    ("missing", "version"): '"version" is missing. Write version = 1 as the first line.',
    ("missing", "limit"): '"limit" is missing. Write for example limit = "30/minute".',
    ("missing", "limits"): (
        "the plan has no limits. Write [[{path}.limits]] with a name and a limit; to allow "
        'anything, limit = "1000000000/day".'
    ),
    ("missing", "members"): '"members" is missing. Write for example members = ["chat"].',
    ("missing", "name"): (
        '"name" is missing. A limit of a plan needs one, to keep the usage of a caller who changes '
        'plans. Write for example name = "plan".'
    ),
    **{
        (type_, "*"): f"found {{found}}; allowed: {allowed}"
        for types, allowed in (
            (("model_type", "dict_type"), _TABLE),
            (("list_type", "too_short"), _LIST),
            (("bool_type",), "true or false, without quotes."),
            (("int_type", "greater_than_equal", "less_than_equal"), f"{_WHOLE_NUMBER}."),
        )
        for type_ in types
    },
    ("*", "members"): "found {found}; allowed: the name of a blueprint or endpoint.",
    ("list_type", "members"): f"found {{found}}; allowed: {_MEMBERS}",
    ("too_short", "members"): f"found {{found}}; allowed: {_MEMBERS}",
    ("*", "name"): f"found {{found}}; allowed: {NAME_ALLOWED}.",
    ("*", "scope"): f"found {{found}}; allowed: {NAME_ALLOWED}.",
    ("*", "next"): "found {found}; allowed: the name of a plan.",
    ("*", "*"): "found {found}; allowed: a text in quotes.",
}
#: Keywords that may be functions without arguments if they are written in Python.
OR_FUNCTION: Final = frozenset({"cost", "error_message"})


def sentence(error: Mapping[str, Any], keys: Collection[str], *, python: bool) -> str:
    """The sentence for one of pydantic's errors; ``keys`` are those of the table around it."""
    kind, path, value = error["type"], error["loc"], error["input"]
    names = [key for key in path if isinstance(key, str)]
    key = names[-1] if names else ""
    if kind == "value_error":  # of our own validators: their sentence
        said = str(error["ctx"]["error"])
    else:
        ranked = ((kind, key), (kind, "*"), ("*", key), ("*", "*"))
        said = next(_SENTENCES[pair] for pair in ranked if pair in _SENTENCES).format(
            found=shown(value),
            keys=", ".join(keys),
            nearest=_nearest(key, value, keys),
            brackets=_brackets(kind, value),
            path=dotted(path[:-1]),
        )
    if python and key in OR_FUNCTION and not callable(value):
        said += " A function without arguments is allowed as well."
    return said


def _nearest(key: str, value: object, keys: Collection[str]) -> str:
    """The key that was meant; for a table of a blueprint, how a nested one is written."""
    nested = isinstance(value, Mapping) and "routes" in keys and "version" not in keys
    remedy = ' Write a nested blueprint with its whole name in quotes: [blueprints."outer.inner"].'
    return did_you_mean(key, keys) or remedy * nested


def _brackets(kind: str, value: object) -> str:
    """What to do with a table for a list, and the reverse."""
    if kind in ("model_type", "dict_type"):
        return " In a file, write its name in single brackets." * isinstance(value, list)
    if isinstance(value, Mapping):
        return " In a file, write its name in double brackets."
    return " Fill the list or remove the key." if value == [] else " Put it in brackets."
