"""Refuses requests for unknown host names.

A page of another site can make its own name resolve to 127.0.0.1 (DNS rebinding). A browser then
takes this server for that site, and without API keys the page could spend money. Such a request has
the other site's name as its Host.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from flask import Flask, request

from chatapp.accounts.authentication import AccountsUnavailableError, Authenticator
from chatapp.web.errors import ApiError

SETTING: Final = "CHATAPP_TRUSTED_HOSTS"
#: Any host name is trusted.
ANY: Final = "*"
#: Trusted if the setting is empty and there are no API keys.
LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
#: Probes use addresses that are unknown in advance, and these blueprints spend nothing.
EXEMPT_BLUEPRINTS: Final = frozenset({"health"})
SHOWN_CHARACTERS: Final = 100
_NAME_AND_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def install(app: Flask, authenticator: Authenticator, trusted: Collection[str]) -> None:
    """Refuse requests for other host names, before any other check.

    ``trusted`` are names without a port; a leading dot includes all subdomains.
    """

    @app.before_request
    def check_host() -> None:
        host = request.environ.get("HTTP_HOST")
        if host is None or request.blueprint in EXEMPT_BLUEPRINTS:  # browsers always send a Host
            return
        allowed = trusted or _default(authenticator)
        if ANY not in allowed and not is_trusted(host, allowed):
            raise ApiError(
                400,
                "untrusted_host",
                f"This server does not answer to the host name {host[:SHOWN_CHARACTERS]!a}; use "
                f"another one, or ask its operator to allow it ({SETTING}).",
            )


def is_trusted(host: str, trusted: Collection[str]) -> bool:
    """Whether a Host, with or without a port, is one of the names.

    >>> is_trusted("LOCALHOST:8000", LOOPBACK), is_trusted("[::1]:8000", LOOPBACK)
    (True, True)
    >>> is_trusted("chat.example.com", [".example.com"]), is_trusted("localhost.evil", LOOPBACK)
    (True, False)
    """
    match = _NAME_AND_PORT.fullmatch(host.lower())
    name = match[1].removesuffix(".") if match else ""
    return any(
        f".{name}".endswith(each) if each.startswith(".") else name == each for each in trusted
    )


def _default(authenticator: Authenticator) -> Collection[str]:
    try:
        return (ANY,) if authenticator.required else LOOPBACK
    except AccountsUnavailableError:
        return (ANY,)  # no request is authenticated meanwhile
