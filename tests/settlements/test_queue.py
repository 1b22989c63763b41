"""Settlements that the storage could not take are kept, sent again, and applied once."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import flask
import pytest
import redis

from ratelimit_ext import Limiter
from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import KEPT_AFTER_LEASE_S, Charge, Hold
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.events import Events
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.outage import OutageEngine
from ratelimit_ext.engine.redis import RedisEngine
from ratelimit_ext.settlements import queue as queue_module
from ratelimit_ext.settlements.queue import LOOK_EVERY_S, SettlementQueue, settlements
from ratelimit_ext.strategies.guards.block import new_block
from ratelimit_ext.strategies.guards.quota import quota_report
from tests.clocks import Clock
from tests.engine.relay import Relay
from tests.web.outage.flaky import FlakyEngine

DAY_US = 86_400_000_000
TOKENS = Limit(1000, DAY_US, unit="tokens", name="tokens")
CALLS = Limit(10, DAY_US, name="calls")
SLOTS = Limit(2, 1_000_000, "concurrency", unit="calls", name="slots")
LEASE_S = 60.0
LOGGER = "ratelimit_ext"


class Bench:
    """A flaky engine over a real one, and a queue without a thread on a clock that stands still."""

    def __init__(self, engine: Any) -> None:
        self.engine = FlakyEngine(engine)
        self.clock = Clock()
        self.queue = self.new_queue()
        self.numbers = iter(range(1, 1000))

    def new_queue(self, **words: Any) -> SettlementQueue:
        return SettlementQueue(clock=lambda: self.clock.now_s, in_background=False, **words)

    def changes(self) -> list[Any]:
        """A call of 400 tokens on a slot that has used 150, and whose request is given back."""
        hold = Hold(next(self.numbers), int(LEASE_S * 1_000_000))
        charges = [Charge(TOKENS, "T:{a}", 400), Charge(SLOTS, "S:{a}"), Charge(CALLS, "C:{a}")]
        tokens, slot, call = self.engine.admit(charges, hold=hold).verdicts
        return [
            Change.settle(tokens, hold, 150),
            Change.settle(slot, hold, 0),
            Change.adjust(call, -1),
        ]

    def send(self, changes: list[Any]) -> None:
        self.queue.send(self.engine, changes, lease_s=LEASE_S)

    def left(self) -> tuple[int, ...]:
        looks = [Charge(TOKENS, "T:{a}", 0), Charge(SLOTS, "S:{a}", 0), Charge(CALLS, "C:{a}", 0)]
        verdicts = self.engine.admit(looks, take=False).verdicts
        return tuple(verdict.remaining for verdict in verdicts)


@pytest.fixture(params=["memory", "redis"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each engine."""
    if request.param == "memory":
        return Bench(MemoryEngine())
    client = request.getfixturevalue("redis_client")
    return Bench(RedisEngine(client, redis.RedisError))


def test_what_the_storage_takes_does_not_wait(bench: Bench) -> None:
    """One call, and nothing is kept."""
    bench.send(bench.changes())
    assert (bench.left(), len(bench.queue), bench.engine.calls) == ((850, 2, 10), 0, 1)
    assert not bench.queue._awake.is_set()


def test_what_the_storage_could_not_take_is_sent_again(bench: Bench) -> None:
    """As often as it fails; once it works, every change is applied and nothing waits."""
    changes = bench.changes()
    bench.engine.is_away = True
    bench.send(changes)
    assert [bench.queue.send_waiting() for _ in range(3)] == [1, 1, 1]
    assert bench.left() == (600, 1, 9)
    bench.engine.is_away = False
    assert bench.queue.send_waiting() == 0
    assert bench.left() == (850, 2, 10)


def test_a_lost_reply_applies_nothing_twice(bench: Bench) -> None:
    """The first sending has the marker already. Another call of the same caller keeps its own."""
    first, _second = bench.changes(), bench.changes()
    bench.engine.loses_replies = True
    bench.send(first)
    assert bench.left() == (450, 1, 9)
    for _ in range(2):
        assert bench.queue.send_waiting() == 1
    bench.engine.loses_replies = False
    assert bench.queue.send_waiting() == 0
    assert bench.left() == (450, 1, 9)


