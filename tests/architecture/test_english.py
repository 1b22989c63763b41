"""The product, its documents and its tests are written in the field's words.

The words below belonged to a dialect of this project that readers had to translate. All lines are
checked: docstrings, messages, comments, names, templates, policies.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIALECT = re.compile(
    r"\b(?:[Tt]old|[Ww]hoever|[Nn]obody|[Ss]omebody|in vain|is none|at hand|of ours|for so long|"
    r"has no room|means nothing|who asks|that is no [a-z])\b"
)
FOLDERS = ("chatapp", "ratelimit_ext", "docs", "benchmarks", "tests")
KINDS = {".py", ".lua", ".toml", ".md", ".html", ".js", ".txt"}
FILES = sorted(
    path
    for path in (
        *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*")),
        *ROOT.glob("*.py"),
        *ROOT.glob("*.md"),
        ROOT / "pyproject.toml",
    )
    if path.suffix in KINDS and "vendor" not in path.parts
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_plain_english() -> None:
    """No line has a word of the old dialect."""
    assert not [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in FILES
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if DIALECT.search(line)
    ]
