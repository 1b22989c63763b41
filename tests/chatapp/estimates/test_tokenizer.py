"""The tokenizer of bpe-openai, of which only the compiled part is loaded."""

import subprocess
import sys

import pytest

from chatapp.estimates.tokens import Encoding, tokenizer

LOADED_ALONE = """
import sys
from chatapp.estimates.tokens import tokenizer
assert tokenizer("o200k_base").count("tiktoken is great!") == 6
assert "bpe_openai" not in sys.modules
import bpe_openai
assert len(bpe_openai.get_encoding("o200k_base").encode("tiktoken is great!")) == 6
"""


@pytest.mark.parametrize(
    ("encoding", "text", "tokens"),
    [
        # From OpenAI's cookbook, "How to count tokens with tiktoken".
        ("cl100k_base", "tiktoken is great!", 6),
        ("cl100k_base", "antidisestablishmentarianism", 6),
        ("cl100k_base", "2 + 2 = 4", 7),
        ("cl100k_base", "お誕生日おめでとう", 9),
        ("o200k_base", "antidisestablishmentarianism", 6),
        ("o200k_base", "2 + 2 = 4", 7),
        ("o200k_base", "お誕生日おめでとう", 8),
        ("o200k_base", "", 0),
    ],
)
def test_counts_are_openais(encoding: Encoding, text: str, tokens: int) -> None:
    """Counts equal those of OpenAI's own tokenizer."""
    assert tokenizer(encoding).count(text) == tokens


def test_the_package_is_not_imported_for_it() -> None:
    """The whole package, slow to import and large, is not imported, but can be later."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_ALONE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_is_loaded_once() -> None:
    """Every call of a process counts with the same tokenizer."""
    assert tokenizer("o200k_base") is tokenizer("o200k_base")
