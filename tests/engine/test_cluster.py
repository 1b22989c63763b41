"""The engine over a Redis Cluster: as one server, as far as slots allow, and never twice."""

import gc
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from limits.storage import storage_from_string
from redis.cluster import ClusterNode

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.errors import ShardUnavailable, StorageUnavailable
from ratelimit_ext.core.key import slot_of
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.arguments import composed
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.cluster import ClusterEngine
from ratelimit_ext.engine.engine import Marker, Workers
from ratelimit_ext.engine.memory import MemoryEngine
from ratelimit_ext.engine.nodes import Nodes
from ratelimit_ext.engine.outage import OutageEngine
from ratelimit_ext.strategies import strategy_of
from tests import servers
from tests.engine import lines
from tests.engine.histories import Bucket, History, Storage, any_limits
from tests.engine.relay import Relay, whole
from tests.engine.replies import dripping
from tests.engine.test_histories import every_seed, play
from tests.strategies.virtual_time import VirtualClient, VirtualNodes
from tests.strategies.world import DAY, HOUR, MINUTE, SECOND, START, World

#: Those whose windows do not begin with their first charge.
EXACT = ("token-bucket", "sliding-window", "concurrency", "reported", "fixed-window")
BUCKET = Limit(100, HOUR, "token-bucket", name="calls")
TOKENS = Limit(1000, HOUR, "token-bucket", unit="tokens", name="tokens")
SLOTS = Limit(3, MINUTE, "concurrency", unit="calls", name="slots")
TIGHT = Limit(1, HOUR, "token-bucket", name="tight")
COMMON = replace(Limit(100, HOUR, "token-bucket", name="model"), common=True)
LEASE = Hold(7, MINUTE)
TIMEOUT_S = 2.0


class ClusterHistory(History):
    """The memory engine beside the cluster's, without outages, which a cluster has by node. A
    charge that was given back has brought its bucket to the present: it may expire later than one
    without charges, and differs from it once the clock is set back."""

    leaves_no_trace = False

    @initialize(data=st.data())
    def define_limits(self, data: st.DataObject) -> None:
        exact = any_limits().filter(lambda limit: limit.strategy in EXACT)
        exact = exact.filter(lambda limit: limit.strategy != "fixed-window" or limit.anchor)
        drawn = st.lists(st.tuples(exact, st.booleans()), min_size=2, max_size=4)
        for place, (limit, common) in enumerate(data.draw(drawn, label="limits")):
            self.buckets[f"b{place}"] = Bucket(replace(limit, common=common))
            self.buckets[f"b{place}"].renew()

    def set_back(self, *_: object) -> None:
        pass

    def outage_of_a_request(self, *_: object) -> None:
        pass

    def outage_of_a_settlement(self, *_: object) -> None:
        pass


@every_seed
def test_any_history_has_one_outcome(redis_client: redis.Redis, seed: int | None) -> None:
    """With a subject for each bucket, some of them common: a cluster answers as memory and the
    models do, also for shadows, limits on denials, holds and looks."""
    virtual = VirtualClient(redis_client)
    nodes: Any = VirtualNodes(virtual)
    storage = Storage(ClusterEngine(nodes), redis_client, virtual)
    play(lambda: ClusterHistory({"cluster": storage}), seed, parts=4)


@pytest.fixture
def virtual(redis_client: redis.Redis) -> VirtualNodes:
    return VirtualNodes(VirtualClient(redis_client))


@pytest.fixture
def virtual_world(virtual: VirtualNodes) -> World:
    nodes: Any = virtual
    return World(ClusterEngine(nodes))


def test_a_denied_caller_takes_nothing_of_what_others_share(
    virtual: VirtualNodes, virtual_world: World
) -> None:
    """The common limit is only looked at, in the round that refunds the caller's own."""
    charges = [Charge(BUCKET, "{ip}"), Charge(TIGHT, "{user}"), Charge(COMMON, "{model}")]
    assert virtual_world.request(*charges).admitted
    assert virtual.rounds == [2, 1]
    virtual.rounds.clear()
    decision = virtual_world.request(*charges)
    assert [verdict.remaining for verdict in decision.verdicts] == [99, 0, 99]
    assert virtual.rounds == [2, 2]
    assert [v.remaining for v in virtual_world.request(*charges, take=False).verdicts] == [
        99,
        0,
        99,
    ]


