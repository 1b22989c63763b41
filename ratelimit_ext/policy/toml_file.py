"""A policy file: its document, and the line of each key for messages.

``tomllib`` keeps no lines. Its own parser is run statement by statement instead, so that there is
no second grammar here. That is slow, and done only for a document with mistakes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Final

from ratelimit_ext.core.errors import not_allowed
from ratelimit_ext.policy.errors import AppConfig, Mistake, Mistakes, Origin, Path, Place, dotted

_LINE: Final = re.compile(r"\(at line (\d+), column (\d+)\)")
#: No key of a policy lies deeper within one statement.
_DEEPEST: Final = 8
#: A longer value is given up; what is in it gets the line of the last key before it.
_MOST_LINES: Final = 500


class TomlFile(Origin):
    """A file by the name it was given."""

    python = False

    def __init__(self, name: str, document: object = None) -> None:
        super().__init__(document)
        self.name = name
        self.text = ""
        #: The line where a file that is not TOML breaks off.
        self.broken_at = 0
        self._lines: dict[Path, int] | None = None

    def source(self, path: Path) -> str:
        """Return the file's last name and the path of keys."""
        return f"{_printable(FilePath(self.name).name)}: {dotted(path)}"

    def located(self, path: Path) -> str:
        """File, line and path of keys; editors jump to it."""
        line = self.line(path)
        name = _printable(self.name)
        parts = [f"{name}:{line}" if line else name, dotted(path)]
        return ": ".join(filter(None, parts))

    def line(self, path: Path) -> int:
        """Return the line of the key; 0 for the document itself."""
        if self.broken_at:
            return self.broken_at
        if self._lines is None:
            self._lines = key_lines(self.text)
        return line_of(self._lines, path)


def read_file(file: object, mistakes: Mistakes) -> TomlFile:
    """Return the file; its document is ``None``, with a mistake, if it cannot be read."""
    source = TomlFile("")
    with mistakes.at(Place(AppConfig("RATELIMIT_POLICY_FILE"))):
        source.name = _name(file)
        with mistakes.at(Place(source)):
            source.text = _text(source)
            source.document = _parsed(source)
    return source


def _printable(name: str) -> str:
    """Return the name on one line, without bytes that are not characters."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _name(file: object) -> str:
    if not isinstance(file, str | os.PathLike):
        raise Mistake(not_allowed(file, "the path of a TOML file, as a string"))
    name = os.fsdecode(file)
    if not name or "\0" in name:
        without = "Remove the key if there is no file."
        raise Mistake(f"{not_allowed(name, 'the path of a TOML file')} {without}")
    return name


def _text(source: TomlFile) -> str:
    """Return the text, without the mark that some editors put before UTF-8."""
    try:
        content = FilePath(source.name).read_bytes()
    except FileNotFoundError:
        raise Mistake(
            f"there is no such file (looked for {_printable(str(FilePath(source.name).absolute()))}"
            '). Create it, or correct app.config["RATELIMIT_POLICY_FILE"].'
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Mistake(f"the file cannot be read: {reason}. Check its path and rights.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source.broken_at = content.count(b"\n", 0, error.start) + 1
        raise Mistake(
            f"the byte 0x{content[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        ) from None


def _parsed(source: TomlFile) -> dict[str, object]:
    try:
        return tomllib.loads(source.text)
    except RecursionError:
        raise Mistake("lists are nested too deeply; a policy needs two levels.") from None
    except ValueError as error:
        at = _LINE.search(str(error))
        # Where tomllib names no line, the document ended too early.
        source.broken_at = int(at[1]) if at else source.text.rstrip().count("\n") + 1
        reason = _LINE.sub(f"in column {at[2]}" if at else "", str(error))
        raise Mistake(
            f"this is not TOML: {reason}. Write strings in double quotes and names of tables in "
            "brackets; see toml.io."
        ) from None


# -- lines -----------------------------------------------------------------------------------


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


def toml_line(text: str, path: Path) -> int:
    """Return the line, counted from 1, of the key at that path of keys and positions in a TOML
    document, or of the nearest one around it; 0 without one. Slow: for messages about mistakes.

    >>> toml_line("[a]\\nb = 1", ("a", "b"))
    2
    """
    return line_of(key_lines(text), path)


def line_of(lines: dict[Path, int], path: Path) -> int:
    """Return the line of a path, else of the nearest key around it; 0 without one."""
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
    """Return the lines of the elements of a list that goes over several.

    After each line, the list is closed once for this: what it then holds began no later than there.
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
    """Return the key of a statement's list, and its number of elements; -1 without a list."""
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
