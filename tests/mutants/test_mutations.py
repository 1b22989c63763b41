"""What is written about mutants names the code as it is."""

from collections import Counter

import pytest

from tests.mutants.__main__ import ROOT
from tests.mutants.mutations import KNOWN, SAME, TESTS, mutants_of


@pytest.mark.parametrize("file", SAME)
def test_each_reason_is_that_of_a_mutant(file: str) -> None:
    """A reason for a line that has changed excuses nothing, and one for two lines maybe one too
    many."""
    counts = Counter(mutant.change for mutant in mutants_of(ROOT, file))
    assert {change: counts[change] for change in SAME[file]} == dict.fromkeys(SAME[file], 1)


@pytest.mark.parametrize("name", KNOWN)
def test_each_known_defect_can_be_written_into_the_code(name: str) -> None:
    """What it replaces is there, once."""
    file, *changes = KNOWN[name]
    text = (ROOT / file).read_text("utf-8")
    assert [text.count(old) for old, _ in changes] == [1] * len(changes)


def test_the_tests_of_each_file_exist() -> None:
    """A path that is wrong would make every mutant of its file fail."""
    paths = {path for file, tests in TESTS.items() for path in (file, *tests)}
    assert [path for path in paths if not (ROOT / path).exists()] == []
