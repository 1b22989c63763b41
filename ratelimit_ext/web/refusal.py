"""Refusals: what a denied request is answered with.

They are exceptions, so that an application's own error handlers come first.
"""

from __future__ import annotations

import json
from typing import Any

import flask
import flask_limiter
from flask_limiter._limits import RuntimeLimit
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from ratelimit_ext.core.decision import Decision, Verdict
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.core.money import MICRO
from ratelimit_ext.web.claims import Claim, header_name

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
PROBLEM = "application/problem+json"

#: Above this many seconds a client had better not wait in its retry loop (see docs/answers.md).
LONGEST_RETRY_S = 60


class RateLimitExceeded(flask_limiter.RateLimitExceeded):
    """A limit denies: 429. ``decision`` has every verdict, ``denials`` those that denied."""

    def __init__(
        self,
        limit: RuntimeLimit,
        response: flask.Response | None = None,
        *,
        claim: Claim | None = None,
        decision: Decision | None = None,
    ) -> None:
        super().__init__(limit, response)
        self.claim = claim
        self.decision = decision

    @property
    def denials(self) -> tuple[Verdict, ...]:
        """The verdicts that denied the request."""
        return () if self.decision is None else self.decision.denials

    @property
    def is_budget(self) -> bool:
        """Whether money is spent: waiting in a retry loop is no use."""
        return any(denial.charge.limit.unit == "usd" for denial in self.denials)

    @property
    def message(self) -> str:
        """What is exceeded and how long to wait, as a sentence for a person."""
        if self.decision is None or self.claim is None:
            return str(self.description)
        return f"{self._subject(self.claim)} {waiting(self.decision.retry_after_ms or 0)}"

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The callback's response where it gave one, else the default body."""
        if self.response is not None or self.decision is None or self.claim is None:
            response: Response = super().get_response(environ, scope)
            return response
        return body_response(429, self._body(self.claim, self.decision), QUOTA_EXCEEDED)

    def _body(self, claim: Claim, decision: Decision) -> dict[str, Any]:
        wait_ms = decision.retry_after_ms or 0
        own = [v for v in decision.denials if v.charge.limit is claim.limit] or decision.denials
        return {
            "error": self.message,
            "code": "insufficient_quota" if self.is_budget else "rate_limited",
            "limit": str(claim.runtime.limit),
            "policy": header_name(claim.limit),
            "remaining": _outside(claim.limit, min(verdict.remaining for verdict in own)),
            "retry_after": wait_ms / 1000,
            "violated-policies": [header_name(v.charge.limit) for v in decision.denials],
        }

    def _subject(self, claim: Claim) -> str:
        if claim.runtime.error_message:
            return str(self.description)
        name = f" {claim.limit.name!r}" if claim.limit.name else ""
        return f"Rate limit{name} exceeded: {claim.runtime.limit}."


class RequestTooLarge(BadRequest):
    """The request's cost is above a limit's capacity: 400, as no waiting helps."""

    def __init__(self, claim: Claim, verdict: Verdict) -> None:
        limit = claim.limit
        super().__init__(
            f"This request costs {_outside(limit, verdict.charge.cost):,} {limit.unit}, and the "
            f"limit {header_name(limit)!r} never allows more than "
            f"{_outside(limit, limit.capacity):,} at once. Make the request smaller."
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
                "policy": header_name(self.claim.limit),
                "cost": _outside(self.claim.limit, self.verdict.charge.cost),
                "capacity": _outside(self.claim.limit, self.claim.limit.capacity),
            },
            None,
        )


def _outside(limit: Limit, units: int) -> float:
    """An amount as it is told outside: dollars as dollars."""
    return units / MICRO if limit.unit == "usd" else units


def waiting(wait_ms: int) -> str:
    """The sentence that says how long to wait."""
    if wait_ms < 120_000:
        return f"Try again in {wait_ms / 1000:g} seconds."
    hours, minutes = divmod(-(-wait_ms // 60_000), 60)
    return f"Try again in {f'{hours} h {minutes} min' if hours else f'{minutes} minutes'}."


def body_response(status: int, body: dict[str, Any], problem: str | None) -> Response:
    """JSON, or RFC 9457's problem JSON where the client asks for it."""
    accepted = flask.request.accept_mimetypes
    if problem is not None and accepted.best_match(["application/json", PROBLEM]) == PROBLEM:
        described = {"type": problem, "title": "Quota exceeded", "status": status}
        body = {**described, "detail": body["error"], **body}
        return Response(json.dumps(body), status, content_type=PROBLEM)
    body = {key: value for key, value in body.items() if key != "violated-policies"}
    return Response(json.dumps(body), status, content_type="application/json")


def too_long_to_wait(wait_ms: int) -> bool:
    """Whether a client's retry loop should rather give up."""
    return wait_ms > LONGEST_RETRY_S * 1000
