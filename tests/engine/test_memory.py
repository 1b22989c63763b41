"""The memory engine: exact under threads and after a fork, and it forgets what has expired."""

import contextlib
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from lupa import lua51, luajit21

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold, new_hold
from ratelimit_ext.core.errors import StorageFull
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import memory
from ratelimit_ext.engine.memory import SWEEP_EVERY, Buckets, MemoryEngine
from tests.strategies.world import DAY, HOUR, MINUTE, RATES, SECOND, START


@pytest.mark.parametrize("strategy", RATES)
def test_sixteen_threads_get_exactly_the_amount(strategy: str) -> None:
    """800 simultaneous calls on 150: not one too many, not one too few."""
    engine = MemoryEngine()
    burst = {"burst": 150} if strategy == "token-bucket" else {}
    limit = Limit(1 if burst else 150, HOUR, strategy, **burst)
    start = threading.Barrier(16)

    def calls() -> int:
        start.wait()
        return sum(engine.admit([Charge(limit, "hot")]).admitted for _ in range(50))

    with ThreadPoolExecutor(16) as pool:
        assert sum(future.result() for future in [pool.submit(calls) for _ in range(16)]) == 150


def test_expired_buckets_are_swept() -> None:
    """Many clients that call once do not fill the memory permanently."""
    buckets = Buckets()
    engine = MemoryEngine(lambda: buckets)
    limit = Limit(5, SECOND)
    for number in range(10 * SWEEP_EVERY):
        engine.admit([Charge(limit, f"client {number}")], now_us=START + number * 10_000)
    assert len(buckets.named("client")) <= SWEEP_EVERY + 100


def test_clear_and_reset_forget() -> None:
    """`clear` takes names, `reset` takes a beginning; both say how many there were."""
    engine = MemoryEngine()
    for key in ("a:1", "a:2", "b:1"):
        engine.admit([Charge(Limit(1, HOUR), key)])
    assert engine.clear(["a:1", "unknown"]) == 1
    assert engine.reset("a:") == 1
    assert engine.reset("") == 1


def test_the_owner_of_the_buckets_may_replace_them() -> None:
    """They are read at every use, so that their owner may empty them."""
    held = {"buckets": Buckets()}
    engine = MemoryEngine(lambda: held["buckets"])
    charge = Charge(Limit(1, HOUR), "bucket")
    assert engine.admit([charge]).admitted
    assert not engine.admit([charge]).admitted
    held["buckets"] = Buckets()
    assert engine.admit([charge]).admitted


DAILY = Limit(3, DAY, "sliding-window", name="daily")
PACE = Limit(30, MINUTE, "token-bucket", name="pace")
AT_ONCE = Limit(2, HOUR, "concurrency", name="at-once", unit="calls")


def of(limit: Limit, identity: str) -> Charge:
    return Charge(limit, f"LIMITS:{limit.name}:{{{identity}}}")


def test_a_reset_forgets_any_number_of_buckets() -> None:
    """Lua itself takes no more than 8,000 arguments."""
    engine = MemoryEngine()
    for number in range(8_500):
        engine.admit([Charge(Limit(1, HOUR), f"client {number}")])
    assert engine.reset("client") == 8_500
    assert engine.reset("client") == 0


def test_invented_callers_fill_it_and_reset_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond MOST_BUCKETS an exhausted caller stays exhausted, a known one is served, and an
    unknown one gets StorageFull and is not counted: as on a full server."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 100)
    buckets = Buckets()
    engine = MemoryEngine(lambda: buckets)
    assert [engine.admit([of(DAILY, "spent")]).admitted for _ in range(4)] == [True] * 3 + [False]
    assert engine.admit([of(DAILY, "ada")]).admitted
    refused = 0
    for number in range(200):
        try:
            engine.admit([of(DAILY, f"invented-{number}")])
        except StorageFull:
            refused += 1
    assert (refused, len(buckets.named(""))) == (102, 100)
    assert not engine.admit([of(DAILY, "spent")]).admitted
    assert engine.admit([of(DAILY, "ada"), of(PACE, "ada")]).admitted
    assert engine.admit([of(DAILY, "*")]).admitted
    with pytest.raises(StorageFull) as caught:
        engine.admit([of(PACE, "eve"), of(DAILY, "eve")])
    assert caught.value.key == "LIMITS:daily:{eve}"
    assert buckets.named("LIMITS:pace:{eve}") == []


