"""GET /usage: what the caller has left of each limit, and has spent. It costs no plan anything."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, g, jsonify

from chatapp.blueprints.refusal import Refusal
from chatapp.limits_left import limits_left
from chatapp.services import current_services
from chatapp.spending import spent

log = logging.getLogger(__name__)

bp = Blueprint("usage", __name__)


@bp.get("/usage")
def usage() -> Response:
    """Limits in the order of their periods, dollars by the ledger; `spent` is null where that
    cannot be read."""
    services = current_services()
    limiter = services.limiter
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
        spent=spent(services.records, identity),
    )
    response.headers["Cache-Control"] = "no-store"
    return response
