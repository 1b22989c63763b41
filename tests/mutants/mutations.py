"""What is changed: one comparison, sign, constant, bound or condition of a file. Or one statement
is left out, or changes its place with the next."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lupa.lua51 import LuaRuntime, LuaSyntaxError

ENGINE, STRATEGIES = "ratelimit_ext/engine", "ratelimit_ext/strategies"
RATES, HELD = "tests/strategies", "tests/engine/test_reservations.py"
LINES = ("tests/engine/test_line.py", "tests/engine/test_lines.py")
FAIR, TURNS = "tests/engine/test_fair.py", "tests/engine/test_turns.py"
HISTORIES, CLAIMS = "tests/engine/test_histories.py", "tests/engine/test_claims.py"
FULL, OUTAGE = "tests/engine/test_full_storage.py", "tests/engine/test_outage.py"
OUTAGE_STORE, MEMORY = "tests/engine/test_outage_store.py", "tests/engine/test_memory.py"
#: The files, and the tests of the fast tier, or beside it, that are about them: the quickest first.
TESTS = {
    f"{ENGINE}/admit.lua": (
        *("tests/engine/test_admission.py", FULL, RATES, CLAIMS, FAIR, HISTORIES, LINES[0]),
    ),
    f"{ENGINE}/settle.lua": ("tests/engine/test_once.py", HISTORIES, HELD),
    f"{ENGINE}/prelude.lua": (RATES, FULL, HISTORIES),
    f"{ENGINE}/hand_over.lua": (OUTAGE, OUTAGE_STORE, LINES[0]),
    f"{ENGINE}/recovery.lua": ("tests/engine/test_redis.py", "tests/engine/test_cluster.py"),
    f"{ENGINE}/world.lua": (MEMORY, RATES, FULL, HISTORIES, OUTAGE, *LINES),
    f"{STRATEGIES}/reservations.lua": (CLAIMS, FULL, HISTORIES, HELD),
    f"{STRATEGIES}/line.lua": (TURNS, *LINES),
    f"{STRATEGIES}/concurrency.lua": (HISTORIES, LINES[0], HELD),
    f"{STRATEGIES}/fair_concurrency.lua": (TURNS, LINES[0]),
    f"{STRATEGIES}/fair_window.lua": (FAIR, HISTORIES),
    f"{STRATEGIES}/session.lua": (RATES, HISTORIES),
    f"{STRATEGIES}/fixed_window.lua": (RATES, CLAIMS, HISTORIES),
    f"{STRATEGIES}/sliding_window.lua": (RATES, CLAIMS, HISTORIES),
    f"{STRATEGIES}/sliding_window_counter.lua": (RATES, CLAIMS, HISTORIES),
    f"{STRATEGIES}/token_bucket.lua": (RATES, CLAIMS, HISTORIES, LINES[0]),
    f"{STRATEGIES}/guards/block.lua": (RATES,),
    f"{STRATEGIES}/guards/quota.lua": (RATES,),
    f"{STRATEGIES}/guards/surge.lua": (RATES,),
    f"{STRATEGIES}/line.py": LINES,
    "ratelimit_ext/web/request/waiting_room.py": ("tests/web/test_wait.py",),
    "ratelimit_ext/settlements/queue.py": ("tests/settlements",),
    f"{ENGINE}/outage.py": (OUTAGE, OUTAGE_STORE),
    f"{ENGINE}/outage_store.py": (OUTAGE_STORE, OUTAGE),
}
#: Of these, tests with real servers run, too.
SERVERS = (f"{ENGINE}/recovery.lua",)

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
    (r"(?<=if ).+?(?= then)", "true"),
    (r"(?<=if ).+?(?= then)", "false"),
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
    (r"(?<=if )\S.*(?=:$)", "True"),
    (r"(?<=if )\S.*(?=:$)", "False"),
)
#: A Lua statement of one line that changes something.
STATEMENT = re.compile(
    r"(?!local |return |break|if |for |while |else|end|strategies\.\w+ = )"
    r"(?P<set>[\w.\[\], +*()-]+? = )?(?P<rest>.*[\w)\]}'])"
)
NAMES = re.compile(r"[A-Za-z_]\w*")
#: Of what is on the left of a `=`.
TARGETS = re.compile(r"([A-Za-z_]\w*)(?:\[[^\]]*\])?(?=,| = |$)")
#: Not code, or not about what is decided.
LEFT_OUT = re.compile(r"^\s*(?:--|#|import|from|\"|@|_logger)|: Final|TypeAlias|^local \w*FORMAT")


@dataclass(frozen=True)
class Mutant:
    """One line, or two of them, that are others."""

    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.change}"

    @property
    def change(self) -> str:
        before, after = (" ⏎ ".join(map(str.strip, text.split("\n"))) for text in self.texts)
        return f"`{before}` → `{after}`"

    @property
    def texts(self) -> tuple[str, str]:
        return self.before, self.after

    def applied(self, text: str) -> str:
        lines, end = text.split("\n"), self.line + self.before.count("\n")
        assert "\n".join(lines[self.line - 1 : end]) == self.before
        return "\n".join([*lines[: self.line - 1], self.after, *lines[end:]])


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Yield all of a file that are programs, in the order of its lines. Comments and docstrings
    stay."""
    text = (root / file).read_text("utf-8")
    is_lua = file.endswith(".lua")
    for mutant in (*_other_words(file, text), *_other_statements(file, text)):
        if (_is_lua if is_lua else _is_python)(mutant.applied(text)):
            yield mutant