def test_a_reply_that_is_lost_on_the_wire_applies_nothing_twice(
    redis_server: Any, redis_client: redis.Redis
) -> None:
    """The same with a real connection that breaks after the script has run."""
    with Relay(redis_server.port) as relay:
        client = redis.Redis(port=relay.port, retry=None, socket_timeout=5)
        bench = Bench(RedisEngine(client, redis.RedisError))
        bench.send(bench.changes())
        changes = bench.changes()
        relay.drops_replies.set()
        bench.send(changes)
        assert len(bench.queue) == 1
        relay.drops_replies.clear()
        assert bench.queue.send_waiting() == 0
        assert bench.left() == (700, 2, 10)
        client.close()


def test_what_is_queued_counts_for_the_worker_that_decides_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however often it is tried, and also what comes after others; but nothing that is only
    to be released later, of which no decision is known."""
    monkeypatch.setattr(Breaker, "wake", lambda _: None)
    breaker = Breaker(bench.engine)  # type: ignore[arg-type]
    outage = breaker.outage = OutageEngine(breaker, lambda _: "local", Workers())
    charge, holds = Charge(TOKENS, "T:{b}", 300), [Hold(number, DAY_US) for number in (7, 8, 9)]
    calls = [breaker.admit([charge], hold=hold).verdicts[0] for hold in holds]
    bench.engine.is_away = True
    for verdict, hold in zip(calls[:2], holds, strict=False):
        bench.queue.send(breaker, [Change.settle(verdict, hold, 100)], lease_s=LEASE_S)
    released = [Change.release(charge, holds[2], undone=True)]
    bench.queue.send(breaker, released, lease_s=LEASE_S, later=True)

    def left() -> int:
        return outage.admit([charge._replace(cost=0)], take=False).verdicts[0].remaining

    assert left() == 1000 - 100 - 100 - 300
    assert [bench.queue.send_waiting() for _ in range(4)] == [3] * 4
    assert left() == 1000 - 100 - 100 - 300
    bench.engine.is_away = breaker.is_open = False
    assert bench.queue.send_waiting() == 0


def test_settlements_alone_need_no_marker(redis_client: redis.Redis) -> None:
    """They are idempotent by their hold: no key more, and no write more."""
    bench = Bench(RedisEngine(redis_client, redis.RedisError))
    changes = bench.changes()
    bench.send(changes[:2])
    assert not list(redis_client.scan_iter("*once*"))
    bench.send(changes[2:])
    (marker,) = redis_client.scan_iter("*once*")
    assert marker.startswith(b"C:{a}:once:")
    assert 0 < redis_client.pttl(marker) <= (LEASE_S + KEPT_AFTER_LEASE_S) * 1000


def test_a_correction_of_what_the_provider_counts_needs_no_marker(
    bench: Bench, redis_client: redis.Redis
) -> None:
    """It is not sent again, so it is not applied twice, and not lost: the next report is right."""
    charge = Charge(Limit(1, 1_000_000, "reported", unit="tokens", name="quota"), "Q:{a}", 400)
    bench.engine.settle([quota_report(charge, 1000, 0, 60_000_000)])
    correction = Change.adjust(bench.engine.admit([charge]).verdicts[0], -250)
    bench.send([correction])
    assert not list(redis_client.scan_iter("*once*"))
    left = bench.engine.admit([charge._replace(cost=0)], take=False).verdicts[0].remaining
    assert 850 <= left <= 900  # it refills meanwhile
    settlement = bench.changes()[0]
    bench.engine.is_away = True
    bench.send([correction, settlement])
    assert (len(bench.queue), bench.queue.lost) == (1, {})
    bench.engine.is_away = False
    assert bench.queue.send_waiting() == 0
    assert not list(redis_client.scan_iter("*once*"))
    look = bench.engine.admit([charge._replace(cost=0)], take=False).verdicts[0]
    assert 850 <= look.remaining <= 900


def test_only_settlements_and_corrections_are_kept(bench: Bench) -> None:
    """A block or a renewal that is sent later is out of date."""
    changes = bench.changes()
    renewal = changes[0]._replace(verb="renew", numbers=(400, 10))
    block = Charge(Limit(1, 1_000_000, "block", name="b"), "B:{a}")
    bench.engine.is_away = True
    bench.send([renewal, new_block(block, 1_000_000)])
    assert len(bench.queue) == 0
    bench.send([new_block(block, 1_000_000), *changes])
    bench.engine.is_away = False
    bench.queue.send_waiting()
    assert bench.left() == (850, 2, 10)
    assert bench.engine.admit([block], take=False).admitted


def test_an_expired_settlement_is_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """After the lease and ten minutes the hold is forgotten. The log has the amounts."""
    changes = bench.changes()
    bench.engine.is_away = True
    bench.send(changes)
    bench.clock.forward(LEASE_S + KEPT_AFTER_LEASE_S - 1)
    assert bench.queue.send_waiting() == 1
    bench.clock.forward(1)
    bench.engine.calls = 0
    assert bench.queue.send_waiting() == 0
    assert bench.engine.calls == 0
    assert "T:{a} actual 150 tokens" in caplog.text
    assert "C:{a} -1 requests" in caplog.text


def test_the_queue_is_bounded(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """When it is full the oldest goes, and is logged with its amount."""
    bench.queue = bench.new_queue(most_waiting=2)
    calls = [bench.changes()[:1], bench.changes()[:1]]
    calls.append([calls[0][0]._replace(numbers=(calls[0][0].hold.id, 7))])
    bench.engine.is_away = True
    for changes in calls:
        bench.send(changes)
    assert len(bench.queue) == 2
    lost = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert [record.getMessage() for record in lost] == [
        "A settlement is lost (too many are queued): T:{a} actual 150 tokens"
    ]


def test_listeners_learn_what_became_of_queued_settlements(bench: Bench) -> None:
    """The one that was queued is sent later, or lost; each has an event."""
    outcomes: list[tuple[str, int]] = []
    events = Events()
    events.add(lambda event: outcomes.append((event.outcome, len(event.changes))))
    bench.queue = bench.new_queue(most_waiting=1)
    bench.engine.is_away = True
    for changes in (bench.changes(), bench.changes()[2:]):
        bench.queue.send(bench.engine, changes, lease_s=LEASE_S, events=events)
    bench.engine.is_away = False
    bench.queue.send_waiting()
    assert outcomes == [("lost", 3), ("sent", 1)]


def test_an_outage_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Not for each call, and again at the next outage. A settlement that arrives the second time
    is not logged."""
    for is_lasting in (True, False, True):
        bench.engine.is_away = True
        for _ in range(3):
            bench.send(bench.changes())
            if is_lasting:
                bench.queue.send_waiting()
        bench.engine.is_away = False
        assert bench.queue.send_waiting() == 0
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.name for record in errors] == [LOGGER] * 2


