"""What a change did to the time: this tree and another revision of it, measured in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks import report
from benchmarks.harness import git
from benchmarks.servers import ROOT

#: The machine's speed changes within seconds, so both revisions take turns; the order changes, too.
TURNS: Final = 3
TURN_S: Final = 3600


def compare(name: str, revision: str, arguments: Sequence[str]) -> str:
    """Measure a benchmark in both trees, each with its own programs; return a table of medians.

    ``arguments`` are those of ``python -m benchmarks``. Raises SystemExit for an unknown revision,
    or if a run fails.
    """
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with checked_out(revision) as before:
        trees = [("before", before), ("now", ROOT)]
        for turn in range(TURNS):
            for label, tree in trees if turn % 2 == 0 else reversed(trees):
                found[label].append(measured(name, tree, arguments))
    return report.table(rows(found["before"], found["now"]))


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A clone of this repository at the revision, for as long as the block lasts."""
    with TemporaryDirectory() as folder:
        for command in (["clone", "--shared", str(ROOT), folder], ["checkout", revision]):
            ended = git(*command, cwd=Path(folder))
            if ended.returncode:
                raise SystemExit(f"--against {revision}: {ended.stderr.strip()}")
        yield Path(folder)


def measured(name: str, tree: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The result of one run, as its JSON file has it."""
    with TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks", name, *arguments, "--output", output]
        ended = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, timeout=TURN_S, check=False
        )
        if ended.returncode:
            raise SystemExit(f"{tree}: {' '.join(command)} failed:\n{ended.stderr}")
        (path,) = Path(output).glob("*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def rows(
    before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]
) -> list[dict[str, str | float | None]]:
    """A row for each quantity that both measured in rounds: the median of the turns' medians, and
    the ratio within a turn."""
    table = []
    for quantity, contenders in now[0]["rounds"].items():
        for contender in contenders:
            if contender not in before[0]["rounds"].get(quantity, {}):
                continue
            old, new = (
                [median(turn, quantity, contender) for turn in each] for each in (before, now)
            )
            ratios = sorted(mine / theirs for mine, theirs in zip(new, old, strict=True) if theirs)
            table.append(
                {
                    "quantity": quantity,
                    "contender": contender,
                    "before": statistics.median(old),
                    "now": statistics.median(new),
                    "now of before": statistics.median(ratios) if ratios else None,
                    "turns": f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if ratios else "",
                }
            )
    return table


def median(turn: dict[str, Any], quantity: str, contender: str) -> float:
    return statistics.median(turn["rounds"][quantity][contender])