def _other_words(file: str, text: str) -> Iterator[Mutant]:
    rules, in_text = (LUA if file.endswith(".lua") else PYTHON), False
    for number, line in enumerate(text.split("\n"), 1):
        quotes = line.count('"""')
        if in_text or quotes:
            in_text ^= quotes == 1
            continue
        if LEFT_OUT.search(line):
            continue
        code = _without_comment(line)
        for pattern, new in rules:
            for found in re.finditer(pattern, code):
                after = line[: found.start()] + new + line[found.end() :]
                if after != line:
                    yield Mutant(file, number, line, after)


def _other_statements(file: str, text: str) -> Iterator[Mutant]:
    """Yield mutants without a statement, and with two of them in the other order, if one needs the
    other or both are calls."""
    lines, is_lua = text.split("\n"), file.endswith(".lua")
    statements = dict(_lua_statements(lines) if is_lua else _python_statements(text))
    for number, (sets, uses) in statements.items():
        line, after = lines[number - 1 : number + 1]
        indent = line[: len(line) - len(line.lstrip())]
        yield Mutant(file, number, line, indent + ("do end" if is_lua else "pass"))
        if number + 1 in statements and len(after) - len(after.lstrip()) == len(indent):
            sets_then, uses_then = statements[number + 1]
            are_calls = not sets and not sets_then
            if are_calls or sets & (uses_then | sets_then) or sets_then & uses:
                yield Mutant(file, number, f"{line}\n{after}", f"{after}\n{line}")


#: By its line, the names that a statement sets and uses.
Statements: TypeAlias = Iterator[tuple[int, tuple[set[str], set[str]]]]


def _lua_statements(lines: list[str]) -> Statements:
    for number, line in enumerate(lines, 1):
        if LEFT_OUT.search(line) or not (code := _without_comment(line).strip()):
            continue
        found = STATEMENT.fullmatch(code)
        if found and (found["set"] or re.match(r"[\w.]+\(", code)) and "function" not in code:
            sets = set(TARGETS.findall(found["set"] or ""))
            yield number, (sets, set(NAMES.findall(found["rest"])))


