"""What the search of tests/fuzz/parsers.py begins from, and what it found."""

import pytest

from tests.fuzz.parsers import TARGETS

FOUND: dict[str, tuple[bytes, ...]] = {}


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_a_value_or_the_documented_error(name: str) -> None:
    """The seeds, cut anywhere, and every crash of the past."""
    target, seeds = TARGETS[name]
    for seed in (*seeds, *FOUND.get(name, ())):
        for size in {0, 1, len(seed) // 3, len(seed) - 1, len(seed)}:
            target(seed[:size])
