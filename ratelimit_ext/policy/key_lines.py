"""The line of each key of a TOML document, for messages.

``tomllib`` keeps no lines. Its own parser is asked for them, statement by statement, so that there
is no second grammar here. That is slow, and done only for a document with mistakes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from ratelimit_ext.policy.place import Path

#: No key of a policy lies deeper within one statement.
_DEEPEST = 8
#: A value over more lines is given up; what is in it gets the line of the last key before it.
_MOST_LINES = 500


def key_lines(text: str) -> dict[Path, int]:
    """Paths of a valid document, each with the line of its statement, counted from 1.

    >>> key_lines("a = 1\\n[[b]]\\n[[b]]\\nc.d = 2")[("b", 1, "c", "d")]
    4
    """
    lines: dict[Path, int] = {}
    tables = _Tables()
    for number, statement, parsed in _statements(text):
        if statement.lstrip().startswith("["):
            for path in tables.enter(parsed):
                lines.setdefault(path, number)
        else:
            elements = _element_lines(statement, number)
            for path in _paths(tables.present, parsed, _DEEPEST):
                inside = path[len(tables.present) :]
                lines.setdefault(path, line_of(elements, inside) or number)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path, else of the nearest key around it; 0 where that is the document."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 0


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Statements with their first line. One over several lines is whole as soon as it parses."""
    held: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        statement = "\n".join(held) + "\n"
        try:
            parsed = tomllib.loads(statement)
        except (ValueError, RecursionError):
            if len(held) > _MOST_LINES:
                return
            continue
        yield number - len(held) + 1, statement, parsed
        held.clear()


def _element_lines(statement: str, number: int) -> dict[Path, int]:
    """The lines of the elements of a list that goes over several.

    After each line, the list is closed for a trial: what it then holds began no later than there.
    """
    lines: dict[Path, int] = {}
    rows = [row + "\n" for row in statement.split("\n")[:-1]]
    begun = number
    for count in range(1, len(rows) + 1):
        whole = count == len(rows)
        key, elements = _list_in("".join(rows[:count]) + ("" if whole else "]"))
        for position in range(elements):
            lines.setdefault((*key, position), begun)
        if elements >= 0:
            begun = number + count
    return lines


def _list_in(statement: str) -> tuple[Path, int]:
    """The key of the list in a statement, and how many elements it has; -1 where there is none."""
    try:
        value: object = tomllib.loads(statement)
    except (ValueError, RecursionError):
        return (), -1
    key: Path = ()
    while isinstance(value, dict) and len(value) == 1:
        ((name, value),) = value.items()
        key = (*key, name)
    return key, len(value) if isinstance(value, list) else -1


def _paths(before: Path, value: object, depth: int) -> Iterator[Path]:
    if before:
        yield before
    if not depth:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths((*before, key), inner, depth - 1)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _paths((*before, position), inner, depth - 1)


class _Tables:
    """The table that is open, counting the elements of arrays of tables."""

    def __init__(self) -> None:
        self.present: Path = ()
        self._last: dict[Path, int] = {}

    def enter(self, header: object) -> list[Path]:
        """Open the table of a header, given as what that alone parses to; it, and those around."""
        path: Path = ()
        while isinstance(header, dict) and header:
            ((key, header),) = header.items()
            path = (*path, key)
            if isinstance(header, list):
                self._last[path] = self._last.get(path, -1) + 1
            if path in self._last:
                path = (*path, self._last[path])
        self.present = path
        return [path[:end] for end in range(1, len(path) + 1)]
