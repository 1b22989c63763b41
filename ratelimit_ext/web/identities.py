"""Who pays: the identities that a policy can name.

Built in are ``ip``, ``api_key``, ``user``, ``model`` and ``global``; an application replaces one or
adds its own with ``@limiter.identity("name")``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import flask

Identity = Callable[[], str]

#: An address as proxies write it: [IPv6] or IPv4, both with or without a port, or a bare IPv6. A
#: zone (``%eth0``) belongs to this machine's link, and not to the client.
WITHOUT_PORT: Final = re.compile(
    r"""\[ ([0-9a-fA-F:.]+) (?:%[^]]*)? ] (?: : \d+)?
    | ([0-9.]+) (?: : \d+)?
    | ([0-9a-fA-F:.]+) (?:%.*)?""",
    re.VERBOSE,
)


def client_ip() -> str:
    """The client's address; an IPv6 client is its /64, since one subscriber has all of that.

    The address is the peer's. Behind proxies, let Werkzeug's ``ProxyFix`` take it from
    ``X-Forwarded-For`` over as many hops as are yours. If what a proxy says is no address, the
    proxy itself is counted.
    """
    remote = flask.request.remote_addr or "127.0.0.1"
    forwarded_by = flask.request.environ.get("werkzeug.proxy_fix.orig")
    if forwarded_by and _counted(remote) is None:
        remote = forwarded_by["REMOTE_ADDR"] or "127.0.0.1"
    return address_identity(remote)


def address_identity(remote: str) -> str:
    """What a client of that address is counted as; what is no IP address is counted as it is.

    Some proxies append the client's port, which is another one for each connection.

    >>> address_identity("2001:db8::7"), address_identity("::ffff:10.0.0.1")
    ('2001:db8::/64', '10.0.0.1')
    >>> address_identity("10.0.0.1:50123"), address_identity("[2001:db8::7]:50123")
    ('10.0.0.1', '2001:db8::/64')
    """
    return _counted(remote) or remote


@lru_cache(maxsize=8192)
def _counted(remote: str) -> str | None:
    host = WITHOUT_PORT.fullmatch(remote.strip())
    if host is None:
        return None
    try:
        address = ip_address(host[1] or host[2] or host[3])
    except ValueError:
        return None
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def api_key() -> str:
    """A digest of the bearer token or ``X-API-Key``; without one, the client's IP.

    The key itself must not stand in the storage, in a log or a metric.
    """
    header = flask.request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    key = key or flask.request.headers.get("X-API-Key", "")
    if not key:
        return client_ip()
    return key_identity(key)


def spellings(key: str) -> tuple[str, ...]:
    """What a person may mean by a key, as key functions return it: an address, the name of a user
    with or without ``user:``, or an API key.

    >>> spellings("user:ada"), spellings("10.0.0.7")[:3]
    (('user:ada', 'user-ada'), ('10.0.0.7', 'user:10.0.0.7', 'user-10.0.0.7'))
    """
    kind, colon, name = key.partition(":")
    if colon and kind == "user":
        return key, f"user-{name}"
    if colon and kind == "ip":
        return key, f"ip:{address_identity(name)}", address_identity(name)
    address = address_identity(key)
    others = (address, f"ip:{address}", key_identity(key))
    return tuple(dict.fromkeys((key, f"user:{key}", f"user-{key}", *others)))


def key_identity(key: str) -> str:
    """What an API key is counted as."""
    return "key-" + blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def user() -> str:
    """``flask.g.user_id`` or what names ``flask.g.user``; without either, the client's IP."""
    known: Any = flask.g.get("user_id")
    if known is None:
        present: Any = flask.g.get("user")
        known = getattr(present, "id", present)
    return client_ip() if known is None else f"user-{known}"


def model() -> str:
    """The ``model`` of a JSON body; ``-`` where there is none."""
    body = flask.request.get_json(silent=True)
    named = body.get("model") if isinstance(body, dict) else None
    return named if isinstance(named, str) and named else "-"


def everyone() -> str:
    """One bucket for all."""
    return "*"


BUILT_IN: Mapping[str, Identity] = {
    "ip": client_ip,
    "api_key": api_key,
    "user": user,
    "model": model,
    "global": everyone,
}
