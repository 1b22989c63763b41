"""The Lua files: what their headers say is so, and they compose."""

import re
import sys
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import composed
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.strategies import STRATEGIES, strategy_named
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from tests.strategies.world import DAY, MINUTE, SECOND, START

GUARDS = {name for name, strategy in STRATEGIES.items() if strategy.guard}
every_strategy = pytest.mark.parametrize("strategy", sorted(STRATEGIES))
every_allowance = pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - GUARDS))
every_file = pytest.mark.parametrize(
    ("package", "name"),
    [("engine", name) for name in ("prelude", "admit", "settle")]
    + [("strategies", name) for name in STRATEGIES],
)


def text_of(package: str, name: str) -> str:
    if package == "strategies":
        return fragment_of(name)
    return (files(f"ratelimit_ext.{package}") / f"{name}.lua").read_text("utf-8")


def header_of(text: str) -> dict[str, str]:
    """The comment at the head: its purpose under '', then one entry per word in the margin."""
    head = re.match(r"(?:--.*\n)+", text)
    assert head
    sections, word = {"": ""}, ""
    for line in head[0].splitlines():
        entry = re.match(r"-- (\w+)  +(.*)", line)
        if entry:
            word = entry[1]
            sections[word] = entry[2]
        elif line == "--":
            word = ""
        else:
            sections[word] += " " + line.removeprefix("--").strip()
    return sections


def limit_of(strategy: str, amount: int) -> Limit:
    """A limit a day by this strategy; calls in flight are a unit of their own."""
    unit = "calls" if strategy == "concurrency" else "requests"
    return Limit(amount, DAY, strategy, unit=unit, multiple=2 if strategy == "surge" else None)


def fragment_of(strategy: str) -> str:
    module = sys.modules[type(STRATEGIES[strategy]).__module__]
    return Path(str(module.__file__)).with_suffix(".lua").read_text("utf-8")


@every_file
def test_every_file_says_what_it_takes_and_returns(package: str, name: str) -> None:
    """Purpose, KEYS, ARGV and returns stand at the head; a strategy adds what it stores."""
    header = header_of(text_of(package, name))
    words = {"KEYS", "ARGV", "returns"} | ({"stored"} if package == "strategies" else set())
    assert words <= header.keys()
    assert len(header[""]) > 20


@every_strategy
def test_a_fragment_takes_what_the_reference_sends(strategy: str) -> None:
    """`arguments` is the length of parameters(), each is documented, and each is read."""
    text, number = (
        fragment_of(strategy),
        len(STRATEGIES[strategy].parameters(limit_of(strategy, 5), 0)),
    )
    assert int(re.search(r"arguments = (\d+)", text)[1]) == number  # type: ignore[index]
    documented = header_of(text)["ARGV"]
    twins = len(re.findall(r"\btwo\b", documented))
    stated = 0 if documented.startswith("as words: none") else len(documented.split(";")) + twins
    assert stated == number
    if "ends_with_calls" in text:  # who may begin when a call ends is found there
        text += (files("ratelimit_ext.strategies") / "reservations.lua").read_text("utf-8")
    read = {int(offset or 0) for offset in re.findall(r"\[arg(?: \+ (\d+))?\]", text)}
    assert read == set(range(number))


@every_strategy
def test_a_fragment_has_its_strategys_name(strategy: str) -> None:
    """It puts itself under the code of its Python twin, with all that the drivers call."""
    text = fragment_of(strategy)
    assert re.findall(r"^strategies\.(\w+) = \{", text, re.MULTILINE) == [STRATEGIES[strategy].code]
    table = text.partition("strategies.")[2]
    for function in ("check", "take", "is_stale", "adjust"):
        assert re.search(rf"^  {function} = ", table, re.MULTILINE)


