"""A row of a table of mistakes."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """A text with a mistake, and what has to be in the error's message.

    The text stands in a file below ``version = 1``: its own first line is line 2.
    """

    label: str
    text: str
    told: str

    def __str__(self) -> str:
        return self.label
