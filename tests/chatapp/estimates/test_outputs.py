"""Recent outputs in memory and in a real server; time is virtual."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import redis

from chatapp.estimates.outputs import (
    ENOUGH_CALLS,
    MOST_CALLS,
    MOST_WEIGHT,
    UNKNOWN_OUTPUT_TOKENS,
    Histogram,
    MemoryOutputs,
    Outputs,
    bucket_of,
    expected_output_tokens,
)
from chatapp.estimates.redis_outputs import FRESH_S, KEY_PREFIX, PAUSE_S, RedisOutputs, new_sender
from tests import servers

ERRORS = redis.RedisError
KEY = f"{KEY_PREFIX}gpt-4o"
ANOTHER_WORKER = """
import sys
import redis
from chatapp.estimates.redis_outputs import RedisOutputs
outputs = RedisOutputs(redis.Redis.from_url(sys.argv[1]), redis.RedisError, every_s=3600)
for _ in range(30):
    outputs.add("gpt-4o", 300)
"""
FORKING_WORKER = f"""{ANOTHER_WORKER}
import os
if os.fork() == 0:
    for _ in range(4):
        outputs.add("gpt-4o", 300)
    sys.exit()
os.wait()
"""
NEVER_S = 3600
Make = Callable[..., RedisOutputs]


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_outputs() -> Iterator[Make]:
    """Makes outputs on a client that send only when flushed; closed with the test."""
    made = []

    def make(client: redis.Redis, **options: Any) -> RedisOutputs:
        made.append(RedisOutputs(client, ERRORS, every_s=NEVER_S, **options))
        return made[-1]

    yield make
    for outputs in made:
        outputs.close()


@pytest.fixture(params=["memory", "redis"])
def outputs(request: pytest.FixtureRequest, make_outputs: Make) -> Outputs:
    """Each implementation in turn."""
    if request.param == "memory":
        return MemoryOutputs()
    return make_outputs(request.getfixturevalue("redis_client"))


@pytest.fixture
def commands(redis_client: redis.Redis) -> Callable[[], int]:
    """The number of commands that the server has executed since the last call."""
    seen = 0

    def count() -> int:
        nonlocal seen
        before, seen = seen, int(redis_client.info("stats")["total_commands_processed"])
        return seen - before - 1

    count()
    return count


def test_nothing_is_known_of_a_new_model(outputs: Outputs) -> None:
    """A model without calls has the documented default."""
    assert outputs.recent("gpt-4o") == Histogram()
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS


def test_enough_calls_make_an_expectation(outputs: Outputs) -> None:
    """With too few calls the default applies; with enough, what 95 of 100 did not exceed, and never
    less than the default."""
    for _ in range(ENOUGH_CALLS - 1):
        outputs.add("gpt-4o", 2_000)
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS
    outputs.add("gpt-4o", 3_000)
    assert 2_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 2_400
    outputs.add("gpt-4o", 3_000)
    assert 3_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 3_600


def test_models_are_apart(outputs: Outputs) -> None:
    """The calls of one model do not change the estimate of another."""
    outputs.add("gpt-4o", 200)
    assert outputs.recent("gpt-4.1") == Histogram()


def varied_tokens(calls: int) -> list[int]:
    """Outputs of that many calls, short and long ones mixed."""
    return [call * call % 5_003 if call % 7 else call // 20 for call in range(calls)]


def test_memory_is_the_reference() -> None:
    """Thousands of calls, one by one, with several halvings."""
    outputs, reference = MemoryOutputs(), Histogram()
    for tokens in varied_tokens(3 * MOST_CALLS):
        outputs.add("gpt-4o", tokens)
        reference = reference.added(tokens)
    assert outputs.recent("gpt-4o") == reference


def test_the_server_is_the_reference(redis_client: redis.Redis, make_outputs: Make) -> None:
    """In batches from one call to a thousand: the server's arithmetic equals Python's to the digit,
    and unsent calls are counted in advance."""
    outputs, reference = make_outputs(redis_client), Histogram()
    calls = iter(varied_tokens(9 * MOST_CALLS))
    sizes = [1, 2, 3, 50, 333, MOST_CALLS, MOST_CALLS, 7, 900, 1, 800, MOST_CALLS, 600]
    for batch in (list(islice(calls, size)) for size in sizes):
        for tokens in batch:
            outputs.add("gpt-4o", tokens)
        reference = reference.with_calls(Counter(map(bucket_of, batch)))
        assert outputs.recent("gpt-4o") == reference
        assert outputs.flush()
        assert outputs.recent("gpt-4o") == reference
    assert make_outputs(redis_client).recent("gpt-4o") == reference


def test_halving_is_the_reference_to_the_last_unit(
    redis_client: redis.Redis, make_outputs: Make
) -> None:
    """Weights that are halved to zero are deleted on the server, and odd ones rounded down."""
    weights = {0: 1, 1: 2, 2: 3, 3: 17, 40: MOST_WEIGHT}
    redis_client.hset(KEY, mapping=weights)  # type: ignore[arg-type]
    outputs = make_outputs(redis_client)
    outputs.add("gpt-4o", 9)
    assert outputs.flush()
    assert outputs.recent("gpt-4o") == Histogram(weights).added(9)
    assert not redis_client.hexists(KEY, "0")
    assert make_outputs(redis_client).recent("gpt-4o") == Histogram(weights).added(9)


def test_threads_lose_no_call(outputs: Outputs) -> None:
    """Concurrent calls are all counted, here and on the server."""
    workers = [
        threading.Thread(target=lambda: [outputs.add("gpt-4o", 100) for _ in range(50)])
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outputs.add("gpt-4o", 100)
    if isinstance(outputs, RedisOutputs):
        assert outputs.flush()
    assert outputs.recent("gpt-4o").calls == 401


@pytest.mark.parametrize(("program", "calls"), [(ANOTHER_WORKER, 30), (FORKING_WORKER, 30 + 4)])
def test_processes_share_and_restarts_remember(
    redis_server: servers.Server,
    redis_client: redis.Redis,
    make_outputs: Make,
    program: str,
    calls: int,
) -> None:
    """A process sends its calls at its end, and others read them; a fork sends only its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, redis_server.uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    known = make_outputs(redis_client).recent("gpt-4o")
    assert known.calls == calls
    assert 300 <= known.quantile(95) < 360


