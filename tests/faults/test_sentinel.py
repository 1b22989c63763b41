"""A master under Sentinel that dies or is replaced under load, with our own scripts.

``pytest -s tests/faults/test_sentinel.py`` prints the figures of docs/topology.md.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from limits.storage import storage_from_string

from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.engine.relay import Relay
from tests.faults.callers import ROOMY, load, report, used

DEADLINE_S = 0.2
#: From the moment at which Sentinel names the new master to the first request that it serves.
RECOVERY_S = 1.0
KEY = "{user}"


def engine_of(uri: str) -> RedisEngine:
    """Over the master that Sentinel names."""
    bounds = {"socket_timeout": DEADLINE_S, "socket_connect_timeout": DEADLINE_S}
    storage: Any = storage_from_string(uri, **bounds)
    return RedisEngine(storage.get_connection(), storage.base_exceptions)


@pytest.mark.parametrize("client", ["redis", "valkey"])
@pytest.mark.parametrize("dies", [True, False], ids=["killed", "demoted"])
def test_a_master_is_replaced(
    sentinel_server: servers.SentinelTrio, client: str, *, dies: bool
) -> None:
    """Requests are served within a second of Sentinel's decision. No charge is lost if the master
    is demoted while it lives."""
    trio = sentinel_server
    engine = engine_of(trio.uri.replace("redis", client, 1))
    with load(engine, (KEY,), (KEY,)) as callers:
        began = time.monotonic()
        if dies:
            trio.master.kill()
        else:
            with trio.sentinels[0].client() as sentinel:
                sentinel.execute_command("SENTINEL FAILOVER", trio.service)
        servers.eventually(lambda: trio.master_port() == trio.replica.port)
        named = time.monotonic()
        servers.eventually(lambda: all(each.admissions[-1] > named for each in callers))
        served = max(each.admissions[-1] for each in callers)
    admitted = sum(each.admitted for each in callers)
    lost = max(0, admitted - used(engine, KEY))
    report(
        f"{client}, {'killed' if dies else 'demoted'}: failover after {named - began:.2f} s, "
        f"served {served - named:.2f} s later; {sum(len(c.failures) for c in callers)} refused; "
        f"{lost} of {admitted} acknowledged charges lost"
    )
    assert served - named < RECOVERY_S
    assert lost <= (5 if dies else 0), "more than was on its way to the replica"


def test_a_lost_reply_charges_once(redis_server: servers.Server) -> None:
    """Sentinel's client retries nothing."""
    with Relay(redis_server.port) as relay, servers.watching(relay.port) as uri:
        engine = engine_of(uri)
        engine.clear([KEY])
        assert engine.admit([Charge(ROOMY, KEY)]).admitted
        relay.drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.admit([Charge(ROOMY, KEY)])
        relay.drops_replies.clear()
        assert used(engine, KEY) == 2
