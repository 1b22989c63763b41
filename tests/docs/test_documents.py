"""What README and docs show, runs.

Each document's Python blocks run in their order in one namespace, as a reader would type them. A
block that cannot run here is fenced with `python no-run`, and counted below. TOML blocks parse.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# To leave a block unrun is a decision: whoever makes it raises this number, and says why there.
NOT_RUN = 0
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its words after the fence, its text, and the line on which it begins."""

    info: tuple[str, ...]
    text: str
    line: int


def blocks(document: Path, language: str) -> list[Block]:
    source = document.read_text()
    found = [
        Block(tuple(match["info"].split()), match["text"], source.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(source)
    ]
    return [block for block in found if block.info[:1] == (language,)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a document runs, after those before it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document, "python"):
        if "no-run" not in block.info:
            # The blank lines give a traceback the document's own line numbers.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(document), "exec"), namespace)  # noqa: S102 - our own text


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_toml_blocks_parse(document: Path) -> None:
    """Every TOML block of a document is TOML."""
    for block in blocks(document, "toml"):
        tomllib.loads(block.text)


def test_no_block_is_left_out_unseen() -> None:
    """The blocks that do not run are as many as were decided."""
    skipped = [
        f"{relative(document)}:{block.line}"
        for document in DOCUMENTS
        for block in blocks(document, "python")
        if "no-run" in block.info
    ]
    assert len(skipped) == NOT_RUN, skipped
