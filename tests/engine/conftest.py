"""The engines under test: in memory, and on the session's real server."""

from __future__ import annotations

import pytest
import redis

from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.redis import RedisEngine
from tests.strategies.virtual_time import VirtualClient
from tests.strategies.world import World
from tests.web.conftest import clock

__all__ = ["clock"]


@pytest.fixture(params=["memory", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    """Both engines in virtual time."""
    if request.param == "memory":
        return World(MemoryEngine())
    client: redis.Redis = request.getfixturevalue("redis_client")
    return World(RedisEngine(VirtualClient(client), redis.RedisError))