def test_nothing_is_started_before_it_is_needed(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unused outputs have no thread: gunicorn may still fork."""
    started, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda t: started.append(t) or start(t))
    outputs = RedisOutputs(redis_client, ERRORS)
    assert started == []
    outputs.add("gpt-4o", 100)
    (thread,) = started
    assert thread.daemon
    outputs.close()
    assert not thread.is_alive()


def test_the_end_of_a_call_is_no_command(
    redis_client: redis.Redis, make_outputs: Make, commands: Callable[[], int]
) -> None:
    """All waiting calls of a model are one command (plus those of the script: one a bucket, and
    two), and admissions send none."""
    outputs = make_outputs(redis_client)
    outputs.add("gpt-4o", 100)
    assert outputs.flush()  # teaches the server the script
    commands()
    for tokens in [50, 100, 200] * 100:
        outputs.add("gpt-4o", tokens)
        outputs.recent("gpt-4o")
    assert commands() == 0
    assert outputs.flush()
    assert commands() == 1 + 3 + 2
    for _ in range(100):
        outputs.recent("gpt-4o")
    assert commands() == 0


def test_a_busy_worker_never_reads(
    redis_client: redis.Redis, make_outputs: Make, commands: Callable[[], int], clock: Clock
) -> None:
    """A worker with calls learns about all other calls from the server's replies."""
    outputs, other = make_outputs(redis_client, clock=clock), make_outputs(redis_client)
    for call in range(10):
        other.add("gpt-4o", 100)
        assert other.flush()
        outputs.add("gpt-4o", 100)
        assert outputs.flush()
        clock.now_s += FRESH_S - 1
        commands()
        assert outputs.recent("gpt-4o").calls == 2 * (call + 1)
        assert commands() == 0


def test_an_idle_worker_reads_seldom(
    redis_client: redis.Redis, make_outputs: Make, commands: Callable[[], int], clock: Clock
) -> None:
    """After FRESH_S without a reply, a worker reads once."""
    outputs, other = make_outputs(redis_client, clock=clock), make_outputs(redis_client)
    outputs.recent("gpt-4o")
    other.add("gpt-4o", 100)
    assert other.flush()
    assert outputs.recent("gpt-4o").calls == 0
    clock.now_s += FRESH_S
    commands()
    assert [outputs.recent("gpt-4o").calls for _ in range(10)] == [1] * 10
    assert commands() == 1


def test_what_was_not_sent_is_known_beside_what_was_read(
    redis_client: redis.Redis, make_outputs: Make
) -> None:
    """A worker's first call of a model adds to the calls of the others."""
    outputs, other = make_outputs(redis_client), make_outputs(redis_client)
    for _ in range(5):
        other.add("gpt-4o", 100)
    assert other.flush()
    outputs.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 6
    assert other.recent("gpt-4o").calls == 5


def test_threads_read_once_together(
    redis_client: redis.Redis, make_outputs: Make, commands: Callable[[], int], clock: Clock
) -> None:
    """Concurrent requests with a stale histogram cost one read."""
    outputs = make_outputs(redis_client, clock=clock)
    outputs.add("gpt-4o", 100)
    assert outputs.flush()
    threads = 16
    together = threading.Barrier(threads)

    def ask() -> None:
        for _ in range(20):
            if together.wait() == 0:
                clock.now_s += FRESH_S
            together.wait()
            outputs.recent("gpt-4o")

    commands()
    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert commands() == 20


def test_a_key_is_small_and_ends(redis_client: redis.Redis, make_outputs: Make) -> None:
    """A model has one key of at most 1.5 kB, which expires after a month without calls."""
    outputs = make_outputs(redis_client)
    for exponent in range(400):
        outputs.add("gpt-4o", int(2 ** (exponent / 20)))
    assert outputs.flush()
    assert redis_client.keys("*") == [KEY.encode()]
    assert redis_client.memory_usage(KEY) <= 1_500
    assert 29 * 86_400 < redis_client.ttl(KEY) <= 30 * 86_400


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client: client.set(KEY, "not a hash"),
        lambda client: client.hset(KEY, "bucket", "weight"),
        lambda client: client.hset(KEY, "3", "-5"),
        lambda client: client.hset(KEY, "1000", "5"),
    ],
    ids=["type", "words", "negative", "bucket"],
)
def test_a_spoilt_key_fails_no_call(
    redis_client: redis.Redis,
    make_outputs: Make,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[redis.Redis], object],
) -> None:
    """A key with foreign content counts as empty, for reads and for additions."""
    spoil(redis_client)
    assert make_outputs(redis_client).recent("gpt-4o") == Histogram()
    outputs = make_outputs(redis_client)
    caplog.clear()
    outputs.add("gpt-4o", 100)
    outputs.flush(0)
    servers.eventually(lambda: caplog.records)
    assert outputs.recent("gpt-4o").calls == 1


