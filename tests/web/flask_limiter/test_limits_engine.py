"""Storages that cannot run our scripts."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask
from limits import parse
from limits.storage import MemcachedStorage, Storage

from ratelimit_ext import ConfigurationError, Limit, Limiter, MetaLimit
from ratelimit_ext.core import limit
from ratelimit_ext.core.charge import Charge
from ratelimit_ext.web.declarations.limits_adapter import LimitsEngine
from tests.clocks import Clock
from tests.servers import eventually
from tests.web.calls import statuses
from tests.web.conftest import Maker, asked_key


class Counters(Storage):
    """The least that `limits` takes for a storage: counters that expire."""

    STORAGE_SCHEME = ("counters",)

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **_: str) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self.counts: dict[str, int] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        return ConnectionError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]

    def get(self, key: str) -> int:
        return self.counts.get(key, 0)

    def get_expiry(self, key: str) -> float:
        return 1_800_000_060.0

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        count = len(self.counts)
        self.counts.clear()
        return count

    def clear(self, key: str) -> None:
        self.counts.pop(key, None)


class ContestedCounters(Counters):
    """A storage on which another worker calls between our look and our taking.

    It takes ``rivals`` units of every counter whose name has this text, once each.
    """

    STORAGE_SCHEME = ("contested",)

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **_: str) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self.rivals: dict[str, int] = {}

    def get(self, key: str) -> int:
        seen = super().get(key)
        for name in [name for name in self.rivals if name in key]:
            self.incr(key, 60, self.rivals.pop(name))
        return seen


def fixed(amount: int, mode: str = "enforce") -> limit.Limit:
    """A limit a minute."""
    return limit.Limit(amount, 60_000_000, mode=mode)


A, B = ":fw:60:scope:a:{someone}", ":fw:60:scope:b:{someone}"


def test_a_lost_race_leaves_no_other_limit_charged() -> None:
    """What was taken of the first limit goes back, and the second counts its own calls alone."""
    storage = ContestedCounters()
    engine = LimitsEngine(storage)
    shadow = Charge(fixed(9, "shadow"), A.replace("a:{", "s:{"), 1)
    storage.rivals = {":b:": 3}
    decision = engine.admit([Charge(fixed(5), A, 2), shadow, Charge(fixed(3), B, 1)])
    assert [verdict.allowed for verdict in decision.verdicts] == [True, True, False]
    assert not decision.admitted
    assert (storage.counts[A], storage.counts[B]) == (0, 3)
    assert shadow.key not in storage.counts
    assert engine.admit([Charge(fixed(5), A, 5)]).admitted


def test_what_goes_back_credits_no_other_window() -> None:
    """The window has ended, and its counter with it: the next one begins at 0."""
    storage = ContestedCounters()

    class Ending(dict[str, int]):
        def __setitem__(self, key: str, count: int) -> None:
            if count == 4:  # the loser is counted; the other's window ends
                self.pop(A)
            super().__setitem__(key, count)

    storage.counts = Ending()
    storage.rivals = {":b:": 3}
    engine = LimitsEngine(storage)
    assert not engine.admit([Charge(fixed(5), A, 2), Charge(fixed(3), B, 1)]).admitted
    assert storage.counts[A] == 0


def test_a_shadow_that_loses_a_race_denies_nothing() -> None:
    """It counts what it lost to, and nothing else."""
    storage = ContestedCounters()
    storage.rivals = {":b:": 3}
    shadow = Charge(fixed(3, "shadow"), B, 1)
    decision = LimitsEngine(storage).admit([Charge(fixed(5), A, 2), shadow])
    assert decision.admitted
    assert (storage.counts[A], storage.counts[B]) == (2, 3)


def test_equal_charges_are_one_there_too() -> None:
    """Two of 2 on a bucket that has 3 left are 4, and deny."""
    storage = Counters()
    engine = LimitsEngine(storage)
    charge = Charge(fixed(3), A, 2)
    assert not engine.admit([charge, charge]).admitted
    assert storage.counts == {}
    assert engine.admit([charge, Charge(fixed(3), A, 1)]).admitted
    assert storage.counts == {A: 3}


def test_what_cannot_be_given_back_is_taken_last() -> None:
    """A moving window has no operation that gives back: a fixed one beside it is decided first."""

    class Moving(ContestedCounters):
        STORAGE_SCHEME = ("moving",)
        entries = 0

        def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
            self.entries += amount
            return True

        def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
            return 1_800_000_000.0, self.entries

    storage = Moving()
    storage.rivals = {":b:": 3}
    moving = limit.Limit(5, 60_000_000, "sliding-window")
    charges = [Charge(moving, ":sw:60:scope:a:{someone}", 2), Charge(fixed(3), B, 1)]
    assert not LimitsEngine(storage).admit(charges).admitted
    assert storage.entries == 0


@pytest.fixture
def memcached() -> Iterator[MemcachedStorage]:
    """A Memcached of our own, where it is installed with a client."""
    pytest.importorskip("pymemcache")
    binary = shutil.which("memcached")
    if binary is None:
        pytest.skip("memcached is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "-p", str(port), "-l", "127.0.0.1", "-u", "daemon"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            storage = MemcachedStorage(f"memcached://127.0.0.1:{port}")
            eventually(storage.check)
            yield storage
        finally:
            process.kill()


def test_memcached_gives_back_by_decrements(memcached: MemcachedStorage) -> None:
    """It refuses a negative increment, and a decrement stops at 0 and makes no counter."""
    engine = LimitsEngine(memcached)
    first, second = Charge(fixed(5), "k:fw:60:scope:a:{one}", 2), Charge(fixed(3), "b", 1)
    assert engine.admit([first]).admitted
    engine._give_back(first)
    engine._give_back(second)
    assert (memcached.get(first.key), memcached.get("b")) == (0, 0)
    assert memcached.storage.get("b") is None


def test_a_foreign_storage_serves_the_fixed_window(make: Maker, clock: Clock) -> None:
    """With headers, and all the rest of a request's way."""
    app, limiter = make(storage_uri="counters://")
    app.get("/")(limiter.limit("2/minute")(lambda: "ok"))
    client = app.test_client()
    response = client.get("/")
    assert response.headers["RateLimit"] == '"2-per-60s";r=1;t=60'
    assert statuses(client, times=2) == [200, 429]
    assert client.get("/").headers["Retry-After"] == "60"


