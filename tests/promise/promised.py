"""The lists of what is promised: files of this folder, a promise a line.

A test makes the lines from the code and compares them. `RATELIMIT_PROMISE=write` before the command
of the tests writes the lists. docs/reference/promise.md says which differences a release may have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
WRITES = os.environ.get("RATELIMIT_PROMISE") == "write"


def compare(name: str, lines: Iterable[str]) -> None:
    """Fail if the list of this name does not have exactly these lines."""
    file, found = HERE / f"{name}.txt", sorted(set(lines))
    if WRITES:
        file.write_text("".join(f"{line}\n" for line in found))
    promised = file.read_text().splitlines()
    gone = [line for line in promised if line not in found]
    assert not gone, f"promised in {file.name}, and gone or changed:\n" + "\n".join(gone)
    added = [line for line in found if line not in promised]
    assert not added, f"not in {file.name}; RATELIMIT_PROMISE=write adds:\n" + "\n".join(added)


def fields(value: object, path: str = "") -> Iterable[str]:
    """Yield the paths of all fields of an answer in JSON, as `.items[].name`. Names that are data,
    such as those of limits, are `*`: they have a colon or a dash."""
    if isinstance(value, dict):
        for name, item in value.items():
            below = f"{path}.{name if str(name).isidentifier() else '*'}"
            yield below
            yield from fields(item, below)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, f"{path}[]")
