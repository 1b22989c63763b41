"""Liveness and readiness, for load balancers and supervisors. No limit applies to either."""

from __future__ import annotations

import threading

from flask import Blueprint, Response, jsonify

from ratelimit_ext import Limiter


def blueprint(limiter: Limiter) -> Blueprint:
    """The two addresses, with this limiter's storage."""
    bp = Blueprint("health", __name__)
    asks = threading.Lock()
    ready = False

    @bp.get("/healthz")
    def healthz() -> Response:
        """This process answers. The storage is not checked: a restart would not repair it."""
        return jsonify(status="alive")

    @bp.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """The storage of the limits answers too, so this worker's decisions count for all workers.

        One request checks it at a time, and others get the last result: few threads serve health
        checks, and a storage that hangs would occupy all of them.
        """
        nonlocal ready
        if asks.acquire(blocking=False):
            try:
                # Limits may be switched off.
                ready = not limiter.initialized or limiter.storage.check()
            finally:
                asks.release()
        if ready:
            return jsonify(status="ready"), 200
        sentence = "The storage of the limits gives no answer; look at RATELIMIT_STORAGE_URI."
        return jsonify(error=sentence, code="storage_unavailable"), 503

    return bp