@every_strategy
def test_what_is_stored_is_what_is_documented(redis_client: redis.Redis, strategy: str) -> None:
    """The bytes in the header are those of a bucket of one call."""
    engine, charge = (
        RedisEngine(redis_client, redis.RedisError),
        Charge(limit_of(strategy, 5), "bucket"),
    )
    if strategy == "block":
        engine.settle([new_block(charge, SECOND, "closed")])
    elif strategy == "reported":
        engine.settle([quota_report(charge, 60, 1, MINUTE)])
    engine.admit([charge])
    stored = header_of(fragment_of(strategy))["stored"]
    fields = re.findall(r"\((\d+) bytes?\)", stored)
    holds = 4 if limit_of(strategy, 5).held else 0  # the head of reservations.lua
    assert redis_client.strlen("bucket") == holds + sum(map(int, fields))


@pytest.mark.parametrize("driver", ["admit", "settle"])
def test_a_driver_takes_its_keys_from_keys(driver: str) -> None:
    """No name is made inside a script, as a cluster demands, and every command is one of six."""
    text = text_of("engine", "prelude") + text_of("engine", driver)
    commands = re.findall(r"redis\.p?call\('(\w+)'(?:, ([^)]*))?", text)
    names = {"MGET", "TIME", "SET", "SETRANGE", "PEXPIRE", "DEL"}
    assert {command for command, _ in commands} == names
    assert all(re.match(r"unpack\(KEYS|KEYS\[i\]|key|$", rest) for _, rest in commands)
    assert all("redis." not in fragment_of(strategy) for strategy in STRATEGIES)