def _python_statements(text: str) -> Statements:
    """Yield calls, and what changes an object or a name that has a value: without the first value
    of a name, a test would fail in any case."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for function in ast.walk(ast.parse(text)):
        seen = Counter[str]()
        for node in ast.walk(function) if isinstance(function, functions) else ():
            sets = set[str]()
            if isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                words = " ".join(map(ast.unparse, targets))
                seen[words] += 1 if isinstance(node, ast.Assign) else 2
                if not re.search(r"[.\[]", words) and seen[words] < 2:
                    continue
                sets = set(TARGETS.findall(words))
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
                continue
            words = ast.unparse(node)
            if node.lineno == node.end_lineno and "_logger" not in words:
                yield node.lineno, (sets, set(NAMES.findall(words)) - {"self"})


def _without_comment(line: str) -> str:
    return re.split(r"  ?-- |  # ", line)[0]


def _is_lua(text: str) -> bool:
    try:
        LuaRuntime().compile(text)
    except LuaSyntaxError:
        return False
    return True


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


#: Mutants that no test can notice, by file and change, and why.
SAME: dict[str, dict[str, str]] = {
    f"{ENGINE}/admit.lua": {
        "`if state then states[i] = state end` → `if true then states[i] = state end`": (
            "nil is not stored"
        ),
    },
    f"{ENGINE}/settle.lua": {
        "`reply[i] = readable and (value and 1 or 0) or -1` → "
        "`reply[i] = readable and (value and 1 or 0) or -2`": "any negative answer is unreadable",
    },
    f"{STRATEGIES}/line.lua": {
        "`if one.rank ~= other.rank then return one.rank < other.rank end` → "
        "`if one.rank ~= other.rank then return one.rank <= other.rank end`": "they differ",
        "`for _, each in ipairs(tickets) do own.since = math.max(own.since, each.since + 1) end` → "
        "`for _, each in ipairs(tickets) do own.since = math.max(own.since, each.since + 2) end`": (
            "behind all others is behind them by any number"
        ),
    },
    f"{STRATEGIES}/concurrency.lua": {
        "`lifetime = function(value, now, arg) return in_flight(value) > 0 and words[arg + 1] or 0 "
        "end,` → `lifetime = function(value, now, arg) return in_flight(value) > 0 and "
        "words[arg + 1] or 1 end,`": "no calls in flight are stored for a microsecond",
        "`return calls + cost <= words[arg], calls, 0, 0` → "
        "`return calls + cost <= words[arg], calls, 0, 1`": "slots have no third number",
    },
    f"{STRATEGIES}/line.py": {
        "`pauses_us = [0]` → `pauses_us = [1]`": "each denial waits for a microsecond at least",
        "`return *self._strategy.parameters(limit, now_us), limit.wait or 0, limit.part.rank` → "
        "`return *self._strategy.parameters(limit, now_us), limit.wait or 1, limit.part.rank`": (
            "a limit with a line has a wait"
        ),
    },
    f"{STRATEGIES}/sliding_window_counter.lua": {
        "`return raw and #raw == 21 and struct.unpack('<I7', raw) > now` → "
        "`return raw and #raw == 21 and struct.unpack('<I7', raw) >= now`": (
            "what is stored is stored again"
        ),
    },
    f"{STRATEGIES}/fair_window.lua": {
        "`or window.used == 0 and words[arg + 4] == 0` → "
        "`or window.used == 0 and words[arg - 4] == 0`": (
            "that is the end of the group's last window by the calendar: 0 if the member's is"
        ),
        "`local amount, used, ending, began = words[arg], 0, now, -1` → "
        "`local amount, used, ending, began = words[arg], 0, now, -2`": (
            "no window was opened at either instant"
        ),
    },
    f"{STRATEGIES}/reservations.lua": {
        "`if holds.beside > 0 then stored = redis.call('ZRANGEBYSCORE', bucket .. ':holds', "
        "'-inf', '(0') end` → "
        "`if holds.beside >= 0 then stored = redis.call('ZRANGEBYSCORE', bucket .. ':holds', "
        "'-inf', '(0') end`": ("an empty set is read"),
        "`add(holds, hold, now + lease, 0, 0, 0)` → `add(holds, hold, now + lease, 0, 0, 1)`": (
            "a hold of nothing has nothing to give back, however much of it is spent"
        ),
        "`return amount > spent and deadline or deadline + GRACE` → "
        "`return amount > spent and deadline or deadline - GRACE`": (
            "a hold that is looked at more often changes no earlier"
        ),
    },
    "ratelimit_ext/web/request/waiting_room.py": {
        "`return bool(watch.poll(0))` → `return bool(watch.poll(1))`": "a millisecond later",
        "`if changes:` → `if True:`": "a settlement of nothing asks the storage nothing",
        "`state.waited_us = waited_us ⏎ "
        "flask.after_this_request(lambda response: _with_wait(response, waited_us))` → "
        "`flask.after_this_request(lambda response: _with_wait(response, waited_us)) ⏎ "
        "state.waited_us = waited_us`": "the function that is called later reads no state",
    },
    f"{ENGINE}/outage_store.py": {
        "`if database.in_transaction:` → `if True:`": (
            "to end no transaction is an error that is passed over"
        ),
        '`if differs and known_at >= (self._fact("clock set by") or 0.0):` → '
        '`if differs and known_at > (self._fact("clock set by") or 0.0):`': (
            "the clock at one instant of the monotonic clock is one"
        ),
        '`self._all("DELETE FROM buckets WHERE expiry <= ? AND changed IS NULL", now_us)` → '
        '`self._all("DELETE FROM buckets WHERE expiry < ? AND changed IS NULL", now_us)`': (
            "what is over at this instant is not read, and goes at the next sweep"
        ),
        "`differs = before_us is None or abs(ahead_us - before_us) > STEP_US` → "
        "`differs = before_us is None or abs(ahead_us - before_us) >= STEP_US`": (
            "the second from which on the clock is set is a choice"
        ),
        "`self._write() ⏎ "
        'self._all("DELETE FROM buckets WHERE expiry <= ? AND changed IS NULL", now_us)` → '
        '`self._all("DELETE FROM buckets WHERE expiry <= ? AND changed IS NULL", now_us) ⏎ '
        "self._write()`": "a bucket of this decision that is over goes at the next sweep",
    },
    f"{STRATEGIES}/token_bucket.lua": {
        "`if frac < 0 then used, frac = used - 1, frac + period end` → "
        "`if frac <= 0 then used, frac = used - 1, frac + period end`": (
            "a whole unit in the fraction is worth as much, and comparisons add both"
        ),
        "`if now <= at then return used, frac, at - now <= SKEW and at - now or 0, pace end` → "
        "`if now < at then return used, frac, at - now <= SKEW and at - now or 0, pace end`": (
            "nothing leaks in no time, and the pace of a full bucket is not read"
        ),
        "`if frac < 0 then used, frac = used - 1, frac + period end` → "
        "`if frac < 1 then used, frac = used - 1, frac + period end`": (
            "a whole unit in the fraction is worth as much, and comparisons add both"
        ),
        "`if elapsed / period * pace >= used + 2 then return 0, 0, 0, words[arg] end` → "
        "`if elapsed / period * pace > used + 2 then return 0, 0, 0, words[arg] end`": (
            "what is near the edge is computed exactly"
        ),
        "`if elapsed / period * pace >= used + 2 then return 0, 0, 0, words[arg] end` → "
        "`if false then return 0, 0, 0, words[arg] end`": "what is computed exactly is 0, too",
        "`receipt = function() return 0 end,` → `receipt = function() return 1 end,`": (
            "a token bucket reads no receipt"
        ),
        "`return math.ceil(at - now + (used + 2) * words[arg + 1] / pace)` → "
        "`return math.floor(at - now + (used + 2) * words[arg + 1] / pace)`": (
            "it is kept for more than a unit longer than it matters"
        ),
        "`return at and (at - now > SKEW or pace ~= words[arg])` → "
        "`return at and (at - now >= SKEW or pace ~= words[arg])`": (
            "what is stored is stored again"
        ),
    },
    f"{STRATEGIES}/fixed_window.lua": {
        "`return used + cost <= words[arg], used, ending, 0, is_kept` → "
        "`return used + cost <= words[arg], used, ending, 1, is_kept`": (
            "windows have no third number"
        ),
        "`if ending == 0 or ending > latest then ending = latest end -- later: a clock set back` → "
        "`if ending == 0 or ending >= latest then ending = latest end "
        "-- later: a clock set back`": "they are equal",
        "`return ending > ending_of(now, arg)` → `return ending >= ending_of(now, arg)`": (
            "what is stored is stored again"
        ),
    },
    f"{STRATEGIES}/session.lua": {
        "`if not raw or #raw ~= 21 then return 0, 0, 0 end` → "
        "`if not raw or #raw ~= 21 then return 0, 0, 1 end`": (
            "no session began at either instant"
        ),
    },
    f"{STRATEGIES}/guards/block.lua": {
        "`receipt = function() return 0 end,` → `receipt = function() return 1 end,`": (
            "a block is not corrected"
        ),
    },
    f"{STRATEGIES}/guards/quota.lua": {
        "`if delta < 0 then` → `if delta < 1 then`": "a correction of nothing changes nothing",
    },
    f"{STRATEGIES}/guards/surge.lua": {
        "`return raw and #raw == SIZE and struct.unpack('<I7', raw, 8) > now + words[arg + 1]` → "
        "`return raw and #raw == SIZE and struct.unpack('<I7', raw, 8) >= now + words[arg + 1]`": (
            "what is stored is stored again"
        ),
        "`return raw and #raw == SIZE and struct.unpack('<I7', raw, 8) > now + words[arg + "
        "1]` → "
        "`return raw or #raw == SIZE and struct.unpack('<I7', raw, 8) > now + words[arg + 1]`": (
            "what is stored is stored again"
        ),
    },
    f"{ENGINE}/prelude.lua": {
        "`decoded[list], lists = words, lists + 1` → `do end`": "a list is decoded again",
        "`words = cjson.decode(list) ⏎ decoded[list], lists = words, lists + 1` → "
        "`decoded[list], lists = words, lists + 1 ⏎ words = cjson.decode(list)`": (
            "a list is decoded again"
        ),
        "`if not words then` → `if true then`": "a list that is kept is decoded again",
        "`local decoded, lists, numbers, list_of_numbers = {}, 0, nil, nil` → "
        "`local decoded, lists, numbers, list_of_numbers = {}, 1, nil, nil`": (
            "one list less is kept"
        ),
        "`if store_pending then store_pending(key, 0) end` → "
        "`if store_pending then store_pending(key, 1) end`": (
            "what lay beside a bucket goes a millisecond later"
        ),
    },
    f"{ENGINE}/hand_over.lua": {
        "`redis.call('DEL', bucket .. ':holds') ⏎ redis.call('DEL', bucket .. ':line') -- those "
        "who wait come again where the calls go` → `redis.call('DEL', bucket .. ':line') -- those "
        "who wait come again where the calls go ⏎ redis.call('DEL', bucket .. ':holds')`": (
            "nothing runs between the two"
        ),
        "`redis.call('DEL', bucket .. ':line') -- those who wait come again where the calls "
        "go ⏎ store(bucket, value, lifetime)` → "
        "`store(bucket, value, lifetime) ⏎ redis.call('DEL', bucket .. ':line') -- those who "
        "wait come again where the calls go`": ("nothing runs between the two"),
    },
    f"{ENGINE}/world.lua": {
        "`if not value and not line then return false, 0 end` → "
        "`if not value and not line then return false, 1 end`": ("what does not exist has no end"),
        "`if world.left > 0 then return end` → `if false then return end`": (
            "what has expired is looked for more often"
        ),
    },
}

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
        ("return any(Bucket(state).has(hold) for (state,) in rows)", "return False"),
    ),
    "two changes of one bucket drop it": (
        f"{ENGINE}/outage_store.py",
        ("distinct = tuple(dict.fromkeys(keys))", "distinct = tuple(keys)"),
    ),
    "a settlement that is sent again after a release is charged again": (
        f"{STRATEGIES}/reservations.lua",
        ("if amount == 0 and (receipt", "if amount == -1 and (receipt"),
    ),
}
