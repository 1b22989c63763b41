"""A cluster whose masters die or move under load: who notices, for how long, and what is lost.

``pytest -s tests/faults/test_cluster.py`` prints the figures of docs/benchmarks/failover.md;
``RATELIMIT_TEST_SERVER=/usr/bin/redis-server`` runs it on Redis.
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.key import slot_of
from ratelimit_ext.engine.cluster import ClusterEngine
from ratelimit_ext.engine.nodes import Nodes
from tests import servers
from tests.faults.callers import load, report, used
from tests.faults.traffic import IS_LONG

DEADLINE_S = 0.2
#: After this a node counts as dead for the others.
NODE_TIMEOUT_MS = 1000
#: From the promotion of a replica to the first request that it serves.
RECOVERY_S = 1.0
OPTIONS = (
    *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no"),
    *("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"),
)


def engine_of(uri: str, deadline_s: float = DEADLINE_S) -> ClusterEngine:
    storage: Any = storage_from_string(
        uri, socket_timeout=deadline_s, socket_connect_timeout=deadline_s
    )
    return ClusterEngine(Nodes(storage.get_connection(), storage.base_exceptions))


def keys_of_nodes() -> list[str]:
    """A bucket of each node."""
    bounds = [0, 5461, 10923, 16384]
    return [
        next(f"{{u{n}}}" for n in range(1000) if first <= slot_of(f"u{n}") < last)
        for first, last in itertools.pairwise(bounds)
    ]


@pytest.fixture
def cluster() -> Iterator[servers.Cluster]:
    with servers.cluster(*OPTIONS, replicas=True) as cluster:
        yield cluster


def promoted_at(replica: servers.Server) -> float:
    """When the replica calls itself a master."""
    with replica.client() as client:
        servers.eventually(lambda: client.execute_command("ROLE")[0] == b"master")
        return time.monotonic()


def kill(node: servers.Server) -> None:
    node.kill()


def hang(node: servers.Server) -> None:
    os.kill(node.pid, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("fail", "stall_s"),
    [(kill, 0.0), (hang, 0.2), *([(kill, 0.2), (hang, 0.0)] if IS_LONG else [])],
)
def test_a_master_is_lost(
    cluster: servers.Cluster, fail: Callable[[servers.Server], None], stall_s: float
) -> None:
    """Its slots are served as soon as another node has them; others notice nothing. What is lost is
    what the replica had not received."""
    engine, keys = engine_of(cluster.uri), keys_of_nodes()
    with load(engine, *[(key,) for key in keys]) as callers:
        lost = callers[1]
        if stall_s:
            hang(cluster.replicas[1])
            with cluster.nodes[1].client() as master:
                master.client_kill_filter(_type="replica")  # else its socket has what it missed
            stalled = time.monotonic()
            time.sleep(stall_s)
        failed = time.monotonic()
        fail(cluster.nodes[1])
        if stall_s:
            os.kill(cluster.replicas[1].pid, signal.SIGCONT)
        promoted = promoted_at(cluster.replicas[1])
        servers.eventually(lambda: lost.admissions and lost.admissions[-1] > promoted)
        served = lost.after(failed)
        time.sleep(0.3)
        # Only the one request in flight may have gone on after the failure.
        acknowledged = [each for each in lost.admissions if each <= promoted]
    assert served is not None
    survived = used(engine, keys[1]) - (lost.admitted - len(acknowledged))
    charges_lost = max(0, len(acknowledged) - survived)
    others = callers[0], callers[2]
    report(
        f"{fail.__name__}, replica {stall_s * 1000:.0f} ms behind: failover after "
        f"{promoted - failed:.2f} s, served {served - promoted:.2f} s later; "
        f"{len(lost.failures)} refused; {charges_lost} of {len(acknowledged)} acknowledged charges "
        f"lost; others: longest {max(other.longest_s for other in others) * 1000:.0f} ms"
    )
    assert served - promoted < RECOVERY_S
    for other in others:
        assert not other.errors
        assert used(engine, *other.keys) == other.admitted
    in_doubt = len([each for each in lost.admissions if stall_s and each > stalled])
    behind = in_doubt if stall_s else 5  # what was on its way to the replica
    assert charges_lost <= behind


def test_a_slot_moves(cluster: servers.Cluster) -> None:
    """Key by key and, where the server can, as a whole: each request counts once, none fails."""
    engine = engine_of(cluster.uri, 5 * DEADLINE_S)  # a slot's writes pause while it changes hands
    tag = keys_of_nodes()[0].strip("{}")
    both = (f"{{{tag}}}", f"{{{tag}}}b")
    with cluster.nodes[0].client() as source, cluster.nodes[1].client() as target:
        ids = [client.execute_command("CLUSTER MYID").decode() for client in (source, target)]
        with load(engine, both, both[:1], (both[0], keys_of_nodes()[2])) as callers:
            for one, other, owner, new in (
                (source, target, ids[0], ids[1]),
                (target, source, ids[1], ids[0]),
            ):
                _move_keys(one, other, slot_of(tag), owner, new)
                time.sleep(0.2)
            can_move_whole = _move_whole(source, slot_of(tag), ids[1])
            time.sleep(0.5)
    report(f"a slot moved by keys, and as a whole: {can_move_whole}")
    assert [caller.errors for caller in callers] == [set(), set(), set()]
    assert used(engine, both[0]) == sum(caller.admitted for caller in callers)
    assert used(engine, both[1]) == callers[0].admitted


def _move_keys(
    source: redis.Redis, target: redis.Redis, slot: int, owner: str, new_owner: str
) -> None:
    """As `redis-cli --cluster reshard` does."""
    target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", owner)
    source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", new_owner)
    port = target.connection_pool.connection_kwargs["port"]
    while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
        source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 1000, "KEYS", *keys)
    for client in (target, source):
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", new_owner)


def _move_whole(source: redis.Redis, slot: int, new_owner: str) -> bool:
    """Valkey 9's atomic migration; False if the server has none."""
    try:
        source.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", new_owner)
    except redis.ResponseError:
        return False
    servers.eventually(lambda: not source.execute_command("CLUSTER COUNTKEYSINSLOT", slot))
    return True
