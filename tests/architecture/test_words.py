"""One word for each thing: docs/glossary.md has the list, this finds the old ones.

*Provider* is a company, in prose; as a name it stays where it is stored or configured: the field
``provider`` of models.toml, of the ledger and of answers, ``providers.toml``, the settings
``CHATAPP_PROVIDER…`` and the limits ``provider-…`` of guards.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What is said instead, by what is not said.
OLD = {
    r"[Vv]endor(?!ed)|VENDOR": "upstream or protocol; provider for a company",
    r"\b(?:SDK)?Provider(?:Error|Call)\b|\bSDKProvider\b|\bclass Provider\b": "upstream",
    r"\bAnswerSource\b|\bmodel\.provider\b|\bcatalogue\.providers\b": "upstream",
    r"\bset[-_]limit\b|\bclear[-_]limit\b|\bown[ _]amounts?\b": "amount",
    r"\boverride_loader\b|\bOverrideLoader\b|\boverridable\b": "amount",
    r"\b[Tt]rials?\b(?!:)": "shadow",
    r"\bProviderQuota\b": "quota",
    r"\bfrom chatapp\.conversation\b|: Conversation\b": "router",
    r"\bpresent_plan\b|\b_here\(": "current_…",
    r"\bRecollection\b|\bRepetition\b|\.recall\(|\brecalled\b": "cached denial",
    r"\bclass (?:Words|Parts)\b": "arguments, components",
}
#: The same for names of files and folders.
OLD_NAMES = re.compile(
    r"vendor|trial|candidate|^(?:conversation|guards|parts)\.py$|^(?:provider|own)_\w+\.py$"
)
FOLDERS = ("chatapp", "ratelimit_ext", "docs", "tests")
KINDS = {".py", ".lua", ".toml", ".md", ".html"}
FILES = sorted(
    path
    for path in (
        *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*")),
        *ROOT.glob("*.md"),
    )
    # Libraries of the page are others'.
    if path.is_file() and not {"vendor", "__pycache__"} & {*path.parts}
)


def test_no_text_has_an_old_word() -> None:
    """Neither code nor documents; a name in the storage ends in a colon, and stays."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}: say {word}"
        for path in FILES
        # How to move names what there was.
        if path.suffix in KINDS
        and path not in (Path(__file__), ROOT / "docs" / "extension" / "migration.md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for pattern, word in OLD.items()
        # The browser's libraries have a folder of this name.
        if (match := re.search(pattern, re.sub(r"(?:static/|\./|\")vendor\b\S*", "", line)))
    ]
    assert not found, "\n".join(found)


def test_no_file_has_an_old_name() -> None:
    """A file, or a test of it, has the name of what it is about."""
    names = {path.relative_to(ROOT).as_posix(): path.name.removeprefix("test_") for path in FILES}
    found = [path for path, name in names.items() if OLD_NAMES.search(name)]
    assert [path for path in found if not path.endswith("e2e/page/test_conversation.py")] == []
