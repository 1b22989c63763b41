"""Refusals: what a denied request is answered with.

They are exceptions, so that an application's own error handlers come first.
"""

from __future__ import annotations

from typing import Any, Final

import flask
import flask_limiter
from flask_limiter._limits import RuntimeLimit
from werkzeug.exceptions import BadRequest, Forbidden, ServiceUnavailable
from werkzeug.wrappers import Response

from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.web.cause import ENDLESS_MS, Cause, sentence_of
from ratelimit_ext.web.claims import Claim, header_name
from ratelimit_ext.web.refusal_body import CODES, body_response, guard_body, waiting


class RateLimitExceeded(flask_limiter.RateLimitExceeded):
    """A limit denies, or a block that has an end: 429.

    ``decision`` has every verdict, ``denials`` those that denied, ``cause`` says what kind of limit
    it was: ``limit``, ``abnormal-usage`` or ``blocked``.
    """

    def __init__(
        self,
        limit: RuntimeLimit,
        response: flask.Response | None = None,
        *,
        claim: Claim | None = None,
        decision: Decision | None = None,
        cause: Cause = "limit",
    ) -> None:
        super().__init__(limit, response)
        self.claim = claim
        self.decision = decision
        #: The verdicts that denied the request.
        self.denials: tuple[Verdict, ...] = () if decision is None else decision.denials
        self.cause = cause
        if claim is not None and _is_abnormal(claim, cause):
            self.description = sentence_of(cause, claim.limit)
        wait_ms = 0 if decision is None else decision.retry_after_ms or 0
        self._wait_ms = None if wait_ms > ENDLESS_MS else wait_ms

    @property
    def is_budget(self) -> bool:
        """Whether money is spent: waiting in a retry loop is no use."""
        return any(d.charge.limit.unit == "usd" and d.charge.limit.visible for d in self.denials)

    @property
    def message(self) -> str:
        """What is exceeded and how long to wait, as a sentence for a person."""
        if self.decision is None or self.claim is None:
            return str(self.description)
        subject = self._subject(self.claim)
        return subject if self._wait_ms is None else f"{subject} {waiting(self._wait_ms)}"

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The callback's response where it gave one, else the default body."""
        if self.response is not None or self.decision is None or self.claim is None:
            response: Response = super().get_response(environ, scope)
            return response
        return body_response(429, self._body(self.claim), self.cause, more=self._violated)

    def _body(self, claim: Claim) -> dict[str, Any]:
        if self.cause != "limit":
            return guard_body(self.message, self.cause, claim, self._wait_ms)
        own = [v for v in self.denials if v.charge.limit is claim.limit] or self.denials
        return {
            "error": self.message,
            "code": "insufficient_quota" if self.is_budget else CODES["limit"],
            "limit": str(claim.runtime.limit),
            "policy": claim.name,
            "remaining": claim.limit.outside(min(verdict.remaining for verdict in own)),
            "retry_after": (self._wait_ms or 0) / 1000,
        }

    def _violated(self) -> dict[str, Any]:
        names = [header_name(v.charge.limit) for v in self.denials if v.charge.limit.visible]
        return {"violated-policies": names} if names else {}

    def _subject(self, claim: Claim) -> str:
        if claim.runtime.error_message or _is_abnormal(claim, self.cause):
            return str(self.description)
        if self.cause != "limit":
            return sentence_of(self.cause, claim.limit)
        name = f" {claim.limit.name!r}" if claim.limit.name else ""
        return f"Rate limit{name} exceeded: {claim.runtime.limit}."


class RequestTooLarge(BadRequest):
    """The request's cost is above a limit's capacity: 400, as no waiting helps."""

    def __init__(self, claim: Claim, verdict: Verdict) -> None:
        limit = claim.limit
        super().__init__(
            f"This request costs {limit.outside(verdict.charge.cost):,} {limit.unit}, and the "
            f"limit {claim.name!r} never allows more than "
            f"{limit.outside(limit.capacity):,} at once. Make the request smaller."
        )
        self.claim = claim
        self.verdict = verdict

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        return body_response(
            400,
            {
                "error": self.description,
                "code": "request_too_large",
                "limit": str(self.claim.runtime.limit),
                "policy": self.claim.name,
                "cost": self.claim.limit.outside(self.verdict.charge.cost),
                "capacity": self.claim.limit.outside(self.claim.limit.capacity),
            },
            None,
        )


class Blocked(Forbidden):
    """The caller is blocked, and not for a time: 403, as no waiting helps."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(_sentence(claim, "blocked"))
        self.claim = claim

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        return body_response(
            403, guard_body(str(self.description), "blocked", self.claim), "blocked"
        )


class TemporarilyUnavailable(ServiceUnavailable):
    """What the request needs has no room at the moment, or is switched off: 503.

    It is nothing that the caller did. ``cause`` is ``overloaded``, ``closed`` or ``storage-full``
    (the storage cannot count a caller that it does not know); ``wait_ms`` is the wait in
    milliseconds, ``None`` if unknown.
    """

    def __init__(self, claim: Claim, cause: Cause, wait_ms: int | None) -> None:
        sentence = _sentence(claim, cause)
        super().__init__(sentence if wait_ms is None else f"{sentence} {waiting(wait_ms)}")
        self.claim = claim
        self.cause = cause
        self.wait_ms = wait_ms

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        body = guard_body(str(self.description), self.cause, self.claim, self.wait_ms)
        return body_response(503, body, self.cause)


class LimitUnavailable(ServiceUnavailable):
    """What a limit allows is unknown, as its function returned what is no limit: 503."""

    #: The caller may try again after this time; somebody has to correct the function.
    RETRY_MS: Final = 30_000

    def __init__(self) -> None:
        super().__init__("A rate limit of this request cannot be checked. Try again later.")

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The default body."""
        return body_response(
            503,
            {
                "error": self.description,
                "code": CODES["unavailable"],
                "retry_after": self.RETRY_MS / 1000,
            },
            "unavailable",
        )


def _is_abnormal(claim: Claim, cause: Cause) -> bool:
    """Whether a switch was closed for abnormal usage. Its own sentence is for an operator's block;
    that of a surge says what a surge is."""
    return cause == "abnormal-usage" and "block" in claim.limit.traits.changes


def _sentence(claim: Claim, cause: Cause) -> str:
    own = None if cause == "storage-full" else claim.runtime.error_message
    return str(own() if callable(own) else own or sentence_of(cause, claim.limit))
