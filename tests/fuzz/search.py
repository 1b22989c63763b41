"""Searches, by coverage, for bytes that break a parser.

    python -m tests.fuzz.search limit -runs=100000

takes the name of a parser and libFuzzer's options (`pip install -r tests/fuzz/requirements.txt`).
It prints the number of runs, and the input of a crash, which becomes an entry of FOUND in
test_parsers.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["chatapp", "ratelimit_ext"]):
    from tests.fuzz.parsers import TARGETS

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()
