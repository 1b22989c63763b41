"""Clients that invent an address, user, key, model, path and headers for each request: nothing in
the worker grows with them, and the storage forgets them.

CHATAPP_IDENTITIES=1000000 is the full run, of about an hour; its figures are printed.
"""

import functools
import gc
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient

from chatapp.accounts import authentication
from chatapp.accounts.api_key import new_key
from chatapp.accounts.store import Accounts
from chatapp.alerts import watch
from chatapp.calls import throttle
from chatapp.estimates import outputs
from chatapp.services import Services, services_of
from ratelimit_ext.core.key import escaped
from ratelimit_ext.engine import denial_cache, memory
from ratelimit_ext.engine.last_verdicts import MOST_NOTES, LastVerdicts
from ratelimit_ext.web.identities import _parsed
from ratelimit_ext.web.request.charges import MOST_KNOWN
from ratelimit_ext.web.storage import engine_for
from tests.chatapp.conftest import AppMaker

COUNT = int(os.environ.get("CHATAPP_IDENTITIES", "600"))
#: What need not be in the table: it does not follow the number of clients.
SMALL = COUNT // 3
#: Of a worker, above what it has after its first calls.
MOST_MB = 250
#: Of the storage, for each caller that made one call.
BYTES_PER_CALLER = 1_000
CONTAINERS = (dict, list, set, deque)
MESSAGES = [{"role": "user", "content": "hi"}]


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sizes() -> dict[int, int]:
    """The length of each container of the process, and of each cache of a function, by its id."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        kind = type(each)  # isinstance would ask the referent of a weak proxy
        if issubclass(kind, functools._lru_cache_wrapper):
            found[id(each)] = each.cache_info().currsize
        elif issubclass(kind, CONTAINERS):
            found[id(each)] = len(each)
    return found


def parts(*owners: object) -> set[int]:
    """The ids of these objects and of what they directly consist of."""
    found, level = set(), list(owners)
    for _ in range(3):
        found |= set(map(id, level))
        level = [each for each in gc.get_referents(*level) if not issubclass(type(each), type)]
    return found


def grown(before: dict[int, int], known: Callable[[], set[int]]) -> list[str]:
    """What has grown with the number of clients, besides the known containers."""
    many = {i for i, size in sizes().items() if size - before.get(i, 0) > SMALL} - known()
    return [repr(each)[:300] for each in gc.get_objects() if id(each) in many]


def invented(chance: random.Random) -> dict[str, str]:
    """Headers that no other request has."""
    address = chance.choice(
        [
            ".".join(str(chance.randrange(1, 255)) for _ in range(4)),
            ":".join(f"{chance.randrange(1, 65535):x}" for _ in range(8)),
        ]
    )
    word = f"{chance.getrandbits(64):x}"
    return {
        "X-Forwarded-For": address,
        "Accept": f"text/{word}, */*",
        "User-Agent": word,
        "X-Chat-Tags": f"{word}={word}",
        "X-Claude-Code-Session-Id": word,
        "Cookie": f"{word}={word}",
        "Origin": f"http://{word}.example",
    }


def call(client: FlaskClient, chance: random.Random) -> int:
    """One of the requests that a client without a key can make."""
    headers, word = invented(chance), f"{chance.getrandbits(64):x}"
    body: dict[str, object] = {"model": "offline", "messages": MESSAGES, "user": word}
    match chance.randrange(8):
        case 0:
            return client.get(f"/{word}?{word}", headers=headers).status_code
        case 1:
            return client.open("/chat", method=word.upper(), headers=headers).status_code
        case 2:
            asked = {"message": "hi", "model": f"gpt-{word}", "user_id": word}
            return client.post("/chat", json=asked, headers=headers).status_code
        case 3:
            return client.post("/v1/chat/completions", json=body, headers=headers).status_code
        case 4:  # denied, again and again
            headers["X-Forwarded-For"] = "192.0.2.7"
            return client.post("/chat", json={"message": word}, headers=headers).status_code
        case _:
            asked = {"message": "hi", "model": "offline", "user_id": word}
            return client.post("/chat", json=asked, headers=headers).status_code


def run(
    services: Services, ask: Callable[[], int], known: Callable[[], set[int]]
) -> tuple[list[str], float]:
    """Asks COUNT times; returns what has grown with the number, and the memory in MB."""
    assert services.alerts is not None

    def asked(times: int) -> set[int]:
        statuses = set()
        for _ in range(times // 50):
            statuses |= {ask() for _ in range(50)}
            # On a slow machine, threads would take many calls at once, and hold them.
            assert services.ledger.flush(60)
            assert services.alerts.get().flush(60)
        return statuses

    asked(100)
    before, first_mb = sizes(), memory_mb()
    assert 500 not in asked(COUNT)
    mb = memory_mb() - first_mb
    return grown(before, known), mb


def last_verdicts_of(services: Services) -> LastVerdicts:
    """What the worker knows of the storage's buckets."""
    outage = services.limiter._components.engines.outage
    assert outage is not None
    return outage.last


