"""Storages that cannot run our scripts."""

from __future__ import annotations

import pytest
from flask import Blueprint, Flask
from limits import parse
from limits.storage import Storage

from ratelimit_ext import ConfigurationError, Limit, Limiter, MetaLimit
from ratelimit_ext.web.storages import engine_for
from tests.web.calls import statuses
from tests.web.conftest import Clock, asked_key


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


def test_a_foreign_storage_serves_the_fixed_window(clock: Clock) -> None:
    """With headers, and all the rest of a request's way."""
    app = Flask("example")
    limiter = Limiter(asked_key, app=app, storage_uri="counters://", headers_enabled=True)
    app.get("/")(limiter.limit("2/minute")(lambda: "ok"))
    client = app.test_client()
    response = client.get("/")
    assert response.headers["RateLimit"] == '"2-per-60s";r=1;t=60'
    assert statuses(client, times=2) == [200, 429]
    assert client.get("/").headers["Retry-After"] == "60"


def test_a_denied_request_charges_nothing_there_either(clock: Clock) -> None:
    """All limits are looked at before any is taken."""
    app = Flask("example")
    limiter = Limiter(
        asked_key, app=app, storage_uri="counters://", application_limits=["100/hour"]
    )
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
    app.get("/")(limiter.limit("2/minute", strategy=strategy)(lambda: "ok"))
    with pytest.raises((ConfigurationError, NotImplementedError), match=r"Counters|of type"):
        app.test_client().get("/")


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


def test_an_anchored_window_needs_our_engines() -> None:
    """A calendar is nothing that a stock strategy knows."""
    app = Flask("example")
    app.testing = True
    limiter = Limiter(asked_key, app=app, storage_uri="counters://")
    app.get("/")(limiter.limit("2/day", anchor="day")(lambda: "ok"))
    with pytest.raises(ConfigurationError, match="with an anchor needs Redis"):
        app.test_client().get("/")


def test_deduct_when_looks_first_and_takes_at_the_end(clock: Clock) -> None:
    """Where nothing can be given back, as in Flask-Limiter."""
    app = Flask("example")
    limiter = Limiter(asked_key, app=app, storage_uri="counters://", headers_enabled=True)
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


def test_meta_limits_ban_there_too(clock: Clock) -> None:
    """After so many denials everything is denied."""
    app = Flask("example")
    limiter = Limiter(
        asked_key, app=app, storage_uri="counters://", meta_limits=[MetaLimit("2/hour")]
    )
    app.get("/")(limiter.limit("1/minute")(lambda: "ok"))
    app.get("/other", endpoint="other")(lambda: "other")
    assert statuses(app, times=2) == [200, 429]
    assert statuses(app, "/other") == [200]
    assert statuses(app) + statuses(app, "/other") == [429, 429]


def test_the_commands_and_reset_reach_its_buckets(clock: Clock) -> None:
    """`clear` forgets one caller, `reset` all."""
    app = Flask("example")
    limiter = Limiter(asked_key, app=app, storage_uri="counters://")
    app.get("/", endpoint="root")(limiter.limit("1/minute")(lambda: "ok"))
    for forget in (
        lambda: limiter.limiter.clear(parse("1/minute"), "someone", "root"),
        limiter.reset,
    ):
        assert statuses(app, times=2) == [200, 429]
        forget()
    assert statuses(app) == [200]
    assert engine_for(limiter.storage).reachable()
