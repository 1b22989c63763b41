"""Amounts that operators set at run time."""

import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from flask import Flask, g

from ratelimit_ext import Limiter, StorageUnavailable
from ratelimit_ext.core import threads
from ratelimit_ext.records import overrides as module
from ratelimit_ext.records.overrides import MOST_ENTRIES, MOST_OVERRIDES, LogEntry, Overrides
from tests import servers
from tests.clocks import Clock
from tests.servers import Server, eventually
from tests.web.calls import serve
from tests.web.conftest import Maker, asked_key

Site = tuple[Flask, Limiter]
NEW = "5/hour"


@pytest.fixture
def site(make: Maker, uri: str) -> Site:
    """An application with a limit of 2 an hour for each key."""
    return limited(make, uri)


def limited(make: Maker, uri: str) -> Site:
    app, limiter = make(storage_uri=uri)
    serve(
        app,
        limiter.limit("2/hour", name="calls", key_func=asked_key),
        limiter.limit("100/hour", name="all", key_func=lambda: "*"),
    )
    return app, limiter


def get(app: Flask, key: str = "ann") -> Any:
    return app.test_client().get("/", headers={"X-Key": key})


def passed(app: Flask, calls: int, key: str = "ann") -> int:
    return sum(get(app, key).status_code == 200 for _ in range(calls))


def override(site: Site, amount: str = NEW, **how: Any) -> None:
    app, limiter = site
    with app.app_context():
        limiter.operators.override("calls", "ann", amount, **how)


def test_an_override_changes_one_amount_of_one_identity(site: Site) -> None:
    """From the next request on; usage is kept, answers name the amount, and others keep theirs."""
    app, limiter = site
    assert passed(app, 3) == 2
    override(site)
    answer = get(app)
    assert answer.status_code == 200
    assert '"calls";q=5;w=3600' in answer.headers["RateLimit-Policy"]
    assert '"calls";r=2' in answer.headers["RateLimit"]
    assert passed(app, 9) == 2
    assert get(app).json["limit"] == "5 per 1 hour"
    assert passed(app, 3, "bob") == 2
    assert limiter._components.overrides.clear("calls", "ann")
    assert not limiter._components.overrides.clear("calls", "ann")
    assert get(app).json["limit"] == "2 per 1 hour"


def test_an_application_keeps_what_changed(site: Site) -> None:
    """A removal that finds nothing is no change, and is in no log."""
    kept: list[LogEntry] = []
    log = SimpleNamespace(write=kept.append, read=lambda _: kept)
    limiter = site[1]
    limiter.operators.change_log = log
    override(site)
    assert limiter._components.overrides.clear("calls", "ann")
    assert not limiter._components.overrides.clear("calls", "ann")
    assert [each.action for each in kept] == ["override", "clear-override"]


def test_an_override_lowers_an_amount(site: Site) -> None:
    """What was used counts toward it."""
    assert passed(site[0], 1) == 1
    override(site, "1/hour")
    assert passed(site[0], 2) == 0


def test_an_override_below_the_cost_of_every_call_is_refused(make: Maker) -> None:
    """No call could pass; an amount of 0 says so, and denies all of them."""
    app, limiter = make()
    serve(app, limiter.limit("9/hour", name="calls", cost=3))
    with pytest.raises(ValueError, match=r"calls: found 2 requests, but each call costs 3, .*0 to"):
        override((app, limiter), "2/hour")
    assert limiter.operators.overrides() == []
    override((app, limiter), "3/hour")
    assert passed(app, 2) == 1
    override((app, limiter), "0/hour")
    refused = get(app, "ann")
    assert (refused.status_code, refused.json["limit"]) == (429, "0 per 1 hour")
    assert "Retry-After" not in refused.headers


def test_an_override_ends_at_its_instant(make: Maker, clock: Clock) -> None:
    """To the second, without anything being read again; then it is not listed, and the next change
    removes it."""
    site = app, limiter = limited(make, "memory://")
    override(site, until=clock.now_s + 60, reason="launch", by="olga")
    assert passed(app, 9) == 5
    clock.forward(59.9)
    assert get(app).json["limit"] == "5 per 1 hour"
    clock.forward(0.1)
    assert get(app).json["limit"] == "2 per 1 hour"
    assert limiter.operators.overrides() == []
    assert len(limiter._components.overrides.by_limit["calls"]) == 1
    limiter._components.overrides.set(module.Override("calls", "bob", NEW))
    assert [*limiter._components.overrides.by_limit["calls"]] == ["bob"]


