"""Runs every scenario and writes the table of docs/faults.md: `python -m tests.faults`.

Further arguments are pytest's. With some scenarios only, or if one fails, the page stays as it is
and the rows are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.table import Row, rendered, write


class Rows(list[Row]):
    """A plugin that collects what the scenarios have recorded."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.extend(value for name, value in report.user_properties if name == "row")


def main(*arguments: str) -> int:
    rows = Rows()
    here = Path(__file__).parent
    status = pytest.main([str(here), f"--ignore={here / 'test_table.py'}", *arguments], [rows])
    if status == pytest.ExitCode.OK and not arguments:
        write(rows)
    else:
        sys.stdout.write(rendered(rows))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
