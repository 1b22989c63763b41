"""What is changed: one comparison, sign, constant, bound or condition of a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENGINE, STRATEGIES = "ratelimit_ext/engine", "ratelimit_ext/strategies"
RATES = "tests/strategies"
#: The files, and the tests of the fast tier, or beside it, that are about them.
TESTS = {
    f"{ENGINE}/admit.lua": ("tests/engine/test_admission.py", "tests/engine/test_full_storage.py"),
    f"{ENGINE}/settle.lua": ("tests/engine/test_once.py", "tests/engine/test_reservations.py"),
    f"{STRATEGIES}/reservations.lua": (
        *("tests/engine/test_reservations.py", "tests/engine/test_claims.py"),
    ),
    f"{STRATEGIES}/line.lua": ("tests/engine/test_line.py", "tests/engine/test_lines.py"),
    f"{STRATEGIES}/concurrency.lua": (
        *("tests/engine/test_line.py", "tests/engine/test_reservations.py"),
    ),
    f"{STRATEGIES}/fixed_window.lua": (RATES,),
    f"{STRATEGIES}/sliding_window.lua": (RATES,),
    f"{STRATEGIES}/sliding_window_counter.lua": (RATES,),
    f"{STRATEGIES}/token_bucket.lua": (RATES,),
    f"{STRATEGIES}/line.py": ("tests/engine/test_line.py",),
    "ratelimit_ext/web/request/waiting_room.py": ("tests/web/test_wait.py",),
    "ratelimit_ext/settlements/queue.py": ("tests/settlements/test_queue.py",),
    f"{ENGINE}/outage.py": ("tests/engine/test_outage.py",),
    f"{ENGINE}/outage_store.py": ("tests/engine/test_outage_store.py",),
}

LUA = (
    (r"(?<![<>=~])<=", "<"),
    (r"(?<![<>=~])>=", ">"),
    (r" < ", " <= "),
    (r" > ", " >= "),
    (r"==", "~="),
    (r"~=", "=="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r"math\.min\(", "math.max("),
    (r"math\.max\(", "math.min("),
    (r"math\.ceil\(", "math.floor("),
    (r"math\.floor\(", "math.ceil("),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bnot ", ""),
    (r"(?<![\w.'%<])0(?![\w.'])", "1"),
    (r"(?<![\w.'%<I])1(?![\w.'])", "2"),
)
PYTHON = (
    (r" <= ", " < "),
    (r" >= ", " > "),
    (r" < ", " <= "),
    (r" > ", " >= "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" is None", " is not None"),
    (r" is not None", " is None"),
    (r" \+ ", " - "),
    (r"(?<=[\w)]) - ", " + "),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"(?<=\w) and ", " or "),
    (r"(?<=\w) or ", " and "),
    (r"\bnot (?!in\b|None\b)", ""),
    (r"\bTrue\b", "False"),
    (r"\bFalse\b", "True"),
    (r"(?<![\w.])0(?![\w.])", "1"),
)
#: Not code, or not about what is decided.
LEFT_OUT = re.compile(r"^\s*(?:--|#|import|from|\"|@|_logger)|: Final|TypeAlias|^local \w*FORMAT")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{self.before.strip()}` → `{self.after.strip()}`"

    def applied(self, text: str) -> str:
        lines = text.split("\n")
        assert lines[self.line - 1] == self.before
        lines[self.line - 1] = self.after
        return "\n".join(lines)


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Yield all of a file, in the order of its lines. Comments and docstrings stay."""
    rules, in_text = (LUA if file.endswith(".lua") else PYTHON), False
    for number, line in enumerate((root / file).read_text("utf-8").split("\n"), 1):
        quotes = line.count('"""')
        if in_text or quotes:
            in_text ^= quotes == 1
            continue
        if LEFT_OUT.search(line):
            continue
        code = re.split(r"  ?-- |  # ", line)[0]
        for pattern, new in rules:
            for found in re.finditer(pattern, code):
                after = line[: found.start()] + new + line[found.end() :]
                yield Mutant(file, number, line, after)


#: Defects of November 2026, as they would be in the present code: by name what is written instead,
#: in which file. The simulator alone finds each of them.
KNOWN = {
    "a worker that is stopped in a decision is not waited for": (
        f"{ENGINE}/outage_store.py",
        ("BUSY_S: Final = 5.0", "BUSY_S: Final = 1.0"),
        ("LOOK_S: Final = 0.5", "LOOK_S: Final = 1e9"),
    ),
    "a start that was promised in line is taken, whatever came between": (
        f"{STRATEGIES}/line.lua",
        (
            "    local line = { state",
            "    if is_stored and own.due <= now then fits = true end\n    local line = { state",
        ),
    ),
    "a hold on its way to the storage is a 500 in line": (
        "ratelimit_ext/web/request/waiting_room.py",
        (
            "self.settlements.send(engine, changes, lease_s=self.lease_s, events=self.events)",
            "engine.settle(changes)",
        ),
    ),
    "a ticket that the storage has lost is not left again": (
        f"{STRATEGIES}/line.lua",
        ("if not own and waited then", "if not own and waited == 0 then"),
    ),
    "a call on its way to the storage is free in the outage": (
        f"{ENGINE}/outage.py",
        ("self._memory.settle([self._by_share(change) for change in held])", "pass"),
    ),
    "a settlement of a locked file's call is sent to the storage": (
        f"{ENGINE}/outage_store.py",
        ("return True if self._all_locked(query, key, hold.id) else None", "return None"),
    ),
    "two changes of one bucket drop it": (
        f"{ENGINE}/outage_store.py",
        ("distinct = tuple(dict.fromkeys(keys))", "distinct = tuple(keys)"),
    ),
    "a settlement that is sent again after a release is charged again": (
        f"{STRATEGIES}/reservations.lua",
        ("if receipt == RELEASED and", "if receipt == -1 and"),
    ),
}