@pytest.mark.parametrize("groups", [1, 3])
def test_an_admission_is_one_round_for_the_callers_own_limits(
    virtual: VirtualNodes, virtual_world: World, groups: int
) -> None:
    """However many subjects there are; common ones are one round more."""
    charges = [Charge(BUCKET, f"{{{number}}}") for number in range(groups)]
    assert virtual_world.request(*charges).admitted
    assert virtual.rounds == [groups]
    assert virtual_world.request(*charges, Charge(COMMON, "{m}"), Charge(COMMON, "{*}")).admitted
    assert virtual.rounds == [groups, groups, 2]


def test_a_common_limit_that_denies_costs_the_caller_nothing(virtual_world: World) -> None:
    """Estimates under a hold and plain charges come back, and so does the slot."""
    full = replace(TIGHT, common=True)
    charges = [
        *(Charge(BUCKET, "{user}b"), Charge(TOKENS, "{user}t", 400), Charge(SLOTS, "{ip}s")),
        *(Charge(TOKENS, "{ip}t", 0), Charge(COMMON, "{*}"), Charge(full, "{model}")),
    ]
    engine, now = virtual_world.engine, virtual_world.now_us
    assert engine.admit(charges, hold=LEASE, now_us=now).admitted
    for number in range(5):
        hold = Hold(number + 10, MINUTE)
        assert not engine.admit(charges, hold=hold, now_us=now).admitted
    looked = engine.admit(charges, take=False, now_us=now).verdicts
    assert [verdict.remaining for verdict in looked] == [99, 600, 2, 1000, 99, 0]


def test_windows_never_hold_more_than_their_amount(virtual_world: World) -> None:
    """A window may begin with a request that another subject denies, and counts nothing of it."""
    window = Limit(3, MINUTE, "fixed-window", name="window")
    assert virtual_world.request(Charge(TIGHT, "{user}")).admitted
    both = Charge(window, "{ip}"), Charge(TIGHT, "{user}")
    assert not any(virtual_world.request(*both).admitted for _ in range(9))
    virtual_world.wait(30)
    assert virtual_world.passed(window, 5, key="{ip}") == 3


# -- a real cluster ----------------------------------------------------------------------------


def engine_of(uri: str, **options: Any) -> ClusterEngine:
    bounds = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    storage: Any = storage_from_string(uri, **bounds, **options)
    return ClusterEngine(Nodes(storage.get_connection(), storage.base_exceptions))


def flush(cluster: servers.Cluster) -> None:
    for node in cluster.nodes:
        with node.client() as client:
            client.flushall()


@pytest.fixture
def cluster(cluster_server: servers.Cluster) -> servers.Cluster:
    """The session's, empty."""
    flush(cluster_server)
    return cluster_server


@pytest.fixture(params=["redis", "valkey"])
def engine(request: pytest.FixtureRequest, cluster: servers.Cluster) -> ClusterEngine:
    """Over both clients."""
    return engine_of(cluster.uri.replace("redis", request.param, 1))


def tag_on(cluster: servers.Cluster, node: int, name: str = "user") -> str:
    """A hash tag whose slot belongs to that node."""
    first, last = [0, 5461, 10923, 16384][node : node + 2]
    return next(t for n in range(1000) if first <= slot_of(t := f"{name}{n}") < last)


def left(engine: ClusterEngine, limit: Limit, key: str) -> int:
    return engine.admit([Charge(limit, key, 0)]).verdicts[0].remaining


def test_one_decision_over_three_nodes(cluster: servers.Cluster, engine: ClusterEngine) -> None:
    """All or nothing, with holds, settlements, markers, clear and reset."""
    keys = [f"LIMITS:{{{tag_on(cluster, node)}}}" for node in range(3)]
    charges = [Charge(TOKENS, keys[0], 300), Charge(BUCKET, keys[1]), Charge(COMMON, keys[2])]
    verdicts = engine.admit(charges, hold=LEASE).verdicts
    assert [verdict.remaining for verdict in verdicts] == [700, 99, 99]
    changes = [Change.settle(verdicts[0], LEASE, 50), *[Change.adjust(v, 9) for v in verdicts[1:]]]
    once = Marker(f"{keys[0]}:once:1", DAY)
    assert [engine.settle(changes, once=once) for _ in range(2)] == [3, 0]
    assert engine.settle(changes[1:], once=once) == 0, "a part of them may be sent again"
    found = engine.admit(charges, take=False).verdicts
    assert [verdict.remaining for verdict in found] == [950, 90, 90]
    assert engine.clear([*keys[:2], "LIMITS:{unknown}"]) == 2
    assert left(engine, TOKENS, keys[0]) == 1000
    assert engine.reset("LIMITS:{") == 4  # three markers, and what was not cleared
    assert left(engine, COMMON, keys[2]) == 100