def test_what_lies_beside_a_bucket_is_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that come and go beside one make no room for more callers than there is."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 10)
    buckets = Buckets()
    engine, slots = MemoryEngine(lambda: buckets), replace(AT_ONCE, amount=50)
    holds = [Hold(number, LEASE) for number in range(1, 41)]
    for _ in range(5):
        charge = of(slots, "*")
        verdicts = [engine.admit([charge], hold=hold).verdicts[0] for hold in holds]
        engine.settle([Change.settle(*each, 0) for each in zip(verdicts, holds, strict=True)])
    for number in range(30):
        with contextlib.suppress(StorageFull):
            engine.admit([of(DAILY, f"invented-{number}")])
    assert len(buckets.named("")) == 10


def test_a_log_in_a_full_memory_makes_no_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large log is changed in place, which is a write, too; a new bucket beside it is refused."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 1)
    full, log = MemoryEngine(), Charge(Limit(10**6, DAY, "sliding-window"), "LIMITS:log:{*}")
    for number in range(300):
        assert full.admit([log], now_us=START + number).admitted
    with pytest.raises(StorageFull):
        full.admit([log, of(DAILY, "eve")], now_us=START + 300)
    assert full.admit([log], now_us=START + 300).admitted


def test_a_full_memory_still_counts_what_is_brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of a minute, and calls in flight. They make no caller known; a shadow is left out."""
    monkeypatch.setattr(memory, "MOST_BUCKETS", 0)
    engine = MemoryEngine()
    slot, watched = of(AT_ONCE, "eve"), of(replace(DAILY, mode="shadow"), "eve")
    calls = [engine.admit([slot, of(PACE, "eve"), watched], hold=new_hold(HOUR)) for _ in range(3)]
    assert [call.admitted for call in calls] == [True, True, False]
    assert engine.reset("LIMITS:daily") == 0
    with pytest.raises(StorageFull):
        engine.admit([of(DAILY, "eve")])


LEASE = 120 * SECOND


def test_a_fork_waits_for_the_calls_of_other_threads() -> None:
    """A child has the buckets of its parent, and decides at once: no call was in the middle."""
    engine, limit, is_over = MemoryEngine(), Limit(10**9, DAY), threading.Event()
    kept, known = Charge(Limit(3, DAY, name="kept"), "kept"), Charge(limit, "busy", 1)
    assert [engine.admit([kept]).admitted for _ in range(2)] == [True, True]

    def calls() -> None:
        while not is_over.is_set():
            engine.admit([known])

    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(calls) for _ in range(2)]
        for _ in range(10):
            child = os.fork()
            if not child:
                os._exit([engine.admit([kept]).admitted for _ in range(3)].count(True))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        is_over.set()
        assert [each.result() for each in busy] == [None] * 2
    assert engine.admit([kept]).admitted


def use(monkeypatch: pytest.MonkeyPatch, implementation: ModuleType) -> MemoryEngine:
    """An engine with a Lua of its own."""
    monkeypatch.setattr(memory, "_implementation", lambda: implementation)
    monkeypatch.setattr(memory, "_lua", memory._Lua())
    return MemoryEngine()


def test_lua_51_decides_as_luajit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what platforms without LuaJIT have. In every strategy, with holds and without."""
    answers = []
    limits = [
        Limit(40, MINUTE, strategy, unit=unit) for strategy in RATES for unit in ("requests", "usd")
    ]
    limits += [AT_ONCE, Limit(10**12, 360 * DAY, unit="usd", name="huge")]
    for implementation in (luajit21, lua51):
        engine, chance, now_us = use(monkeypatch, implementation), random.Random(5), START
        answers.append(found := list[object]())
        for number in range(1, 600):
            now_us += chance.choice((0, 1, 999, SECOND, 20 * SECOND))
            hold = Hold(number, LEASE)
            some = [limit for limit in limits if chance.random() < 0.4]
            charges = [
                Charge(limit, f"{limits.index(limit)}", 1 if limit is AT_ONCE else number % 7)
                for limit in some
            ]
            decision = engine.admit(charges, hold=hold, now_us=now_us)
            found.append((decision.admitted, decision.verdicts))
            changes = [
                Change.settle(verdict, hold, 0 if verdict.charge.limit is AT_ONCE else number % 11)
                for verdict in decision.verdicts
                if verdict.charge.limit.held and number % 3
            ]
            found.append(engine.settle(changes, now_us=now_us))
    assert answers[0] == answers[1]


