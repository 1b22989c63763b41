"""GET /: a page for people to talk to POST /chat and to watch the limits work."""

from __future__ import annotations

from typing import Final, cast

from flask import Blueprint, Response, current_app, make_response, render_template

from chatapp.accounts.authentication import EXTENSION_KEY as AUTHENTICATOR_KEY
from chatapp.accounts.authentication import AccountsUnavailableError, Authenticator
from chatapp.blueprints.present import present_conversation

bp = Blueprint("page", __name__)

# Nothing from elsewhere and nothing inline: were a reply ever taken for markup, it could not run.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@bp.get("/")
def page() -> Response:
    """The page; it is the same for everybody, what differs its script asks for."""
    conversation = present_conversation()
    html = render_template(
        "chat.html",
        default_model=conversation.default_model.name,
        models=conversation.models_at_hand,
        needs_key=_needs_key(),
    )
    response = make_response(html)
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _needs_key() -> bool:
    """Whether to ask for a key; while that is unknown, nothing goes without one."""
    authenticator = cast(Authenticator, current_app.extensions[AUTHENTICATOR_KEY])
    try:
        return authenticator.required
    except AccountsUnavailableError:
        return True
