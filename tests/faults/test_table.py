"""The page for people on call lists what is tested."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.faults import table


def test_the_table_lists_exactly_the_scenarios() -> None:
    """Each scenario has its row, in order; `python -m tests.faults` writes them."""
    assert table.listed() == scenarios()


def scenarios() -> list[str]:
    """What breaks in the scenarios, in the order in which they run."""
    modules = [
        importlib.import_module(f"tests.faults.{path.stem}")
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
    ]
    return [
        mark.kwargs["breaks"]
        for module in modules
        for test in vars(module).values()
        for mark in getattr(test, "pytestmark", ())
        if mark.name == "fault"
    ]
