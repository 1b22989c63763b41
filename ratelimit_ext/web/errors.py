"""The exceptions that deny a request, their causes, and their JSON bodies.

They are HTTP exceptions, so an application's own error handlers come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import flask
import flask_limiter
from flask_limiter._limits import RuntimeLimit
from markupsafe import escape
from werkzeug.exceptions import BadRequest, Forbidden, ServiceUnavailable, default_exceptions
from werkzeug.wrappers import Response

from ratelimit_ext.core.decision import Decision, Share, Verdict, known_wait_ms
from ratelimit_ext.core.errors import wait_text
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine.verdicts import IN_USE
from ratelimit_ext.web.bound_limit import BoundLimit, header_name
from ratelimit_ext.web.mcp import is_mcp
from ratelimit_ext.web.mcp import refusal as mcp_refusal

#: The reason of the verdict that denied; ``too-large``: it can never pass; ``unavailable``: the
#: limit itself is invalid; ``storage-full``.
Cause: TypeAlias = str

#: The wait that is sent while the storage is full, in milliseconds.
STORAGE_FULL_WAIT_MS: Final = 30_000

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
HTML: Final = "text/html"
_IANA: Final = "https://iana.org/assignments/http-problem-types#"
_QUOTA: Final = f"{_IANA}quota-exceeded"


class _Answer(NamedTuple):
    """How a cause is reported: ``code``, sentence, status, and RFC 9457's type and title."""

    code: str
    sentence: str
    status: int = 503
    problem_type: str = f"{_IANA}temporary-reduced-capacity"
    title: str = "Temporarily reduced capacity"


#: If several limits deny, the answer names the first of these causes. What the caller can change
#: comes before an overload. A block without an end is a 403.
_ANSWERS: Final[Mapping[Cause, _Answer]] = MappingProxyType(
    {
        "blocked": _Answer(
            "blocked", "Access blocked. Contact the operator.", 429, "about:blank", "Blocked"
        ),
        "closed": _Answer("switched_off", "This service is switched off."),
        "abnormal-usage": _Answer(
            *("abnormal_usage", "Stopped for abnormal usage.", 429),
            *(f"{_IANA}abnormal-usage-detected", "Abnormal usage detected"),
        ),
        "limit": _Answer("rate_limited", "", 429, _QUOTA, "Quota exceeded"),
        "budget-in-use": _Answer(
            *("budget_in_use", "Other calls in flight hold what is left of the budget.", 429),
            *(_QUOTA, "Budget in use"),
        ),
        "overloaded": _Answer("server_is_overloaded", "The upstream service is overloaded."),
        "storage-unavailable": _Answer(
            "storage_unavailable", "The rate limit storage is unavailable."
        ),
        "storage-full": _Answer("storage_unavailable", "The rate limit storage is full."),
        "unavailable": _Answer("limit_unavailable", "A rate limit of this request is invalid."),
    }
)

#: What a limit of the whole application counts, by its key function.
_WHO: Final = {
    **dict.fromkeys(("ip", "client_ip", "get_remote_address"), " from this address"),
    "api_key": " with this API key",
}


def precedence(cause: Cause) -> int:
    """Return the place of a cause among several; an unknown guard's is just before limits."""
    return [*_ANSWERS].index(cause if cause in _ANSWERS else "abnormal-usage")


def is_temporary(cause: Cause) -> bool:
    """Return whether what the request needs is unavailable, not by the caller's fault: 503."""
    return cause in _ANSWERS and _ANSWERS[cause].status == 503


def _answer_to(cause: Cause, limit: Limit) -> _Answer:
    """Return how the cause is reported; a strategy may have a cause and a sentence of its own."""
    if cause in _ANSWERS:
        return _ANSWERS[cause]
    quota = _ANSWERS["limit"]
    return quota._replace(code=cause.replace("-", "_"), sentence=limit.traits.denial_sentence)


