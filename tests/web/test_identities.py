"""Who pays."""

from types import SimpleNamespace
from typing import Any

import pytest
import redis
from flask import Flask, g, request
from werkzeug.local import LocalProxy
from werkzeug.middleware.proxy_fix import ProxyFix

from ratelimit_ext import DecisionEvent, client_ip
from ratelimit_ext.web.identities import BUILT_IN
from tests.web.calls import statuses
from tests.web.conftest import Maker


@pytest.fixture
def app() -> Flask:
    return Flask("example")


@pytest.mark.parametrize(
    ("remote", "identity"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("192.0.2.7:50123", "192.0.2.7"),
        (" 192.0.2.7 ", "192.0.2.7"),
        ("[2001:db8:1:2::9]:50123", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("[::ffff:192.0.2.7]:50123", "192.0.2.7"),
        ("[fe80::1%eth0]:50123", "fe80::/64"),
        (None, "127.0.0.1"),
    ],
)
def test_an_ipv6_client_is_its_network(app: Flask, remote: str | None, identity: str) -> None:
    """One subscriber has a whole /64; an IPv4-mapped address is the IPv4 address."""
    environ: dict[str, Any] = {} if remote is None else {"REMOTE_ADDR": remote}
    with app.test_request_context(environ_overrides=environ):
        assert client_ip() == identity


def test_a_forwarded_address_is_ignored_without_trusted_proxies(app: Flask) -> None:
    """A client could send any address."""
    headers = {"X-Forwarded-For": "198.51.100.1"}
    environ = {"REMOTE_ADDR": "192.0.2.7"}
    with app.test_request_context(headers=headers, environ_overrides=environ):
        assert client_ip() == "192.0.2.7"


def test_there_is_no_client_outside_of_a_request() -> None:
    """`Limiter(client_ip())` calls what it should pass on."""
    with pytest.raises(
        RuntimeError, match=r"client_ip: there is no current request.*\(client_ip\)"
    ):
        client_ip()


@pytest.mark.parametrize(
    ("forwarded", "identity"),
    [
        ("198.51.100.1:50123", "198.51.100.1"),
        ("[2001:db8:1:2::9]:50123", "2001:db8:1:2::/64"),
        ("unknown", "192.0.2.7"),
        ("198.51.100.1:port", "192.0.2.7"),
        ("198.51.100.1.9", "192.0.2.7"),
        ("_hidden:7", "192.0.2.7"),
    ],
)
def test_a_forwarded_address_loses_its_port(app: Flask, forwarded: str, identity: str) -> None:
    """Some proxies append the client's port. For an invalid address, the proxy's is used."""
    found = []

    @app.get("/")
    def root() -> str:
        found.append(client_ip())
        return "ok"

    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)  # type: ignore[method-assign]
    headers = {"X-Forwarded-For": forwarded}
    app.test_client().get("/", headers=headers, environ_overrides={"REMOTE_ADDR": "192.0.2.7"})
    assert found == [identity]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sk-secret"},
        {"Authorization": "bearer  sk-secret "},
        {"X-API-Key": "sk-secret"},
        {"Authorization": "Basic abc", "X-API-Key": "sk-secret"},
    ],
    ids=str,
)
def test_an_api_key_is_identified_by_a_digest(app: Flask, headers: dict[str, str]) -> None:
    """The same in every header, and without the key itself."""
    with app.test_request_context(headers=headers):
        identity = BUILT_IN["api_key"]()
    assert "secret" not in identity
    with app.test_request_context(headers={"X-API-Key": "sk-secret"}):
        assert BUILT_IN["api_key"]() == identity
    with app.test_request_context(headers={"X-API-Key": "sk-other"}):
        assert BUILT_IN["api_key"]() != identity


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic dTpw"}, {"X-API-Key": ""}],
    ids=str,
)
def test_without_an_api_key_the_address_is_used(app: Flask, headers: dict[str, str]) -> None:
    """A request cannot get a bucket of its own by leaving the key out."""
    with app.test_request_context(headers=headers, environ_overrides={"REMOTE_ADDR": "192.0.2.7"}):
        assert BUILT_IN["api_key"]() == "192.0.2.7"


