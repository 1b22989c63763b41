"""The fixtures of the extension's tests, and a storage for several processes."""

import pytest
import redis

from tests.servers import Server
from tests.web.conftest import clock, make, uri

__all__ = ["clock", "make", "redis_uri", "uri"]


@pytest.fixture
def redis_uri(redis_client: redis.Redis, redis_server: Server) -> str:
    """The storage that a command can see."""
    return redis_server.uri
