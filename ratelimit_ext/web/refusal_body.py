"""The body of a refusal: JSON, or RFC 9457's problem JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import flask
from werkzeug.wrappers import Response

from ratelimit_ext.web.cause import Cause
from ratelimit_ext.web.claims import Claim

TYPES: Final = "https://iana.org/assignments/http-problem-types#"
PROBLEM: Final = "application/problem+json"
#: The problem type and its title by what refuses.
PROBLEMS: Final[dict[Cause, tuple[str, str]]] = {
    "limit": (f"{TYPES}quota-exceeded", "Quota exceeded"),
    "abnormal-usage": (f"{TYPES}abnormal-usage-detected", "Abnormal usage detected"),
    "overloaded": (f"{TYPES}temporary-reduced-capacity", "Temporarily reduced capacity"),
    "closed": (f"{TYPES}temporary-reduced-capacity", "Temporarily reduced capacity"),
    "blocked": ("about:blank", "Blocked"),
    "storage-full": (f"{TYPES}temporary-reduced-capacity", "Temporarily reduced capacity"),
    "unavailable": (f"{TYPES}temporary-reduced-capacity", "Temporarily reduced capacity"),
}
CODES: Final[dict[Cause, str]] = {
    "limit": "rate_limited",
    "abnormal-usage": "abnormal_usage",
    "overloaded": "server_is_overloaded",
    "closed": "switched_off",
    "blocked": "blocked",
    "storage-full": "storage_unavailable",
    "unavailable": "limit_unavailable",
}


def guard_body(
    sentence: str, cause: Cause, claim: Claim, wait_ms: int | None = None
) -> dict[str, Any]:
    """The body of a refusal that has no amount to tell."""
    wait = {} if wait_ms is None else {"retry_after": wait_ms / 1000}
    return {
        "error": sentence,
        "code": CODES.get(cause, cause.replace("-", "_")),
        "policy": claim.name,
        **wait,
    }


def waiting(wait_ms: int) -> str:
    """The sentence that says how long to wait."""
    if wait_ms < 120_000:
        return f"Try again in {wait_ms / 1000:g} second{'' if wait_ms == 1000 else 's'}."
    hours, minutes = divmod(-(-wait_ms // 60_000), 60)
    return f"Try again in {f'{hours} h {minutes} min' if hours else f'{minutes} minutes'}."


def body_response(
    status: int,
    body: dict[str, Any],
    cause: Cause | None,
    *,
    more: Callable[[], dict[str, Any]] = dict,
) -> Response:
    """JSON, or RFC 9457's problem JSON where the client asks for it, which says ``more``."""
    accepted = flask.request.accept_mimetypes
    if cause is not None and accepted.best_match(["application/json", PROBLEM]) == PROBLEM:
        problem, title = PROBLEMS.get(cause, PROBLEMS["limit"])
        described = {"type": problem, "title": title, "status": status}
        body = {**described, "detail": body["error"], **body, **more()}
        return Response(_encoded(body), status, content_type=PROBLEM)
    return Response(_encoded(body), status, content_type="application/json")


def _encoded(body: dict[str, Any]) -> str:
    """JSON, in which an amount of dollars is a number."""
    return json.dumps(body, default=float)