def test_an_amount_of_zero_denies_without_a_wait_there_too(make: Maker, clock: Clock) -> None:
    """Nothing is counted."""
    app, limiter = make(storage_uri="counters://")
    app.get("/")(limiter.limit("0/minute")(lambda: "ok"))
    refusal = app.test_client().get("/")
    assert (refusal.status_code, refusal.headers["RateLimit"]) == (429, '"0-per-60s";r=0')
    assert "Retry-After" not in refusal.headers


def test_a_denied_request_charges_nothing_there_either(make: Maker, clock: Clock) -> None:
    """All limits are looked at before any is taken."""
    app, limiter = make(storage_uri="counters://", application_limits=["100/hour"])
    app.get("/")(limiter.limit("2/minute;50/hour")(lambda: "ok"))
    assert statuses(app, times=20).count(200) == 2
    storage = limiter.storage
    assert isinstance(storage, Counters)
    assert set(storage.counts.values()) == {2}


@pytest.mark.parametrize("strategy", ["token-bucket", "sliding-window"])
def test_what_the_storage_cannot_do_is_a_clear_error(strategy: str) -> None:
    """It names the limit, the storage and what that can do."""
    app = Flask("example")
    app.testing = True
    limiter = Limiter(asked_key, app=app, storage_uri="counters://")

    def declare_and_ask() -> None:  # what is known at the start is refused there
        app.get("/")(limiter.limit("2/minute", strategy=strategy)(lambda: "ok"))
        app.test_client().get("/")

    with pytest.raises((ConfigurationError, NotImplementedError), match=r"Counters|of type"):
        declare_and_ask()


