"""Every engine keeps the contract in any history: what is admitted, denied, settled, renewed,
refunded, blocked, changed or flushed, through outages and lost scripts, with expiry.

MODEL_HISTORIES=14000 plays as many, a million operations, with fresh randomness; see the count
with `-s`. MODEL_SEEDS=14 MODEL_HISTORIES=1000 plays them in parts, one for each seed, which can be
chosen with `-k` and played again.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.engine.histories import History, Storage, brief_limits, counts
from tests.strategies.virtual_time import VirtualClient

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "100"))
SEEDS = range(int(os.environ.get("MODEL_SEEDS", "0"))) or (None,)
STEPS = 50
SETTINGS = settings(
    max_examples=HISTORIES,
    stateful_step_count=STEPS,
    derandomize="MODEL_HISTORIES" not in os.environ,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


every_seed = pytest.mark.parametrize("seed", SEEDS)


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    with servers.standalone("--enable-debug-command", "yes") as server:
        yield server


@pytest.fixture(autouse=True)
def count() -> Iterator[None]:
    counts.clear()
    yield
    print(f"\n{dict(counts)}")  # noqa: T201


def in_virtual_time(client: redis.Redis, *, functions: bool) -> Storage:
    virtual = VirtualClient(client)
    engine = RedisEngine(virtual, redis.RedisError)
    if functions:  # they keep their locals between calls, which EVALSHA does not
        engine._connections = virtual  # type: ignore[assignment]
    return Storage(engine, client, virtual)


def play(make: Callable[[], History], seed: int | None, *, parts: int = 1, **more: Any) -> None:
    """Play one of so many parts of the histories."""
    examples = max(1, HISTORIES // parts)
    run_state_machine_as_test(
        make if seed is None else hypothesis.seed(seed)(make),
        settings=settings(SETTINGS, max_examples=examples, **more),
    )


@every_seed
def test_any_history_has_one_outcome(server: servers.Server, seed: int | None) -> None:
    """Memory, functions, scripts and the models answer the same, to the digit."""
    with server.client(db=0) as one, server.client(db=1) as other:
        play(
            lambda: History(
                {
                    "functions": in_virtual_time(one, functions=True),
                    "scripts": in_virtual_time(other, functions=False),
                }
            ),
            seed,
        )


def by_functions(client: redis.Redis) -> Engine:
    return RedisEngine(client, redis.RedisError)


def by_scripts(client: redis.Redis) -> Engine:
    engine = RedisEngine(client, redis.RedisError)
    engine._connections._has_functions = False
    return engine


def behind_a_breaker(client: redis.Redis) -> Engine:
    return Breaker(RedisEngine(client, redis.RedisError))


@every_seed
@pytest.mark.parametrize("make", [by_functions, by_scripts, behind_a_breaker])
def test_a_server_that_lets_buckets_expire_answers_the_same(
    server: servers.Server, make: Callable[[redis.Redis], Engine], seed: int | None
) -> None:
    """By the server's own clock, within milliseconds of which every bucket expires."""
    with server.client() as client:
        engine = make(client)
        play(
            lambda: History({"server": Storage(engine, client)}, brief_limits()),
            seed,
            parts=10,
            phases=(Phase.generate,),  # not shrunk: the clock does not repeat itself
        )