class RateLimitExceeded(flask_limiter.RateLimitExceeded):
    """An exhausted limit, or a block that ends: 429.

    ``decision`` has every verdict, ``denials`` those that denied; ``cause`` is ``limit``,
    ``budget-in-use`` (a retry may help soon), ``abnormal-usage`` or ``blocked``.
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
        said = _said(limit)
        is_said = said == limit.error_message
        super().__init__(limit if is_said else replace(limit, error_message=said), response)
        self.limit = limit
        self.bound_limit = bound_limit
        self.decision = decision
        self.denials: tuple[Verdict, ...] = () if decision is None else decision.denials
        self.cause = cause
        #: Whether the limit's ``error_message`` is the sentence. It is sent unchanged.
        self.has_own_message = bool(said)
        #: What the caller's plan allows, and the next one; empty without a plan.
        self.plan_sentence = "" if bound_limit is None else bound_limit.plan_sentence
        if bound_limit is not None and _needs_default(bound_limit, cause):
            self.has_own_message = False
            self.description = _answer_to(cause, bound_limit.limit).sentence
        elif self.plan_sentence and not self.has_own_message:
            self.description = self.plan_sentence
        if bound_limit is not None and bound_limit.limit.is_share and cause == "limit":
            self.has_own_message = False  # that is written for the whole budget
            self.description = _share_sentence(bound_limit.limit, self.denials)
        #: In milliseconds, 0 if unknown; None if the denial has no end.
        self.wait_ms = 0 if decision is None else known_wait_ms(decision)

    @property
    def is_budget(self) -> bool:
        """Whether a spent limit in dollars denied, so that retrying soon cannot help. While the
        storage is down it may help: only the host's share is used up."""
        if self.decision is not None and self.decision.degraded:
            return False
        return any(d.charge.limit.is_budget and d.reason == "limit" for d in self.denials)

    @property
    def error_code(self) -> str:
        """The ``code`` of the default body."""
        if self.cause == "limit" or self.bound_limit is None:
            return "insufficient_quota" if self.is_budget else _ANSWERS["limit"].code
        return _answer_to(self.cause, self.bound_limit.limit).code

    @property
    def message(self) -> str:
        """What is exceeded, what the plan allows and how long to wait, for a person."""
        if self.decision is None or self.bound_limit is None:
            return str(self.description)
        plan = self.plan_sentence if self.has_own_message else ""
        wait = "" if self.wait_ms is None else try_again(self.wait_ms)
        limit = self.bound_limit.limit
        hint = limit.traits.denial_sentence if self.cause == "limit" else ""
        parts = (self._subject(self.bound_limit), plan, _kept(limit), hint, wait)
        return " ".join(filter(None, parts))

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """Return the response of an ``on_breach`` callback, else the default body."""
        if self.response is not None or self.decision is None or self.bound_limit is None:
            response: Response = super().get_response(environ, scope)
            return response
        return _response(429, self._body(self.bound_limit), self.cause, more=self._violated)

    def _body(self, bound: BoundLimit) -> dict[str, Any]:
        sentence = self.description if self.has_own_message else self.message
        if self.cause != "limit":
            return _guard_body(self, sentence)
        verdicts = [v for v in self.denials if v.charge.limit is bound.limit] or self.denials
        wait = {} if self.wait_ms is None else {"retry_after": self.wait_ms / 1000}
        return {
            "error": sentence,
            **({"plan": self.plan_sentence} if self.has_own_message and self.plan_sentence else {}),
            "code": self.error_code,
            "limit": bound.limit.with_burst(str(bound.runtime.limit)),
            "policy": bound.name,
            "remaining": bound.limit.outside(min(verdict.remaining for verdict in verdicts)),
            **({"kept_for": bound.limit.part.kept_for} if bound.limit.part.kept_for else {}),
            **_share_body(bound.limit, verdicts[0].share),
            **wait,
        }

    def _violated(self) -> dict[str, Any]:
        names = [header_name(v.charge.limit) for v in self.denials if v.charge.limit.visible]
        return {"violated-policies": names} if names else {}

    def _subject(self, bound: BoundLimit) -> str:
        if (
            self.has_own_message
            or self.plan_sentence
            or bound.limit.is_share
            or _needs_default(bound, self.cause)
        ):
            return str(self.description)
        if self.cause != "limit":
            return _answer_to(self.cause, bound.limit).sentence
        if bound.is_edge and bound.limit.unit == "requests":
            who = _WHO.get(getattr(bound.runtime.key_func, "__name__", ""), "")
            return f"Too many requests{who}."
        name = f" {bound.limit.name!r}" if bound.limit.name else ""
        return f"Rate limit{name} exceeded: {bound.limit.with_burst(str(bound.runtime.limit))}."