@pytest.mark.parametrize("by", ["decorator", "blueprint", "policy", "default"])
def test_what_is_known_at_the_start_is_refused_there(by: str) -> None:
    """Before any request, however the limit was written down; nothing counts silently."""
    app = Flask("example")
    app.config["RATELIMIT_STORAGE_URI"] = "counters://"
    app.config["RATELIMIT_IN_MEMORY_FALLBACK_ENABLED"] = True
    bucket = Limit("2/minute", strategy="token-bucket")
    limiter = Limiter(asked_key, default_limits=[bucket] if by == "default" else None)
    part = Blueprint("part", __name__)
    if by == "decorator":
        app.get("/")(limiter.limit("2/minute", strategy="token-bucket")(lambda: "ok"))
    elif by == "blueprint":
        limiter.limit("2/minute", strategy="token-bucket")(part)
    elif by == "policy":
        limits = [{"limit": "2/minute", "strategy": "token-bucket"}]
        app.config["RATELIMIT_BLUEPRINTS"] = {"part": limits}
    app.register_blueprint(part)

    def start() -> None:
        limiter.init_app(app)
        limiter.check_policy(app)

    with pytest.raises(ConfigurationError, match="'token-bucket' in requests needs Redis"):
        start()


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("an anchor", {"anchor": "day"}),
        ("reserve", {"reserve": True, "deduct_when": lambda _: False}),
        ("keep", {"keep": {"paying": 1}, "priority": asked_key}),
    ],
)
def test_an_option_of_ours_needs_our_engines(option: str, options: dict[str, Any]) -> None:
    """No stock strategy knows a calendar, refunds or classes."""
    app, limiter = Flask("example"), Limiter(asked_key, storage_uri="counters://")
    app.get("/")(limiter.limit("2/day", **options)(lambda: "ok"))
    with pytest.raises(ConfigurationError, match=f"with {option} needs Redis"):
        limiter.init_app(app)


def test_deduct_when_looks_first_and_takes_at_the_end(make: Maker, clock: Clock) -> None:
    """Where nothing can be given back, as in Flask-Limiter."""
    app, limiter = make(storage_uri="counters://")
    limit = limiter.limit("2/minute", deduct_when=lambda response: response.status_code != 200)

    @app.get("/<int:status>")
    @limit
    @limiter.limit("9/hour")
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    client = app.test_client()
    assert statuses(client, "/200", 3) + statuses(client, "/400", 2) == [200] * 3 + [400] * 2
    assert statuses(client, "/400") == [429]
    assert isinstance(limiter.storage, Counters)
    assert sorted(limiter.storage.counts.values()) == [2, 5]


def test_equal_limits_that_are_deducted_late_are_one_bucket(make: Maker, clock: Clock) -> None:
    """It is charged for each of them, the late one by what the response says."""
    app, limiter = make(storage_uri="counters://")

    @app.get("/<int:status>")
    @limiter.limit("9/minute")
    @limiter.limit("9/minute", deduct_when=lambda response: response.status_code == 200)
    @limiter.limit("9/minute", deduct_when=lambda _: True, override_defaults=False)
    def view(status: int) -> tuple[str, int]:
        return "answered", status

    client = app.test_client()
    assert statuses(client, "/200") + statuses(client, "/400") == [200, 400]
    assert isinstance(limiter.storage, Counters)
    assert list(limiter.storage.counts.values()) == [3 + 2]


def test_meta_limits_ban_there_too(make: Maker, clock: Clock) -> None:
    """After so many denials everything is denied."""
    app, limiter = make(storage_uri="counters://", meta_limits=[MetaLimit("2/hour")])
    app.get("/")(limiter.limit("1/minute")(lambda: "ok"))
    app.get("/other", endpoint="other")(lambda: "other")
    assert statuses(app, times=2) == [200, 429]
    assert statuses(app, "/other") == [200]
    assert statuses(app) + statuses(app, "/other") == [429, 429]


def test_the_commands_and_reset_reach_its_buckets(make: Maker, clock: Clock) -> None:
    """`clear` forgets one caller, `reset` all."""
    app, limiter = make(storage_uri="counters://")
    app.get("/", endpoint="root")(limiter.limit("1/minute")(lambda: "ok"))
    for forget in (
        lambda: limiter.limiter.clear(parse("1/minute"), "someone", "root"),
        limiter.reset,
    ):
        assert statuses(app, times=2) == [200, 429]
        forget()
    assert statuses(app) == [200]