def test_an_admission_after_its_release_holds_nothing(
    cluster: servers.Cluster, engine: ClusterEngine
) -> None:
    """On each node that it reaches late; what is not held is charged."""
    keys = [f"LIMITS:{{{tag_on(cluster, node)}}}" for node in range(3)]
    charges = [Charge(TOKENS, keys[0], 300), Charge(TOKENS, keys[1], 300), Charge(BUCKET, keys[2])]
    releases = [Change.release(charge, LEASE) for charge in charges[:2]]
    assert engine.settle(releases) == 2
    engine.admit(charges, hold=LEASE)
    found = engine.admit(charges, take=False).verdicts
    assert [verdict.remaining for verdict in found] == [1000, 1000, 99]


@pytest.mark.parametrize("client", ["redis", "valkey"])
def test_more_threads_than_connections_wait_for_one(cluster: servers.Cluster, client: str) -> None:
    """16 threads, one connection to each node, three nodes a request: every call is decided."""
    uri = cluster.uri.replace("redis", client, 1)
    storage: Any = storage_from_string(uri, socket_timeout=20, max_connections=1)
    engine = ClusterEngine(Nodes(storage.get_connection(), storage.base_exceptions))
    limit = replace(BUCKET, amount=1000)
    keys = [f"LIMITS:{{{tag_on(cluster, node)}}}" for node in range(3)]
    at_once = threading.Barrier(16)

    def calls(number: int) -> list[int]:
        at_once.wait(60)
        charges = [Charge(limit, key) for key in (keys if number % 2 else reversed(keys))]
        return [engine.admit(charges).verdicts[0].remaining for _ in range(10)]

    with ThreadPoolExecutor(16) as threads:
        left = [each for own in threads.map(calls, range(16)) for each in own]
    assert len(left) == 160
    assert {engine.admit([Charge(limit, key)]).verdicts[0].remaining for key in keys} == {839}


def test_a_node_without_the_script_is_given_it(
    cluster: servers.Cluster, engine: ClusterEngine
) -> None:
    """A new master knows no function; one that refuses functions gets scripts."""
    charges = [Charge(BUCKET, f"{{{tag_on(cluster, node)}}}") for node in range(3)]
    library = composed("admit", (strategy_of(BUCKET),)).function
    for expected in (99, 98, 97):
        for node in cluster.nodes:
            with node.client() as client:
                client.function_flush()
                client.script_flush()
                if expected == 97:
                    client.execute_command("ACL SETUSER", "default", "-fcall")
        try:
            found = engine.admit(charges)
        finally:
            for node in cluster.nodes:
                with node.client() as client:
                    client.execute_command("ACL SETUSER", "default", "+fcall")
        assert [verdict.remaining for verdict in found.verdicts] == [expected] * 3
        with cluster.nodes[0].client() as client:
            assert bool(client.function_list(library)) == (expected != 97)


@pytest.mark.parametrize("seed", range(8))
def test_lines_and_classes(cluster: servers.Cluster, engine: ClusterEngine, seed: int) -> None:
    """Random lines on several nodes, with what is kept, members who leave, refusals at the turn and
    changed amounts: as the engine in memory decides."""
    chance, memory = random.Random(seed), MemoryEngine()
    limit = replace(lines.any_limit(chance), keep=lines.KEEP)
    flush(cluster)
    engines = [memory, engine]
    lines.History(engines, limit, chance, lines.Turns(), lambda: None, trouble=False).play(30)


