"""A master of a cluster, or of Sentinel, dies behind gunicorn. What an engine sees of it is in
test_cluster.py and test_sentinel.py."""

from __future__ import annotations

import pytest

from tests import servers
from tests.faults import traffic
from tests.faults.conftest import Record, Start
from tests.servers import eventually

CLUSTER = (
    *("--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0"),
    *("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"),
)


@pytest.mark.fault(
    breaks="A master of a cluster is killed",
    to_do="Start it again as a replica; the cluster promotes another by itself.",
)
def test_a_cluster_master_is_killed(start: Start, record: Record) -> None:
    """Callers of its slots are decided in the workers' memory until a replica is promoted; others
    see nothing."""
    with (
        servers.cluster(*CLUSTER, replicas=True) as cluster,
        start(cluster.uri) as master,
        traffic.around(master) as load,
    ):
        cluster.nodes[0].kill()
        with cluster.replicas[0].client() as replica:
            eventually(lambda: replica.execute_command("ROLE")[0] == b"master")
    traffic.assert_bridged(load, most=2 * traffic.AMOUNT)
    record(load)


@pytest.mark.fault(
    breaks="The master of Sentinel is killed",
    to_do="Start it again; Sentinel makes it a replica.",
)
def test_sentinel_fails_over(
    sentinel_server: servers.SentinelTrio, start: Start, record: Record
) -> None:
    """The workers bridge the failover, and go on with the new master."""
    trio = sentinel_server
    with start(trio.uri) as master, traffic.around(master) as load:
        trio.master.kill()
        eventually(lambda: trio.master_port() == trio.replica.port)
    traffic.assert_bridged(load)
    record(load)
