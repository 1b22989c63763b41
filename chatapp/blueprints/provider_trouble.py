"""What is told of a provider that gave no answer: its cause, never its words."""

from __future__ import annotations

from typing import Final

from chatapp.blueprints.trouble import Trouble, whole_seconds
from chatapp.providers import ErrorKind, ProviderError

# How long to wait for a provider that is overloaded and does not say for how long, in seconds.
DEFAULT_WAIT_S: Final = 5

CASES: Final[dict[ErrorKind, tuple[int, str, str]]] = {
    "rate_limited": (503, "server_is_overloaded", "has no room for more requests at the moment"),
    "overloaded": (503, "server_is_overloaded", "is overloaded at the moment"),
    "timeout": (504, "provider_timeout", "gave no answer in time"),
    "auth": (502, "provider_refused", "does not accept this server's key"),
    "quota": (502, "provider_refused", "refuses because this server's credit there is used up"),
    "unknown_model": (422, "unknown_model", "does not offer this model to this server"),
    "bad_request": (502, "provider_rejected", "did not take this request"),
    "too_large": (400, "request_too_large", "never takes a request of this size from this server"),
    "unavailable": (502, "provider_unavailable", "could not be reached or failed"),
    "malformed": (502, "provider_unavailable", "sent an answer that cannot be read"),
}
REMEDIES: Final = {
    "server_is_overloaded": "try again in {wait} s",
    "provider_timeout": "try again, with a shorter message if it was long",
    "provider_refused": "tell the operator; trying again will not help",
    "unknown_model": "name another one",
    "request_too_large": "make it smaller, or name a model of another provider",
    "provider_rejected": "change the message or name another model",
    "provider_unavailable": "try again in a moment, or name a model of another provider",
}


def told(error: ProviderError) -> Trouble:
    """As /chat tells it."""
    return _told(error, CASES[error.kind])


def told_to_its_own(error: ProviderError) -> Trouble:
    """As a client of that provider's own SDK is told: by the statuses that it knows.

    A provider that fails inside is worth a retry like one that has too much to do; a key that is
    not the client's is not its 401, and no retry mends it.
    """
    status, code, trouble = CASES[error.kind]
    if error.kind == "unavailable" and (error.status or 0) >= 500:
        status, code = 503, "server_is_overloaded"
    elif error.kind == "bad_request":
        status = error.status or 400
    elif error.kind == "unknown_model":
        status = 404
    return _told(error, (status, code, trouble))


def _told(error: ProviderError, case: tuple[int, str, str]) -> Trouble:
    status, code, trouble = case
    wait_s = whole_seconds(error.retry_after_s or DEFAULT_WAIT_S)
    remedy = REMEDIES[code].format(wait=wait_s)
    return Trouble(
        status=status,
        code=code,
        sentence=f"The provider {error.provider} {trouble}; {remedy}.",
        retry_after_s=wait_s if status == 503 else None,
        # A late answer may be billed once more; what we have retried need not be retried for us.
        hopeless=error.was_retried or error.kind in {"auth", "quota", "timeout"},
        request_id=error.request_id,
    )
