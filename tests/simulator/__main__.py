"""Search for runs that break a promise, or replay one: `python -m tests.simulator --help`."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import time

from ratelimit_ext.web import storage
from tests.simulator.scenario import KINDS
from tests.simulator.search import failure_of, kind_of, small_cases


def say(*words: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this seed alone, and print what happens")
    parser.add_argument("--keep", help="the positions of its choices that are kept, or - for none")
    parser.add_argument("--kind", choices=KINDS, help="the limits of the runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed of many")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--small", type=int, help="all small runs with so many choices that differ")
    parser.add_argument("--brief", action="store_true", help="do not make a failing run shorter")
    options = parser.parse_args()
    began = time.monotonic()
    if options.small is not None:
        kinds = [options.kind] if options.kind else KINDS
        count = sum(1 for kind in kinds for _ in small_cases(kind, deviations=options.small))
        say(f"{count} runs in {time.monotonic() - began:.0f} s, none fails")
        return 0
    seeds = range(options.first, options.first + options.count)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    kept = None
    if options.keep:
        kept = frozenset(map(int, options.keep.split(","))) if options.keep != "-" else frozenset()
    for seed in seeds:
        kind = options.kind or kind_of(seed)
        failure = failure_of(seed, kind, kept=kept, is_short=kept is None and not options.brief)
        if failure is not None:
            say(failure)
            return 1
    say(f"{len(seeds)} seeds in {time.monotonic() - began:.0f} s, none fails")
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a choice, too
        os.environ["PYTHONHASHSEED"] = "0"
        words = [sys.executable, "-m", "tests.simulator", *sys.argv[1:]]
        os.execv(sys.executable, words)  # noqa: S606 - the same program again
    atexit.unregister(storage._leave)
    sys.exit(main())
