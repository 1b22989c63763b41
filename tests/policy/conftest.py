"""A loader over a file that a test writes as text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.policy import Policy

Load = Callable[..., Policy]


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
