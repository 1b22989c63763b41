"""Lines in any history: starts never exceed the limit, order is kept within a flow and class, and
no request waits while there is room.

See the count of what happened with `-s`.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import pytest
import redis

from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.engine.lines import History, Turns, any_limit, counts
from tests.seeds import seeds
from tests.strategies.virtual_time import VirtualClient

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


@seeds(100)
def test_lines_in_memory(seeds: range) -> None:
    """The engine of a single process."""
    for seed in seeds:
        chance, memory = random.Random(seed), MemoryEngine()
        try:
            play([memory], chance, Turns(), lambda: memory.reset(""))  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@seeds(25)
def test_lines_on_a_server(redis_client: redis.Redis, seeds: range) -> None:
    """Its scripts, which answer as the engine in memory, and wake those whose turn has come."""
    turns = Turns(redis_client)
    for seed in seeds:
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