def plans_of(services: Services) -> Any:
    """The cache of the charges of callers who come again."""
    return services.limiter._components.admission.charges._of_names


@pytest.fixture
def chance() -> random.Random:
    return random.Random(7)


@pytest.fixture
def client(make_app: AppMaker, uri: str) -> Iterator[FlaskClient]:
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_TRUSTED_HOPS=1)
    yield app.test_client()
    services_of(app).ledger.flush()


def test_a_worker_and_the_storage_are_bounded(
    client: FlaskClient, chance: random.Random, redis_client: redis.Redis
) -> None:
    """Without keys: each container is below its ceiling, and every key of the storage expires."""
    services = services_of(client.application)
    cache = engine_for(services.limiter.storage)
    assert isinstance(cache, denial_cache.DenialCache)
    last = last_verdicts_of(services)
    callers = services.estimator._history
    assert services.alerts is not None
    alerts = services.alerts.get()
    empty = redis_client.info("memory")["used_memory"]
    found, mb = run(
        services,
        lambda: call(client, chance),
        lambda: parts(
            *(
                cache._denials,
                cache._allowances,
                last,
                callers._callers,
                services.ledger,
                alerts,
                escaped,
                _parsed,
            ),
            plans_of(services),
            *services.throttle._recent.values(),  # the calls of a second
        ),
    )
    assert found == []
    assert services.ledger.flush(60)
    used = redis_client.info("memory")["used_memory"] - empty
    ceilings = {
        "remembered denials": (len(cache._denials), denial_cache.MOST_BUCKETS),
        "remembered allowances": (len(cache._allowances), denial_cache.MOST_BUCKETS),
        "latest decisions": (len(last._notes), MOST_NOTES),
        "recent calls": (len(callers._callers), outputs.MOST_CALLERS),
        "upstreams": (len(services.throttle._recent), throttle.MOST_UPSTREAMS),
        "decisions for alerts": (len(alerts._readings), watch.MOST_WAITING),
        "charges of callers": (plans_of(services).cache_info().currsize, MOST_KNOWN),
        "bucket names": (escaped.cache_info().currsize, 8192),
        "addresses": (_parsed.cache_info().currsize, 8192),
        "MB": (mb, MOST_MB),
        "bytes of the storage per caller": (used / COUNT, BYTES_PER_CALLER),
    }
    print(COUNT, ceilings)  # noqa: T201 - the figures of the full run
    assert {name: each for name, each in ceilings.items() if each[0] > each[1]} == {}
    forever = [key for key in redis_client.scan_iter(count=1000) if redis_client.ttl(key) == -1]
    assert forever == []


def test_invented_keys_are_bounded(
    make_app: AppMaker, uri: str, accounts: Accounts, chance: random.Random
) -> None:
    """With accounts on: each request is a 401, and only refusals of MOST_KEYS are remembered."""
    accounts.create_key("alice", plan=None, default_plan="starter")
    app = make_app(RATELIMIT_STORAGE_URI=uri, CHATAPP_TRUSTED_HOPS=1)
    client, services = app.test_client(), services_of(app)
    keys = services.authenticator

    def ask() -> int:
        headers = {**invented(chance), "x-api-key": new_key().text}
        status = client.post("/chat", json={"message": "hi"}, headers=headers).status_code
        assert status == 401
        return status

    last = last_verdicts_of(services)
    found, mb = run(services, ask, lambda: parts(keys._refused, last, escaped, _parsed))
    assert found == []
    print(COUNT, len(keys._refused), mb)  # noqa: T201 - the figures of the full run
    assert len(keys._refused) <= authentication.MOST_KEYS
    assert mb < MOST_MB


def test_the_memory_engine_is_bounded(
    make_app: AppMaker, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a storage: beyond the ceiling, unknown callers get 503, and known ones go on."""
    if COUNT < 10_000:
        monkeypatch.setattr(memory, "MOST_BUCKETS", COUNT // 2)
    app = make_app(CHATAPP_TRUSTED_HOPS=1)
    client, limiter = app.test_client(), services_of(app).limiter
    known = {"message": "hi", "model": "offline", "user_id": "ada"}
    assert client.post("/chat", json=known).status_code == 200
    engine = engine_for(limiter.storage)
    assert isinstance(engine, memory.MemoryEngine)
    buckets = engine._buckets()
    services = services_of(app)
    assert services.alerts is not None
    callers, alerts = services.estimator._history, services.alerts.get()
    found, mb = run(
        services,
        lambda: call(client, chance),
        lambda: parts(
            *(buckets.named(""), callers._callers, services.ledger, alerts, escaped, _parsed),
            plans_of(services),
        ),
    )
    assert found == []
    names = buckets.named("")
    print(COUNT, len(names), mb)  # noqa: T201 - the figures of the full run
    # Buckets of up to a minute come on top.
    assert len([key for key in names if ":60:" not in key]) <= memory.MOST_BUCKETS + 10
    assert mb < MOST_MB
    if COUNT * 2 > memory.MOST_BUCKETS:
        assert client.post("/chat", json={**known, "user_id": "eve"}).status_code == 503
    assert client.post("/chat", json=known).status_code == 200