@pytest.mark.parametrize("strategy", ["token-bucket", "sliding-window", "fixed-window"])
def test_what_is_kept_on_several_nodes(
    cluster: servers.Cluster, engine: ClusterEngine, strategy: str
) -> None:
    """Callers of each class, whose own limits are on other nodes: as the engine in memory decides,
    and a class never has more than it may use."""
    chance, memory, now_us = random.Random(5), MemoryEngine(), START
    kept = (("people", 6), ("normal", 3))
    words: Any = {"anchor": "day"} if strategy == "fixed-window" else {}
    shared = Limit(60, MINUTE, strategy, name="model", common=True, keep=kept, **words)
    own = Limit(25, MINUTE, strategy, name="own", **words)
    counts = Counter[str]()
    for _ in range(200):
        now_us += chance.choice((0, 0, SECOND, 3 * SECOND))
        now_us += DAY * (chance.random() < 0.02)
        name, node = chance.choice(("people", "normal", "batch")), chance.randrange(3)
        charges = [
            Charge(shared.of_class(name), "b:{model}", chance.choice((1, 2, 5))),
            Charge(own, f"b:{{{tag_on(cluster, node)}}}"),
        ]
        answers = [each.admit(charges, now_us=now_us) for each in (memory, engine)]
        assert answers[0].admitted == answers[1].admitted
        assert answers[0].verdicts == answers[1].verdicts
        counts[name] += answers[0].admitted
        counts["denied"] += not answers[0].admitted
    assert min(counts.values()) > 5


def node_ids(cluster: servers.Cluster) -> list[str]:
    found = []
    for node in cluster.nodes:
        with node.client() as client:
            found.append(client.execute_command("CLUSTER MYID").decode())
    return found


@pytest.fixture
def moving(cluster: servers.Cluster) -> Iterator[tuple[str, redis.Redis, redis.Redis]]:
    """A hash tag whose slot is on its way from the first node to the second, and both nodes."""
    tag = tag_on(cluster, 0, "moving")
    slot, (one, two, _) = slot_of(tag), node_ids(cluster)
    source, target = (node.client() for node in cluster.nodes[:2])
    with source, target:
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", one)
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", two)
        yield tag, source, target
        flush(cluster)
        servers.eventually(lambda: len(epochs(cluster)) == 1)
        with suppress(redis.ResponseError):  # it is the owner still
            # An import gives the new owner a later epoch than all that it knows, so that all nodes
            # agree: the test's own move must have reached it.
            source.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", two)
        for client in (source, target):
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", one)

    def is_settled() -> bool:
        owners = []
        for node in cluster.nodes:
            with node.client() as client:
                lines = client.execute_command("CLUSTER NODES")
                owners.append(_owner_of(slot, lines))
        return owners == [one] * 3

    servers.eventually(is_settled)


def epochs(cluster: servers.Cluster) -> set[str]:
    """The latest epochs that the nodes know."""
    found = set()
    for node in cluster.nodes:
        with node.client() as client:
            found.add(client.execute_command("CLUSTER INFO")["cluster_current_epoch"])
    return found


def _owner_of(slot: int, nodes: dict[str, dict[str, Any]]) -> str | None:
    """The id of the node whose ranges have the slot, by redis-py's reading of CLUSTER NODES."""
    for node in nodes.values():
        for first, *last in node["slots"]:
            if int(first) <= slot <= int(last[0] if last else first):
                return str(node["node_id"])
    return None


def move(source: redis.Redis, target: redis.Redis, key: str) -> None:
    port = target.connection_pool.connection_kwargs["port"]
    source.execute_command("MIGRATE", "127.0.0.1", port, key, 0, 1000)


def test_a_slot_that_moves_is_followed(
    engine: ClusterEngine, moving: tuple[str, redis.Redis, redis.Redis]
) -> None:
    """ASK while its keys move, and MOVED afterwards; each call counts once."""
    tag, source, target = moving
    key = f"{{{tag}}}"
    assert engine.admit([Charge(BUCKET, key)]).admitted
    held = [
        node.execute_command("CLUSTER COUNTKEYSINSLOT", slot_of(tag)) for node in (source, target)
    ]
    assert held == [0, 1], "only ASKING reaches the target"
    assert left(engine, BUCKET, key) == 99
    for client in (target, source):
        client.execute_command("CLUSTER SETSLOT", slot_of(tag), "NODE", node_id_of(target))
    assert engine.admit([Charge(BUCKET, key)]).verdicts[0].remaining == 98
    assert target.exists(key) == 1


