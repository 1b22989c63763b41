"""Where something stands in a policy, as a person finds it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Path: TypeAlias = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_KEY = 60


class Origin(Protocol):
    """What a policy is read from: a file, or a key of ``app.config``."""

    @property
    def python(self) -> bool:
        """Whether values are Python's, so that they may be functions."""
        ...

    def source(self, path: Path) -> str:
        """The place for someone who knows which file is meant."""
        ...

    def located(self, path: Path) -> str:
        """The place as exactly as it can be had."""
        ...

    def line(self, path: Path) -> int:
        """The line, counted from 1; 0 where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """A path of keys and positions within an origin."""

    origin: Origin
    path: Path = ()

    def at(self, *keys: str | int) -> Place:
        """The place of something inside."""
        return Place(self.origin, (*self.path, *keys))

    def around(self, levels: int) -> Place:
        """The place that so many keys lead to this one from."""
        return Place(self.origin, self.path[:-levels])

    @property
    def located(self) -> str:
        """The exact place, with the line where there is one."""
        return self.origin.located(self.path)

    @property
    def order(self) -> tuple[bool, int]:
        """Files come before ``app.config``, and their lines in order."""
        return self.origin.python, self.origin.line(self.path)

    def __str__(self) -> str:
        return self.origin.source(self.path)


@dataclass(frozen=True, slots=True)
class AppConfig:
    """A key of ``app.config`` as the origin of values."""

    key: str
    python: bool = True

    def source(self, path: Path) -> str:
        """The place as it is written in Python."""
        return "".join([f'app.config["{self.key}"]', *(f"[{_subscript(key)}]" for key in path)])

    def located(self, path: Path) -> str:
        """The same: values do not know their line."""
        return self.source(path)

    def line(self, path: Path) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Code:
    """A limit in Python as the origin of its keywords."""

    text: str
    python: bool = True

    def source(self, path: Path) -> str:
        """The limit, and the keyword that is meant."""
        return ", ".join([f"limit {self.text!r}", *map(str, path)])

    def located(self, path: Path) -> str:
        """The same: the traceback has the line."""
        return self.source(path)

    def line(self, path: Path) -> int:
        """None."""
        return 0


def _subscript(key: str | int) -> str:
    return str(key) if isinstance(key, int) else _quoted(key)


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
            text += "." * bool(text) + (key if _is_bare(key) else _quoted(key))
    return text


def _is_bare(key: str) -> bool:
    return len(key) <= _LONGEST_KEY and _BARE_KEY.fullmatch(key) is not None


def _quoted(key: str) -> str:
    """In double quotes, on one line, printable whatever the key holds: valid in TOML and Python."""
    return json.dumps(key if len(key) <= _LONGEST_KEY else key[:_LONGEST_KEY] + "...")
