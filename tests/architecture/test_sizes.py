"""How large the folders and packages may be: each number is a maximum that only falls.

A commit that removes code lowers it: `python tests/architecture/test_sizes.py` writes the sizes of
today, rounded up, where they are lower. To raise one, write a record as
docs/decisions/0035-sizes-are-maxima.md.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("sizes.txt")
PACKAGES = ("ratelimit_ext", "chatapp")
CODE = {".py", ".lua"}
STEP = 20
MOST_LINES = {"ratelimit_ext": 27_000, "chatapp": 25_580}
#: What is counted in both packages, and how often it may be there.
MOST = {r"# noqa": 110, r"^[ \t]+(?:from|import) .*noqa: PLC0415": 31}


def sizes() -> Counter[str]:
    """The lines of each folder, blank ones included, without those of the folders in it."""
    lines = Counter[str]()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in CODE:
                folder = path.parent.relative_to(ROOT).as_posix()
                lines[folder] += len(path.read_text().splitlines())
    return lines


def allowed() -> Counter[str]:
    rows = (line.split() for line in TABLE.read_text().splitlines())
    return Counter({folder: int(lines) for folder, lines in rows})


def test_no_folder_exceeds_its_size() -> None:
    """A folder has at most its lines of sizes.txt; a folder without a row has none."""
    found = sizes()
    assert found
    assert not [
        f"{folder}: {lines} lines, {allowed()[folder]} allowed"
        for folder, lines in found.items()
        if lines > allowed()[folder]
    ]


def test_no_package_exceeds_its_size() -> None:
    """Whatever moves between its folders."""
    lines = Counter[str]()
    for folder, count in sizes().items():
        lines[folder.partition("/")[0]] += count
    assert {name: count for name, count in lines.items() if count > MOST_LINES[name]} == {}


def test_exceptions_from_rules_do_not_grow() -> None:
    """Marks for the linter, and imports inside functions."""
    text = "\n".join(
        path.read_text() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
    )
    found = {pattern: len(re.findall(pattern, text, re.MULTILINE)) for pattern in MOST}
    assert {pattern: count for pattern, count in found.items() if count > MOST[pattern]} == {}


def test_the_table_names_what_exists() -> None:
    """A folder that is gone leaves no row, which another could grow into."""
    assert not allowed().keys() - sizes().keys()


if __name__ == "__main__":
    now = sizes().items()
    rounded = {folder: min(-(-lines // STEP) * STEP, allowed()[folder]) for folder, lines in now}
    TABLE.write_text("".join(f"{folder:<36}{lines:>6}\n" for folder, lines in rounded.items()))
