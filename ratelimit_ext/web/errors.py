"""The exceptions that deny a request, their causes, and their JSON bodies.

They are HTTP exceptions, so an application's own error handlers come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import flask
import flask_limiter
from flask_limiter._limits import RuntimeLimit
from werkzeug.exceptions import BadRequest, Forbidden, ServiceUnavailable
from werkzeug.wrappers import Response

from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.web.bound_limit import BoundLimit, header_name

#: The reason of the verdict that denied; ``too-large``: it can never pass; ``unavailable``: the
#: limit itself is invalid; ``storage-full``.
Cause: TypeAlias = str

#: If several limits deny, the answer names the first of these causes. What the caller can change
#: comes before an overload.
PRECEDENCE: Final[tuple[Cause, ...]] = (
    "blocked",
    "closed",
    "abnormal-usage",
    "limit",
    "overloaded",
    "storage-unavailable",
)

#: A block for longer than a year has no known end.
LONGEST_BLOCK_MS: Final = 366 * 86_400 * 1000
#: The wait of a refusal without a known end.
ENDLESS_MS: Final = 2**63
#: The wait that is sent while the storage is full, in milliseconds.
STORAGE_FULL_WAIT_MS: Final = 30_000

PROBLEM: Final = "application/problem+json"
_IANA: Final = "https://iana.org/assignments/http-problem-types#"
_REDUCED: Final = f"{_IANA}temporary-reduced-capacity", "Temporarily reduced capacity"


class _Answer(NamedTuple):
    """How a cause is reported: ``code``, sentence, and RFC 9457's type and title."""

    code: str
    sentence: str
    problem_type: str
    title: str


_ANSWERS: Final[Mapping[Cause, _Answer]] = MappingProxyType(
    {
        "limit": _Answer("rate_limited", "", f"{_IANA}quota-exceeded", "Quota exceeded"),
        "blocked": _Answer(
            "blocked", "Access blocked. Contact the operator.", "about:blank", "Blocked"
        ),
        "abnormal-usage": _Answer(
            "abnormal_usage",
            "Stopped for abnormal usage.",
            f"{_IANA}abnormal-usage-detected",
            "Abnormal usage detected",
        ),
        "overloaded": _Answer(
            "server_is_overloaded", "The upstream service is overloaded.", *_REDUCED
        ),
        "closed": _Answer("switched_off", "This service is switched off.", *_REDUCED),
        "storage-full": _Answer(
            "storage_unavailable", "The rate limit storage is full.", *_REDUCED
        ),
        "storage-unavailable": _Answer(
            "storage_unavailable", "The rate limit storage is unavailable.", *_REDUCED
        ),
        "unavailable": _Answer(
            "limit_unavailable", "A rate limit of this request is invalid.", *_REDUCED
        ),
    }
)


def precedence(cause: Cause) -> int:
    """The place of a cause among several; a guard's without a place comes just before limits."""
    return PRECEDENCE.index(cause if cause in PRECEDENCE else "abnormal-usage")


def _answer_to(cause: Cause, limit: Limit) -> _Answer:
    """How the cause is reported; a strategy may have a cause and a sentence of its own."""
    known = _ANSWERS.get(cause)
    if known is not None:
        return known
    quota = _ANSWERS["limit"]
    return quota._replace(code=cause.replace("-", "_"), sentence=limit.traits.denial_sentence)