@pytest.fixture
def own_server() -> Iterator[servers.Server]:
    """A server that the test may kill."""
    with servers.standalone() as server:
        yield server


def test_a_storage_that_is_away_fails_no_call(
    own_server: servers.Server,
    make_outputs: Make,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """During an outage a worker uses what it knows and its own calls; afterwards it sends them, so
    that others know them too. The log has one warning."""
    outputs = make_outputs(own_server.client(), clock=clock)
    for _ in range(ENOUGH_CALLS):
        outputs.add("gpt-4o", 500)
    assert outputs.flush()
    own_server.kill()
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            outputs.add("gpt-4o", 2_000)
            outputs.flush(0)
            clock.now_s += PAUSE_S / 3
        servers.eventually(lambda: caplog.records)
        clock.now_s += FRESH_S
        assert outputs.recent("gpt-4o").calls == 50
        assert 2_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 2_400
        assert outputs.recent("never asked") == Histogram()
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    own_server.launch()
    servers.eventually(own_server.answers)
    clock.now_s += PAUSE_S
    assert outputs.flush()
    assert outputs.recent("gpt-4o").calls == 30  # it lost its memory, and is believed
    assert make_outputs(own_server.client()).recent("gpt-4o").calls == 30


def test_a_server_that_is_away_is_left_alone(
    own_server: servers.Server,
    make_outputs: Make,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a failure no command is sent until the pause has ended."""
    outputs = make_outputs(own_server.client(), clock=clock)
    own_server.kill()
    outputs.add("gpt-4o", 100)
    outputs.flush(0)
    servers.eventually(lambda: caplog.records)
    own_server.launch()
    servers.eventually(own_server.answers)
    outputs.add("gpt-4o", 100)
    assert not outputs.flush(0.1)
    with own_server.client() as client:
        assert client.keys("*") == []
        other = make_outputs(client)
        other.add("gpt-4.1", 100)
        assert other.flush()
        assert outputs.recent("gpt-4.1").calls == 0
        clock.now_s += PAUSE_S
        assert outputs.recent("gpt-4.1").calls == 1
        assert outputs.flush()
        assert client.exists(KEY)


def test_a_server_that_hangs_holds_no_call(own_server: servers.Server, make_outputs: Make) -> None:
    """The thread waits for it without a timeout, while calls end and count in this worker."""
    outputs = make_outputs(own_server.client(socket_timeout=None))
    outputs.add("gpt-4o", 100)
    assert outputs.flush()
    os.kill(own_server.pid, signal.SIGSTOP)
    for _ in range(500):
        outputs.add("gpt-4o", 100)
        outputs.flush(0)
    assert outputs.recent("gpt-4o").calls == 501
    os.kill(own_server.pid, signal.SIGCONT)
    assert outputs.flush()


def test_an_outage_is_bounded() -> None:
    """Of each model the last thousand calls wait; a rarely called model keeps all of its own."""
    sent: list[tuple[str, Counter[int]]] = []
    is_available = False

    def send(slug: str, buckets: tuple[int, ...]) -> bool:
        if is_available:
            sent.append((slug, Counter(buckets)))
        return is_available

    sender = new_sender(send, NEVER_S)
    for _ in range(MOST_CALLS):
        sender.put("gpt-4o", (1,))
    sender.put("gpt-4.1", (5,))
    sender.flush(0)
    for _ in range(MOST_CALLS - 1):
        sender.put("gpt-4o", (2,))
    assert Counter(sender.unsent("gpt-4o")) == {1: 1, 2: MOST_CALLS - 1}
    is_available = True
    assert sender.flush(10)
    assert dict(sent) == {"gpt-4.1": {5: 1}, "gpt-4o": {1: 1, 2: MOST_CALLS - 1}}
    sender.close()
