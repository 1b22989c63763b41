"""The engines under test: in memory, and on the session's real server."""

from typing import Any

import pytest
import redis

from ratelimit_ext.engine.cluster import ClusterEngine
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.virtual_time import VirtualClient, VirtualNodes
from tests.strategies.world import World
from tests.web.conftest import clock

__all__ = ["clock"]


@pytest.fixture(params=["memory", "redis"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine, in virtual time."""
    if request.param == "memory":
        return MemoryEngine()
    client: Any = request.getfixturevalue("redis_client")
    return RedisEngine(VirtualClient(client), redis.RedisError)


@pytest.fixture(params=["memory", "redis", "cluster"])
def world(request: pytest.FixtureRequest) -> World:
    """All engines in virtual time."""
    if request.param == "memory":
        return World(MemoryEngine())
    client: redis.Redis = request.getfixturevalue("redis_client")
    if request.param == "cluster":
        nodes: Any = VirtualNodes(VirtualClient(client))
        return World(ClusterEngine(nodes))
    return World(RedisEngine(VirtualClient(client), redis.RedisError))
