"""Change the code in one place, and see whether the simulator or the tests notice it.

`--known` writes defects of the past into the code instead: the simulator has to find each.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.mutants.mutations import KNOWN, SAME, TESTS, mutants_of

ROOT = Path(__file__).resolve().parents[2]
#: By whom a mutant is noticed, or that it changes nothing, or that no one notices it.
OUTCOMES = ("simulator", "tests", "time", "same", "")
COPIED = ("ratelimit_ext", "tests", "pyproject.toml")
#: A run that takes so many times as long as that of the unchanged code does not end.
ENDLESS, LEAST_S = 8, 60.0


class Copy:
    """A copy of the code, in which one file at a time is another."""

    def __init__(self, root: Path, *, seeds: int) -> None:
        self.root, self.seeds = root, seeds
        self.took_s: dict[tuple[str, ...], float] = {}
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root)

    def noticed_by(self, file: str, text: str, *, simulator_only: bool = False) -> str:
        """Return who notices that the file has this text: `simulator`, `tests`, `time` if one of
        them does not end, or nothing."""
        path = self.root / file
        before = path.read_text("utf-8")
        path.write_text(text, "utf-8")
        try:
            for name, words in self._runs(file, simulator_only=simulator_only):
                passes = self._passes(words)
                if not passes:
                    return "time" if passes is None else name
            return ""
        finally:
            path.write_text(before, "utf-8")

    def measure(self, file: str, *, simulator_only: bool = False) -> None:
        """Run what may notice a change of this file, without one: it has to pass."""
        for _, words in self._runs(file, simulator_only=simulator_only):
            if words in self.took_s:
                continue
            began = time.monotonic()
            if not self._passes(words):
                sys.exit(f"fails without a change: python {' '.join(words)}")
            self.took_s[words] = time.monotonic() - began

    def _runs(self, file: str, *, simulator_only: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield what may notice a change of this file, and its command."""
        yield "simulator", ("-m", "tests.simulator", "--brief", "--count", str(self.seeds))
        if not simulator_only:
            words = ("-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider")
            words = (*words, "-k", "not redis and not server", "-m", "not slow")
            yield "tests", (*words, *TESTS[file])

    def _passes(self, words: tuple[str, ...]) -> bool | None:
        """Return whether a run succeeds; ``None`` if it does not end."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        took_s = self.took_s.get(words)
        limit_s = None if took_s is None else max(LEAST_S, ENDLESS * took_s)
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.root,
                env=environment,
                capture_output=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        return done.returncode == 0


def say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--file", action="append", choices=TESTS, help="of these files alone")
    parser.add_argument("--sample", type=int, default=0, help="so many of each file, by chance")
    parser.add_argument("--chance", type=int, default=0, help="the seed of that chance")
    parser.add_argument("--seeds", type=int, default=60, help="of the simulator, for each mutant")
    parser.add_argument("--only", default="", help="those with these words in their text")
    parser.add_argument("--known", action="store_true", help="known defects, by the simulator")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        copy = Copy(Path(directory), seeds=options.seeds)
        if options.known:
            return _find_known(copy, options.only)
        return _find_mutants(copy, options)


def _find_known(copy: Copy, only: str) -> int:
    missed = 0
    chosen = {name: known for name, known in KNOWN.items() if only in name}
    for name, (file, *changes) in chosen.items():
        text = (copy.root / file).read_text("utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        copy.measure(file, simulator_only=True)
        began = time.monotonic()
        found = copy.noticed_by(file, text, simulator_only=True)
        missed += found != "simulator"
        word = "found" if found == "simulator" else "MISSED"
        say(f"{word} after {time.monotonic() - began:.0f} s: {name}")
    return int(missed > 0)


def _find_mutants(copy: Copy, options: argparse.Namespace) -> int:
    counts, survived = Counter[tuple[str, str]](), False
    for file in options.file or TESTS:
        copy.measure(file)
        mutants = [each for each in mutants_of(copy.root, file) if options.only in str(each)]
        if options.sample:
            chance = random.Random(f"{options.chance} {file}")
            mutants = chance.sample(mutants, min(options.sample, len(mutants)))
        for mutant in mutants:
            reason = SAME.get(file, {}).get(mutant.change)
            by = "same"
            if reason is None:
                by = copy.noticed_by(file, mutant.applied((copy.root / file).read_text("utf-8")))
                survived |= not by
            counts[file, by] += 1
            say(by or "survived", mutant, f"({reason})" if reason else "")
    say("\n| file | mutants | by the simulator | by tests | without an end | the same | survived |")
    say("| --- " * 7 + "|")
    for file in options.file or TESTS:
        row = [counts[file, by] for by in OUTCOMES]
        say(f"| `{file}` | {sum(row)} | {' | '.join(map(str, row))} |")
    sums = [sum(counts[file, by] for file in TESTS) for by in OUTCOMES]
    say(f"| **all** | {sum(sums)} | {' | '.join(map(str, sums))} |")
    say(f"\n{sum(sums[:3])} of {sum(sums) - sums[3]} that change something are noticed")
    return int(survived)


if __name__ == "__main__":
    sys.exit(main())
