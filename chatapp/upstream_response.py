"""What of a provider's response can be said on, whatever its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

JSON: Final = "application/json"
REFUSAL: Final = "chatapp.refusal"


def no_cookies() -> CookieJar:
    """A jar that stores nothing: one client serves every caller, and a cookie that came with one
    caller's answer would go out with the next caller's request."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def passed_headers(response: httpx2.Response, names: Iterable[str]) -> dict[str, str]:
    """Those of these headers that it has, and that can be sent on."""
    found = ((name, response.headers.get(name, "")) for name in names)
    return {name: value for name, value in found if value and _can_be_sent(value)}


def content_type(response: httpx2.Response) -> str:
    """What its body says it is; JSON where that cannot be sent on."""
    told = response.headers.get("content-type", "")
    return told if told and _can_be_sent(told) else JSON


def remember_refusal(response: httpx2.Response) -> None:
    """For a client's hook: `unread` finds this response by the request of an error."""
    if response.is_error:
        response.request.extensions[REFUSAL] = response


def unread(error: httpx2.HTTPError) -> httpx2.Response | None:
    """The refusal whose body could not be read, of which status and headers are known.

    The SDKs read a refused stream's body outside of their own net.
    """
    try:
        return error.request.extensions.get(REFUSAL)
    except RuntimeError:  # an error that belongs to no request
        return None


def _can_be_sent(value: str) -> bool:
    """A server refuses to send others, and the whole answer with them."""
    return value.isascii() and value.isprintable()
