"""Each mistake of a policy file is found at its place, with what was found and what is allowed.

A file in mistakes/ has the cases of the module of its name. The sign `#:` follows the line of the
mistake, and has its place and the key words of its sentence. It is no part of the policy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.policy.conftest import Load, error_of

FILES = ("functions", "nesting", "rules", "schema")
HEAD = re.compile(r"^-- (.+?)(?: \((\d+) mistakes\))?\n", re.MULTILINE)
MISTAKE = re.compile(r"  #: (.+?): (.+)$", re.MULTILINE)


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


def cases_of(name: str) -> list[Case]:
    text = Path(__file__).with_name("mistakes").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    _, *parts = HEAD.split(text)
    return [case_of(*parts[at : at + 3]) for at in range(0, len(parts), 3)]


def case_of(label: str, mistakes: str | None, text: str) -> Case:
    found = [
        (f"{number}: {sign[1]}", sign[2].split(" | "))
        for number, line in enumerate(text.splitlines(), 2)
        if (sign := MISTAKE.search(line))
    ]
    ((place, words),) = found
    return Case(label, MISTAKE.sub("", text.rstrip("\n")), place, words, int(mistakes or 1))


HUGE = Case(
    "number that Python refuses to print",
    f'[[default]]\nlimit = "5/minute"\nburst = 0x{"f" * 5000}',
    "4: default[0].burst",
    ["found a whole number of very many digits", "a whole number from 1 to 1000000000000"],
)
CASES = [(name, case) for name in FILES for case in cases_of(name)] + [("schema", HUGE)]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{file}-{case.label}") for file, case in CASES]
)
def test_mistake(load: Load, case: Case) -> None:
    """It is found at its place, and nothing else that is not counted."""
    _, *lines = error_of(lambda: load(f"version = 1\n{case.text}\n")).split("\n")
    assert len(lines) == case.mistakes
    sentences = [line for line in lines if line.startswith(f"  policy.toml:{case.place}: ")]
    assert [line for line in sentences if all(word in line for word in case.words)], lines
