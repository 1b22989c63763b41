"""GET /usage: what the caller has left of each limit, and has spent. No plan is charged."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, jsonify

from chatapp.web.call_limits import remaining_limits
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError

log = logging.getLogger(__name__)

bp = Blueprint("usage", __name__)


@bp.get("/usage")
def usage() -> Response:
    """Limits in the order of their periods, dollars from the ledger; `spent` is null if the ledger
    cannot be read."""
    current = current_request()
    services, principal = current.services, current.principal
    limiter = services.limiter
    try:
        limits = [limit.as_json() for limit in remaining_limits(limiter)]
    except Exception as error:  # each storage has other errors
        log.exception("The limits of a caller cannot be read")
        raise ApiError(
            503, "storage_unavailable", "The storage of the limits does not answer. Try again."
        ) from error
    response = jsonify(
        user=None if principal is None else principal.user,
        plan=limiter.present_plan(),
        team=None if principal is None else principal.team,
        limits=limits,
        spent=services.reports.spent_usd(current.user),
    )
    response.headers["Cache-Control"] = "no-store"
    return response