class RateLimitExceeded(flask_limiter.RateLimitExceeded):
    """An exhausted limit, or a block that ends: 429.

    ``decision`` has every verdict, ``denials`` those that denied; ``cause`` is ``limit``,
    ``abnormal-usage`` or ``blocked``.
    """

    def __init__(
        self,
        limit: RuntimeLimit,
        response: flask.Response | None = None,
        *,
        bound_limit: BoundLimit | None = None,
        decision: Decision | None = None,
        cause: Cause = "limit",
    ) -> None:
        super().__init__(limit, response)
        self.bound_limit = bound_limit
        self.decision = decision
        #: The verdicts that denied the request.
        self.denials: tuple[Verdict, ...] = () if decision is None else decision.denials
        self.cause = cause
        if bound_limit is not None and _is_abnormal_block(bound_limit, cause):
            self.description = _answer_to(cause, bound_limit.limit).sentence
        #: In milliseconds, 0 if unknown; None if the denial has no end.
        self.wait_ms = 0 if decision is None else known_wait_ms(decision)

    @property
    def is_budget(self) -> bool:
        """Whether a limit in dollars denied: retrying soon cannot help. While the storage is down
        it may help: only a worker's share is used up."""
        if self.decision is not None and self.decision.degraded:
            return False
        return any(d.charge.limit.unit == "usd" and d.charge.limit.visible for d in self.denials)

    @property
    def message(self) -> str:
        """What is exceeded and how long to wait, as a sentence for a person."""
        if self.decision is None or self.bound_limit is None:
            return str(self.description)
        subject = self._subject(self.bound_limit)
        return subject if self.wait_ms is None else f"{subject} {try_again(self.wait_ms)}"

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The response of an ``on_breach`` callback, else the default body."""
        if self.response is not None or self.decision is None or self.bound_limit is None:
            response: Response = super().get_response(environ, scope)
            return response
        return _response(429, self._body(self.bound_limit), self.cause, more=self._violated)

    def _body(self, bound: BoundLimit) -> dict[str, Any]:
        if self.cause != "limit":
            return _guard_body(self.message, self.cause, bound, self.wait_ms)
        own = [v for v in self.denials if v.charge.limit is bound.limit] or self.denials
        wait = {} if self.wait_ms is None else {"retry_after": self.wait_ms / 1000}
        return {
            "error": self.message,
            "code": "insufficient_quota" if self.is_budget else _ANSWERS["limit"].code,
            "limit": str(bound.runtime.limit),
            "policy": bound.name,
            "remaining": bound.limit.outside(min(verdict.remaining for verdict in own)),
            **wait,
        }

    def _violated(self) -> dict[str, Any]:
        names = [header_name(v.charge.limit) for v in self.denials if v.charge.limit.visible]
        return {"violated-policies": names} if names else {}

    def _subject(self, bound: BoundLimit) -> str:
        if bound.runtime.error_message or _is_abnormal_block(bound, self.cause):
            return str(self.description)
        if self.cause != "limit":
            return _answer_to(self.cause, bound.limit).sentence
        name = f" {bound.limit.name!r}" if bound.limit.name else ""
        return f"Rate limit{name} exceeded: {bound.runtime.limit}."


class RequestTooLarge(BadRequest):
    """The request costs more than a limit can ever allow: 400, as waiting cannot help."""

    cause: Final[Cause] = "too-large"
    wait_ms: Final = None

    def __init__(self, bound_limit: BoundLimit, verdict: Verdict) -> None:
        limit = bound_limit.limit
        super().__init__(
            f"This request costs {limit.outside(verdict.charge.cost):,} {limit.unit}, and the "
            f"limit {bound_limit.name!r} never allows more than "
            f"{limit.outside(limit.capacity):,} at once. Make the request smaller."
        )
        self.bound_limit = bound_limit
        self.verdict = verdict

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        bound = self.bound_limit
        body = {
            "error": self.description,
            "code": "request_too_large",
            "limit": str(bound.runtime.limit),
            "policy": bound.name,
            "cost": bound.limit.outside(self.verdict.charge.cost),
            "capacity": bound.limit.outside(bound.limit.capacity),
        }
        return _response(400, body, None)


class Blocked(Forbidden):
    """The caller is blocked without an end: 403, as waiting cannot help."""

    cause: Final[Cause] = "blocked"
    wait_ms: Final = None

    def __init__(self, bound_limit: BoundLimit) -> None:
        super().__init__(_sentence(bound_limit, "blocked"))
        self.bound_limit = bound_limit

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        body = _guard_body(str(self.description), "blocked", self.bound_limit)
        return _response(403, body, "blocked")


class TemporarilyUnavailable(ServiceUnavailable):
    """What the request needs is overloaded or switched off: 503, not the caller's fault.

    ``cause`` is ``overloaded``, ``closed``, ``storage-full`` (the storage has no memory for a new
    caller) or ``storage-unavailable`` (it is down, and the limit's ``on_failure`` is ``closed``);
    ``wait_ms`` is the wait in milliseconds, ``None`` if unknown.
    """

    def __init__(self, bound_limit: BoundLimit, cause: Cause, wait_ms: int | None) -> None:
        sentence = _sentence(bound_limit, cause)
        super().__init__(sentence if wait_ms is None else f"{sentence} {try_again(wait_ms)}")
        self.bound_limit = bound_limit
        self.cause = cause
        self.wait_ms = wait_ms

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        body = _guard_body(str(self.description), self.cause, self.bound_limit, self.wait_ms)
        return _response(503, body, self.cause)


class LimitUnavailable(ServiceUnavailable):
    """The function of a limit returned an invalid limit: 503."""

    cause: Final[Cause] = "unavailable"
    #: When the caller may try again; the application has to correct the function.
    wait_ms: Final = 30_000

    def __init__(self) -> None:
        super().__init__(f"{_ANSWERS['unavailable'].sentence} Try again later.")

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        body = {
            "error": self.description,
            "code": _ANSWERS["unavailable"].code,
            "retry_after": self.wait_ms / 1000,
        }
        return _response(503, body, "unavailable")


Refusal: TypeAlias = (
    RateLimitExceeded | RequestTooLarge | Blocked | TemporarilyUnavailable | LimitUnavailable
)


def is_endless(denial: Verdict) -> bool:
    """Whether a denial has no known end, as that of a block for longer than a year."""
    return denial.reason != "limit" and (denial.retry_after_ms or 0) > LONGEST_BLOCK_MS


def known_wait_ms(decision: Decision) -> int | None:
    """The wait in milliseconds; ``None`` if it has no known end."""
    return None if any(map(is_endless, decision.denials)) else decision.retry_after_ms


def try_again(wait_ms: int) -> str:
    """How long to wait, as a sentence."""
    if wait_ms < 120_000:
        return f"Try again in {wait_ms / 1000:g} second{'' if wait_ms == 1000 else 's'}."
    hours, minutes = divmod(-(-wait_ms // 60_000), 60)
    return f"Try again in {f'{hours} h {minutes} min' if hours else f'{minutes} minutes'}."


def _is_abnormal_block(bound: BoundLimit, cause: Cause) -> bool:
    """Whether a block denied for abnormal usage: its ``error_message`` is written for an
    operator's block, so the default sentence is used. A surge's is its own."""
    return cause == "abnormal-usage" and "block" in bound.limit.traits.changes


def _sentence(bound: BoundLimit, cause: Cause) -> str:
    is_storage = cause in ("storage-full", "storage-unavailable")
    own = None if is_storage else bound.runtime.error_message
    return str(own() if callable(own) else own or _answer_to(cause, bound.limit).sentence)


def _guard_body(
    sentence: str, cause: Cause, bound: BoundLimit, wait_ms: int | None = None
) -> dict[str, Any]:
    """The body of a refusal that has no amount."""
    wait = {} if wait_ms is None else {"retry_after": wait_ms / 1000}
    code = _answer_to(cause, bound.limit).code
    return {"error": sentence, "code": code, "policy": bound.name, **wait}


def _response(
    status: int,
    body: dict[str, Any],
    cause: Cause | None,
    *,
    more: Callable[[], dict[str, Any]] = dict,
) -> Response:
    """JSON, or RFC 9457's problem JSON if the client prefers it; only that has ``more``."""
    accepted = flask.request.accept_mimetypes
    if cause is not None and accepted.best_match(["application/json", PROBLEM]) == PROBLEM:
        answer = _ANSWERS.get(cause, _ANSWERS["limit"])
        described = {"type": answer.problem_type, "title": answer.title, "status": status}
        body = {**described, "detail": body["error"], **body, **more()}
        return Response(_encoded(body), status, content_type=PROBLEM)
    return Response(_encoded(body), status, content_type="application/json")


def _encoded(body: dict[str, Any]) -> str:
    """JSON in which an amount of dollars is a number."""
    return json.dumps(body, default=float)
