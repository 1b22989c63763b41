"""Lines in any history: starts never exceed the limit, order is kept within a flow and class, and
no request waits while there is room.

The long tier plays 10,000 on each engine; see the count with `-s`. LINE_FIRST=4000 begins with that
one.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.engine.lines import History, Turns, any_limit, counts
from tests.strategies.virtual_time import VirtualClient

FIRST = int(os.environ.get("LINE_FIRST", "0"))
STEPS = 40


@pytest.fixture(autouse=True)
def count() -> Iterator[None]:
    counts.clear()
    yield
    print(f"\n{dict(counts)}")  # noqa: T201


def play(
    engines: Sequence[Engine], chance: random.Random, turns: Turns, flush: Callable[[], object]
) -> None:
    limit, trouble = any_limit(chance), chance.random() < 0.5
    History(engines, limit, chance, turns, flush, trouble=trouble).play(STEPS)


def many(histories: int) -> Any:
    return pytest.param(10_000, marks=pytest.mark.slow), histories


@pytest.mark.parametrize("histories", many(200))
def test_lines_in_memory(histories: int) -> None:
    """The engine of a single process."""
    for seed in range(FIRST, FIRST + histories):
        chance, memory = random.Random(seed), MemoryEngine()
        try:
            play([memory], chance, Turns(), lambda: memory.reset(""))  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("histories", many(50))
def test_lines_on_a_server(redis_client: redis.Redis, histories: int) -> None:
    """Its scripts, which answer as the engine in memory, and wake those whose turn has come."""
    turns = Turns(redis_client)
    for seed in range(FIRST, FIRST + histories):
        chance, memory, client = random.Random(seed), MemoryEngine(), VirtualClient(redis_client)
        client.flush()

        def flush(memory: MemoryEngine = memory, client: VirtualClient = client) -> None:
            memory.reset("")
            client.flush()

        engines = [memory, RedisEngine(client, redis.RedisError)]
        try:
            play(engines, chance, turns, flush)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
