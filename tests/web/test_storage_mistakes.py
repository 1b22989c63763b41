"""What is wrong with a storage and would not heal stops the start; an outage does not."""

import sys
from pathlib import Path
from typing import Any

import click
import limits.errors
import pytest
from flask import Flask

from ratelimit_ext import ConfigurationError, Limiter
from ratelimit_ext.web.storage_mistakes import connect_once
from tests import servers
from tests.certificate import self_signed
from tests.engine.relay import Relay
from tests.web.calls import statuses
from tests.web.conftest import asked_key

#: Nothing listens there.
DOWN = "redis://:swordfish@127.0.0.1:1"
REDISES = (
    *(DOWN, "valkey://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/master"),
    *("redis+cluster://127.0.0.1:1", "valkey+cluster://127.0.0.1:1"),
)


def started(uri: str, options: Any = None, **settings: Any) -> Flask:
    """An application that has called `init_app`."""
    app = Flask("example")
    app.config.update(RATELIMIT_STORAGE_URI=uri, RATELIMIT_STORAGE_OPTIONS=options or {})
    app.config.update({"RATELIMIT_SETTLEMENTS_DIR": "", **settings})
    limiter = Limiter(asked_key, default_limits=["1/minute"])
    app.get("/")(asked_key)
    limiter.init_app(app)
    return app


@pytest.mark.parametrize("uri", REDISES)
def test_an_outage_is_no_mistake(uri: str) -> None:
    """The application starts."""
    assert "limiter" in started(uri).extensions


@pytest.mark.parametrize("uri", REDISES)
def test_an_unknown_option(uri: str) -> None:
    """Is found without a server, with the likely one."""
    with pytest.raises(ConfigurationError, match=r"'sockt_timeout'\. Did you mean 'socket_timeout"):
        started(uri, {"sockt_timeout": 1})


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        (DOWN, {"socket_timeout": "soon"}, "socket_timeout: found 'soon'; allowed: a number of se"),
        (DOWN, {"socket_connect_timeout": -1}, "socket_connect_timeout: found -1; allowed"),
        (
            DOWN,
            "socket_timeout=1",
            r"STORAGE_OPTIONS: found .* \(a string\); allowed: a dictionary",
        ),
        (
            "redis://:swordfish@127.0.0.1:99999",
            {},
            "URI: found the port '99999'; allowed: a number",
        ),
        (
            "redis+cluster://u:swordfish@[::1]:1,h:x",
            {},
            "found the port 'x'; allowed: a number from",
        ),
        ("reddis://:swordfish@host", {}, r"'reddis'; allowed: memory://, .* you mean 'redis'\?$"),
        ("redis://:swordfish#@127.0.0.1:1", {}, "found a password with /, . or #; allowed: %2F, "),
        ("rediss://127.0.0.1:1", {"ssl_ca_certs": "/no.pem"}, "ssl_ca_certs: there is no file"),
        ("redis+sentinel://127.0.0.1:1", {}, "'service_name' not provided"),
    ],
)
def test_a_mistake_that_needs_no_server(uri: str, options: Any, message: str) -> None:
    """Is found while the storage is down; the message has no password."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        started(uri, options)
    assert "swordfish" not in str(caught.value)


def test_a_missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named. Who handles the error of `limits` handles this one."""
    monkeypatch.setattr(sys, "meta_path", [])  # nothing can be imported
    monkeypatch.delitem(sys.modules, "pymemcache", raising=False)
    with pytest.raises(limits.errors.ConfigurationError, match="needs the module 'pymemcache'"):
        started("memcached://127.0.0.1:1")


def test_a_database_that_does_not_exist(redis_server: servers.Server) -> None:
    """Only a server knows how many it has. No connection stays open."""
    with redis_server.client() as client:
        before = client.info("clients")["connected_clients"]
        with pytest.raises(ConfigurationError, match="DB index is out of range"):
            started(f"{redis_server.uri}/4321")
        started(redis_server.uri)
        servers.eventually(lambda: client.info("clients")["connected_clients"] == before)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        (("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "volatile-ttl"), "volatile-ttl"),
        (("--maxmemory", "50mb", "--maxmemory-policy", "noeviction"), None),
        (("--maxmemory-policy", "allkeys-lru"), None),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_deletes_limits(
    caplog: pytest.LogCaptureFixture, options: tuple[str, ...], policy: str | None, protocol: int
) -> None:
    """The start logs a warning if its memory has a bound. A command logs none, and neither does a
    start that may not ask."""
    with servers.standalone(*options) as server:
        started(server.uri, {"protocol": protocol})
        warned = [text for text in caplog.messages if "maxmemory-policy" in text]
        assert [
            f"maxmemory-policy {policy})" in text and "noeviction" in text for text in warned
        ] == ([] if policy is None else [True])
        caplog.clear()
        with click.Context(click.Command("users")):
            started(server.uri)
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-info")
        started(server.uri)
        assert caplog.messages == []


def test_a_storage_of_another_kind_is_not_asked() -> None:
    """The client of MongoDB waits half a minute for a server that is down."""
    asked: list[object] = []

    class Lazy:
        storage = property(asked.append)

    connect_once(Lazy(), {})  # type: ignore[arg-type]
    assert not asked


def test_an_unknown_option_of_memcached() -> None:
    """Is found without a server."""
    pytest.importorskip("pymemcache")
    with pytest.raises(ConfigurationError, match="unknown option 'sockt_timeout'"):
        started("memcached://127.0.0.1:1", {"sockt_timeout": 1})


@pytest.mark.parametrize("uri", [DOWN, "reddis://localhost"])
def test_a_disabled_extension_asks_no_storage(uri: str) -> None:
    """Not even for one that exists, as in Flask-Limiter."""
    app = started(uri, {"sockt_timeout": 1}, RATELIMIT_ENABLED=False)
    assert statuses(app) == [200]


def test_a_certificate_that_is_not_trusted(redis_server: servers.Server, tmp_path: Path) -> None:
    """Is a mistake; with its authority it works."""
    certificate, context = self_signed(tmp_path, "IP:127.0.0.1")
    timeouts = {"socket_timeout": 5, "socket_connect_timeout": 5}
    with Relay(redis_server.port, context) as relay:
        uri = f"rediss://127.0.0.1:{relay.port}"
        with pytest.raises(ConfigurationError, match="certificate is not trusted: self-signed"):
            started(uri, timeouts)
        app = started(uri, {**timeouts, "ssl_ca_certs": str(certificate)})
        assert statuses(app, times=2) == [200, 429]