def node_id_of(client: redis.Redis) -> str:
    return str(client.execute_command("CLUSTER MYID").decode())


def test_buckets_on_both_nodes_wait_for_each_other(
    engine: ClusterEngine, moving: tuple[str, redis.Redis, redis.Redis]
) -> None:
    """TRYAGAIN: nothing is charged, until the deadline is over or the second bucket has moved."""
    tag, source, target = moving
    source.execute_command("CLUSTER SETSLOT", slot_of(tag), "STABLE")
    charges = [Charge(BUCKET, f"{{{tag}}}{number}") for number in range(2)]
    assert engine.admit(charges).admitted
    source.execute_command("CLUSTER SETSLOT", slot_of(tag), "MIGRATING", node_id_of(target))
    move(source, target, charges[0].key)
    with pytest.raises(ShardUnavailable):
        engine.admit(charges)
    move(source, target, charges[1].key)
    assert [v.remaining for v in engine.admit(charges).verdicts] == [98, 98]


@pytest.fixture
def relays(cluster: servers.Cluster) -> Iterator[list[Relay]]:
    """One in front of each node."""
    with ExitStack() as stack:
        yield [stack.enter_context(Relay(node.port)) for node in cluster.nodes]


@contextmanager
def behind(
    relays: list[Relay], cluster: servers.Cluster, **options: Any
) -> Iterator[redis.RedisCluster]:
    """redis-py's client, which reaches the nodes through the relays. They carry replies again as
    soon as the client reads the layout."""
    ports = {node.port: relay.port for node, relay in zip(cluster.nodes, relays, strict=True)}

    def mended(address: tuple[str, int]) -> tuple[str, int]:
        for relay in relays:
            relay.drops_replies.clear()
        return address[0], ports[address[1]]

    start = ClusterNode("127.0.0.1", relays[0].port)
    with redis.RedisCluster(startup_nodes=[start], address_remap=mended, **options) as client:
        yield client


def test_a_lost_reply_charges_once(cluster: servers.Cluster, relays: list[Relay]) -> None:
    """The client alone sends the command again. Of the other subject nothing stays charged."""
    keys = [f"{{{tag_on(cluster, node)}}}" for node in (1, 2)]
    charges = [Charge(BUCKET, key) for key in keys]
    with behind(relays, cluster) as client:
        engine = ClusterEngine(Nodes(client, redis.RedisError))
        assert engine.admit(charges).admitted
        relays[1].drops_replies.set()
        with pytest.raises(ShardUnavailable):
            engine.admit(charges)
    direct = engine_of(cluster.uri)
    assert [left(direct, BUCKET, key) for key in keys] == [98, 99]
    with behind(relays, cluster) as client:
        client.incr(keys[0] + "n")
        relays[1].drops_replies.set()
        assert client.incr(keys[0] + "n") == 3


def test_a_lost_reply_begins_no_recovery(cluster: servers.Cluster, relays: list[Relay]) -> None:
    """The node has run what it was asked: not the test that the other workers would join."""
    prefix = f"{{{tag_on(cluster, 1)}}}"
    note = f"{prefix}:recovery"
    with behind(relays, cluster) as client, cluster.client() as direct:
        engine = ClusterEngine(Nodes(client, redis.RedisError), prefix=prefix)
        assert client.get(note) is None  # opens the connection, so that the next command is sent
        relays[1].drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.probe()
        assert direct.get(note) is None
        assert ClusterEngine(Nodes(direct, redis.RedisError), prefix=prefix).probe() >= 0
        assert direct.get(note) is not None


@pytest.mark.parametrize("is_first", [True, False])
def test_a_dripping_reply_is_an_outage_of_its_node(
    cluster: servers.Cluster, relays: list[Relay], *, is_first: bool
) -> None:
    """The deadline is for the whole reply, and on a new connection for the handshake: each byte
    begins no new one. A call could last for many deadlines otherwise, and be admitted."""
    charge = Charge(BUCKET, f"{{{tag_on(cluster, 1)}}}")
    with behind(relays, cluster, socket_timeout=0.3) as client:
        engine = ClusterEngine(Nodes(client, redis.RedisError))
        if not is_first:
            assert engine.admit([charge]).admitted
        relays[1].deliver = dripping(relays[1], 0.1)
        with pytest.raises(ShardUnavailable):
            engine.admit([charge])
        relays[1].deliver = whole
    # The handshake of redis-py 5.0 is so short that the first call may be sent.
    assert left(engine_of(cluster.uri), BUCKET, charge.key) in ([99, 100] if is_first else [98])