def test_one_storage_that_is_away_does_not_hold_up_another(bench: Bench) -> None:
    """In a round it is asked once, however much waits for it."""
    changes = [bench.changes()[2:] for _ in range(3)]
    away = FlakyEngine(bench.engine)
    bench.engine.is_away = away.is_away = True
    for each in changes[:2]:
        bench.queue.send(away, each, lease_s=LEASE_S)
    bench.send(changes[2])
    bench.engine.is_away = False
    away.calls = 0
    assert bench.queue.send_waiting() == 2
    assert away.calls == 1


def test_a_defect_is_logged_with_its_trace_and_not_repeated(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no outage would fail again."""

    class Defective:
        def settle(self, *_: Any, **__: Any) -> int:
            raise KeyError("oops")

    defective: Any = Defective()
    bench.queue.send(defective, bench.changes(), lease_s=LEASE_S)
    assert len(bench.queue) == 0
    assert "Traceback" in caplog.text
    assert "T:{a} actual 150 tokens" in caplog.text
    assert bench.queue.lost == {"tokens": 150, "calls": 1, "requests": 1}


def test_a_shard_that_is_away_holds_up_no_other(bench: Bench) -> None:
    """What other shards of the cluster take is sent at once, and each of the rest is tried."""
    one, two = bench.changes(), bench.changes()
    away = [one[0], two[0]]

    class Cluster:
        def settle(self, changes: Any, **words: Any) -> int:
            if any(change in away for change in changes):
                raise ShardUnavailable("away")
            applied: int = bench.engine.settle(changes, **words)
            return applied

    cluster: Any = Cluster()
    batches = one[:1], two[:1], one[1:], two[1:]
    outcomes = [bench.queue.send(cluster, each, lease_s=LEASE_S) for each in batches]
    assert outcomes == ["queued", "queued", "sent", "sent"]
    away.pop()
    assert bench.queue.send_waiting() == 1
    away.pop()
    assert bench.queue.send_waiting() == 0
    assert bench.left() == (700, 2, 10)


def test_what_fails_is_tried_last(bench: Bench) -> None:
    """Of a shard as of a storage. What was not tried any more comes first the next time."""
    batches = [bench.changes()[:1] for _ in range(3)]
    errors = iter([ShardUnavailable("away"), StorageUnavailable("away")])

    class Cluster:
        def settle(self, changes: Any, **words: Any) -> int:
            raise next(errors)

    cluster: Any = Cluster()
    for changes in batches:
        bench.queue.send(cluster, changes, lease_s=LEASE_S, later=True)
    assert bench.queue.send_waiting() == 3
    waiting = [batch.entry.changes for batch in bench.queue._waiting.values()]
    assert waiting == [batches[2], batches[0], batches[1]]


def test_a_batch_that_always_fails_holds_up_no_other(bench: Bench) -> None:
    """It is sent again last, until its hold has expired."""
    poison, good = bench.changes(), bench.changes()
    bench.engine.is_away = True
    bench.send(poison)
    bench.send(good)
    bench.engine.is_away = False
    bench.engine.refuses = poison[0].hold
    assert [bench.queue.send_waiting() for _ in range(3)] == [2, 1, 1]
    assert bench.left() == (450, 1, 9)


def test_the_end_of_a_process_counts_what_it_loses(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a journal, that is all that is queued."""
    bench.engine.is_away = True
    bench.send(bench.changes())
    bench.queue.close(0)
    assert len(bench.queue) == 0
    assert "is lost (the process ends): T:{a} actual 150 tokens" in caplog.text
    assert bench.queue.lost == {"tokens": 150, "calls": 1, "requests": 1}


def test_the_end_of_a_process_waits_for_no_pause(
    bench: Bench, background: SettlementQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is back, and the thread would look for it much later."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(queue_module, name, 3600.0)
    bench.engine.is_away, bench.queue = True, background
    bench.send(bench.changes())
    bench.engine.is_away = False
    background.close(60)
    assert background.lost == {}
    assert bench.left() == (850, 2, 10)


class Pauses:
    """An event that is set while the thread sleeps, once in so many times."""

    def __init__(self, queue: SettlementQueue, wakes: list[bool]) -> None:
        self.queue, self.wakes, self.seen = queue, iter(wakes), list[float]()

    def wait(self, pause_s: float) -> bool:
        self.seen.append(round(pause_s, 3))
        if (wakes := next(self.wakes, None)) is None:
            self.queue._waiting.clear()
        return bool(wakes)

    def clear(self) -> None:
        """It is not asked again."""


def test_pauses_become_longer_until_something_happens(bench: Bench) -> None:
    """They double up to the longest. What wakes the thread begins anew."""
    bench.engine.is_away = True
    bench.send(bench.changes())
    pauses: Any = Pauses(bench.queue, [False] * 5 + [True] + [False])
    bench.queue._awake = pauses
    bench.queue._run()
    assert pauses.seen == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.1, 0.2]


class NoFiles:
    """A journal that is alone in its directory, and counts the looks at others."""

    looks = 0

    def has_others(self) -> bool:
        self.looks += 1
        return False

    def begin(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("what", ["begin", "send"])
def test_calls_look_for_the_files_of_ended_processes_once_a_second(bench: Bench, what: str) -> None:
    """However many there are: a look lists a directory."""
    journal: Any = NoFiles()
    bench.queue.keep(bench.engine, journal)  # type: ignore[arg-type]
    assert journal.looks == 1
    for seconds in (0, LOOK_EVERY_S, LOOK_EVERY_S / 2):
        bench.clock.forward(seconds)
        for _ in range(3):
            if what == "begin":
                bench.queue.begin(bench.engine, Hold(1, DAY_US), [])  # type: ignore[arg-type]
            else:
                bench.send(bench.changes()[:1])
    assert journal.looks == 2


@pytest.fixture
def background(bench: Bench) -> Iterator[SettlementQueue]:
    """A queue with its thread; what is left waits for nothing after the test."""
    queue = SettlementQueue()
    yield queue
    bench.engine.is_away = False
    assert queue.flush(60)


def test_the_thread_exists_only_while_something_waits(
    bench: Bench, background: SettlementQueue
) -> None:
    """It sends what waits when the storage is back, and ends."""
    bench.queue = background
    bench.send(bench.changes())
    assert background._thread is None
    bench.engine.is_away = True
    for _ in range(3):
        bench.send(bench.changes()[2:])
    thread = background._thread
    assert thread is not None
    assert not background.flush(0)
    bench.engine.is_away = False
    assert background.flush(60)
    thread.join(60)
    assert background._thread is None
    assert bench.left()[2] == 10


def test_a_settlement_that_arrives_ends_the_pause(
    bench: Bench, background: SettlementQueue
) -> None:
    """The storage is back: what waits goes at once, and not after the longest pause."""
    bench.queue = background
    late, now = bench.changes(), bench.changes()
    bench.engine.is_away = True
    bench.send(late)
    thread = background._thread
    assert thread is not None
    bench.engine.is_away = False
    bench.send(now)
    thread.join(60)
    assert bench.left() == (700, 2, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_sends_nothing_of_its_parents(bench: Bench) -> None:
    """What waits is the parent's: the child begins with nothing, and with locks that are free."""
    engine, changes = bench.engine, bench.changes()
    engine.is_away = True
    settlements.send(engine, changes, lease_s=LEASE_S)
    with settlements._one_sender, settlements._changed:
        child = os.fork()
        if child == 0:  # no pytest, no atexit: the answer is the exit code
            code = 1
            with contextlib.suppress(BaseException):
                empty = len(settlements) == 0 and settlements.flush(0)
                settlements.send(engine, changes, lease_s=LEASE_S)
                code = 0 if empty and len(settlements) == 1 else 2
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.is_away = False
    assert settlements.flush(60)
    assert bench.left() == (850, 2, 10)


AT_EXIT = """
import flask, redis, sys
from ratelimit_ext import Limiter, StorageUnavailable
app = flask.Flask("exit")
limiter = Limiter(lambda: "ada", app=app, storage_uri=sys.argv[1])
limiter.limit("2 in flight", name="slots")
app.add_url_rule("/", "view", limiter.limit("2 in flight")(lambda: "ok"))
behind, away = limiter._components.engines.primary._engine, [True]
settle = behind.settle
def fails(*arguments, **words):
    if away:
        away.pop()
        raise StorageUnavailable("away")
    return settle(*arguments, **words)
behind.settle = fails
assert app.test_client().get("/").status_code == 200
assert len(limiter._components.settlements) == 1
"""


def test_the_end_of_a_process_sends_what_waits(redis_uri: str) -> None:
    """The slot is free when the process has ended."""
    subprocess.run([sys.executable, "-c", AT_EXIT, redis_uri], check=True)
    app = flask.Flask("exit")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=redis_uri)
    app.add_url_rule("/", "view", limiter.limit("2 in flight")(lambda: "ok"))
    with app.test_request_context("/"):
        assert [limit.remaining for limit in limiter.current.peek("view")] == [2]


def test_an_extension_can_wait_for_its_settlements(redis_uri: str) -> None:
    """`flush_settlements` returns whether the storage has taken them."""
    app = flask.Flask("flush")
    limiter = Limiter(lambda: "ada", app=app, storage_uri=redis_uri)
    app.add_url_rule("/", "view", limiter.limit("2 in flight")(lambda: "ok"))
    engine = FlakyEngine(limiter._components.engines.primary)
    limiter._components.engines._primary = engine  # type: ignore[assignment]
    engine.is_away = True
    assert app.test_client().get("/").status_code == 200
    assert not limiter.operators.flush_settlements(0)
    engine.is_away = False
    assert limiter.operators.flush_settlements(60)
    with app.test_request_context("/"):
        assert [limit.remaining for limit in limiter.current.peek("view")] == [2]
