"""A policy file: read, decoded and parsed; and the origin of what stands in it."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from ratelimit_ext.core.errors import shown
from ratelimit_ext.policy.errors import Mistake, Mistakes
from ratelimit_ext.policy.key_lines import key_lines, line_of
from ratelimit_ext.policy.place import AppConfig, Path, Place, dotted

_LINE = re.compile(r"\(at line (\d+), column (\d+)\)")


@dataclass(slots=True, eq=False)
class TomlFile:
    """A file by the name it was given; ``document`` is what stands in it."""

    name: str
    text: str = ""
    document: dict[str, object] = field(default_factory=dict)
    python: bool = False
    #: The line that ends the reading of a file that is no TOML; 0 where it is.
    broken_at: int = 0
    _lines: dict[Path, int] | None = None

    def source(self, path: Path) -> str:
        """The file's last name and the path of keys."""
        return f"{_printable(FilePath(self.name).name)}: {dotted(path)}"

    def located(self, path: Path) -> str:
        """File, line and path of keys; editors jump to it."""
        line = self.line(path)
        name = _printable(self.name)
        parts = [f"{name}:{line}" if line else name, dotted(path)]
        return ": ".join(filter(None, parts))

    def line(self, path: Path) -> int:
        """The line of the key; 0 for the document itself."""
        if self.broken_at:
            return self.broken_at
        if self._lines is None:
            self._lines = key_lines(self.text)
        return line_of(self._lines, path)


def read(file: object, mistakes: Mistakes) -> TomlFile | None:
    """The file with its document; ``None`` where it cannot be had, and a mistake says why."""
    place = Place(AppConfig("RATELIMIT_POLICY_FILE"))
    with mistakes.noted_at(place):
        source = TomlFile(_name(file))
        place = Place(source)
        with mistakes.noted_at(place):
            source.text = _decoded(source)
            source.document = _parsed(source)
            return source
    return None


def _printable(name: str) -> str:
    """The name on one line, without bytes that are no characters."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _name(file: object) -> str:
    if not isinstance(file, str | os.PathLike):
        raise Mistake(f"found {shown(file)}; allowed: the path of a TOML file, as a string.")
    name = os.fsdecode(file)
    if not name or "\0" in name:
        raise Mistake(
            f"found {shown(name)}; allowed: the path of a TOML file. "
            "Remove the key where there is no file."
        )
    return name


def _content(name: str) -> bytes:
    try:
        return FilePath(name).read_bytes()
    except FileNotFoundError:
        raise Mistake(
            f"there is no such file (looked for {_printable(str(FilePath(name).absolute()))}). "
            'Create it, or correct app.config["RATELIMIT_POLICY_FILE"].'
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Mistake(f"the file cannot be read: {reason}. Check its path and rights.") from None


def _decoded(source: TomlFile) -> str:
    """The text. The mark that some editors put before UTF-8 is no part of it."""
    content = _content(source.name)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source.broken_at = content.count(b"\n", 0, error.start) + 1
        raise Mistake(
            f"the byte 0x{content[error.start]:02x} is not UTF-8, in which TOML is always written. "
            "Save the file as UTF-8."
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
        said = _LINE.sub(f"in column {at[2]}" if at else "", str(error))
        raise Mistake(
            f"this is not TOML: {said}. Strings stand in double quotes, names of tables in "
            "brackets; see toml.io."
        ) from None
