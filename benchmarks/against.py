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
    """Measure a benchmark in both trees, each with its own programs; return a table of medians, and
    a line for each run without a result.

    ``arguments`` are those of ``python -m benchmarks``. Raises SystemExit for an unknown revision,
    or with those lines if no turn has a result of both trees.
    """
    turns: list[dict[str, dict[str, Any]]] = []
    failures = []
    with checked_out(revision) as before:
        trees = [("before", before), ("now", ROOT)]
        for turn in range(TURNS):
            turns.append({})
            for label, tree in trees if turn % 2 == 0 else reversed(trees):
                try:
                    turns[-1][label] = measured(name, tree, arguments)
                except NoResult as error:
                    failures.append(f"No result in turn {turn + 1}, {label}: {error}")
    pairs = [(turn["before"], turn["now"]) for turn in turns if len(turn) == len(trees)]
    if not pairs:
        raise SystemExit("\n".join(failures))
    return "\n\n".join([report.table(rows(pairs)), *failures])


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A clone of this repository at the revision, for as long as the block lasts."""
    with TemporaryDirectory() as folder:
        for command in (["clone", "--shared", str(ROOT), folder], ["checkout", revision]):
            ended = git(*command, cwd=Path(folder))
            if ended.returncode:
                raise SystemExit(f"--against {revision}: {ended.stderr.strip()}")
        yield Path(folder)


class NoResult(Exception):
    """A run failed, or took longer than TURN_S."""


def measured(name: str, tree: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The result of one run, as its JSON file has it. Raises NoResult."""
    with TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks", name, *arguments, "--output", output]
        try:
            ended = subprocess.run(
                command, cwd=tree, capture_output=True, text=True, timeout=TURN_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NoResult(f"not within {TURN_S} s") from error
        if ended.returncode:
            raise NoResult(f"{' '.join(command)} failed:\n{ended.stderr.strip()}")
        (path,) = Path(output).glob("*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def rows(
    turns: Sequence[tuple[dict[str, Any], dict[str, Any]]],
) -> list[dict[str, str | float | None]]:
    """A row for each quantity that both trees measured in rounds: the median of the turns' medians,
    and the ratio within a turn, before and now."""
    table = []
    for quantity, contenders in turns[0][1]["rounds"].items():
        for contender in contenders:
            if contender not in turns[0][0]["rounds"].get(quantity, {}):
                continue
            old, new = (
                [median(each, quantity, contender) for each in side]
                for side in zip(*turns, strict=True)
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
