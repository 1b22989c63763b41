"""What applies to every request, before its blueprint and after its response."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Final

from flask import Flask, Response, request
from flask.globals import request_ctx

from chatapp.accounts.authentication import AccountsUnavailableError, Authenticator
from chatapp.web.errors import (
    ANTHROPIC_REQUEST_ID_HEADER,
    REQUEST_ID_HEADER,
    ApiError,
    current_request_id,
    overloaded,
)
from ratelimit_ext import Limiter

log = logging.getLogger(__name__)

#: Says why the worker does not take a call; see chatapp/server/gunicorn_worker.py.
OVERLOADED: Final = "chatapp.overloaded"
SETTING: Final = "CHATAPP_TRUSTED_HOSTS"
#: Any host name is trusted.
ANY: Final = "*"
#: Trusted if the setting is empty and there are no API keys.
LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
#: Probes use addresses that are unknown in advance, and these blueprints spend nothing.
ANY_HOST_BLUEPRINTS: Final = frozenset({"health"})
SHOWN_CHARACTERS: Final = 100
_NAME_AND_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d*)?")


def install(
    app: Flask, limiter: Limiter, authenticator: Authenticator, trusted_hosts: Collection[str]
) -> None:
    """Check the host and the load, and add headers. Install it before the limiter: hooks after a
    request run in reverse order, and the limiter's may replace the response."""

    @app.before_request
    def check_request() -> None:
        """Refuse unknown host names, and a call if this process has too many in flight.

        A page of another site can make its own name resolve to 127.0.0.1 (DNS rebinding). A browser
        then takes this server for that site, and without API keys the page could spend money. Such
        a request has the other site's name as its Host.
        """
        received = request_ctx.request  # not the proxy, which looks it up for each attribute
        host, allowed = received.environ.get("HTTP_HOST"), trusted_hosts or LOOPBACK
        if (
            host is not None  # browsers always send one
            and received.blueprint not in ANY_HOST_BLUEPRINTS
            and not (ANY in allowed or is_trusted(host, allowed))
            and (trusted_hosts or not needs_keys(authenticator))
        ):
            raise ApiError(
                400,
                "untrusted_host",
                f"The host name {host[:SHOWN_CHARACTERS]!a} is not allowed. Use another one, or "
                f"ask the operator to add it to {SETTING}.",
            )
        if why := received.environ.get(OVERLOADED):
            raise overloaded(why)

    limiter.request_filter(lambda: OVERLOADED in request.environ)

    app.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    """Add a request id for reports to the operator, and a ban on guessing the type: a browser must
    not run a reply as a script. No refusal is kept for others."""
    headers = response.headers
    headers["X-Content-Type-Options"] = "nosniff"
    if REQUEST_ID_HEADER not in headers and ANTHROPIC_REQUEST_ID_HEADER not in headers:
        headers[REQUEST_ID_HEADER] = current_request_id()
    # Shared caches know that Authorization makes an answer private, and not that x-api-key does.
    if response.status_code == 429 or "HTTP_X_API_KEY" in request.environ:
        headers["Cache-Control"] = "no-store"
    if response.status_code == 500:
        log.error("Request %s failed", current_request_id())
    return response


def forbid_caching(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def begins_with(path: str) -> bool:
    """Return whether the request's path begins with exactly these characters. A proxy may read
    others, such as %61, in another way, and take them for another page."""
    sent: str | None = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI")
    return sent is None or sent.startswith(f"{request.root_path}{path}")


def is_trusted(host: str, trusted: Collection[str]) -> bool:
    """Return whether a Host, with or without a port, is one of the names. A leading dot includes
    all subdomains.

    >>> is_trusted("LOCALHOST:8000", LOOPBACK), is_trusted("[::1]:8000", LOOPBACK)
    (True, True)
    >>> is_trusted("chat.example.com", [".example.com"]), is_trusted("localhost.evil", LOOPBACK)
    (True, False)
    """
    match = _NAME_AND_PORT.fullmatch(host.lower())
    name = match[1].removesuffix(".") if match else ""
    return any(name == n or (n.startswith(".") and f".{name}".endswith(n)) for n in trusted)


def needs_keys(authenticator: Authenticator) -> bool:
    """Return whether requests need a key; also if that is unknown: none is authenticated then."""
    try:
        return authenticator.required
    except AccountsUnavailableError:
        return True
