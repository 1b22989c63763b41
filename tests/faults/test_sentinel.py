"""A master under Sentinel that dies or is replaced under load, with our own scripts.

``pytest -s tests/faults/test_sentinel.py`` prints the figures of docs/benchmarks/failover.md.
"""

import contextlib
import os
import threading
import time
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.engine.relay import Relay
from tests.faults.callers import ROOMY, load, report, used

DEADLINE_S = 0.2
KEY = "{user}"
#: Of a caller that asks without a pause, after Sentinel has named the new master.
MOST_REFUSED = 100
#: How many requests of each caller are admitted before.
BEFORE = 1000
#: A busy machine may let the announcement of a failover wait for longer than Sentinel does. Without
#: it, ten seconds of charges are lost: about 100,000.
MOST_LOST = 200
CALLS_OF_A_PROCESS = 5


def engine_of(uri: str, deadline_s: float = DEADLINE_S) -> RedisEngine:
    """Over the master that Sentinel names."""
    bounds = {"socket_timeout": deadline_s, "socket_connect_timeout": deadline_s}
    storage: Any = storage_from_string(uri, **bounds)
    return RedisEngine(storage.get_connection(), storage.base_exceptions)


def used_of(master: servers.Server) -> int:
    """What a new master has counted: it has closed the connections that it had as a replica."""
    with master.client() as client:
        return used(RedisEngine(client, redis.RedisError), KEY)


@pytest.mark.parametrize("client", ["redis", "valkey"])
@pytest.mark.parametrize("dies", [True, False], ids=["killed", "demoted"])
def test_a_master_is_replaced(client: str, *, dies: bool) -> None:
    """Requests are served after Sentinel's decision. The new master has the charges after the old
    one has become its replica, too."""
    with servers.sentinel(3) as trio:
        engine = engine_of(trio.uri.replace("redis", client, 1))
        with load(engine, (KEY,), (KEY,)) as callers:
            servers.eventually(lambda: all(each.admitted > BEFORE for each in callers))
            began = time.monotonic()
            if dies:
                trio.master.kill()
            else:
                trio.replace_master()
            servers.eventually(lambda: trio.master_port() == trio.replica.port)
            named = time.monotonic()
            servers.eventually(lambda: all(each.admissions[-1] > named for each in callers))
            served = max(each.admissions[-1] for each in callers)
            if not dies:
                servers.eventually(trio.replica_is_in_step)
        admitted = sum(each.admitted for each in callers)
        lost = max(0, admitted - used_of(trio.replica))
    refused = max(sum(at > named for at in each.failures) for each in callers)
    report(
        f"{client}, {'killed' if dies else 'demoted'}: failover after {named - began:.2f} s, "
        f"served {served - named:.2f} s later; {sum(len(c.failures) for c in callers)} refused, "
        f"{refused} of one caller after it; {lost} of {admitted} acknowledged charges lost"
    )
    assert refused <= MOST_REFUSED
    assert lost <= MOST_LOST


@pytest.mark.parametrize("client", ["redis", "valkey"])
def test_a_sentinel_is_down(client: str, caplog: pytest.LogCaptureFixture) -> None:
    """The others are followed."""
    with servers.sentinel(3) as trio:
        trio.sentinels[1].kill()
        with load(engine_of(trio.uri.replace("redis", client, 1)), (KEY,)) as callers:
            trio.replace_master()
            servers.eventually(lambda: trio.master_port() == trio.replica.port)
            servers.eventually(trio.replica_is_in_step)
        assert not [each for each in caplog.records if each.levelname == "ERROR"]
        lost = callers[0].admitted - used_of(trio.replica)
    assert lost <= MOST_LOST


def test_processes_begin_in_a_failover() -> None:
    """Most sentinels name the old master then. A process loses nothing by its first calls, as it
    waits for the answer of all sentinels."""
    admitted, ends = list[float](), threading.Event()

    def begin_again_and_again(uri: str) -> None:
        while not ends.is_set():
            engine = engine_of(uri)
            for _ in range(CALLS_OF_A_PROCESS):
                with contextlib.suppress(StorageUnavailable):
                    engine.admit([Charge(ROOMY, KEY)])
                    admitted.append(time.monotonic())

    with servers.sentinel(3) as trio:
        threads = [
            threading.Thread(target=begin_again_and_again, args=[trio.uri]) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        try:
            servers.eventually(lambda: len(admitted) > 50)
            trio.replace_master()
            servers.eventually(lambda: trio.master_port() == trio.replica.port)
            servers.eventually(trio.replica_is_in_step)
        finally:
            ends.set()
            for thread in threads:
                thread.join()
        lost = len(admitted) - used_of(trio.replica)
    report(f"processes that begin: {lost} of {len(admitted)} acknowledged charges lost")
    assert lost <= CALLS_OF_A_PROCESS


def test_a_forked_child_follows_the_master_itself(sentinel_server: servers.SentinelTrio) -> None:
    """The thread that does has stayed in the parent, and a lock that it held would stay closed."""
    engine = engine_of(sentinel_server.uri)
    engine.admit([Charge(ROOMY, KEY)])
    watch = engine._client.connection_pool.get_connection.__self__
    assert watch._thread is not None
    with watch._lock:
        child = os.fork()
        if child == 0:
            os._exit((watch._thread is not None) + watch._lock.locked())
    assert os.waitpid(child, 0)[1] == 0


def test_a_failover_that_is_given_up(sentinel_server: servers.SentinelTrio) -> None:
    """The master is used again as soon as its sentinel has given up, and the old connections
    too: nothing is charged twice or lost."""
    trio = sentinel_server
    engine = engine_of(trio.uri)
    with load(engine, (KEY,)) as callers, trio.replica.client() as replica:
        # It refuses to be promoted, which Sentinel waits for until the timeout.
        replica.execute_command("ACL SETUSER default -replicaof -slaveof")
        trio.fail_over()
        servers.eventually(lambda: callers[0].failures)
        failed = callers[0].failures[-1]
        servers.eventually(lambda: callers[0].admissions[-1] > failed + 1)
    assert trio.master_port() == trio.master.port
    with trio.master.client() as master:
        assert used(RedisEngine(master, redis.RedisError), KEY) == callers[0].admitted


def test_a_sentinel_that_refuses_to_announce(
    sentinel_server: servers.SentinelTrio, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning says what is missing; the sentinels are asked, and the new master is found."""
    trio = sentinel_server
    with trio.sentinels[0].client() as sentinel:
        sentinel.execute_command("ACL SETUSER default -subscribe")
    engine = engine_of(trio.uri)
    with load(engine, (KEY,)), trio.replica.client() as new_master:
        servers.eventually(lambda: "+subscribe" in caplog.text)
        trio.fail_over()
        servers.eventually(lambda: trio.master_port() == trio.replica.port)
        own = RedisEngine(new_master, redis.RedisError)
        before = used(own, KEY)
        servers.eventually(lambda: used(own, KEY) > before)
    assert caplog.text.count("+subscribe") == 1


def test_a_lost_reply_charges_once(redis_server: servers.Server) -> None:
    """Sentinel's client retries nothing."""
    with Relay(redis_server.port) as relay, servers.watching(relay.port) as uri:
        engine = engine_of(uri, deadline_s=2.0)  # a pause of a busy machine loses no reply
        engine.clear([KEY])
        assert engine.admit([Charge(ROOMY, KEY)]).admitted
        relay.drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.admit([Charge(ROOMY, KEY)])
        relay.drops_replies.clear()
        assert used(engine, KEY) == 2
