"""The Redis engine: one script call a decision, on any server that `limits` can name."""

import importlib.util
import threading
import time
from pathlib import Path

import pytest
import redis
from limits.storage import storage_from_string

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.key import bucket_key, bucket_prefix
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.redis import RedisEngine
from tests import servers
from tests.certificate import self_signed
from tests.engine.relay import Relay
from tests.strategies.world import HOUR, MINUTE, RATES

LAYERS = tuple(Charge(Limit(10, MINUTE, strategy), f"bucket:{strategy}") for strategy in RATES)


def engine_of(client: redis.Redis) -> RedisEngine:
    return RedisEngine(client, redis.RedisError)


def engine_at(uri: str, **options: float | str) -> RedisEngine:
    """The engine as an application gets it: over the client of a storage of `limits`."""
    storage = storage_from_string(uri, **options)
    return RedisEngine(storage.get_connection(), storage.base_exceptions)


def calls_of(client: redis.Redis, command: str) -> int:
    stats = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_admission_is_one_round_trip(redis_client: redis.Redis, number: int) -> None:
    """One EVALSHA for one charge or four of four strategies, and nothing besides."""
    engine = engine_of(redis_client)
    engine.admit(LAYERS[:number])
    redis_client.config_resetstat()
    for _ in range(20):
        engine.admit(LAYERS[:number])
    assert calls_of(redis_client, "evalsha") == 20
    assert calls_of(redis_client, "eval") == 0


def test_a_settlement_is_one_round_trip(redis_client: redis.Redis) -> None:
    """All corrections of a request go together."""
    engine = engine_of(redis_client)
    verdicts = engine.admit(LAYERS).verdicts
    engine.settle([Change.adjust(verdict, 0) for verdict in verdicts])
    redis_client.config_resetstat()
    assert engine.settle([Change.adjust(verdict, -1) for verdict in verdicts]) == len(LAYERS)
    assert calls_of(redis_client, "evalsha") == 1


def test_a_forgotten_script_costs_one_more_trip_once(redis_client: redis.Redis) -> None:
    """After SCRIPT FLUSH the first admission is two commands and counts once; the next is one."""
    engine = engine_of(redis_client)
    charge = Charge(Limit(10, MINUTE), "bucket")
    engine.admit([charge])
    redis_client.script_flush()
    redis_client.config_resetstat()
    assert engine.admit([charge]).verdicts[0].remaining == 8
    assert (calls_of(redis_client, "evalsha"), calls_of(redis_client, "eval")) == (1, 1)
    assert engine.admit([charge]).verdicts[0].remaining == 7
    assert (calls_of(redis_client, "evalsha"), calls_of(redis_client, "eval")) == (2, 1)


def test_the_servers_clock_decides(redis_client: redis.Redis) -> None:
    """Without an instant from the caller the decision bears the server's."""
    seconds, micros = redis_client.time()
    decided = engine_of(redis_client).admit(LAYERS).now_us
    assert 0 <= decided - (int(seconds) * 1_000_000 + int(micros)) < 60_000_000


@pytest.mark.parametrize("prefix", ["LIMITS", "a*b", "a?b", "a[xy]b", "a\\b", "a^b", "ü{x}"])
def test_reset_takes_a_beginning_literally(redis_client: redis.Redis, prefix: str) -> None:
    """Special characters of patterns mean themselves, and KEYS is never called."""
    engine = engine_of(redis_client)
    limit = Limit(5, HOUR)
    decoys = ["LIMIT", "axxb", "axb", "ab", "other"]
    shared = bucket_prefix(prefix, "fw", limit, "scope")
    engine.admit([Charge(limit, bucket_key(shared, f"user {n}")) for n in range(25)])
    redis_client.mset(dict.fromkeys(decoys, "x"))
    redis_client.config_resetstat()
    assert engine.reset(f"{prefix}:") == 25
    assert calls_of(redis_client, "keys") == 0
    assert redis_client.dbsize() == len(decoys)


def test_reset_of_thousands_goes_in_steps(redis_client: redis.Redis) -> None:
    """Neither the answer nor a deletion is ever larger than a thousand names."""
    pipeline = redis_client.pipeline()
    for number in range(2500):
        pipeline.set(f"LIMITS:{number}", "x")
    pipeline.execute()
    assert engine_of(redis_client).reset("LIMITS:") == 2500
    assert redis_client.dbsize() == 0


def test_clear_forgets_names(redis_client: redis.Redis) -> None:
    """It returns how many there were; for none it sends no command."""
    engine = engine_of(redis_client)
    engine.admit(LAYERS)
    assert engine.clear([LAYERS[0].key, "unknown"]) == 1
    assert engine.clear([]) == 0


# Addresses


def admits_two_of_three(engine: RedisEngine) -> bool:
    charge = Charge(Limit(2, HOUR, "token-bucket"), "address")
    return [engine.admit([charge]).admitted for _ in range(3)] == [True, True, False]


def test_a_redis_address(redis_uri: str, redis_client: redis.Redis) -> None:
    """redis:// with a database: only that one is written to."""
    assert admits_two_of_three(engine_at(f"{redis_uri}/3"))
    assert redis_client.dbsize() == 0


def test_a_unix_address(redis_server: servers.Server, redis_client: redis.Redis) -> None:
    """redis+unix:// over the socket's path."""
    assert admits_two_of_three(engine_at(redis_server.unix_uri))


