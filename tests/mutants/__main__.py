"""Change the code in one place, and see whether the tests or the simulator notice it.

Each run is a fork of this process, which has imported the libraries, but none of the code.
`--known` writes defects of the past into the code instead: the simulator has to find each.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from tests.mutants.mutations import KNOWN, SAME, SERVERS, TESTS, mutants_of

ROOT = Path(__file__).resolve().parents[2]
#: What becomes of a mutant: noticed by whom, over its time, without an effect, or not noticed.
OUTCOMES = ("tests", "simulator", "timed out", "same", "survived")
COPIED = ("ratelimit_ext", "chatapp", "tests", "pyproject.toml")
LIBRARIES = ("flask_limiter", "hypothesis", "lupa.luajit21", "pydantic", "pytest", "redis", "xdist")
PYTEST = ("pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow")
#: A run that takes so many times as long as that of the unchanged code is ended.
ENDLESS, LEAST_S = 8, 60.0


class Copy:
    """A copy of the code, in which one file at a time is another."""

    def __init__(self, root: Path, *, seeds: int) -> None:
        self.root, self.output, self.writes = root / "copy", root / "output", 0
        self.simulator = ("tests.simulator", "--brief", "--count", str(seeds))
        self.took_s: dict[tuple[str, ...], float] = {}
        self.root.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.root / name)

    def outcome(self, file: str, text: str, *, simulator_only: bool = False) -> tuple[str, str]:
        """Return one of OUTCOMES for this text of the file, and the test that fails."""
        tests = (*PYTEST, "-k", "" if file in SERVERS else "not redis and not server")
        runs = [] if simulator_only else [("tests", (*tests, path)) for path in TESTS[file]]
        for name, words in (*runs, ("simulator", self.simulator)):
            if words not in self.took_s:  # the unchanged code has to pass
                began = time.monotonic()
                status, output = self._run(words, None)
                if status != 0:
                    sys.exit(f"{output}\nfails without a change: python -m {' '.join(words)}")
                self.took_s[words] = time.monotonic() - began
            before = (self.root / file).read_text("utf-8")
            self._write(file, text)
            status, output = self._run(words, max(LEAST_S, ENDLESS * self.took_s[words]))
            self._write(file, before)
            if status != 0:
                failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
                return "timed out" if status is None else name, failed[1] if failed else ""
        return "survived", ""

    def _write(self, file: str, text: str) -> None:
        """Give each text a time of its own: what is compiled is found by time and size."""
        self.writes += 1
        (self.root / file).write_text(text, "utf-8")
        os.utime(self.root / file, (self.writes, self.writes))

    def _run(self, words: tuple[str, ...], limit_s: float | None) -> tuple[int | None, str]:
        """Return the status of a run, or ``None`` if it took longer than this, and its output."""
        run = get_context("fork").Process(target=self._run_module, args=words)
        run.start()
        run.join(limit_s)
        status = run.exitcode
        with suppress(ProcessLookupError):  # with what it has started
            os.killpg(run.pid or 0, signal.SIGKILL)
        run.join()
        return status, self.output.read_text("utf-8", "replace")

    def _run_module(self, name: str, *words: str) -> None:
        """Do in this fork what `python -m` does in the copy."""
        os.setsid()
        output = os.open(self.output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.root)
        sys.path[0] = os.environ["PYTHONPATH"] = str(self.root)
        for module in [each for each in sys.modules if each.split(".")[0] == "tests"]:
            del sys.modules[module]
        sys.argv[1:] = words
        runpy.run_module(name, run_name="__main__", alter_sys=True)


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
    for name in LIBRARIES:
        import_module(name)
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
        began = time.monotonic()
        outcome, _ = copy.outcome(file, text, simulator_only=True)
        missed += outcome != "simulator"
        word = "found" if outcome == "simulator" else "MISSED"
        say(f"{word} after {time.monotonic() - began:.0f} s: {name}")
    return int(missed > 0)


def _find_mutants(copy: Copy, options: argparse.Namespace) -> int:
    counts = Counter[tuple[str, str]]()
    for file in options.file or TESTS:
        mutants = [each for each in mutants_of(copy.root, file) if options.only in str(each)]
        if options.sample:
            chance = random.Random(f"{options.chance} {file}")
            mutants = chance.sample(mutants, min(options.sample, len(mutants)))
        for mutant in mutants:
            outcome, by = "same", SAME.get(file, {}).get(mutant.change)
            if by is None:
                text = (copy.root / file).read_text("utf-8")
                outcome, by = copy.outcome(file, mutant.applied(text))
            counts[file, outcome] += 1
            say(outcome, mutant, f"({by})" if by else "")
    say("\n| file | mutants |", " | ".join(OUTCOMES), "|")
    say("| --- " * (2 + len(OUTCOMES)) + "|")
    for file in options.file or TESTS:
        row = [counts[file, outcome] for outcome in OUTCOMES]
        say(f"| `{file}` | {sum(row)} | {' | '.join(map(str, row))} |")
    sums = [sum(counts[file, outcome] for file in TESTS) for outcome in OUTCOMES]
    say(f"| **all** | {sum(sums)} | {' | '.join(map(str, sums))} |")
    noticed = f"{sums[0] + sums[1]} of {sum(sums) - sums[3]} that change something are noticed"
    say(f"\n{noticed}, and {sums[2]} timed out")
    return int(sums[-1] > 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # as the simulator, which then need not do it
        os.environ["PYTHONHASHSEED"] = "0"
        words = [sys.executable, "-m", "tests.mutants", *sys.argv[1:]]
        os.execv(sys.executable, words)  # noqa: S606 - the same program again
    sys.exit(main())
