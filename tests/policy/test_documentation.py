"""docs/extension/configuration.md and docs/reference/keywords.md are correct."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.schema import LimitTable
from tests.policy.conftest import Load, error_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "extension" / "configuration.md").read_text(encoding="utf-8")
KEYWORDS = (DOCS / "reference" / "keywords.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("toml"))
def test_each_example_loads(load: Load, text: str) -> None:
    """Each TOML block is a whole policy, with at least one limit."""
    assert load(text, default_strategy="fixed-window").all_limits()


def test_every_keyword_is_documented() -> None:
    """The table has every keyword, and none that is not one."""
    table = next(part for part in KEYWORDS.split("\n\n") if part.startswith("| keyword"))
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(LimitTable.model_fields)


def test_the_error_is_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file with mistakes gives exactly the error that is shown."""
    monkeypatch.chdir(tmp_path)
    text, error = blocks("text")
    Path("policy.toml").write_text(text, encoding="utf-8")
    message = error_of(lambda: load_policy(file="policy.toml", blueprints=None))
    assert message == error.rstrip("\n")


def test_the_first_example_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application and the file that the document begins with admit a burst of 10, no more."""
    monkeypatch.chdir(tmp_path)
    Path("policy.toml").write_text(blocks("toml")[0], encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "document"}
    exec(blocks("python")[0], namespace)  # noqa: S102 - our own text
    client = namespace["create_app"]().test_client()
    statuses = [client.post("/chat").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