def test_without_the_library_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Also in the log of a process that cannot start. Nothing else of the extension needs it."""
    (tmp_path / "lupa").mkdir()
    (tmp_path / "lupa" / "__init__.py").write_text("")
    code = (
        "import flask, ratelimit_ext\n"
        "app = flask.Flask('app')\n"
        "limiter = ratelimit_ext.Limiter(lambda: 'ada', app=app, storage_uri='memory://')\n"
        "app.add_url_rule('/', view_func=limiter.limit('1/minute')(lambda: 'ok'))\n"
        "app.testing = True\n"
        "app.test_client().get('/')\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ConfigurationError: Limits in memory need the library lupa" in done.stderr
    assert "pip install lupa" in done.stderr


@pytest.mark.parametrize("name", ["{ada}", "Ada Lovelace: 阿达", "a\0b", "ÿþ"])
def test_a_name_may_have_any_characters(name: str) -> None:
    """It is found again, and names its bucket alone."""
    engine, limit = MemoryEngine(), Limit(1, DAY)
    assert [engine.admit([Charge(limit, name)]).admitted for _ in range(2)] == [True, False]
    assert engine._buckets().named(name[:1]) == [name]
    assert engine.admit([Charge(limit, f"{name}!")]).admitted
    assert engine.clear([name]) == 1


def test_a_bucket_outside_of_memory_is_the_same_bucket() -> None:
    """With its expiry and all its holds, also those beside its string. No other text is one."""
    buckets, limit = Buckets(), Limit(50, 2 * SECOND, "concurrency", unit="calls")
    engine = MemoryEngine(lambda: buckets)
    verdicts = [
        engine.admit([Charge(limit, "slots")], hold=Hold(number, LEASE), now_us=START).verdicts[0]
        for number in range(1, 41)
    ]
    (kept,) = buckets.take_out(["slots"])
    assert kept is not None
    assert buckets.take_out(["slots"]) == [None]
    assert engine.admit([Charge(limit, "slots", 0)], now_us=START).verdicts[0].remaining == 50
    buckets.put_back([("slots", kept)])
    assert buckets.take_out(["slots"]) == [kept]
    buckets.put_back([("slots", kept)])
    settled = [Change.settle(verdict, Hold(at, LEASE), 0) for at, verdict in enumerate(verdicts, 1)]
    assert engine.settle(settled[5:], now_us=START) == 35
    assert engine.admit([Charge(limit, "slots", 0)], now_us=START).verdicts[0].remaining == 45
    for damaged in (kept[0][:-1], kept[0] + b"x", b"", b"b9:", b"c" + os.urandom(60)):
        with pytest.raises(memory.UnreadableBucket):
            buckets.put_back([("slots", (damaged, kept[1]))])


@pytest.mark.parametrize("number", [2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64 + 1, 10**30])
@pytest.mark.parametrize("strategy", RATES)
def test_numbers_beyond_the_integers_of_lua(strategy: str, number: int) -> None:
    """As a cost, a correction, a real cost or an instant: no error, and no bucket stays closed."""
    engine, hold = MemoryEngine(), Hold(2**48 - 1, LEASE)
    limit = Limit(100, MINUTE, strategy, unit="tokens")
    assert (
        engine.admit([Charge(limit, "b", number)], now_us=START).verdicts[0].retry_after_us is None
    )
    (verdict,) = engine.admit([Charge(limit, "b", 10)], hold=hold, now_us=START).verdicts
    assert engine.settle([Change.renew(verdict, hold, number)], now_us=START) == 1
    assert not engine.admit([Charge(limit, "b")], now_us=START).admitted
    assert engine.settle([Change.settle(verdict, hold, 0)], now_us=START) == 1
    assert engine.settle([Change.adjust(verdict, -number)], now_us=START) in (0, 1)
    assert engine.admit([Charge(limit, "b", 0)], now_us=START).verdicts[0].remaining == 100
    late = engine.admit([Charge(limit, "b")], now_us=START + number)
    assert (late.admitted, late.now_us) == (True, START + number)
