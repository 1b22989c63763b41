"""Script calls on prepared connections."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string
from redis.backoff import NoBackoff
from redis.retry import Retry

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.connection import ScriptConnections
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.engine.relay import Relay
from tests.strategies.world import HOUR

SCRIPT = "return {1, 2}"
CHARGE = Charge(Limit(1000, HOUR), "bucket")


def client_at(uri: str, **options: Any) -> redis.Redis:
    """The client as an application gets it."""
    return storage_from_string(uri, **options).get_connection()


@pytest.fixture
def client(redis_server: servers.Server, redis_client: redis.Redis) -> Iterator[redis.Redis]:
    client = client_at(redis_server.uri)
    yield client
    client.close()


@pytest.fixture
def sha(redis_client: redis.Redis) -> str:
    return str(redis_client.script_load(SCRIPT))


def remaining(engine: RedisEngine) -> int:
    return engine.admit([CHARGE]).verdicts[0].remaining


def engine_of(client: redis.Redis) -> RedisEngine:
    return RedisEngine(client, redis.RedisError)


def test_a_call_is_one_command(client: redis.Redis, redis_client: redis.Redis, sha: str) -> None:
    """One EVALSHA on the same connection each time, without a PING or a SELECT."""
    connections = ScriptConnections(client)
    connections.run(sha, ["a"], [1])
    redis_client.config_resetstat()
    assert [connections.run(sha, ["a"], [1, "ü"]) for _ in range(10)] == [[1, 2]] * 10
    counted = {
        name: each["calls"]
        for name, each in redis_client.info("commandstats").items()
        if name != "cmdstat_config|resetstat"
    }
    assert counted == {"cmdstat_evalsha": 10}
    assert redis_client.info("stats")["total_connections_received"] == 0


def test_an_unknown_script_keeps_the_connection(
    client: redis.Redis, redis_client: redis.Redis
) -> None:
    """NOSCRIPT is raised as redis-py's error; the engine loads the script and counts once."""
    with pytest.raises(redis.exceptions.NoScriptError):
        ScriptConnections(client).run("0" * 40, [], [])
    engine = engine_of(client)
    assert remaining(engine) == 999
    redis_client.script_flush()
    redis_client.config_resetstat()
    assert remaining(engine) == 998
    assert redis_client.info("stats")["total_connections_received"] == 0


def test_a_reset_in_mid_reply_is_never_sent_again(redis_server: servers.Server, sha: str) -> None:
    """The call counted once and is an outage; the next one has a new connection."""
    with Relay(redis_server.port) as relay:
        engine = engine_of(client_at(f"redis://127.0.0.1:{relay.port}", socket_timeout=2.0))
        assert remaining(engine) == 999
        relay.drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.admit([CHARGE])
        relay.drops_replies.clear()
        assert remaining(engine) == 997


def test_a_restart_between_two_calls_is_no_outage() -> None:
    """What the server has closed is seen before anything is sent."""
    with servers.standalone() as server:
        engine = engine_of(client_at(server.uri))
        assert remaining(engine) == 999
        server.kill()
        server.launch()
        server.await_until(server.answers, "PONG")
        assert remaining(engine) == 999
        assert remaining(engine) == 998


def test_a_forked_child_has_connections_of_its_own(client: redis.Redis, sha: str) -> None:
    """A reply of the parent is never read by the child, nor the reverse."""
    connections = ScriptConnections(client)
    connections.run(sha, [], [])
    socket = connections._idle[0].socket
    child = os.fork()
    if child == 0:
        good = connections.run(sha, [], []) == [1, 2] and connections._idle[0].socket is not socket
        os._exit(0 if good else 1)
    assert all(connections.run(sha, [], []) == [1, 2] for _ in range(50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connections._idle[0].socket is socket


def test_threads_do_not_share_a_connection(client: redis.Redis) -> None:
    """Each call gets the reply to its own command, and the count is exact."""
    engine = engine_of(client)
    with ThreadPoolExecutor(8) as pool:
        left = list(pool.map(lambda _: remaining(engine), range(400)))
    assert sorted(left) == list(range(600, 1000))


@pytest.mark.parametrize("most", [1, 2, 8])
def test_a_small_pool_keeps_connections_for_others(
    redis_server: servers.Server, sha: str, most: int
) -> None:
    """At most half of a pool is kept, so that other commands find one."""
    client = client_at(redis_server.uri, max_connections=most)
    connections = ScriptConnections(client)
    at_once = threading.Barrier(most)

    def call(_: int) -> None:
        at_once.wait(10)
        assert connections.run(sha, [], []) == [1, 2]

    with ThreadPoolExecutor(most) as pool:
        list(pool.map(call, range(most)))
    assert len(connections._idle) <= most // 2
    assert client.ping()


class Subclass(redis.Redis):
    """A client that may do anything."""


@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(NoBackoff(), 3)},
        {"single_connection_client": True},
        {"encoding": "latin-1"},
        {"credential_provider": redis.UsernamePasswordCredentialProvider("", "")},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_takes_part_in_a_call_is_left_to_the_client(
    redis_server: servers.Server, options: dict[str, Any]
) -> None:
    """Retries, encodings, credentials and subclasses: nothing is sent, and the client is used."""
    client = redis.Redis(port=redis_server.port, **{"retry": Retry(NoBackoff(), 0), **options})
    assert ScriptConnections(client).run("0" * 40, [], []) is None
    client = Subclass(port=redis_server.port, retry=Retry(NoBackoff(), 0))
    assert ScriptConnections(client).run("0" * 40, [], []) is None


def test_instrumentation_sees_every_call(
    client: redis.Redis, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods may be replaced on the class or on the client, before or after the first call."""
    seen: list[str] = []

    def instrument(owner: Any) -> None:
        original = owner.execute_command

        @wraps(original)
        def traced(*arguments: Any, **options: Any) -> Any:
            seen.append(next(each for each in arguments if isinstance(each, str)))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, "execute_command", traced)

    engine = engine_of(client)
    engine.admit([CHARGE])
    for owner in (client, redis.Redis):
        instrument(owner)
        engine.admit([CHARGE])
        assert seen.pop() == "EVALSHA"
        engine_of(client).admit([CHARGE])
        assert seen.pop() == "EVALSHA"
        monkeypatch.undo()
        seen.clear()