class RequestTooLarge(BadRequest):
    """The request costs more than a limit can ever allow: 400, as waiting cannot help."""

    cause: Final[Cause] = "too-large"
    error_code: Final = "request_too_large"
    wait_ms: Final = None

    def __init__(self, bound_limit: BoundLimit, verdict: Verdict) -> None:
        limit = bound_limit.limit
        super().__init__(
            f"This request costs {limit.outside(verdict.charge.cost):,} {limit.unit}, and the "
            f"limit {bound_limit.name!r} never allows more than "
            f"{limit.outside(limit.capacity):,} at once. "
            f"{' '.join(filter(None, [_kept(limit), 'Make the request smaller.']))}"
        )
        self.bound_limit = bound_limit
        self.verdict = verdict

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        bound = self.bound_limit
        body = {
            "error": self.description,
            "code": self.error_code,
            "limit": bound.limit.with_burst(str(bound.runtime.limit)),
            "policy": bound.name,
            "cost": bound.limit.outside(self.verdict.charge.cost),
            "capacity": bound.limit.outside(bound.limit.capacity),
        }
        return _response(400, body, None)


class Blocked(Forbidden):
    """The caller is blocked without an end: 403, as waiting cannot help."""

    cause: Final[Cause] = "blocked"
    error_code: Final = _ANSWERS["blocked"].code
    wait_ms: Final = None

    def __init__(self, bound_limit: BoundLimit) -> None:
        message = _own_message(bound_limit, "blocked")
        super().__init__(_ANSWERS["blocked"].sentence if message is None else message)
        self.bound_limit = bound_limit

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        return _response(403, _guard_body(self, self.description), "blocked")


class TemporarilyUnavailable(ServiceUnavailable):
    """What the request needs is overloaded or switched off: 503, not the caller's fault.

    ``cause`` is ``overloaded``, ``closed``, ``storage-full`` (the storage has no memory for a new
    caller) or ``storage-unavailable`` (it is down, and the limit's ``on_failure`` is ``closed``);
    ``wait_ms`` is the wait in milliseconds, ``None`` if unknown.
    """

    def __init__(self, bound_limit: BoundLimit, cause: Cause, wait_ms: int | None) -> None:
        message = _own_message(bound_limit, cause)
        sentence = _answer_to(cause, bound_limit.limit).sentence if message is None else message
        self.message = f"{sentence}" if wait_ms is None else f"{sentence} {try_again(wait_ms)}"
        super().__init__(self.message if message is None else message)
        self.bound_limit = bound_limit
        self.cause = cause
        self.error_code = _answer_to(cause, bound_limit.limit).code
        self.wait_ms = wait_ms

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        return _response(503, _guard_body(self, self.description), self.cause)


class LimitUnavailable(ServiceUnavailable):
    """The function of a limit returned an invalid limit: 503."""

    cause: Final[Cause] = "unavailable"
    error_code: Final = _ANSWERS["unavailable"].code
    #: When the caller may try again; the application has to correct the function.
    wait_ms: Final = 30_000

    def __init__(self) -> None:
        super().__init__(f"{_ANSWERS['unavailable'].sentence} Try again later.")

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        body = {
            "error": self.description,
            "code": self.error_code,
            "retry_after": self.wait_ms / 1000,
        }
        return _response(503, body, "unavailable")