def test_an_override_costs_no_round_trip(make: Maker, redis_server: Server) -> None:
    """A request is one call of the script, with and without."""

    with redis_server.client() as client:
        client.flushall()
        site = limited(make, redis_server.uri)
        for has_override in (False, True):
            if has_override:
                override(site)
            get(site[0])
            client.config_resetstat()
            get(site[0])
            counted = client.info("commandstats")
            script = {name for name in counted if name in {"cmdstat_fcall", "cmdstat_evalsha"}}
            assert [counted[name]["calls"] for name in script] == [1]
            assert "cmdstat_hgetall" not in counted


def test_an_optional_limit_applies_by_an_override(make: Maker) -> None:
    """To that identity alone."""
    app, limiter = make()
    limiter.amount_loader(dict)
    definition = limiter.limit("1/hour", name="calls", key_func=asked_key)
    definition.optional = True
    app.add_url_rule("/", "index", definition(lambda: "ok"))
    assert passed(app, 3) == 3
    override((app, limiter), "2/hour")
    assert passed(app, 3) == 2
    assert passed(app, 3, "bob") == 3


def test_a_retry_keeps_the_amount_of_its_call(make: Maker) -> None:
    """An override that comes between neither charges its estimate twice nor loses it."""
    app, limiter = make()
    limiter.estimator("tokens")(lambda: 10)

    @app.get("/")
    @limiter.limit("100/hour", unit="tokens", name="calls", key_func=asked_key)
    def index() -> str:
        if g.get("is_changed") is None:
            g.is_changed = True
            limiter.operators.override("calls", "ann", "50/hour")
        assert limiter.current.admit_again("calls") is None
        limiter.settle(tokens=10)
        return "ok"

    get(app)
    left = get(app).headers["RateLimit"]
    assert '"calls";r=30' in left


@pytest.mark.parametrize(
    ("limit", "amount", "message"),
    [
        ("cals", NEW, "There is no limit 'cals' .*: all .*, calls .* Did you mean 'calls'"),
        ("calls", "5/day", "calls: found '5/day' .*; allowed: '2/hour' with another amount"),
        ("calls", "5 usd/hour", "calls: found '5 usd/hour'"),
        ("calls", "plenty", "calls: found 'plenty'"),
    ],
)
def test_a_mistake_names_what_is_allowed(site: Site, limit: str, amount: str, message: str) -> None:
    """An unknown limit, another unit or period, and no limit at all; nothing is stored."""
    app, limiter = site
    with app.app_context(), pytest.raises(ValueError, match=message):
        limiter.operators.override(limit, "ann", amount)
    assert limiter.operators.overrides() == limiter.operators.log() == []


def test_an_end_in_the_past_is_refused(site: Site) -> None:
    """As the override would never apply."""
    with pytest.raises(ValueError, match="in the future"):
        override(site, until=1.0)


def test_overrides_are_bounded(site: Site) -> None:
    """As each process reads all of them; a change of one that exists is no new one."""
    overrides = site[1]._components.overrides
    for number in range(MOST_OVERRIDES):
        overrides.write(
            module.LogEntry("override", f"c{number}", "calls"),
            module.Override("calls", f"c{number}", NEW),
        )
    with pytest.raises(ValueError, match=f"There are {MOST_OVERRIDES} overrides"):
        overrides.set(module.Override("calls", "ann", NEW))
    overrides.set(module.Override("calls", "c7", "6/hour"))
    assert len(overrides.all()) == MOST_OVERRIDES
    assert len(overrides.log()) == MOST_ENTRIES
    assert overrides.log()[0].amount == "6/hour"


def test_every_change_is_logged(site: Site) -> None:
    """With who, what, until when and why, the newest first; a removal of nothing is no change."""
    _app, limiter = site
    override(site, until=9e9, reason="launch", by="olga")
    limiter._components.overrides.clear("calls", "ann", by="omar")
    limiter._components.overrides.clear("calls", "ann", by="omar")
    limiter.operators.note("reset", "bob", by="olga")
    log = limiter.operators.log()
    assert [(e.action, e.identity, e.by) for e in log] == [
        ("reset", "bob", "olga"),
        ("clear-override", "ann", "omar"),
        ("override", "ann", "olga"),
    ]
    assert (log[2].amount, log[2].until, log[2].reason) == (NEW, 9e9, "launch")


