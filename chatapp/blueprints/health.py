"""Is it alive, is it ready: for load balancers and supervisors. No limit applies to either."""

from __future__ import annotations

import threading

from flask import Blueprint, Response, jsonify

from ratelimit_ext import Limiter


def blueprint(limiter: Limiter) -> Blueprint:
    """The two addresses, over this limiter's storage."""
    bp = Blueprint("health", __name__)
    asks = threading.Lock()
    ready = False

    @bp.get("/healthz")
    def healthz() -> Response:
        """This process answers. It asks nobody else: a restart would not mend a lost storage."""
        return jsonify(status="alive")

    @bp.get("/readyz")
    def readyz() -> tuple[Response, int]:
        """The storage of the limits answers too, so decisions here count for everybody.

        One request asks it at a time, and others get the last answer: the threads for health checks
        are few, and a storage that hangs would hold all of them.
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
