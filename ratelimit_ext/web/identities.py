"""The identities that a policy can name: ``ip``, ``api_key``, ``user``, ``model`` and ``global``.

An application replaces one or adds its own with ``@limiter.identity("name")``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import flask

from ratelimit_ext.core.key import Identity, joined
from ratelimit_ext.web.mcp import mcp_tool

#: Longer text is no address, and is not cached.
LONGEST_ADDRESS: Final = 256

#: An address as proxies write it: [IPv6] or IPv4, both with or without a port, or a bare IPv6. A
#: zone (``%eth0``) is local to this machine and not part of the client's address.
_ADDRESS: Final = re.compile(
    r"""\[ ([0-9a-fA-F:.]+) (?:%[^]]*)? ] (?: : \d+)?
    | ([0-9.]+) (?: : \d+)?
    | ([0-9a-fA-F:.]+) (?:%.*)?""",
    re.VERBOSE,
)


def client_ip() -> str:
    """Return the client's IPv4 address or IPv6 /64 network, which one subscriber is assigned.

    Behind proxies, apply Werkzeug's ``ProxyFix`` for the number of your proxies. If the forwarded
    address is invalid, the proxy's own is used. Raises ``RuntimeError`` outside of a request.
    """
    try:
        remote = flask.request.remote_addr or "127.0.0.1"
    except RuntimeError:
        raise RuntimeError(
            "client_ip: there is no current request, so no client. Pass the function itself, as in "
            "Limiter(client_ip), or call it in a view."
        ) from None
    forwarded_by = flask.request.environ.get("werkzeug.proxy_fix.orig")
    if forwarded_by and _network(remote) is None:
        remote = forwarded_by["REMOTE_ADDR"] or "127.0.0.1"
    return address_identity(remote)


def address_identity(remote: str) -> str:
    """Return the identity of a client with this address, without its port. Text that is no IP
    address is returned unchanged.

    >>> address_identity("2001:db8::7"), address_identity("::ffff:10.0.0.1")
    ('2001:db8::/64', '10.0.0.1')
    >>> address_identity("10.0.0.1:50123"), address_identity("[2001:db8::7]:50123")
    ('10.0.0.1', '2001:db8::/64')
    """
    return _network(remote) or remote


def _network(remote: str) -> str | None:
    return _parsed(remote) if len(remote) <= LONGEST_ADDRESS else None


@lru_cache(maxsize=8192)
def _parsed(remote: str) -> str | None:
    host = _ADDRESS.fullmatch(remote.strip())
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
    """Return a digest of the bearer token or ``X-API-Key``, so that no storage, log or metric
    contains the key; without a key, the client's IP."""
    header = flask.request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else ""
    key = key or flask.request.headers.get("X-API-Key", "")
    return key_identity(key) if key else client_ip()


def key_identity(key: str) -> str:
    return "key-" + blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def meant(function: Identity | None, text: str) -> str:
    """Return the identity that an operator means by the text, in limits of this identity function;
    empty if it cannot be one. A function of the application's takes the text as it is.

    >>> meant(user, "ada"), meant(client_ip, "ip:10.0.0.7"), meant(client_ip, "ada")
    ('user-ada', '10.0.0.7', '')
    """
    address = _network(text.removeprefix("ip:"))
    if function is client_ip:
        return address or ""
    if function is everyone:
        return text if text == everyone() else ""
    if function is user:
        return address or f"user-{text.removeprefix('user:').removeprefix('user-')}"
    if function is api_key:
        return address or (text if text.startswith("key-") else key_identity(text))
    return text


@dataclass(frozen=True, slots=True)
class JoinedIdentity:
    """Several identities, counted together: names and functions. Empty if one of them is."""

    parts: tuple[str | Identity, ...]
    #: The application's, by their names.
    named: Mapping[str, Identity] = field(compare=False, repr=False)

    @property
    def functions(self) -> tuple[Identity, ...]:
        return tuple([self.named[e] if isinstance(e, str) else e for e in self.parts])

    def __call__(self) -> str:
        values: list[Any] = [function() for function in self.functions]
        texts = ["" if value is None else str(value) for value in values]
        return joined(texts) if all(texts) else ""


def kinds_of(
    identity: Identity, named: Mapping[str, Identity], *, form: str = "{}()"
) -> tuple[str, ...]:
    """Return the names of the identities that are counted together, or of their functions. A
    function without a name here that is called like another identity is written in ``form``."""

    def name(part: str | Identity) -> str:
        names = (name for name, function in named.items() if name == part or function is part)
        of_function = str(getattr(part, "__name__", part))
        return next(names, form.format(of_function) if of_function in named else of_function)

    return tuple(map(name, identity.parts if isinstance(identity, JoinedIdentity) else (identity,)))


def user() -> str:
    """``flask.g.user_id``, or ``flask.g.user`` or its ``id``; without either, the client's IP."""
    user_id: Any = flask.g.get("user_id")
    if user_id is None:
        account: Any = flask.g.get("user")
        user_id = getattr(account, "id", account)
    return client_ip() if user_id is None else f"user-{user_id}"


def model() -> str:
    """Return the ``model`` of a JSON body; ``-`` without one."""
    body = flask.request.get_json(silent=True)
    name = body.get("model") if isinstance(body, dict) else None
    return name if isinstance(name, str) and name else "-"


def everyone() -> str:
    """One bucket for all."""
    return "*"


BUILT_IN: Mapping[str, Identity] = {
    "ip": client_ip,
    "api_key": api_key,
    "user": user,
    "model": model,
    "mcp_tool": mcp_tool,
    "global": everyone,
}
#: Those that many callers have in common.
COMMON: Final = frozenset([model, mcp_tool, everyone])
