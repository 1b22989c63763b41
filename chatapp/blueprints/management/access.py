"""Who may use the management API, and its errors, as problems of RFC 9457."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from flask import Blueprint, Response, g, json, request, send_file
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.http import HTTP_STATUS_CODES

from chatapp.actions.action import FieldError
from chatapp.operators import errors
from chatapp.operators.rights import operator_with
from chatapp.web.errors import ApiError, ErrorAnswer, has_response, report_of
from chatapp.web.middleware import begins_with, forbid_caching
from ratelimit_ext import OperatorError, client_ip

log = logging.getLogger(__name__)

#: Registered only if there is a token of /admin.
bp = Blueprint("management", __name__, url_prefix="/admin/api/v1")
bp.after_request(forbid_caching)

#: Made of the table of actions: `python -m tests.chatapp.blueprints.management.description`.
DOCUMENT: Final = Path(__file__).with_name("openapi.json")
PROBLEM: Final = "application/problem+json"
HEADERS: Final = {"WWW-Authenticate": 'Bearer realm="chatapp admin"'}
#: Statuses by the codes of operators' errors. Others are what was sent: 422.
STATUSES: Final = {
    "forbidden": 403,
    **dict.fromkeys(("unknown_user", "unknown_key", "unknown_team", "unknown_caller"), 404),
    **dict.fromkeys(("unknown_admin_key", "unknown_call", "unknown_upstream"), 404),
    **dict.fromkeys(("uncounted", "no_amount", "no_override", "nothing_counted"), 404),
    **dict.fromkeys(("other_plan", "other_team", "deactivated_user", "unusable_key"), 409),
    **dict.fromkeys(("has_keys", "last_keys", "not_shared", "disabled", "not_remembered"), 409),
    **dict.fromkeys(("not_searchable", "too_many_overrides", "no_webhook"), 409),
    **dict.fromkeys(("storage", "database"), 503),
}
#: What to do about an error, by its code.
HINTS: Final = {
    **{f"unknown_{kind}": f"GET {kind}s lists the {kind}s." for kind in ("user", "key", "team")},
    "other_plan": "PUT users/{user} changes it.",
    "other_team": "PUT users/{user} moves a user.",
    "unknown_admin_key": "GET admin-keys lists them.",
    "no_amount": "GET users, keys and teams show the amounts.",
    "no_override": "GET overrides lists them.",
    **dict.fromkeys(("storage", "database"), "The request itself is valid; try again."),
}


@bp.before_request
def authenticate() -> None:
    """Find the operator of the key. A wrong key counts against its address, like every request."""
    if not begins_with(f"{bp.url_prefix}/"):
        raise NotFound
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    operator = operator_with(token.strip()) if scheme.lower() == "bearer" else None
    if operator is None:
        if token:
            log.warning("A wrong key for the management API from %s", client_ip())
        raise ApiError(
            401,
            "invalid_admin_key",
            "Send a management key, or the server's CHATAPP_ADMIN_TOKEN, as \"Authorization: "
            'Bearer …". API keys for model calls are not accepted here.',
            headers=HEADERS,
        )
    g.operator = operator


@bp.errorhandler(HTTPException)
def refuse(error: HTTPException) -> ErrorAnswer:
    if has_response(error) or (error.code or 0) < 400:
        return error
    report = report_of(error)
    answer = problem(report.status, report.code, report.message, field=report.param)
    answer.headers.extend((k, v) for k, v in error.get_headers() if k != "Content-Type")
    return answer


def unrouted(error: HTTPException) -> ErrorAnswer | None:
    """Return the answer to an address below the API's that it does not have; None for others."""
    if not request.path.startswith(f"{bp.url_prefix}/"):
        return None
    if error.code == 404:
        where = f"GET {bp.url_prefix}/openapi.json lists all addresses."
        error = ApiError(404, "not_found", f"There is no such address. {where}")
    return refuse(error)


def report(cause: OperatorError) -> Response:
    """Return what a command would print; a 503 if no operator caused it."""
    field = cause.field if isinstance(cause, FieldError) else None
    status = STATUSES.get(cause.code, 422) if field is None else 422
    return problem(status, cause.code, _sentence(cause), field=field)


errors.install(bp, report)


def _sentence(error: OperatorError) -> str:
    sentence = str(error) if str(error).endswith((".", "?")) else f"{error}."
    return " ".join(filter(None, [sentence, HINTS.get(error.code)]))


def problem(status: int, code: str, detail: str, *, field: str | None = None) -> Response:
    """Return an error: its status, a word for programs, a sentence, and the field that is wrong."""
    body = {
        "type": "about:blank",
        "title": HTTP_STATUS_CODES[status],
        "status": status,
        "code": code,
        "detail": detail,
        **({} if field is None else {"field": field}),
    }
    return Response(json.dumps(body, sort_keys=False), status=status, content_type=PROBLEM)


@bp.get("/openapi.json")
def description() -> Response:
    return send_file(DOCUMENT)
