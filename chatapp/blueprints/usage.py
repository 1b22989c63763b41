"""GET /usage: what the caller has left of each limit, has spent and may use. No plan is charged."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, jsonify
from sqlalchemy.exc import SQLAlchemyError

from chatapp.catalogue.usage import Usage
from chatapp.estimates.tokens import PDF_BYTES_PER_TOKEN, family_of
from chatapp.ledger.table import usage_of
from chatapp.web import allowed_models
from chatapp.web.authentication import act_for_named
from chatapp.web.call_limits import MICRO, readable_limits, with_forecast
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError, current_query
from chatapp.web.formats.chat import usage_fields
from chatapp.web.middleware import forbid_caching
from chatapp.web.requests.chat import checked_user_id

log = logging.getLogger(__name__)

bp = Blueprint("usage", __name__, url_prefix="/usage")
bp.after_request(forbid_caching)


@bp.before_request
def read_user() -> None:
    """Without API keys, and with one that acts for users whom bodies name, the query names the
    user as the body of POST /chat does."""
    name = current_query().get("user_id")
    if name is not None:
        current_request().named_user = checked_user_id(name)
        act_for_named({"user_id": name})


@bp.get("")
def usage() -> Response:
    """Limits in the order of their periods, dollars from the ledger; `spent` is null if the ledger
    cannot be read."""
    current = current_request()
    services, principal = current.services, current.principal
    limiter = services.limiter
    left = readable_limits(limiter)
    return jsonify(
        user=None if principal is None else principal.user,
        plan=limiter.current.plan,
        team=None if principal is None else principal.team,
        limits=[with_forecast(limit, services.reports).as_json() for limit in left],
        spent=services.reports.spent_usd(current.user),
    )


@bp.get("/models")
def models() -> Response:
    """The models that the caller may use at POST /chat, with their context in tokens, the price of
    a million tokens in dollars, the files that they take and the tokens of an image, as estimated;
    `default` is null if they may use none that is available."""
    current = current_request()
    catalogue, router = current.services.catalogue, current.services.router
    available = router.available_models.items()
    answering = {slug: name for slug, name in available if slug not in catalogue.embedding}
    named = allowed_models.allowed(current, answering)
    default = allowed_models.default(current)
    slugs = {name: name for name in named}
    if default is not None and default.slug not in named:  # not listed in the catalogue
        slugs = {default.name: default.slug, **slugs}
        named = {default.name: default.upstream, **named}
    return jsonify(
        default=default and (default.slug if default.slug in named else default.name),
        most_output_tokens=router.max_tokens,
        pdf_bytes_per_token=PDF_BYTES_PER_TOKEN,
        models=[
            {
                "name": name,
                "provider": upstream,
                "context_tokens": catalogue.entry(slugs[name]).context,
                "input_usd": _per_million(slugs[name], Usage(1000, 0)),
                "output_usd": _per_million(slugs[name], Usage(0, 1000)),
                "files": catalogue.entry(slugs[name]).files,
                "image_tokens": family_of(catalogue.model(name, upstream)).image_tokens,
            }
            for name, upstream in named.items()
        ],
    )


def _per_million(slug: str, thousand: Usage) -> float:
    """The price of a million tokens, by that of a thousand: more may cost more per token."""
    return current_request().services.catalogue.price(slug, thousand) * 1000 / MICRO


@bp.get("/calls/<id_>")
def call(id_: str) -> Response:
    """What one of the caller's calls cost; an estimate while its status is "unfinished". `basis` is
    what an estimate was taken from: "received", "time" or "hold"; null for a bill."""
    current = current_request()
    try:
        row = current.services.reports.call(id_, user=current.user)
    except (SQLAlchemyError, OSError) as error:
        log.error("The ledger cannot be read: %s", error)
        cause = "The ledger cannot be read at the moment. Try again."
        raise ApiError(503, "ledger_unavailable", cause) from error
    if row is None:
        raise ApiError(
            404, "unknown_call", "You made no call with this id, or it is not in the ledger yet."
        )
    return jsonify(
        id=row["id"],
        model=row["model"],
        status=row["status"],
        cost_usd=row["cost_micro_usd"] / MICRO,
        usage=usage_fields(usage_of(row)),
        estimated=row["estimated"],
        basis=row["basis"],
    )
