"""The error of a provider for a client: its cause, never the provider's text."""

from __future__ import annotations

from typing import Final

from chatapp.providers import ErrorKind, ProviderError
from chatapp.web.error_report import ErrorReport, whole_seconds

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


def report(error: ProviderError) -> ErrorReport:
    """For a client of POST /chat."""
    return _report(error, CASES[error.kind])


def report_for_sdk(error: ProviderError) -> ErrorReport:
    """For a client of that provider's own SDK: with the statuses that the SDK knows.

    An internal failure of the provider is worth a retry like an overload. A rejected key is this
    server's: no 401 for the client, and no retry helps.
    """
    status, code, cause = CASES[error.kind]
    if error.kind == "unavailable" and (error.status or 0) >= 500:
        status, code = 503, "server_is_overloaded"
    elif error.kind == "bad_request":
        status = error.status or 400
    elif error.kind == "unknown_model":
        status = 404
    return _report(error, (status, code, cause))


def _report(error: ProviderError, case: tuple[int, str, str]) -> ErrorReport:
    status, code, cause = case
    wait_s = whole_seconds(error.retry_after_s or DEFAULT_WAIT_S)
    remedy = REMEDIES[code].format(wait=wait_s)
    return ErrorReport(
        status=status,
        code=code,
        message=f"The provider {error.provider} {cause}; {remedy}.",
        retry_after_s=wait_s if status == 503 else None,
        # A timeout may be billed again by a retry; what was retried here needs no further retry.
        is_final=error.was_retried or error.kind in {"auth", "quota", "timeout"},
        request_id=error.request_id,
    )
