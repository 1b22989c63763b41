"""GET /usage: what the caller has left of each limit, and has spent. It costs no plan anything."""

from __future__ import annotations

import logging
from typing import cast

from flask import Blueprint, Response, current_app, g, jsonify

from chatapp.blueprints.present import present_limiter
from chatapp.blueprints.refusal import Refusal
from chatapp.ledger.records import EXTENSION_KEY, Records
from chatapp.limits_left import limits_left
from chatapp.spending import spent

log = logging.getLogger(__name__)

bp = Blueprint("usage", __name__)


@bp.get("/usage")
def usage() -> Response:
    """Limits in the order of their periods, dollars by the ledger; `spent` is null where that
    cannot be read."""
    limiter = present_limiter()
    identity = limiter.identities["user"]()
    try:
        limits = [limit.told() for limit in limits_left(limiter)]
    except Exception as error:  # each storage has its own for being away
        log.exception("What is left of the limits cannot be read")
        raise Refusal(
            503, "storage_unavailable", "The storage of the limits gives no answer; try again."
        ) from error
    principal = g.get("principal")
    response = jsonify(
        user=None if principal is None else principal.user,
        plan=limiter.present_plan(),
        limits=limits,
        spent=spent(cast(Records, current_app.extensions[EXTENSION_KEY]), identity),
    )
    response.headers["Cache-Control"] = "no-store"
    return response
