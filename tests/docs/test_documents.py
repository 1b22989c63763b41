"""README and docs: their code runs, their links resolve, their English is plain.

The Python blocks of a document run in order in one namespace, as a reader would type them. A block
that cannot run here is fenced with `python no-run` and counted below. Blocks that name a file, as
in `python test_search.py`, are saved, and pytest runs them. TOML, YAML and JSON parse.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*DOCUMENTS, *(ROOT / name for name in ("CHANGELOG.md", "SECURITY.md"))]
LINKING += [ROOT / "benchmarks" / "README.md", *sorted((ROOT / ".github").glob("*.md"))]
# Raise this number, with a reason here, to leave a block unrun.
NOT_RUN = 0
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
# Files and folders of the code that a page names, also in a command.
CODE_PATH = re.compile(r"(?<![\w./-])(?:ratelimit_ext|chatapp|tests)/[\w./-]*[\w/]")
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its words after the fence, its text, and the line on which it begins."""

    info: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The Python file that the block is a part of, if it names one."""
        return next((word for word in self.info[1:] if word.endswith(".py")), None)


def blocks(document: Path, language: str) -> list[Block]:
    source = document.read_text()
    found = [
        Block(tuple(match["info"].split()), match["text"], source.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(source)
    ]
    return [block for block in found if block.info[:1] == (language,)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if blocks(each, "python")], ids=relative
)
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a document runs, after those before it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document, "python"):
        if block.file:
            with (tmp_path / block.file).open("a") as file:
                file.write(block.text)
        elif "no-run" not in block.info:
            # The blank lines give a traceback the document's own line numbers.
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(document), "exec"), namespace)  # noqa: S102 - our own text
    tests = "".join(path.read_text() for path in tmp_path.glob("test_*.py")).count("def test_")
    if tests:
        assert f"{tests} passed" in pytest_in(tmp_path)


def pytest_in(folder: Path) -> str:
    """What pytest says of the tests in the folder, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("language", "parse", "error"),
    [
        ("toml", tomllib.loads, tomllib.TOMLDecodeError),
        ("yaml", yaml.safe_load, yaml.YAMLError),
        ("json", json.loads, json.JSONDecodeError),
    ],
)
def test_blocks_parse(language: str, parse: Callable[[str], Any], error: type[Exception]) -> None:
    """Every block of a language of data is of that language."""
    wrong = []
    for document in DOCUMENTS:
        for block in blocks(document, language):
            try:
                parse(block.text)
            except error as problem:
                wrong.append(f"{relative(document)}:{block.line}: {problem}")
    assert not wrong


def test_no_command_is_a_variable() -> None:
    """zsh does not split one into words: `$chat users list` runs in bash alone."""
    assert not [
        f"{relative(document)}:{block.line}: {line}"
        for document in DOCUMENTS
        for language in ("sh", "console")
        for block in blocks(document, language)
        for line in block.text.splitlines()
        if re.match(r"(\$ )?\s*\$\w", line)
    ]


def test_no_block_is_skipped_unseen() -> None:
    """As many blocks as allowed do not run."""
    skipped = [
        f"{relative(document)}:{block.line}"
        for document in DOCUMENTS
        for block in blocks(document, "python")
        if "no-run" in block.info
    ]
    assert len(skipped) == NOT_RUN, skipped


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub derives them."""
    text = FENCE.sub("", document.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_nowhere(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (document.parent / path) if path else document
    return not file.exists() or bool(anchor and anchor not in anchors(file))


def test_links_resolve() -> None:
    """Every relative link leads to a file, and to a heading if it names one."""
    assert not [
        f"{relative(document)}: {target}"
        for document in LINKING
        for target in LINK.findall(FENCE.sub("", document.read_text()))
        if "://" not in target and leads_nowhere(document, target)
    ]


def test_documents_name_code_that_exists() -> None:
    """Every path of the code on a page exists."""
    named = {(each, path) for each in LINKING for path in CODE_PATH.findall(each.read_text())}
    assert named
    assert not [(relative(each), path) for each, path in named if not (ROOT / path).exists()]


def test_the_threat_model_names_tests_that_exist() -> None:
    """Each ceiling of SECURITY.md is shown by a test."""
    text = (ROOT / "SECURITY.md").read_text()
    model = text[text.index("## Who can do what") : text.index("## Ceilings")]
    named = set(re.findall(r"`(test_\w+)`", model))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    found = re.findall(r"^def (test_\w+)\(", "\n".join(sources), re.MULTILINE)
    assert named
    assert named <= set(found)
    rows = re.findall(r"^\| (?!at most \||---)(.*) \|$", model, re.MULTILINE)
    assert [row for row in rows if "`test_" not in row] == []
