"""Runs every scenario and writes the table of docs/benchmarks/faults.md: `python -m tests.faults`.

With files or `-k`, as pytest takes them, it runs some and writes their rows. If a scenario fails,
the rows are printed instead.
"""

import sys
from pathlib import Path

import pytest

from tests.faults.table import Row, line, write

HERE = Path(__file__).parent


class Collector:
    """A plugin that collects what the scenarios have recorded."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [value for name, value in report.user_properties if name == "row"]


def main(*arguments: str) -> int:
    collector = Collector()
    files = [each for each in arguments if Path(each.partition("::")[0]).exists()]
    asked = [*arguments, *([] if files else [str(HERE)]), f"--ignore={HERE / 'test_table.py'}"]
    status = pytest.main(asked, [collector])
    if status == pytest.ExitCode.OK:
        write(collector.rows)
    else:
        sys.stdout.write("".join(line(row.cells()) for row in collector.rows))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
