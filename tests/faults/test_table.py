"""The page for people on call lists what is tested."""

from __future__ import annotations

from tests.faults import table


def test_the_table_lists_exactly_the_scenarios() -> None:
    """Each scenario has its row, in order; `python -m tests.faults` writes them."""
    assert list(table.listed()) == table.scenarios()
