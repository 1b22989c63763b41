"""A policy file: its document, and the line of each key for messages.

``tomllib`` keeps no lines, and there is no second grammar here: a table's line is read as a key
that is added to it. The line of another key is the first one without which the document lacks it,
found by reading beginnings of the document: slow, and done only for mistakes.
"""

from __future__ import annotations

import os
import re
import tomllib
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import Path as FilePath
from typing import Final, cast

from ratelimit_ext.core.errors import not_allowed
from ratelimit_ext.policy.errors import (
    AppConfig,
    Mistake,
    Mistakes,
    Origin,
    Path,
    Place,
    dotted,
    part,
)

_LINE: Final = re.compile(r"\(at line (\d+), column (\d+)\)")


class TomlFile(Origin):
    """A file by the name it was given."""

    python = False

    def __init__(self, name: str, document: object = None) -> None:
        super().__init__(document)
        self.name = name
        self.text = ""
        #: The line where a file that is not TOML breaks off.
        self.broken_at = 0

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
        return self.broken_at or toml_line(self.text, path)


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


def toml_line(text: str, path: Path) -> int:
    """Return the line, counted from 1, of the key at that path of keys and positions in a TOML
    document, or of the nearest one around it; 0 without one. Slow for a key that is not a table.

    >>> toml_line("[a]\\nb = 1", ("a", "b"))
    2
    """
    last = text.count("\n") + 1
    for end in range(len(path), 0, -1):
        key = path[:end]
        if line := part(_with_lines(text), *key, "\0"):
            return cast(int, line)
        if part(_beginning(text, last), *key) is None:
            continue
        # So many first lines lack the key, and so many have it or cannot be read.
        without, having = 0, last
        while having - without > 1:
            middle = (without + having) // 2
            document = _beginning(text, middle)
            if document is not None and part(document, *key) is None:
                without = middle
            else:
                having = middle
        if part(_beginning(text, having), *key) is not None:
            return having
    return 0


@lru_cache(maxsize=1)
def _with_lines(text: str) -> dict[str, object] | None:
    """Return the document with its tables' lines; ``None`` if a line only looks like a header."""
    lines = [
        f'{line}\n"\\u0000" = {number}' if line.lstrip().startswith("[") else line
        for number, line in enumerate(text.split("\n"), 1)
    ]
    with suppress(ValueError, RecursionError):
        return tomllib.loads("\n".join(lines))
    return None


@lru_cache(maxsize=64)
def _beginning(text: str, count: int) -> dict[str, object] | None:
    """Return what the first lines hold, of a value of more lines as far as it goes; ``None`` if
    they end within deeper lists."""
    lines = "\n".join(text.split("\n")[:count])
    for quotes, brackets in product(("", '"""', "'''"), ("", "]", "]]", "}]")):
        with suppress(ValueError, RecursionError):
            return tomllib.loads(f"{lines}\n{quotes}{brackets}")
    return None
