"""A loader over a file that a test writes as text, and the form of a table of mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy import Policy, load_policy

Load = Callable[..., Policy]


class Case(NamedTuple):
    """A text with a mistake, its place, and key words of its sentence.

    The text is in a file below ``version = 1``: its first line is line 2. ``mistakes`` is how
    many the text has in all.
    """

    label: str
    text: str
    place: str
    words: list[str]
    mistakes: int = 1

    def __str__(self) -> str:
        return self.label


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a text as ``policy.toml``, by that relative name, and a value of ``app.config``."""
    monkeypatch.chdir(tmp_path)

    def loaded(
        text: str | None = None,
        blueprints: Mapping[str, Any] | None = None,
        default_strategy: str | None = None,
    ) -> Policy:
        if text is not None:
            Path("policy.toml").write_text(text, encoding="utf-8")
        return load_policy(
            file=None if text is None else "policy.toml",
            blueprints=blueprints,
            default_strategy=default_strategy,
        )

    return loaded


def error_of(load: Callable[[], object]) -> str:
    """The message of the error that loading ends with."""
    with pytest.raises(ConfigurationError) as caught:
        load()
    return str(caught.value)


def check_case(load: Load, case: Case) -> None:
    """Assert that the mistake is found at its place, and nothing else that is not counted."""
    _, *lines = error_of(lambda: load(f"version = 1\n{case.text}\n")).split("\n")
    assert len(lines) == case.mistakes
    sentences = [line for line in lines if line.startswith(f"  policy.toml:{case.place}: ")]
    assert [line for line in sentences if all(word in line for word in case.words)], lines