def test_the_storage_does_not_contain_api_keys(
    make: Maker, redis_uri: str, redis_client: redis.Redis
) -> None:
    """Neither in a name nor in a value."""
    app, limiter = make(storage_uri=redis_uri, application_limits=["9/minute"])
    app.get("/")(limiter.limit("9/minute", key_func=limiter.identities["api_key"])(lambda: "ok"))
    secret = "sk-live-0123456789"
    assert statuses(app, headers={"Authorization": f"Bearer {secret}"}) == [200]
    stored = redis_client.keys()
    assert len(stored) == 2
    for key in stored:
        assert secret.encode() not in key + (redis_client.dump(key) or b"")


def test_a_long_identity_has_a_short_bucket_name(
    make: Maker, redis_uri: str, redis_client: redis.Redis
) -> None:
    """Two identities of 10 kB that differ have different buckets."""
    app, limiter = make(storage_uri=redis_uri)
    app.get("/")(limiter.limit("1/minute")(lambda: "ok"))
    for key in ("x" * 10_000, "x" * 9_999 + "y", "ü\r\n\0 :{}", "*"):
        header = {"X-Key": key.encode("unicode_escape").decode()}
        assert statuses(app, headers=header, times=2) == [200, 429]
    assert all(len(key) < 200 for key in redis_client.scan_iter())


@pytest.mark.parametrize(
    ("known", "identity"),
    [
        ({"user_id": 7}, "user-7"),
        ({"user_id": 0}, "user-0"),
        ({"user": "ada"}, "user-ada"),
        ({"user": SimpleNamespace(id=7, name="Ada")}, "user-7"),
        ({"user_id": 7, "user": "ada"}, "user-7"),
        ({"user": None}, "192.0.2.7"),
        ({}, "192.0.2.7"),
    ],
    ids=str,
)
def test_a_user_is_identified_by_flask_g(app: Flask, known: dict[str, Any], identity: str) -> None:
    """By `g.user_id` or `g.user`; without either, by the address."""
    with app.test_request_context(environ_overrides={"REMOTE_ADDR": "192.0.2.7"}):
        for name, value in known.items():
            setattr(g, name, value)
        assert BUILT_IN["user"]() == identity


@pytest.mark.parametrize(
    ("options", "identity"),
    [
        ({"json": {"model": "gpt-x"}}, "gpt-x"),
        ({"json": {"model": ""}}, "-"),
        ({"json": {"model": ["gpt-x"]}}, "-"),
        ({"json": ["gpt-x"]}, "-"),
        ({"data": "{", "content_type": "application/json"}, "-"),
        ({}, "-"),
    ],
    ids=str,
)
def test_a_model_is_read_from_the_body(app: Flask, options: dict[str, Any], identity: str) -> None:
    """A missing or invalid body is not an error."""
    with app.test_request_context(method="POST", **options):
        assert BUILT_IN["model"]() == identity


def test_global_is_one_identity() -> None:
    """The same for every request."""
    assert BUILT_IN["global"]() == "*"


def test_an_identity_that_a_proxy_stands_for_is_kept_as_a_string(make: Maker) -> None:
    """Events, denials and charges outlast the request, and the proxy ends with it."""
    who = LocalProxy(lambda: request.headers["X-Key"])
    app, limiter = make(key_func=lambda: who)
    app.get("/")(limiter.limit("1/minute")(lambda: "ok"))
    events: list[Any] = []
    limiter.listen(events.append)
    for key in ("ada", "bob"):
        assert statuses(app, headers={"X-Key": key}, times=2) == [200, 429]
    decided = [event for event in events if isinstance(event, DecisionEvent)]
    names = [name for event in decided for _, name, _ in event.charges]
    assert names == ["ada", "ada", "bob", "bob"]
