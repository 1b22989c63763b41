"""Liveness and readiness, for load balancers and supervisors. No limit applies to either."""

from __future__ import annotations

import threading
from typing import Final

from flask import Blueprint, Response, jsonify

from chatapp.services import current_services

bp = Blueprint("health", __name__)
_checking: Final = threading.Lock()


@bp.get("/healthz")
def healthz() -> Response:
    """This process is alive. The storage is not checked, because a restart would not repair it."""
    return jsonify(status="alive")


@bp.get("/readyz")
def readyz() -> Response:
    """This process serves. Also without the storage of the limits, which all instances share: each
    limit follows its ``on_failure`` then, and a load balancer that removed all instances would make
    that an outage of the whole service. ``storage`` says whether it is down.

    One request checks it at a time: few threads serve health checks.
    """
    limiter = current_services().limiter
    operators = limiter.operators
    # Limits may be switched off.
    if limiter.initialized and not operators.storage_is_down and _checking.acquire(blocking=False):
        try:
            operators.check_storage()
        finally:
            _checking.release()
    return jsonify(status="ready", storage="down" if operators.storage_is_down else "up")
