"""GET /metrics, for Prometheus, with a token of its own."""

from __future__ import annotations

import hmac

from flask import Blueprint, Response, make_response, request

from chatapp.web.errors import ApiError
from chatapp.web.metrics import Metrics

SCHEME = {"WWW-Authenticate": 'Bearer realm="metrics"'}


def blueprint(metrics: Metrics, token: str) -> Blueprint:
    """The route. A wrong token counts against the address, like every request."""
    bp = Blueprint("metrics", __name__)
    expected = f"Bearer {token}".encode()

    @bp.get("/metrics")
    def scrape() -> Response:
        header = request.headers.get("Authorization", "").encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(header, expected):
            hint = 'Send CHATAPP_METRICS_TOKEN as "Authorization: Bearer …".'
            raise ApiError(401, "invalid_token", hint, headers=SCHEME)
        return make_response(metrics.scrape())

    return bp
