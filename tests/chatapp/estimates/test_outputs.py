"""Recent outputs in memory and in a real server; time is virtual."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from chatapp.estimates.histogram import MOST_CALLS, MOST_WEIGHT, Histogram
from chatapp.estimates.output import (
    ENOUGH_CALLS,
    UNKNOWN_OUTPUT_TOKENS,
    MemoryOutputs,
    Outputs,
    expected_output_tokens,
)
from chatapp.estimates.redis_outputs import FRESH_S, KEY_PREFIX, PAUSE_S, RedisOutputs
from tests import servers

ERRORS = redis.RedisError
KEY = f"{KEY_PREFIX}gpt-4o"
ANOTHER_WORKER = """
import sys
import redis
from chatapp.estimates.redis_outputs import RedisOutputs
outputs = RedisOutputs(redis.Redis.from_url(sys.argv[1]), redis.RedisError)
for _ in range(30):
    outputs.add("gpt-4o", 300)
"""


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
def outputs(request: pytest.FixtureRequest) -> Outputs:
    """Each implementation in turn."""
    if request.param == "memory":
        return MemoryOutputs()
    return RedisOutputs(request.getfixturevalue("redis_client"), ERRORS)


@pytest.fixture
def commands(redis_client: redis.Redis) -> Callable[[], int]:
    """How many commands the server has executed since it was last asked, that question aside."""
    seen = 0

    def count() -> int:
        nonlocal seen
        before, seen = seen, int(redis_client.info("stats")["total_commands_processed"])
        return seen - before - 1

    count()
    return count


def test_nothing_is_known_of_a_new_model(outputs: Outputs) -> None:
    """A model that was never asked is expected to use the documented default."""
    assert outputs.recent("gpt-4o") == Histogram()
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS


def test_enough_calls_make_an_expectation(outputs: Outputs) -> None:
    """One call short of enough the default stands; with enough it is what 95 of 100 did not
    exceed."""
    for _ in range(ENOUGH_CALLS - 1):
        outputs.add("gpt-4o", 200)
    assert expected_output_tokens(outputs.recent("gpt-4o")) == UNKNOWN_OUTPUT_TOKENS
    outputs.add("gpt-4o", 3_000)
    assert 200 <= expected_output_tokens(outputs.recent("gpt-4o")) < 240
    outputs.add("gpt-4o", 3_000)
    assert 3_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 3_600


def test_models_are_apart(outputs: Outputs) -> None:
    """What one model generates says nothing about another."""
    outputs.add("gpt-4o", 200)
    assert outputs.recent("gpt-4.1") == Histogram()


def test_both_are_the_reference(outputs: Outputs) -> None:
    """After thousands of calls and several halvings, the server's arithmetic is Python's to the
    digit."""
    reference = Histogram()
    for call in range(3 * MOST_CALLS):
        tokens = call * call % 5_003 if call % 7 else call // 20
        reference = reference.added(tokens)
        outputs.add("gpt-4o", tokens)
    assert outputs.recent("gpt-4o") == reference


def test_halving_is_the_reference_to_the_last_unit(redis_client: redis.Redis) -> None:
    """What is halved to nothing is gone on the server, too, and what is odd is rounded down."""
    weights = {0: 1, 1: 2, 2: 3, 3: 17, 40: MOST_WEIGHT}
    redis_client.hset(KEY, mapping=weights)  # type: ignore[arg-type]
    outputs = RedisOutputs(redis_client, ERRORS)
    outputs.add("gpt-4o", 9)
    assert outputs.recent("gpt-4o") == Histogram(weights).added(9)
    assert not redis_client.hexists(KEY, "0")
    assert RedisOutputs(redis_client, ERRORS).recent("gpt-4o") == Histogram(weights).added(9)


def test_threads_lose_no_call(outputs: Outputs) -> None:
    """Calls that end together are all counted."""
    workers = [
        threading.Thread(target=lambda: [outputs.add("gpt-4o", 100) for _ in range(50)])
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outputs.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 401


def test_processes_share_and_restarts_remember(
    redis_server: servers.Server, redis_client: redis.Redis
) -> None:
    """What another process saw, and ended, is what this one expects."""
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_WORKER, redis_server.uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    known = RedisOutputs(redis_client, ERRORS).recent("gpt-4o")
    assert known.calls == 30
    assert 300 <= expected_output_tokens(known) < 360


def test_a_call_is_one_command(redis_client: redis.Redis, commands: Callable[[], int]) -> None:
    """The end of a call costs one command (with the script's own three), and admissions after it
    none."""
    outputs = RedisOutputs(redis_client, ERRORS)
    outputs.add("gpt-4o", 100)  # teaches the server the script
    outputs.add("gpt-4o", 100)
    commands()
    outputs.add("gpt-4o", 100)
    assert commands() == 1 + 3
    for _ in range(100):
        outputs.recent("gpt-4o")
    assert commands() == 0


def test_a_busy_worker_never_reads(
    redis_client: redis.Redis, commands: Callable[[], int], clock: Clock
) -> None:
    """Whose calls end now and then knows of all others' calls by the answers of the server."""
    outputs = RedisOutputs(redis_client, ERRORS, clock=clock)
    other = RedisOutputs(redis_client, ERRORS)
    for call in range(10):
        other.add("gpt-4o", 100)
        outputs.add("gpt-4o", 100)
        clock.now_s += FRESH_S - 1
        commands()
        assert outputs.recent("gpt-4o").calls == 2 * (call + 1)
        assert commands() == 0


def test_an_idle_worker_reads_seldom(
    redis_client: redis.Redis, commands: Callable[[], int], clock: Clock
) -> None:
    """Who has not heard of a model for a while asks once, and not again for as long."""
    outputs = RedisOutputs(redis_client, ERRORS, clock=clock)
    other = RedisOutputs(redis_client, ERRORS)
    outputs.recent("gpt-4o")
    other.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 0
    clock.now_s += FRESH_S
    commands()
    assert [outputs.recent("gpt-4o").calls for _ in range(10)] == [1] * 10
    assert commands() == 1


def test_threads_read_once_together(
    redis_client: redis.Redis, commands: Callable[[], int], clock: Clock
) -> None:
    """Requests that find a stale expectation in the same moment cost one read, not one each."""
    outputs = RedisOutputs(redis_client, ERRORS, clock=clock)
    outputs.add("gpt-4o", 100)
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


def test_a_key_is_small_and_ends(redis_client: redis.Redis) -> None:
    """A model has one key of at most 1.5 kB, which goes when nobody asks the model for a month."""
    outputs = RedisOutputs(redis_client, ERRORS)
    for exponent in range(400):
        outputs.add("gpt-4o", int(2 ** (exponent / 20)))
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
    redis_client: redis.Redis, spoil: Callable[[redis.Redis], object]
) -> None:
    """What somebody else wrote under our name is as good as nothing."""
    spoil(redis_client)
    outputs = RedisOutputs(redis_client, ERRORS)
    assert outputs.recent("gpt-4o") == Histogram()
    outputs.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 1


