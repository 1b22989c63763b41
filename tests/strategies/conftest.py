"""Every promise is shown on every engine: in memory, and by Lua on a real server."""

import pytest
import redis

from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import World
from tests.web.conftest import uri

__all__ = ["uri"]


@pytest.fixture(params=["memory", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return World(MemoryEngine())
    client: redis.Redis = request.getfixturevalue("redis_client")
    return World(RedisEngine(VirtualClient(client), redis.RedisError))
