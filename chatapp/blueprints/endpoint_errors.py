"""The errors of an endpoint that speaks a vendor's protocol, and what it tells of limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flask import Blueprint, Response, json
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from chatapp.blueprints import provider_trouble
from chatapp.blueprints.allowance import present_allowances
from chatapp.blueprints.refusal import trouble_of
from chatapp.blueprints.request_id import present_request_id
from chatapp.blueprints.shape import Shape
from chatapp.blueprints.trouble import Trouble
from chatapp.providers import ProviderError
from chatapp.services import current_services
from ratelimit_ext import RateLimitExceeded, RequestTooLarge

# What a client of the vendor's SDK can do something about: it is told in the vendor's words.
ITS_OWN_MISTAKES: Final = frozenset({"bad_request", "unknown_model"})


class EndpointErrors:
    """Answers the errors of a blueprint in the present request's shape, and writes its headers."""

    def __init__(self, shape: Callable[[], Shape]) -> None:
        self._shape = shape

    def install(self, bp: Blueprint) -> None:
        """Answer for that blueprint. What reaches none, a 404 or 405, is `not_here`'s."""
        bp.after_request(self.tell_limits)
        bp.after_request(self.identify)
        bp.register_error_handler(HTTPException, self.http_error)
        bp.register_error_handler(RateLimitExceeded, self.denied)
        bp.register_error_handler(RequestTooLarge, self.too_large)
        bp.register_error_handler(ProviderError, self.provider_error)

    def tell_limits(self, response: Response) -> Response:
        allowances = present_allowances(current_services().limiter)
        response.headers.update(self._shape().limit_headers(allowances))
        return response

    def identify(self, response: Response) -> Response:
        """Have the answer bear an id: the provider's, where there is one."""
        response.headers.setdefault(self._shape().request_id_header, present_request_id())
        return response

    def http_error(self, error: HTTPException) -> HTTPException | WerkzeugResponse:
        if error.response is not None or error.code is None or error.code < 400:
            return error
        trouble = trouble_of(error)
        if trouble.status == 422:  # the vendors' 400 has our 422 in it
            trouble = replace(trouble, status=400)
        answered = self._answer(trouble)
        for name, value in error.get_headers():
            if name != "Content-Type":
                answered.headers[name] = value
        return answered

    def denied(self, error: RateLimitExceeded) -> HTTPException | Response:
        if error.response is not None:
            return error
        # With its headers: a request that is denied at its end has passed `after_request` already.
        return self.tell_limits(self._answer(_denial(error)))

    def too_large(self, error: RequestTooLarge) -> Response:
        return self._answer(Trouble(400, "request_too_large", error.description or ""))

    def provider_error(self, error: ProviderError) -> Response:
        answered = self._answer(provider_trouble.told_to_its_own(error))
        if error.kind in ITS_OWN_MISTAKES and _tells_an_error(error.raw):
            answered.set_data(error.raw)
        return answered

    def _answer(self, trouble: Trouble) -> Response:
        shape, request_id = self._shape(), trouble.request_id or present_request_id()
        return Response(
            json.dumps(shape.error(replace(trouble, request_id=request_id))),
            status=trouble.status,
            headers={**trouble.headers, shape.request_id_header: request_id},
            content_type="application/json",
        )


def _denial(error: RateLimitExceeded) -> Trouble:
    sentence = error.message
    if error.cause != "limit":
        code = "abnormal_usage" if error.cause == "abnormal-usage" else "blocked"
        return Trouble(429, code, sentence, unit="requests")
    units = {denial.charge.limit.unit for denial in error.denials}
    if "usd" in units:
        return Trouble(429, "insufficient_quota", sentence, unit="usd")
    unit = "requests" if not units or units & {"requests", "calls"} else "tokens"
    return Trouble(429, "rate_limit_exceeded", sentence, unit=unit)


def _tells_an_error(raw: bytes) -> bool:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and isinstance(body.get("error"), dict)