def test_changes_of_a_newer_release_are_read(
    make: Maker, redis_uri: str, redis_client: Any
) -> None:
    """What this one does not know of them is left out: workers of both run during an update."""
    site = limited(make, redis_uri)
    override(site, by="olga")
    (table,) = redis_client.keys("*overrides:{operators}")
    (log,) = redis_client.keys("*log:{operators}")
    for field, text in redis_client.hgetall(table).items():
        redis_client.hset(table, field, json.dumps({**json.loads(text), "colour": "red"}))
    override_store = site[1]._components.overrides
    (text,) = redis_client.lrange(log, 0, -1)
    redis_client.lpush(log, json.dumps({**json.loads(text), "colour": "red"}))
    assert [each.by for each in override_store.all()] == ["olga"]
    assert [each.by for each in override_store.log()] == ["olga", "olga"]


def test_a_reset_of_all_limits_keeps_overrides(site: Site) -> None:
    """They are no usage."""
    app, limiter = site
    override(site)
    assert passed(app, 9) == 5
    limiter.reset()
    assert passed(app, 9) == 5
    assert len(limiter.operators.overrides()) == 1


def test_another_process_reads_overrides_from_a_thread(
    make: Maker, redis_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the first request starts; the request waits for nothing."""
    monkeypatch.setattr(Overrides, "in_background", True)
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    worker, limiter = limited(make, redis_uri)

    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "ratelimit-overrides"]

    assert threads() == []
    assert passed(worker, 3) == 2
    (thread,) = threads()
    override(limited(make, redis_uri))
    eventually(lambda: get(worker).status_code == 200)
    assert passed(worker, 9) == 2
    limiter._components.overrides.close()
    thread.join(60)
    assert threads() == []


def test_the_first_request_of_a_process_knows_the_overrides(
    make: Maker, redis_client: redis.Redis, redis_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a worker that has just started; it reads once, not for each call."""
    override(limited(make, redis_uri), "1/hour")
    monkeypatch.setattr(Overrides, "in_background", True)
    worker, limiter = limited(make, redis_uri)
    redis_client.config_resetstat()
    assert passed(worker, 9) == 1
    assert redis_client.info("commandstats")["cmdstat_hgetall"]["calls"] == 1
    limiter._components.overrides.close()


def test_a_process_without_room_for_a_thread_reads_with_each_request(
    make: Maker, redis_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a thread can be started."""
    monkeypatch.setattr(Overrides, "in_background", True)
    worker, limiter = limited(make, redis_uri)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        assert passed(worker, 3) == 2
        override(limited(make, redis_uri))
        assert get(worker).status_code == 200
        assert not limiter._components.overrides.is_watched
    get(worker)
    assert limiter._components.overrides.is_watched
    limiter._components.overrides.close()


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_child_process_reads_for_itself(site: Site) -> None:
    """The thread has stayed in the parent."""
    app, limiter = site
    get(app)
    assert limiter._components.overrides.is_watched
    threads.forget_all()
    assert not limiter._components.overrides.is_watched
    get(app)
    assert limiter._components.overrides.is_watched


def test_overrides_survive_an_outage(make: Maker, own_server: servers.Server) -> None:
    """What was read last applies; a change is refused, and nothing of it is in force."""
    site = _app, limiter = limited(make, own_server.uri)
    override(site)
    own_server.kill()
    with pytest.raises(StorageUnavailable):
        limiter.operators.overrides()
    with pytest.raises(StorageUnavailable):
        override(site, "9/hour")
    found = limiter._components.overrides.find("calls", "ann")
    assert found is not None
    assert found.amount == NEW


def test_a_storage_without_overrides_says_so() -> None:
    """Requests do not look for any."""
    overrides = Overrides(None)
    assert overrides.is_watched
    actions: list[Callable[[], object]] = [
        overrides.all,
        overrides.log,
        lambda: overrides.set(module.Override("calls", "ann", NEW)),
    ]
    for action in actions:
        with pytest.raises(ValueError, match="keeps no overrides"):
            action()
