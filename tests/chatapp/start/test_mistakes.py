"""Each mistake in a variable of the environment stops the start with a sentence, or is logged.

A line of mistakes.txt sets one variable. The sign `#:` has where the mistake is said, and the key
words of the sentence. `setting` is a start that ends with one sentence, which names the variable
first.
"""

import logging
import os
import re
from pathlib import Path

import pytest

from chatapp import MISTAKES, create_app

LINE = re.compile(r"(\w+)=(.*?)  #: (setting|start|log): (.+)")
LINES = [
    LINE.fullmatch(line)
    for line in Path(__file__).with_name("mistakes.txt").read_text().splitlines()
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line and f"{line[1]}={line[2]}")
def test_a_mistake_in_the_environment(
    line: re.Match[str],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing else is set but a key for the address of its service."""
    for name in os.environ:
        if name.startswith(("CHATAPP_", "RATELIMIT_", "OPENAI_", "ANTHROPIC_", "DATABASE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RATELIMIT_STORAGE_URI", "memory://")
    monkeypatch.setenv("CHATAPP_DATABASE_URL", database_url)
    name, value, where, words = line.groups()
    if name.endswith("_BASE_URL"):
        monkeypatch.setenv(name.replace("BASE_URL", "API_KEY"), "a-key-of-the-service")
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        if where == "log":
            create_app()
            said = caplog.text
        else:
            with pytest.raises(MISTAKES) as refused:
                create_app()
            said = str(refused.value)
    assert [word for word in words.split(" | ") if word not in said] == [], said
    for secret_or_of_pydantic in ("swordfish", "Value error", "Input should"):
        assert secret_or_of_pydantic not in said
    if where == "setting":
        assert said.startswith(f"{name}: ")
        assert "\n" not in said