@pytest.mark.parametrize("place", [0, 1])
def test_a_large_log_is_changed_in_place(redis_client: redis.Redis, place: int) -> None:
    """A call within the newest grain of a full window writes 12 bytes, beside others, too. The log
    is kept for all calls of that grain."""
    engine = RedisEngine(redis_client, redis.RedisError)
    charges = [Charge(limit_of("token-bucket", 5), "other")]
    charges.insert(place, Charge(limit_of("sliding-window", 10**6), "bucket"))
    for call in range(600):
        engine.admit([charges[place]], now_us=START + call * DAY // 610)
    now_us, before = START + 599 * DAY // 610, redis_client.get("bucket")
    assert before is not None
    redis_client.config_resetstat()
    assert engine.admit(charges, now_us=now_us + 1).admitted
    stats = redis_client.info("commandstats")
    assert (stats["cmdstat_setrange"]["calls"], stats["cmdstat_set"]["calls"]) == (1, 1)
    after = redis_client.get("bucket")
    assert after is not None
    assert before[:-12] == after[:-12]
    assert before != after
    assert "cmdstat_pexpire" not in stats
    assert DAY // 1000 - 1000 < redis_client.pttl("bucket") <= DAY // 1000 + DAY // 511_000 + 2


def test_an_open_window_is_changed_in_place(redis_client: redis.Redis) -> None:
    """A further call of a fixed window writes 7 bytes, and the window ends when it did. If the
    clock was set back, all is written."""
    engine = RedisEngine(redis_client, redis.RedisError)
    charge = Charge(limit_of("fixed-window", 5), "bucket")
    redis_client.config_resetstat()
    for call, (sets, ranges) in enumerate([(1, 0), (1, 1), (1, 2)]):
        redis_client.pexpire("bucket", 50_000)
        assert engine.admit([charge], now_us=START + call).verdicts[0].remaining == 4 - call
        stats = redis_client.info("commandstats")
        assert stats["cmdstat_set"]["calls"] == sets
        assert stats.get("cmdstat_setrange", {"calls": 0})["calls"] == ranges
    assert 40_000 < redis_client.pttl("bucket") <= 50_000
    assert engine.admit([charge], now_us=START - SECOND).verdicts[0].remaining == 1
    assert redis_client.info("commandstats")["cmdstat_set"]["calls"] == 2


def test_codes_are_two_letters_and_unique() -> None:
    """They are part of the names of buckets; two strategies under one would share them."""
    codes = [strategy.code for strategy in STRATEGIES.values()]
    assert all(re.fullmatch("[a-z]{2}", code) for code in codes)
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("driver", ["admit", "settle"])
def test_every_combination_of_strategies_is_one_script(
    redis_client: redis.Redis, driver: str
) -> None:
    """Each compiles, whatever the order in which the strategies were met, and knows its digest."""
    for size in range(1, len(STRATEGIES) + 1):
        for some in combinations(STRATEGIES.values(), size):
            script = composed(driver, some)
            assert composed(driver, some[::-1]).sha == script.sha
            assert redis_client.script_load(script.text) in (script.sha, script.sha.encode())


class ReadOnlyClient:
    """A client whose scripts the server itself keeps from writing."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def evalsha(self, *arguments: Any) -> Any:
        return self._client.execute_command("EVALSHA_RO", *arguments)

    def eval(self, *arguments: Any) -> Any:
        return self._client.execute_command("EVAL_RO", *arguments)


@every_allowance
def test_a_check_never_writes(redis_client: redis.Redis, strategy: str) -> None:
    """A look runs where the server allows no write: fresh, used, used up, and after a clock was
    set back."""
    engine = RedisEngine(redis_client, redis.RedisError)
    look = RedisEngine(ReadOnlyClient(redis_client), redis.RedisError)
    charges = [Charge(limit_of(strategy, 5), "bucket")]
    redis_client.script_flush()
    for remaining in (5, 4, 3, 2, 1, 0):
        seen = look.admit(charges, take=False, now_us=START).verdicts[0]
        assert (seen.remaining, seen.allowed) == (remaining, remaining > 0)
        engine.admit(charges, now_us=START)
    assert not look.admit(charges, take=False, now_us=START - 2 * DAY).admitted
    redis_client.config_resetstat()
    for _ in range(5):
        engine.admit(charges, take=False, now_us=START)
        engine.admit([Charge(charges[0].limit, "bucket", 0)], now_us=START)
    assert set(redis_client.info("commandstats")) <= {
        f"cmdstat_{name}" for name in ("evalsha", "mget", "config|resetstat", "info")
    }


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"concurrency", *GUARDS}))
def test_a_denial_writes_only_after_a_clock_was_set_back(
    redis_client: redis.Redis, strategy: str
) -> None:
    """Denied at the usual time, nothing is stored; denied by the future, its present is, once."""
    engine = RedisEngine(redis_client, redis.RedisError)
    charges = [Charge(limit_of(strategy, 1), "bucket")]
    engine.admit(charges, now_us=START)

    def writes(now_us: int) -> int:
        redis_client.config_resetstat()
        assert not engine.admit(charges, now_us=now_us).admitted
        stats = redis_client.info("commandstats")
        return int(stats.get("cmdstat_set", {"calls": 0})["calls"])

    assert writes(START + 10) == 0
    assert writes(START - 10 * MINUTE) == 1
    assert writes(START - 10 * MINUTE) == 0


@pytest.mark.parametrize("strategy", ["block", "reported"])
def test_what_is_not_known_is_not_stored(redis_client: redis.Redis, strategy: str) -> None:
    """Without a block or a report an admission reads, and writes nothing."""
    engine = RedisEngine(ReadOnlyClient(redis_client), redis.RedisError)
    redis_client.script_flush()
    for _ in range(3):
        assert engine.admit([Charge(limit_of(strategy, 1), "bucket")], now_us=START).admitted


def test_every_strategy_has_its_fragment() -> None:
    """Every strategy has a Lua fragment."""
    for name in STRATEGIES:
        assert strategy_named(name).code in fragment_of(name)


@pytest.mark.parametrize("driver", ["admit", "settle"])
def test_no_file_is_read_after_the_start(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no file descriptor may be left, or the files may be of another version."""
    before = composed(driver, tuple(STRATEGIES.values()))
    composed.cache_clear()
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("a file was read"))
    assert composed(driver, tuple(STRATEGIES.values())) == before
