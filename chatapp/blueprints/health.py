"""Liveness and readiness, for load balancers and supervisors. No limit applies to either."""

from __future__ import annotations

import threading

from flask import Blueprint, Response, jsonify

from ratelimit_ext import Limiter


def blueprint(limiter: Limiter) -> Blueprint:
    """The routes, with this limiter's storage."""
    bp = Blueprint("health", __name__)
    checking = threading.Lock()
    ready = False

    @bp.get("/healthz")
    def healthz() -> Response:
        """This process is alive. The storage is not checked, as a restart would not repair it."""
        return jsonify(status="alive")

    @bp.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """The storage of the limits answers, too.

        One request checks it at a time, and others get the last result: few threads serve health
        checks, and a hanging storage would occupy all of them.
        """
        nonlocal ready
        if checking.acquire(blocking=False):
            try:
                # Limits may be switched off.
                ready = not limiter.initialized or limiter.storage.check()
            finally:
                checking.release()
        if ready:
            return jsonify(status="ready"), 200
        message = "The storage of the limits does not answer. Check RATELIMIT_STORAGE_URI."
        return jsonify(error=message, code="storage_unavailable"), 503

    return bp
