"""Which host names this server answers to.

A page of another site can let its own name resolve to 127.0.0.1 (DNS rebinding), and a browser then
takes this server for that site: without API keys the page could spend money. Such a request bears
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
#: Probes name an address that nobody knows in advance, and these blueprints spend nothing.
EXEMPT_BLUEPRINTS: Final = frozenset({"health"})
SHOWN_CHARACTERS: Final = 100
_NAME_AND_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def install(app: Flask, authenticator: Authenticator, trusted: Collection[str]) -> None:
    """Refuse requests for other host names, before anything else is looked at.

    ``trusted`` are names without a port; one that begins with a dot stands for the name behind it
    and all names below that.
    """

    @app.before_request
    def check_host() -> None:
        asked = request.environ.get("HTTP_HOST")
        if asked is None or request.blueprint in EXEMPT_BLUEPRINTS:  # browsers always send a Host
            return
        allowed = trusted or _default(authenticator)
        if ANY not in allowed and not is_trusted(asked, allowed):
            raise ApiError(
                400,
                "untrusted_host",
                f"This server does not answer to the host name {asked[:SHOWN_CHARACTERS]!a}; use "
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
        return (ANY,)  # nobody is let in meanwhile