@pytest.fixture
def own_server() -> Iterator[servers.Server]:
    """A server that the test may kill."""
    with servers.standalone() as server:
        yield server


def test_a_storage_that_is_away_fails_no_call(
    own_server: servers.Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is away a worker goes on with what it knew and sees; when it is back, the
    worker joins the others again. The log says so once."""
    outputs = RedisOutputs(own_server.client(), ERRORS, clock=clock)
    for _ in range(ENOUGH_CALLS):
        outputs.add("gpt-4o", 500)
    own_server.kill()
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            outputs.add("gpt-4o", 2_000)
            clock.now_s += PAUSE_S / 3
        clock.now_s += FRESH_S
        assert outputs.recent("gpt-4o").calls == 50
        assert 2_000 <= expected_output_tokens(outputs.recent("gpt-4o")) < 2_400
        assert outputs.recent("never asked") == Histogram()
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    own_server.launch()
    servers.eventually(own_server.answers)
    clock.now_s += PAUSE_S
    outputs.add("gpt-4o", 100)
    assert outputs.recent("gpt-4o").calls == 1  # it lost its memory, and is believed


def test_a_server_that_is_away_is_left_alone(own_server: servers.Server, clock: Clock) -> None:
    """After a failure nobody waits for the server again before the pause is over."""
    outputs = RedisOutputs(own_server.client(), ERRORS, clock=clock)
    own_server.kill()
    outputs.add("gpt-4o", 100)
    own_server.launch()
    servers.eventually(own_server.answers)
    outputs.add("gpt-4o", 100)
    with own_server.client() as client:
        assert client.keys("*") == []
        RedisOutputs(client, ERRORS).add("gpt-4.1", 100)
        assert outputs.recent("gpt-4.1").calls == 0
        clock.now_s += PAUSE_S
        assert outputs.recent("gpt-4.1").calls == 1
        outputs.add("gpt-4o", 100)
        assert client.exists(KEY)