Refusal: TypeAlias = (
    RateLimitExceeded | RequestTooLarge | Blocked | TemporarilyUnavailable | LimitUnavailable
)


def try_again(wait_ms: int) -> str:
    """Return how long to wait, as a sentence."""
    return f"Try again in {wait_text(wait_ms)}."


def _kept(limit: Limit) -> str:
    """Return what a class of traffic may not use, as a sentence; empty without one."""
    if not limit.part.kept_for:
        return ""
    *names, last = limit.part.kept_for
    listed = f"{', '.join(names)} and {last}" if names else last
    return f"Part of it is kept for {listed}."


def _share_sentence(limit: Limit, denials: Sequence[Verdict]) -> str:
    """Return what a member of a group has used of their share, as a sentence."""
    share = next(denial.share for denial in denials if denial.charge.limit.is_share)
    assert share is not None
    used, part = limit.outside(share.used), limit.outside(share.part)
    return (
        f"Your share of {limit.name.removesuffix('-share')!r} is used: {used:,} of {part:,} "
        f"{limit.unit}, because {share.members} members share {limit.outside(limit.amount):,}."
    )


def _share_body(limit: Limit, share: Share | None) -> dict[str, Any]:
    if share is None:
        return {}
    used, part = limit.outside(share.used), limit.outside(share.part)
    return {"share": {"used": used, "of": part, "members": share.members}}


def _needs_default(bound: BoundLimit, cause: Cause) -> bool:
    """Return whether the default sentence is used, because the limit's ``error_message`` is written
    for another cause: a spent budget, or an operator's block. A surge has its own message."""
    is_abnormal_block = cause == "abnormal-usage" and "block" in bound.limit.traits.changes
    return is_abnormal_block or cause == IN_USE


def _own_message(bound: BoundLimit, cause: Cause) -> Any:
    return None if cause in ("storage-full", "storage-unavailable") else _said(bound.runtime)


def _said(limit: RuntimeLimit) -> Any:
    """Return the limit's ``error_message``; ``None`` without one. If its function fails, that is
    logged: the usual sentence is sent."""
    message = limit.error_message
    try:
        said: object = message() if callable(message) else message
        return (said if isinstance(said, str) else str(said)) if said else None
    except Exception:
        flask.current_app.logger.exception("error_message of the limit %s failed", limit.limit)
        return None


def _guard_body(error: Any, sentence: Any) -> dict[str, Any]:
    wait = {} if error.wait_ms is None else {"retry_after": error.wait_ms / 1000}
    return {"error": sentence, "code": error.error_code, "policy": error.bound_limit.name, **wait}


def _response(
    status: int,
    body: dict[str, Any],
    cause: Cause | None,
    *,
    more: Callable[[], dict[str, Any]] = dict,
) -> Response:
    """JSON; if the client prefers one, werkzeug's HTML page or RFC 9457's problem JSON, which alone
    has ``more``. A client of the Model Context Protocol gets its error."""
    if is_mcp(flask.request.environ):
        return mcp_refusal(status, body)
    formats = [JSON, HTML] if cause is None else [JSON, PROBLEM, HTML]
    content_type = flask.request.accept_mimetypes.best_match(formats, JSON)
    if content_type == HTML:
        page = default_exceptions[status](body["error"]).get_body()
        plan = f"<p>{escape(body['plan'])}</p>\n" if "plan" in body else ""
        return Response(page + plan, status, mimetype=HTML)
    if content_type == PROBLEM and cause is not None:
        answer = _ANSWERS.get(cause, _ANSWERS["limit"])
        described = {"type": answer.problem_type, "title": answer.title, "status": status}
        body = {**described, "detail": body["error"], **body, **more()}
    return Response(json.dumps(body, default=plain), status, content_type=content_type)


def plain(value: object) -> float | str:
    """Return an amount of dollars as a number for JSON; anything else, such as a message that is
    translated late, as a string."""
    return float(value) if isinstance(value, Decimal) else str(value)
