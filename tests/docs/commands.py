"""The commands that a page shows in blocks `console`, and their output."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.docs.test_documents import blocks

#: What differs from run to run, and what stands for it in the page's output and in the real one.
VARYING = {
    r"\b\d{4}-\d\d-\d\d\b": "DAY",
    r"\b\d{4}-\d\d\b": "MONTH",
    r"\b\d\d:\d\d:\d\d\b": "TIME",
    r"\b\d{8}T\d{6}\.\d+Z": "INSTANT",
    r"\breq_[0-9a-f]{32}\b": "REQUEST",
    r"\bsk-(?:chat|admin)-[0-9a-f]{16}-[\w-]+": "KEY",
    r"\b[0-9a-f]{16}\b": "ID",
    r"(?<= in )\d+ (?:h|min|s)(?: \d+ (?:min|s))?\b": "SPAN",
    r"(?<= in )\d\.\d+ s\b": "SPAN",
}


@dataclass(frozen=True)
class Command:
    """What follows `$`, and what it prints. A line that ends with a backslash goes on."""

    line: str
    output: str


def commands(page: Path) -> list[Command]:
    found = []
    for block in blocks(page, "console"):
        assert block.text.startswith("$ "), block
        for each in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, output = each.replace("\\\n", "").partition("\n")
            found.append(Command(line, output))
    return found


def comparable(output: str) -> str:
    """The output without what varies, and without the widths of columns."""
    for pattern, word in VARYING.items():
        output = re.sub(pattern, word, output)
    return "\n".join(" ".join(line.split()) for line in output.strip().splitlines())