@pytest.fixture
def own_cluster() -> Iterator[servers.Cluster]:
    """One whose nodes a test may stop, all of them."""
    with servers.cluster() as cluster:
        yield cluster


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_cluster_without_any_node_is_an_outage(
    own_cluster: servers.Cluster, number: signal.Signals
) -> None:
    """The breaker opens with the last node, and closes when they are back. What they had left is
    known, also from a decision of several of them."""
    engine = engine_of(own_cluster.uri)
    breaker = Breaker(engine)
    breaker.outage = OutageEngine(breaker, lambda _: "local", Workers(), wake=breaker.wake)
    keys = [f"{{{tag_on(own_cluster, node)}}}" for node in range(3)]
    charges = [Charge(BUCKET, key) for key in keys]
    assert breaker.admit(charges).admitted
    for place, node in enumerate(own_cluster.nodes):
        os.kill(node.pid, number)
        with pytest.raises(StorageUnavailable) as failure:
            breaker.admit([charges[place]])
        is_last = node is own_cluster.nodes[-1]
        assert isinstance(failure.value, ShardUnavailable) != is_last
    servers.eventually(lambda: breaker.is_open)
    assert [verdict.remaining for verdict in breaker.outage.admit(charges).verdicts] == [98] * 3
    for node in own_cluster.nodes:
        if number == signal.SIGSTOP:
            os.kill(node.pid, signal.SIGCONT)
        else:
            node.relaunch()
    servers.eventually(lambda: not breaker.is_open)
    servers.eventually(lambda: breaker.outage and breaker.outage.is_handed_back)


def test_the_thread_of_a_cluster_that_stays_away_ends_with_its_engine(
    cluster: servers.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a single storage: an application that is dropped leaves nothing."""
    monkeypatch.setattr(Nodes, "_read_layout", lambda _: False)
    engine = engine_of(cluster.uri)
    engine._nodes._note_change()
    thread = engine._nodes._thread
    assert thread is not None
    assert thread.is_alive()
    del engine

    def has_ended() -> bool:
        gc.collect()
        return not thread.is_alive()

    servers.eventually(has_ended)


def test_a_forked_child_reads_the_layout_itself(
    cluster: servers.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has stayed in the parent, and a lock that it held would stay closed."""
    monkeypatch.setattr(Nodes, "_read_layout", lambda _: False)
    nodes = engine_of(cluster.uri)._nodes
    nodes._note_change()
    with nodes._lock:
        child = os.fork()
        if child == 0:
            os._exit((nodes._thread is not None) + nodes._lock.locked())
    assert os.waitpid(child, 0)[1] == 0


def test_a_node_that_hangs_stops_nobody_else(cluster: servers.Cluster) -> None:
    """Its own subjects are refused: after the first deadline at once. It serves when it is back."""
    engine = engine_of(cluster.uri)
    keys = [f"{{{tag_on(cluster, node)}}}" for node in range(3)]
    for key in keys:
        assert engine.admit([Charge(BUCKET, key)]).admitted
    hanging = cluster.nodes[1]
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StorageUnavailable):
            engine.admit([Charge(BUCKET, key) for key in keys])
        for _ in range(50):  # each would take a deadline: 100 s
            with pytest.raises(ShardUnavailable):
                engine.admit([Charge(BUCKET, keys[1])])
            assert engine.admit([Charge(BUCKET, keys[0]), Charge(BUCKET, keys[2])]).admitted
    finally:
        os.kill(hanging.pid, signal.SIGCONT)

    def serves() -> bool:
        try:
            return engine.admit([Charge(BUCKET, keys[1])]).admitted
        except ShardUnavailable:
            return False

    servers.eventually(serves)
    assert [left(engine, BUCKET, keys[place]) for place in (0, 2)] == [49, 49]
    # What it was sent before it hung was charged when it woke.
    assert left(engine, BUCKET, keys[1]) in (97, 98)