@pytest.mark.skipif(not importlib.util.find_spec("valkey"), reason="valkey-py is not installed")
@pytest.mark.parametrize("scheme", ["valkey://127.0.0.1:{port}", "valkey+unix://{path}"])
def test_a_valkey_address(
    redis_server: servers.Server, redis_client: redis.Redis, scheme: str
) -> None:
    """valkey:// through valkey-py, whose errors have names of their own."""
    uri = scheme.format(port=redis_server.port, path=redis_server.unix_path)
    redis_client.script_flush()
    assert admits_two_of_three(engine_at(uri))
    with pytest.raises(StorageUnavailable):
        engine_at(f"valkey://127.0.0.1:{servers.free_port()}").admit(LAYERS)


def test_a_password(redis_client: redis.Redis) -> None:
    """The right password in the address works; a wrong one is StorageUnavailable."""
    with servers.standalone() as server, server.client() as client:
        client.config_set("requirepass", "right")
        address = f"redis://:{{}}@127.0.0.1:{server.port}"
        assert admits_two_of_three(engine_at(address.format("right")))
        with pytest.raises(StorageUnavailable):
            engine_at(address.format("wrong")).admit(LAYERS)


def test_a_tls_address(
    redis_server: servers.Server, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """rediss:// against a certificate of its own; one that is not trusted is no storage.

    The server's binary has no TLS: a relay in front of it takes it off.
    """
    certificate, context = self_signed(tmp_path, "IP:127.0.0.1")

    with Relay(redis_server.port, context) as relay:
        trusted = engine_at(f"rediss://127.0.0.1:{relay.port}", ssl_ca_certs=str(certificate))
        assert admits_two_of_three(trusted)
        with pytest.raises(StorageUnavailable):
            engine_at(f"rediss://127.0.0.1:{relay.port}").admit(LAYERS)


# Outages


def test_a_lost_reply_is_never_charged_twice(
    redis_server: servers.Server, redis_client: redis.Redis
) -> None:
    """The connection breaks before the answer: the call was counted once, and is an outage."""
    charge = Charge(Limit(10, HOUR), "bucket")
    with Relay(redis_server.port) as relay:
        engine = engine_at(f"redis://127.0.0.1:{relay.port}", socket_timeout=2.0)
        assert engine.admit([charge]).verdicts[0].remaining == 9
        relay.drops_replies.set()
        with pytest.raises(StorageUnavailable):
            engine.admit([charge])
        relay.drops_replies.clear()
        assert engine.admit([charge]).verdicts[0].remaining == 7


def test_a_server_that_dies_and_comes_back(own_server: servers.Server) -> None:
    """Killed: an outage for every method. Restarted, without its scripts: served again."""
    engine = engine_at(own_server.uri)
    verdict = engine.admit(LAYERS).verdicts[0]
    own_server.kill()
    for call in (
        lambda: engine.admit(LAYERS),
        lambda: engine.settle([Change.adjust(verdict, -1)]),
        lambda: engine.clear(["bucket"]),
        lambda: engine.reset("LIMITS"),
    ):
        with pytest.raises(StorageUnavailable) as outage:
            call()
        assert outage.value.__cause__ is not None
    own_server.relaunch()
    assert engine.admit(LAYERS).admitted


def test_a_server_that_hangs_is_an_outage(own_server: servers.Server) -> None:
    """It answers nothing: after the socket's deadline the storage is unavailable."""
    engine = engine_at(own_server.uri, socket_timeout=0.5)
    engine.admit(LAYERS)
    with own_server.client() as client:
        client.client_pause(60_000)
    with pytest.raises(StorageUnavailable):
        engine.admit(LAYERS)


def test_a_replica_is_an_outage() -> None:
    """READONLY after a failover: nothing is decided on what cannot be counted."""
    with servers.standalone() as server, server.client() as client:
        engine = engine_of(client)
        assert engine.admit(LAYERS).admitted
        client.replicaof("127.0.0.1", servers.free_port())
        with pytest.raises(StorageUnavailable):
            engine.admit(LAYERS)
        client.replicaof("NO", "ONE")
        assert engine.admit(LAYERS).admitted


def test_a_busy_server_is_an_outage() -> None:
    """Another client's script blocks the server: BUSY is StorageUnavailable."""
    with servers.standalone() as server, server.client() as client:
        engine = engine_of(client)
        busy = threading.Thread(target=run_for_ever, args=(client,))
        client.config_set("busy-reply-threshold", 1)
        busy.start()
        with server.client() as other:
            servers.eventually(lambda: refuses(other))
            with pytest.raises(StorageUnavailable):
                engine.admit(LAYERS)
            other.script_kill()
        busy.join(60)
        assert engine.admit(LAYERS).admitted


def run_for_ever(client: redis.Redis) -> None:
    with pytest.raises(redis.RedisError):
        client.eval("while true do end", 0)


def refuses(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_replies_that_come_too_late_begin_no_recovery(redis_server: servers.Server) -> None:
    """A server whose replies are lost has run what it was asked. The first worker that learns of it
    begins the recovery, which the others join: else that one would return to the storage alone."""
    with Relay(redis_server.port) as relay:
        engine, other = (engine_at(f"redis://127.0.0.1:{relay.port}") for _ in range(2))
        for _ in range(3):
            engine._client.ping()
            relay.drops_replies.set()
            with pytest.raises(StorageUnavailable):
                engine.probe()
            relay.drops_replies.clear()
        asked_at = time.monotonic()
        began = engine.probe()
        assert 0 <= began <= (time.monotonic() - asked_at) * 1_000_000
        assert began < other.probe() < (time.monotonic() - asked_at) * 1_000_000
